package route_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/route"
)

// source makes choices: those of a fuzzer, and none when these have run out.
type source struct{ data []byte }

func (s *source) choose(n int) int {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int(b) % n
}

func of[T any](s *source, list ...T) T { return list[s.choose(len(list))] }

// path returns a path of parts that tables of this source are about.
func (s *source) path() string {
	path := "/"
	for range s.choose(5) {
		path += of(s, "a", "b", "ab", "AB", "k", "K", "\u212a", "s", "\u017f", "users/", "/", "17", "x.jpg", "\xff", "\ufffd", "é", "É", "\n")
	}
	return path
}

func (s *source) regex() string {
	expr := of(s, "", "/", "(?i)", "(?s)", "(?i)/")
	for range s.choose(5) {
		expr += of(s, "a", "b", "ab", "(ab|17)", "(?:users/|AB|k)", "(a|)", "k", "s", "users/", "[0-9]+", ".*", "x?", "(?:17)+", "(ab){0,2}", "(ab){1,2}",
			`\.jpg`, "\ufffd", "é", "[^/]+", "a*", "(?i:users/)", "(?i:k17)", "$", "^", `\b`, "/")
	}
	return expr
}

func (s *source) text() route.StringMatch {
	switch s.choose(6) {
	case 0:
		return route.StringMatch{}
	case 1:
		return exact(s.path())
	case 2:
		return prefix(s.path())
	case 3:
		return route.StringMatch{Kind: route.Exact, Value: s.path(), IgnoreCase: true}
	case 4:
		return route.StringMatch{Kind: route.Prefix, Value: s.path(), IgnoreCase: true}
	}
	return regex(s.regex())
}

func (s *source) value() route.StringMatch {
	return of(s, exact("1"), exact("2"), exact(""), prefix("1"), route.StringMatch{Kind: route.Present}, route.StringMatch{Kind: route.Exact, Value: "x", IgnoreCase: true})
}

func (s *source) match() route.Match {
	m := route.Match{URI: s.text()}
	switch s.choose(8) {
	case 0:
		m.Headers = keys(of(s, "x-a", "x-b"), s.value())
	case 1:
		m.WithoutHeaders = keys(of(s, "x-a", "x-b"), s.value())
	case 2:
		m.Query = keys(of(s, "p", "q"), s.value())
	case 3:
		m.Authority = of(s, exact("one"), exact("two"), prefix("o"))
	case 4:
		m.Method = exact(of(s, "GET", "PUT"))
	case 5:
		m.Headers = append(keys("x-a", s.value()), keys("x-b", s.value())...)
	}
	return m
}

func (s *source) request() route.Request {
	r := route.Request{Method: of(s, "GET", "PUT"), Authority: of(s, "one", "two", ""), Path: s.path(), RawQuery: of(s, "", "p=1", "q=2&p=1&p=2", "q", "p=x"), Port: 80}
	r.Header = map[string][]string{}
	for _, name := range []string{"X-A", "x-b"} {
		if values := of(s, nil, []string{"1"}, []string{"2"}, []string{""}, []string{"1", "2"}, []string{"X"}); values != nil {
			r.Header[name] = values
		}
	}
	return r
}

// sameMatches checks that a table answers with its index as it does without.
func sameMatches(t *testing.T, data []byte) {
	t.Helper()
	s := &source{data}
	var routes []route.Route
	for range 1 + s.choose(24) {
		var matches []route.Match
		for range s.choose(4) { // mostly some: a route without takes every request
			matches = append(matches, s.match())
		}
		if len(matches) == 0 && s.choose(4) != 0 {
			matches = append(matches, s.match())
		}
		routes = append(routes, to("b", matches...))
	}
	table, err := route.NewTable(routes)
	if err != nil {
		return // not every combination is an expression
	}
	for range 8 {
		r := s.request()
		rule, match, ok := table.Search(&r)
		if gotRule, gotMatch, got := table.Indexed(&r); gotRule != rule || gotMatch != match || got != ok {
			t.Errorf("with the index: %v %d of %v; without: %v %d of %v\n%+v\n%+v", got, gotMatch, index(gotRule), ok, match, index(rule), r, routes)
		}
	}
}

