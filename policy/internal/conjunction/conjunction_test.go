package conjunction_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/internal/conjunction"
	"github.com/nosidecar/mesh/policy/route"
)

// holds returns a function that says whether m holds for a request.
func holds(t *testing.T, m route.Match) func(*route.Request) bool {
	t.Helper()
	table, err := route.NewTable([]route.Route{{Matches: []route.Match{m}, Destinations: make([]route.Destination, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	return func(r *route.Request) bool {
		_, _, ok := table.Match(r)
		return ok
	}
}

var (
	exact  = func(s string) route.StringMatch { return route.StringMatch{Kind: route.Exact, Value: s} }
	folded = func(s string) route.StringMatch {
		return route.StringMatch{Kind: route.Exact, Value: s, IgnoreCase: true}
	}
	prefix = func(s string) route.StringMatch { return route.StringMatch{Kind: route.Prefix, Value: s} }
	regex  = func(s string) route.StringMatch { return route.StringMatch{Kind: route.Regex, Value: s} }
)

// TestAnd joins every match of a list with every other one and compares, for a number of requests, with what each says
// by itself.
func TestAnd(t *testing.T) {
	matches := []route.Match{
		{},
		{Method: exact("GET")},
		{Method: exact("POST")},
		{Method: regex("GET|PUT"), Authority: prefix("a")},
		{Scheme: exact("http"), Port: 80},
		{Port: 8080},
		{URI: exact("/a/b")},
		{URI: folded("/A/B")},
		{URI: prefix("/a")},
		{URI: regex("/a/[^/]*")},
		{URI: regex(".*b")},
		{URI: regex("/a.b")},
		{URI: regex("(?i)/A(?:/.|)")},
		{URI: regex(`\A/a\?x`)},
		{Headers: []route.KeyMatch{{Key: "x", Value: exact("1")}}},
		{WithoutHeaders: []route.KeyMatch{{Key: "x", Value: exact("1")}}, Query: []route.KeyMatch{{Key: "q", Value: exact("b")}}},
		conjunction.Never,
	}
	var requests []route.Request
	for _, method := range []string{"GET", "PUT", "POST"} {
		for _, path := range []string{"/", "/a", "/a/b", "/A/b", "/a/c", "/a/b/c", "/b"} {
			for _, query := range []string{"", "q=b", "x", "b"} {
				for _, port := range []int{80, 8080} {
					for _, x := range []string{"", "1"} {
						r := route.Request{Method: method, Scheme: "http", Authority: "a.b", Path: path, RawQuery: query, Port: port}
						if x != "" {
							r.Header = map[string][]string{"X": {x}}
						}
						requests = append(requests, r)
					}
				}
			}
		}
	}
	for i, a := range matches {
		holdsA := holds(t, a)
		for j, b := range matches {
			holdsB := holds(t, b)
			for _, keep := range []bool{false, true} {
				both, ok, err := conjunction.And(a, b, keep)
				if err != nil {
					t.Fatalf("And(%d, %d): %v", i, j, err)
				}
				if keep && ok && both.URI != a.URI {
					t.Errorf("And(%d, %d) changes the condition that rewrites go by", i, j)
				}
				holdsBoth := holds(t, both)
				for k := range requests {
					r := &requests[k]
					want := holdsA(r) && holdsB(r)
					if got := ok && holdsBoth(r); got != want {
						t.Fatalf("And(%d, %d) = %+v: %v for %+v, want %v", i, j, both, got, r, want)
					}
				}
			}
		}
	}
}

func TestPath_Anchors(t *testing.T) {
	for _, expr := range []string{"(/a$|/b)", "(?m)^/a", `(?m)/a$`, `/a\z|/b`} {
		if m, err := conjunction.Path(regex(expr)); err == nil {
			t.Errorf("Path(%q) = %v, want an error", expr, m)
		}
	}
}

// FuzzPath compares the condition on :path with the one on the path alone.
func FuzzPath(f *testing.F) {
	f.Add("/users/[^/]*", "/users/1", "a=b")
	f.Add(".*", "/", "?")
	f.Add("/a.b", "/a", "b")
	f.Add("(?s:.)+|[!-~]", "/x", "")
	f.Add(`\Q/a?b\E`, "/a", "b")
	f.Fuzz(func(t *testing.T, expr, path, query string) {
		if _, err := regexp.Compile(expr); err != nil || len(expr) > 200 {
			return
		}
		if strings.ContainsAny(path, "?#") || strings.ContainsAny(query, "#") {
			return
		}
		if _, err := url.ParseQuery(query); err != nil {
			return
		}
		m, err := conjunction.Path(regex(expr))
		if err != nil {
			return
		}
		r := route.Request{Method: "GET", Path: path, RawQuery: query}
		want, err := route.NewTable([]route.Route{{
			Matches: []route.Match{{URI: regex(expr)}}, Destinations: make([]route.Destination, 1),
		}})
		if err != nil {
			return // such as too large
		}
		got, err := route.NewTable([]route.Route{{
			Matches: []route.Match{{Headers: []route.KeyMatch{m}}}, Destinations: make([]route.Destination, 1),
		}})
		if err != nil {
			t.Fatalf("Path(%q) = %v: %v", expr, m, err)
		}
		_, _, wanted := want.Match(&r)
		if _, _, ok := got.Match(&r); ok != wanted {
			t.Errorf("Path(%q) = %q: %v for %q?%q, want %v", expr, m.Value.Value, ok, path, query, wanted)
		}
	})
}
