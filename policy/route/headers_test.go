package route_test

import (
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/policy/route"
)

func equal(a, b http.Header) bool {
	return maps.EqualFunc(a, b, slices.Equal[[]string])
}

// headers returns headers from names and values in turn.
func headers(pairs ...string) []route.Header {
	var hs []route.Header
	for pair := range slices.Chunk(pairs, 2) {
		hs = append(hs, route.Header{Name: pair[0], Value: pair[1]})
	}
	return hs
}

func TestRequestHeaders(t *testing.T) {
	for _, c := range []struct {
		name        string
		route, dest route.HeaderOps
		in, want    http.Header
	}{
		{
			name:  "remove, then set, then add",
			route: route.HeaderOps{Add: headers("x-a", "3"), Set: headers("x-a", "2"), Remove: []string{"X-A"}},
			in:    http.Header{"X-A": {"1", "1"}},
			want:  http.Header{"X-A": {"2", "3"}},
		},
		{
			name:  "add to what is there",
			route: route.HeaderOps{Add: headers("x-a", "2", "x-a", "3")},
			in:    http.Header{"X-A": {"1"}},
			want:  http.Header{"X-A": {"1", "2", "3"}},
		},
		{
			name:  "names in any case",
			route: route.HeaderOps{Set: headers("x-A", "2"), Remove: []string{"x-B"}},
			in:    http.Header{"x-a": {"1"}, "X-B": {"1"}},
			want:  http.Header{"X-A": {"2"}},
		},
		{
			name:  "destination before route",
			dest:  route.HeaderOps{Set: headers("x-a", "dest"), Add: headers("x-b", "dest")},
			route: route.HeaderOps{Set: headers("x-a", "route"), Add: headers("x-b", "route")},
			in:    http.Header{},
			want:  http.Header{"X-A": {"route"}, "X-B": {"dest", "route"}},
		},
		{
			name:  "the route removes what the destination set",
			dest:  route.HeaderOps{Set: headers("x-a", "dest")},
			route: route.HeaderOps{Remove: []string{"x-a"}},
			in:    http.Header{},
			want:  http.Header{},
		},
		{
			name: "commands",
			route: route.HeaderOps{Set: headers(
				"a", "100%%",
				"b", "%REQ(X-In)%/%REQ(:method)%/%REQ(:authority)%/%REQ(Host)%/%REQ(:scheme)%",
				"c", "<%REQ(:path)%>",
				"d", "%REQ(x-none?x-in):2%",
				"e", "%REQ(x-in?x-none)%",
			)},
			in: http.Header{"X-In": {"123", "4"}},
			want: http.Header{"X-In": {"123", "4"}, "A": {"100%"}, "B": {"123,4/GET/a/a/http"}, "C": {"</p?q>"}, "D": {"12"},
				"E": {"123,4"}},
		},
		{
			name: "values are taken after removals and before changes",
			route: route.HeaderOps{Remove: []string{"x-gone"},
				Set: headers("x-a", "%REQ(x-b)%", "x-b", "%REQ(x-a)%", "x-c", "%REQ(x-gone)%")},
			in:   http.Header{"X-A": {"1"}, "X-B": {"2"}, "X-Gone": {"3"}},
			want: http.Header{"X-A": {"2"}, "X-B": {"1"}},
		},
		{
			name:  "the route sees the destination's changes",
			dest:  route.HeaderOps{Set: headers("x-a", "dest")},
			route: route.HeaderOps{Set: headers("x-b", "%REQ(x-a)%")},
			in:    http.Header{},
			want:  http.Header{"X-A": {"dest"}, "X-B": {"dest"}},
		},
		{
			name:  "an empty value changes nothing",
			route: route.HeaderOps{Set: headers("x-a", "", "x-b", "%REQ(x-none)%"), Add: headers("x-c", "")},
			in:    http.Header{"X-A": {"1"}, "X-B": {"1"}},
			want:  http.Header{"X-A": {"1"}, "X-B": {"1"}},
		},
		{
			name:  "no user agent, not even the one of net/http",
			route: route.HeaderOps{Remove: []string{"user-agent"}},
			in:    http.Header{"User-Agent": {"1"}},
			want:  http.Header{"User-Agent": nil},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := to("b")
			r.Headers.Request, r.Destinations[0].Headers.Request = c.route, c.dest
			req := get(t, "http://a/p?q")
			req.Header = c.in
			out, err := outgoing(t, r, req)
			if err != nil {
				t.Fatal(err)
			}
			if !equal(out.Header, c.want) {
				t.Errorf("Header = %v, want %v", out.Header, c.want)
			}
		})
	}
}

func TestResponseHeaders(t *testing.T) {
	r := to("b")
	r.Destinations[0].Headers.Response.Set = headers("x-from", "dest")
	r.Headers.Response = route.HeaderOps{
		Set:    headers("x-user", "%REQ(x-user)%", "x-was", "%RESP(server)%", "x-type", "%RESP(Content-Type?none)%"),
		Add:    headers("vary", "%RESP(x-from)%"),
		Remove: []string{"server", "connection"},
	}
	h := http.Header{"Server": {"envoy"}, "Content-Type": {"text/html"}, "Vary": {"a"}, "Connection": {"close"}}
	view := route.NewRequest(get(t, "http://a/", "X-User", "jo"))
	table(t, r).Rule(0).Pick(nil).Response.Apply(h, &view)
	want := http.Header{"Content-Type": {"text/html"}, "Vary": {"a", "dest"}, "X-From": {"dest"}, "X-User": {"jo"},
		"X-Type": {"text/html"}}
	if !equal(h, want) {
		t.Errorf("Header = %v, want %v", h, want)
	}
}

// Adding a value must not write into the spare capacity of a slice that the caller's header shares.
func TestAddDoesNotShare(t *testing.T) {
	r := to("b")
	r.Headers.Request.Add = headers("x-a", "2")
	values := append(make([]string, 0, 2), "1")
	h := http.Header{"X-A": values}
	table(t, r).Rule(0).Pick(nil).Request.Apply(h, &route.Request{Header: h})
	if got := values[:2][1]; got != "" {
		t.Errorf("the caller's slice got %q", got)
	}
}

func TestNilHeaderEdits(t *testing.T) {
	b := table(t, to("b")).Rule(0).Pick(nil)
	if b.Request != nil || b.Response != nil || b.Rewrites() {
		t.Errorf("a route without edits has %v, %v, %v", b.Request, b.Response, b.Rewrites())
	}
	b.Response.Apply(nil, nil)
}

func FuzzHeaderValue(f *testing.F) {
	for _, s := range []string{"", "a", "100%%", "%REQ(x)%", "%REQ(x?y):3%", "%", "%%%", "%RESP(:path)%", "%REQ()%", "%A%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r := to("b")
		r.Headers.Request.Set = headers("x-out", value)
		routes, err := route.NewTable([]route.Route{r})
		if err != nil {
			return
		}
		h := http.Header{"X": {"value"}}
		view := route.Request{Header: h, Path: "/"}
		routes.Rule(0).Pick(nil).Request.Apply(h, &view)
		for _, c := range []byte(h.Get("X-Out")) {
			if c < ' ' && c != '\t' || c == 0x7f {
				t.Errorf("%q becomes %q", value, h.Get("X-Out"))
			}
		}
	})
}
