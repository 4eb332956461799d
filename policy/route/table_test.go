package route_test

import (
	"math"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

func exact(s string) route.StringMatch  { return route.StringMatch{Kind: route.Exact, Value: s} }
func prefix(s string) route.StringMatch { return route.StringMatch{Kind: route.Prefix, Value: s} }
func regex(s string) route.StringMatch  { return route.StringMatch{Kind: route.Regex, Value: s} }
func present() route.StringMatch        { return route.StringMatch{Kind: route.Present} }

func fold(m route.StringMatch) route.StringMatch {
	m.IgnoreCase = true
	return m
}

func keys(key string, value route.StringMatch) []route.KeyMatch {
	return []route.KeyMatch{{Key: key, Value: value}}
}

// to is a route with a destination and nothing else.
func to(host string, matches ...route.Match) route.Route {
	return route.Route{
		Name:         host,
		Matches:      matches,
		Destinations: []route.Destination{{Target: route.Target{Host: host}}},
	}
}

func table(t testing.TB, routes ...route.Route) *route.Table {
	t.Helper()
	table, err := route.NewTable(routes)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func get(t testing.TB, url string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

func TestMatch(t *testing.T) {
	opaque := get(t, "http://a/")
	opaque.URL.Opaque = "//a/o%2Fp?q"
	hosted := get(t, "http://10.0.0.1:8080/")
	hosted.Host = "Users.example"
	raw := get(t, "http://a/")
	raw.Header = http.Header{"x-lower": {"v"}}

	for _, c := range []struct {
		name  string
		match route.Match
		req   *http.Request
		want  bool
	}{
		{"no condition", route.Match{}, get(t, "http://a/x"), true},

		{"exact path", route.Match{URI: exact("/a/b")}, get(t, "http://a/a/b"), true},
		{"exact path, query is not looked at", route.Match{URI: exact("/a/b")}, get(t, "http://a/a/b?c=d"), true},
		{"exact path, longer", route.Match{URI: exact("/a/b")}, get(t, "http://a/a/b/"), false},
		{"exact path, case", route.Match{URI: exact("/a/b")}, get(t, "http://a/A/b"), false},
		{"exact path, any case", route.Match{URI: fold(exact("/a/b"))}, get(t, "http://a/A/B"), true},
		{"exact path, escaped", route.Match{URI: exact("/a%2Fb")}, get(t, "http://a/a%2Fb"), true},
		{"exact path, not unescaped", route.Match{URI: exact("/a/b")}, get(t, "http://a/a%2Fb"), false},
		{"no path is a slash", route.Match{URI: exact("/")}, get(t, "http://a"), true},
		{"opaque URL", route.Match{URI: exact("/o%2Fp")}, opaque, true},
		{"prefix is of the string, not of segments", route.Match{URI: prefix("/api")}, get(t, "http://a/apifoo"), true},
		{"prefix, shorter path", route.Match{URI: prefix("/api/")}, get(t, "http://a/api"), false},
		{"prefix, any case", route.Match{URI: fold(prefix("/API"))}, get(t, "http://a/api/x"), true},
		{"regex is of the whole path", route.Match{URI: regex("/a|/a/b")}, get(t, "http://a/a/b"), true},
		{"regex, only a part", route.Match{URI: regex("/a")}, get(t, "http://a/a/b"), false},
		{"regex, alternatives are anchored", route.Match{URI: regex("/x[0-9]|/y")}, get(t, "http://a/x1/y"), false},
		{"regex, rest", route.Match{URI: regex("/a/.*")}, get(t, "http://a/a/b?c"), true},
		{"regex, rest of nothing", route.Match{URI: regex("/a/.*")}, get(t, "http://a/a/"), true},
		{"regex, rest, other start", route.Match{URI: regex("/a/.*")}, get(t, "http://a/b/a/"), false},
		{"regex, case", route.Match{URI: fold(regex("/a[b]"))}, get(t, "http://a/AB"), false},

		{"scheme", route.Match{Scheme: exact("https")}, get(t, "https://a/"), true},
		{"other scheme", route.Match{Scheme: exact("https")}, get(t, "http://a/"), false},
		{"method", route.Match{Method: exact("GET")}, get(t, "http://a/"), true},
		{"method of the zero request", route.Match{Method: exact("GET")}, &http.Request{URL: get(t, "http://a").URL}, true},
		{"method, case", route.Match{Method: exact("get")}, get(t, "http://a/"), false},
		{"authority", route.Match{Authority: exact("a")}, get(t, "http://a/"), true},
		{"authority, case", route.Match{Authority: exact("A")}, get(t, "http://a/"), false},
		{"authority with the port sent", route.Match{Authority: exact("a:80")}, get(t, "http://a:80/"), true},
		{"authority without a port sent", route.Match{Authority: exact("a:80")}, get(t, "http://a/"), false},
		{"authority is the Host", route.Match{Authority: exact("Users.example")}, hosted, true},

		{"port", route.Match{Port: 8080}, hosted, true},
		{"port of http", route.Match{Port: 80}, get(t, "http://a/"), true},
		{"port of https", route.Match{Port: 443}, get(t, "https://a/"), true},
		{"other port", route.Match{Port: 8080}, get(t, "http://a/"), false},

		{"header, name in any case", route.Match{Headers: keys("x-USER", exact("Jo"))}, get(t, "http://a", "X-User", "Jo"), true},
		{"header, case of the value", route.Match{Headers: keys("x-user", exact("jo"))}, get(t, "http://a", "X-User", "Jo"), false},
		{"header, lower-case map", route.Match{Headers: keys("X-Lower", exact("v"))}, raw, true},
		{"header, absent", route.Match{Headers: keys("x-user", exact(""))}, get(t, "http://a"), false},
		{"header, absent, regex of anything", route.Match{Headers: keys("x-user", regex(".*"))}, get(t, "http://a"), false},
		{"header, several values", route.Match{Headers: keys("x", exact("1,2"))}, get(t, "http://a", "x", "1", "x", "2"), true},
		{"header, one of several", route.Match{Headers: keys("x", exact("1"))}, get(t, "http://a", "x", "1", "x", "2"), false},
		{"header, present", route.Match{Headers: keys("x", present())}, get(t, "http://a", "x", ""), true},
		{"header, not present", route.Match{Headers: keys("x", present())}, get(t, "http://a"), false},
		{"header, any", route.Match{Headers: keys("x", route.StringMatch{})}, get(t, "http://a"), true},
		{"header host", route.Match{Headers: keys("host", exact("a"))}, get(t, "http://a"), true},
		{"header :path", route.Match{Headers: keys(":path", exact("/b?c"))}, get(t, "http://a/b?c"), true},
		{"header :method", route.Match{Headers: keys(":method", exact("GET"))}, get(t, "http://a/b?c"), true},
		{"header :scheme", route.Match{Headers: keys(":scheme", exact("http"))}, get(t, "http://a/b?c"), true},
		{"all headers", route.Match{Headers: append(keys("x", present()), keys("y", present())...)},
			get(t, "http://a", "x", ""), false},

		{"without, absent counts as empty", route.Match{WithoutHeaders: keys("x", exact("1"))}, get(t, "http://a"), true},
		{"without, other value", route.Match{WithoutHeaders: keys("x", exact("1"))}, get(t, "http://a", "x", "2"), true},
		{"without, that value", route.Match{WithoutHeaders: keys("x", exact("1"))}, get(t, "http://a", "x", "1"), false},
		{"without empty, absent", route.Match{WithoutHeaders: keys("x", exact(""))}, get(t, "http://a"), false},
		{"without any value, absent", route.Match{WithoutHeaders: keys("x", regex(".*"))}, get(t, "http://a"), false},
		{"without some value, absent", route.Match{WithoutHeaders: keys("x", regex(".+"))}, get(t, "http://a"), true},
		{"without, present", route.Match{WithoutHeaders: keys("x", present())}, get(t, "http://a", "x", ""), false},
		{"without, not present", route.Match{WithoutHeaders: keys("x", present())}, get(t, "http://a"), true},

		{"query", route.Match{Query: keys("q", exact("1"))}, get(t, "http://a?p=0&q=1"), true},
		{"query, first value counts", route.Match{Query: keys("q", exact("2"))}, get(t, "http://a?q=1&q=2"), false},
		{"query, case of the key", route.Match{Query: keys("q", exact("1"))}, get(t, "http://a?Q=1"), false},
		{"query, as encoded", route.Match{Query: keys("q", exact("a%20b"))}, get(t, "http://a?q=a%20b"), true},
		{"query, value with =", route.Match{Query: keys("q", exact("a=b"))}, get(t, "http://a?q=a=b"), true},
		{"query, absent", route.Match{Query: keys("q", regex(".*"))}, get(t, "http://a?qq=1"), false},
		{"query, present without value", route.Match{Query: keys("q", present())}, get(t, "http://a?q"), true},
		{"query, not present", route.Match{Query: keys("q", present())}, get(t, "http://a"), false},
		{"query, any", route.Match{Query: keys("q", route.StringMatch{})}, get(t, "http://a"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			view := route.NewRequest(c.req)
			_, _, got := table(t, to("b", c.match)).Match(&view)
			if got != c.want {
				t.Errorf("Match = %v, want %v", got, c.want)
			}
		})
	}
}

func TestFirstMatchWins(t *testing.T) {
	routes := table(t,
		to("beta", route.Match{Headers: keys("x-beta", present())}, route.Match{URI: prefix("/beta")}),
		to("api", route.Match{URI: prefix("/api")}),
		to("users", route.Match{URI: exact("/api/users")}), // shadowed
		to("rest"),
		to("never"),
	)
	for _, c := range []struct {
		name  string
		req   *http.Request
		route string
		match int
	}{
		{"second alternative", get(t, "http://a/beta"), "beta", 1},
		{"first alternative", get(t, "http://a/beta", "X-Beta", ""), "beta", 0},
		{"not the longest", get(t, "http://a/api/users"), "api", 0},
		{"no matches at all", get(t, "http://a/"), "rest", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			view := route.NewRequest(c.req)
			e, match, ok := routes.Match(&view)
			if !ok || e.Route.Name != c.route || match != c.match {
				t.Errorf("Match = %v, %d, %v, want %s, %d", e, match, ok, c.route, c.match)
			}
			if routes.Rule(e.Index) != e {
				t.Errorf("Rule(%d) is another route", e.Index)
			}
		})
	}
}

func TestNoMatch(t *testing.T) {
	view := route.NewRequest(get(t, "http://a/b"))
	for name, routes := range map[string]*route.Table{
		"nil": nil, "empty": table(t), "other path": table(t, to("b", route.Match{URI: exact("/")})),
	} {
		if e, match, ok := routes.Match(&view); ok || e != nil || match != -1 {
			t.Errorf("%s: Match = %v, %d, %v, want none", name, e, match, ok)
		}
	}
}

func weighted(weights ...int) route.Route {
	var r route.Route
	for i, w := range weights {
		r.Destinations = append(r.Destinations, route.Destination{Target: route.Target{Port: i + 1}, Weight: w})
	}
	return r
}

// The random source goes through all its values once, so that the shares are exact.
func TestPickByWeight(t *testing.T) {
	for _, c := range []struct {
		name    string
		weights []int
	}{
		{"even", []int{1, 1}},
		{"sum is not 100", []int{1, 7}},
		{"zero gets nothing", []int{0, 3, 0, 5, 0}},
		{"rare", []int{999, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := table(t, weighted(c.weights...)).Rule(0)
			counts, total := make([]int, len(c.weights)), uint32(1)
			for i := uint32(0); i < total; i++ {
				b := e.Pick(func(n uint32) uint32 { total = n; return i })
				counts[b.Index]++
				if b.Target.Port != b.Index+1 {
					t.Fatalf("Pick = %+v, want the target of destination %d", b.Target, b.Index)
				}
			}
			for i, w := range c.weights {
				if counts[i] != w {
					t.Errorf("destination %d was picked %d times in %d, want %d", i, counts[i], total, w)
				}
			}
		})
	}
}

func TestPickSingleIgnoresWeight(t *testing.T) {
	e := table(t, weighted(0)).Rule(0)
	b := e.Pick(func(uint32) uint32 { t.Error("a number was drawn for nothing"); return 0 })
	if b == nil || b.Index != 0 {
		t.Errorf("Pick = %v, want the only destination", b)
	}
}

func TestPickNone(t *testing.T) {
	e := table(t, route.Route{Direct: &route.DirectResponse{Status: 200}}).Rule(0)
	if b := e.Pick(nil); b != nil || e.Backends() != 0 {
		t.Errorf("Pick = %v of %d, want none", b, e.Backends())
	}
}

func TestNewTableErrors(t *testing.T) {
	headers := func(set ...string) route.Headers {
		return route.Headers{Request: route.HeaderOps{Set: []route.Header{{Name: set[0], Value: set[1]}}}}
	}
	with := func(change func(*route.Route)) route.Route {
		r := to("a")
		change(&r)
		return r
	}
	match := func(m route.Match) route.Route { return to("a", m) }
	redirect := func(r route.Redirect) route.Route { return route.Route{Redirect: &r} }

	for _, c := range []struct {
		route route.Route
		want  string // after "route: routes[1]."
	}{
		{route.Route{}, "Destinations: neither"},
		{route.Route{Redirect: &route.Redirect{}, Direct: &route.DirectResponse{Status: 200}}, "Direct: Redirect is set"},
		{with(func(r *route.Route) { r.Redirect = &route.Redirect{} }), "Destinations: Redirect or Direct"},
		{route.Route{Redirect: &route.Redirect{}, Rewrite: route.Rewrite{URI: "/"}}, "Rewrite: nothing"},
		{route.Route{Redirect: &route.Redirect{}, Fault: fault.Config{Delay: fault.Delay{Fraction: 1e-6}}}, "Fault: nothing"},

		{match(route.Match{URI: regex("(")}), "Matches[0].URI: error parsing regexp"},
		{match(route.Match{URI: regex("a)|(b")}), "Matches[0].URI: error parsing regexp"},
		{match(route.Match{URI: present()}), "Matches[0].URI: kind Present"},
		{match(route.Match{URI: route.StringMatch{Value: "/"}}), "Matches[0].URI: Value"},
		{match(route.Match{Method: route.StringMatch{Kind: 9}}), "Matches[0].Method: 9"},
		{match(route.Match{Scheme: regex("*")}), "Matches[0].Scheme: error"},
		{match(route.Match{Authority: regex("*")}), "Matches[0].Authority: error"},
		{match(route.Match{Port: 65536}), "Matches[0].Port: 65536"},
		{match(route.Match{Headers: keys("a b", exact(""))}), `Matches[0].Headers[0]: "a b"`},
		{match(route.Match{Headers: keys("@request.auth.claims.a", exact(""))}), "Matches[0].Headers[0]: "},
		{match(route.Match{Headers: keys(":status", exact(""))}), "Matches[0].Headers[0]: "},
		{match(route.Match{Headers: keys("a", regex("*"))}), "Matches[0].Headers[0]: error parsing regexp"},
		{match(route.Match{WithoutHeaders: keys("a", route.StringMatch{})}), "Matches[0].WithoutHeaders[0]: kind Any"},
		{match(route.Match{Query: keys("", exact(""))}), "Matches[0].Query[0]: the Key"},
		{match(route.Match{Query: keys("a", regex("*"))}), "Matches[0].Query[0]: error parsing regexp"},

		{redirect(route.Redirect{Status: 304}), "Redirect.Status: 304"},
		{redirect(route.Redirect{Scheme: "ftp"}), "Redirect.Scheme"},
		{redirect(route.Redirect{Authority: "a/b"}), "Redirect.Authority"},
		{redirect(route.Redirect{Port: -1}), "Redirect.Port"},
		{redirect(route.Redirect{Port: 1, DerivePort: route.FromRequest}), "Redirect.Port: DerivePort"},
		{redirect(route.Redirect{Port: 1, Authority: "a:2"}), "Redirect.Authority: it has a port"},
		{redirect(route.Redirect{DerivePort: route.FromRequest, Authority: "a:2"}), "Redirect.Authority: it has a port"},
		{redirect(route.Redirect{DerivePort: 9}), "Redirect.DerivePort: 9"},
		{redirect(route.Redirect{URI: "/a", PrefixRewrite: "/b"}), "Redirect.PrefixRewrite: URI"},
		{redirect(route.Redirect{URI: "a"}), "Redirect.URI"},
		{redirect(route.Redirect{PrefixRewrite: "/a?b"}), "Redirect.PrefixRewrite"},
		{route.Route{Direct: &route.DirectResponse{}}, "Direct.Status: 0"},
		{route.Route{Direct: &route.DirectResponse{Status: 204, Body: []byte("a")}}, "Direct.Body"},
		{route.Route{Direct: &route.DirectResponse{Status: 304, Body: []byte("a")}}, "Direct.Body"},

		{weighted(1, -1), "Destinations[1].Weight: -1"},
		{weighted(0, 0), "Destinations: the sum of the weights is 0"},
		{weighted(1<<31, 1<<31), "Destinations: the sum of the weights is too large"},
		{with(func(r *route.Route) { r.Destinations[0].Target.Host = "a/b" }), "Destinations[0].Host"},
		{with(func(r *route.Route) { r.Destinations[0].Target.Port = -1 }), "Destinations[0].Port"},
		{with(func(r *route.Route) { r.Destinations[0].Headers = headers("a", "%NO%") }),
			"Destinations[0].Headers.Request.Set[0]: %NO% is not supported"},
		{with(func(r *route.Route) { r.Mirrors = []route.Mirror{{Fraction: 1.000001}} }), "Mirrors[0].Fraction"},
		{with(func(r *route.Route) { r.Mirrors = []route.Mirror{{Target: route.Target{Port: -1}}} }), "Mirrors[0].Port"},

		{with(func(r *route.Route) { r.Rewrite.URI = "a" }), "Rewrite.URI"},
		{with(func(r *route.Route) { r.Rewrite.URI = "/a?b" }), "Rewrite.URI"},
		{with(func(r *route.Route) { r.Rewrite.URI = "/%zz" }), "Rewrite.URI"},
		{with(func(r *route.Route) { r.Rewrite = route.Rewrite{URI: "/a", Pattern: "a", Substitution: "b"} }), "Rewrite.Pattern"},
		{with(func(r *route.Route) { r.Rewrite.Pattern = "a" }), "Rewrite.Pattern"},
		{with(func(r *route.Route) { r.Rewrite = route.Rewrite{Pattern: "(", Substitution: "b"} }), "Rewrite.Pattern"},
		{with(func(r *route.Route) { r.Rewrite = route.Rewrite{Pattern: "a", Substitution: `\1`} }), "Rewrite.Substitution"},
		{with(func(r *route.Route) { r.Rewrite = route.Rewrite{Pattern: "a", Substitution: `\x`} }), "Rewrite.Substitution"},
		{with(func(r *route.Route) { r.Rewrite = route.Rewrite{Pattern: "a", Substitution: `a\`} }), "Rewrite.Substitution"},
		{with(func(r *route.Route) { r.Rewrite = route.Rewrite{Pattern: "a", Substitution: `?`} }), "Rewrite.Substitution"},
		{with(func(r *route.Route) { r.Rewrite.Authority = "a b" }), "Rewrite.Authority"},

		{with(func(r *route.Route) { r.Headers = headers("a b", "") }), "Headers.Request.Set[0]"},
		{with(func(r *route.Route) { r.Headers = headers("a", "x\r\ny: z") }), "Headers.Request.Set[0]"},
		{with(func(r *route.Route) { r.Headers = headers("a", "100%") }), "Headers.Request.Set[0]"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%START_TIME%") }),
			"Headers.Request.Set[0]: %START_TIME% is not supported"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%REQ%") }), "Headers.Request.Set[0]: %REQ% is not"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%REQ(b%") }), "Headers.Request.Set[0]: %REQ(b% is not"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%REQ(b):x%") }), "Headers.Request.Set[0]: %REQ(b):x% is not"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%REQ(b):0%") }), "Headers.Request.Set[0]: %REQ(b):0% is not"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%REQ(b c)%") }), "Headers.Request.Set[0]: %REQ(b c)%:"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%REQ(b?)%") }), "Headers.Request.Set[0]: %REQ(b?)%:"},
		{with(func(r *route.Route) { r.Headers = headers("a", "%RESP(b)%") }),
			"Headers.Request.Set[0]: %RESP(b)% is for response headers"},
		{with(func(r *route.Route) { r.Headers = headers(":path", "/") }), "Headers.Request.Set[0]"},
		{with(func(r *route.Route) { r.Headers = headers("host", "a/b") }), "Headers.Request.Set[0]"},
		{with(func(r *route.Route) { r.Headers = headers("content-length", "1") }), "Headers.Request.Set[0]: the header frames"},
		{with(func(r *route.Route) { r.Headers.Request.Remove = []string{"Host"} }), "Headers.Request.Remove[0]: the Host"},
		{with(func(r *route.Route) { r.Headers.Request.Remove = []string{"content-length"} }), "Headers.Request.Remove[0]: the header frames"},
		{with(func(r *route.Route) { r.Headers.Response.Remove = []string{":status"} }), "Headers.Response.Remove[0]"},
		{with(func(r *route.Route) { r.Headers.Response.Add = []route.Header{{Name: "host", Value: "a"}} }),
			"Headers.Response.Add[0]: the Host"},

		{with(func(r *route.Route) { r.Timeout = -time.Second }), "Timeout"},
		{with(func(r *route.Route) { r.Retry = retry.Config{Retries: -1} }), "Retry"},
		{with(func(r *route.Route) { r.Fault.Abort.Fraction = 1e-6 }), "Fault"},
	} {
		t.Run(c.want, func(t *testing.T) {
			_, err := route.NewTable([]route.Route{to("fine"), c.route})
			if err == nil {
				t.Fatal("NewTable = nil, want an error")
			}
			if want := "route: routes[1]." + c.want; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("NewTable = %q, want it to begin with %q", err, want)
			}
		})
	}
}

// TestNewTableBounds: the largest values are valid.
func TestNewTableBounds(t *testing.T) {
	last := weighted(math.MaxUint32-1, 1)
	last.Destinations[1].Target.Port = math.MaxUint16
	rules := table(t, last,
		route.Route{Redirect: &route.Redirect{Port: math.MaxUint16}},
		route.Route{Direct: &route.DirectResponse{Status: 200}},
		route.Route{Direct: &route.DirectResponse{Status: 599}},
	)
	b := rules.Rule(0).Pick(func(n uint32) uint32 {
		if n != math.MaxUint32 {
			t.Errorf("the weights are %d together, want %d", n, uint32(math.MaxUint32))
		}
		return n - 1
	})
	if b.Index != 1 || b.Target.Port != math.MaxUint16 {
		t.Errorf("picked destination %d, port %d", b.Index, b.Target.Port)
	}
	resp := rules.Rule(1).Respond(get(t, "http://a/"), -1)
	if got, want := resp.Header.Get("Location"), "http://a:65535/"; got != want {
		t.Errorf("redirect to %q, want %q", got, want)
	}
}

func TestNewTableReportsEveryError(t *testing.T) {
	_, err := route.NewTable([]route.Route{{}, {Timeout: -1}})
	got := strings.Split(err.Error(), "\n")
	if len(got) != 3 {
		t.Errorf("NewTable = %q, want 3 errors", got)
	}
}

// FuzzRegex compares with package regexp, which cannot be told to match the whole string otherwise.
func FuzzRegex(f *testing.F) {
	for _, seed := range [][2]string{
		{"/a/.*", "/a/\n"}, {"abc", "abcd"}, {"a|b", "ab"}, {"", "x"}, {"(?i)A", "a"}, {"^a$", "a"}, {`a\.b.*`, "a.bc"},
		{"(?s).*", "a\nb"}, {`\Qa.`, "a."}, {"a??", "a"}, {"^a", "a"}, {"(?m)^a$", "a\nb"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, expr, s string) {
		if _, err := regexp.Compile(expr); err != nil {
			return
		}
		want, err := regexp.Compile(`\A(?:` + expr + `)\z`)
		if err != nil {
			return
		}
		routes, err := route.NewTable([]route.Route{to("b", route.Match{Authority: regex(expr)})})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, got := routes.Match(&route.Request{Authority: s}); got != want.MatchString(s) {
			t.Errorf("regex %q matches %q: %v, want %v", expr, s, got, !got)
		}
	})
}