func index(r *route.Rule) int {
	if r == nil {
		return -1
	}
	return r.Index
}

func TestIndexFindsTheFirstMatch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 600 {
		data := make([]byte, 400)
		for j := range data {
			data[j] = byte(random.Uint32())
		}
		sameMatches(t, data)
	}
}

func FuzzIndex(f *testing.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		data := make([]byte, 300)
		for j := range data {
			data[j] = byte(random.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(sameMatches)
}

// Tables of n routes of one kind, of which the last applies to a request, or none.
var kinds = []struct {
	name  string
	match func(i int) route.Match
	path  string // of the request, a format
}{
	{"exact", func(i int) route.Match { return route.Match{URI: exact(fmt.Sprintf("/api/v1/item-%d", i))} }, "/api/v1/item-%d"},
	{"prefix", func(i int) route.Match { return route.Match{URI: prefix(fmt.Sprintf("/api/v1/item-%d/", i))} }, "/api/v1/item-%d/parts/7"},
	{"regex", func(i int) route.Match {
		return route.Match{URI: regex(fmt.Sprintf("/api/v1/item-%d/[a-z]+/[0-9]+", i))}
	}, "/api/v1/item-%d/parts/7"},
	{"regex suffix", func(i int) route.Match { return route.Match{URI: regex(fmt.Sprintf("/api/[^/]+/item-%d", i))} }, "/api/v1/item-%d"},
	{"header", func(i int) route.Match {
		return route.Match{URI: prefix("/"), Headers: keys("x-item", exact(fmt.Sprint(i)))}
	}, "/%d"},
	{"mixed", func(i int) route.Match {
		switch i % 4 {
		case 0:
			return route.Match{URI: exact(fmt.Sprintf("/other/%d", i))}
		case 1:
			return route.Match{URI: prefix("/"), Headers: keys("x-user", exact(fmt.Sprint(i)))}
		case 2:
			return route.Match{URI: prefix("/"), Query: keys("v", exact(fmt.Sprint(i)))}
		}
		return route.Match{URI: regex(fmt.Sprintf("/v%d/[a-z]+/.*", i))}
	}, "/v%d/parts/7"},
}

func kindOf(tb testing.TB, n int, match func(int) route.Match) *route.Table {
	tb.Helper()
	var routes []route.Route
	for i := range n {
		routes = append(routes, to("b", match(i)))
	}
	return table(tb, routes...)
}

func TestIndexTellsMatchesApart(t *testing.T) {
	for _, kind := range kinds {
		if longest := kindOf(t, 1000, kind.match).LongestList(); longest > 11 {
			t.Errorf("%s: %d of 1,000 matches are filed together", kind.name, longest)
		}
	}
}

func TestIndexIsSmall(t *testing.T) {
	const n, most = 2000, 400
	for _, kind := range kinds {
		table := kindOf(t, n, kind.match)
		before := leak.Heap()
		table.Match(&route.Request{Path: "/"})
		if each := (leak.Heap() - before) / n; each > most {
			t.Errorf("%s: the index takes %d bytes for each match, want at most %d", kind.name, each, most)
		}
		runtime.KeepAlive(table)
	}
}

func BenchmarkRoutes(b *testing.B) {
	for _, kind := range kinds {
		for _, n := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/routes=%d", kind.name, n), func(b *testing.B) {
				last := n - 1
				if kind.name == "mixed" {
					last = n - 1 - (n-1)%4 - 1 // one of the regular expressions
				}
				t := kindOf(b, n, kind.match)
				r := route.Request{Method: "GET", Path: fmt.Sprintf(kind.path, last), RawQuery: "w=1", Header: map[string][]string{"X-Item": {fmt.Sprint(last)}}}
				b.ReportAllocs()
				for b.Loop() {
					if rule, _, ok := t.Match(&r); !ok || rule.Index != last {
						b.Fatal(rule, ok)
					}
				}
			})
		}
	}
}

func BenchmarkNewIndex(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind.name, func(b *testing.B) {
			r := route.Request{Path: "/"}
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				t := kindOf(b, 1000, kind.match)
				b.StartTimer()
				t.Indexed(&r)
			}
		})
	}
}
