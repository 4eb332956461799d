package route_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/nosidecar/mesh/policy/route"
)

// outgoing returns what a request becomes under a route with a single destination.
func outgoing(t testing.TB, r route.Route, req *http.Request) (*http.Request, error) {
	t.Helper()
	view := route.NewRequest(req)
	e, match, ok := table(t, r).Match(&view)
	if !ok {
		t.Fatal("the route does not match")
	}
	out := req.Clone(req.Context())
	return out, e.Pick(nil).Rewrite(out, match)
}

func TestRewritePath(t *testing.T) {
	for _, c := range []struct {
		name    string
		match   route.StringMatch
		rewrite route.Rewrite
		url     string
		want    string // the request target
	}{
		{"prefix", prefix("/api/"), route.Rewrite{URI: "/v1/"}, "http://a/api/users", "/v1/users"},
		{"prefix, as a string", prefix("/foo"), route.Rewrite{URI: "/"}, "http://a/foo/bar", "//bar"},
		{"prefix, all of the path", prefix("/foo"), route.Rewrite{URI: "/"}, "http://a/foo", "/"},
		{"prefix in another case", fold(prefix("/FOO")), route.Rewrite{URI: "/x"}, "http://a/foo/bar", "/x/bar"},
		{"exact", exact("/foo/bar"), route.Rewrite{URI: "/x"}, "http://a/foo/bar", "/x"},
		{"regex replaces the whole", regex("/foo/.*"), route.Rewrite{URI: "/x"}, "http://a/foo/bar", "/x"},
		{"no match of the path", route.StringMatch{}, route.Rewrite{URI: "/x/"}, "http://a/foo", "/x/foo"},
		{"query is kept", prefix("/a"), route.Rewrite{URI: "/b"}, "http://a/a?q=%2F&r", "/b?q=%2F&r"},
		{"escapes are kept", prefix("/a/"), route.Rewrite{URI: "/b/"}, "http://a/a/x%2Fy%20z", "/b/x%2Fy%20z"},
		{"escapes in the rewrite", prefix("/a/"), route.Rewrite{URI: "/%2F/"}, "http://a/a/x", "/%2F/x"},
		{"what must be escaped is", prefix("/a/"), route.Rewrite{URI: "/b c/"}, "http://a/a/x", "/b%20c/x"},
		{"empty path", prefix("/"), route.Rewrite{URI: "/b/"}, "http://a", "/b/"},

		{"pattern", prefix("/"), route.Rewrite{Pattern: "^/service/([^/]+)(/.*)$", Substitution: `/x\2/\1`},
			"http://a/service/s/v1/api?q", "/x/v1/api/s?q"},
		{"pattern, everywhere", prefix("/"), route.Rewrite{Pattern: "o", Substitution: "0"}, "http://a/foo/oo", "/f00/00"},
		{"pattern, the whole match", prefix("/"), route.Rewrite{Pattern: "b+", Substitution: `[\0]`}, "http://a/abba",
			"/a[bb]a"},
		{"pattern, dollar and backslash", prefix("/"), route.Rewrite{Pattern: "a", Substitution: `$1\\`}, "http://a/a",
			"/$1%5C"},
		{"pattern, digit after a group", prefix("/"), route.Rewrite{Pattern: "(a)", Substitution: `\10`}, "http://a/a", "/a0"},
		{"pattern, no match", prefix("/"), route.Rewrite{Pattern: "x", Substitution: "y"}, "http://a/a%2fb", "/a%2fb"},
		{"nothing", prefix("/"), route.Rewrite{}, "http://a/a%2Fb", "/a%2Fb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := to("b", route.Match{URI: c.match})
			r.Rewrite = c.rewrite
			out, err := outgoing(t, r, get(t, c.url))
			if err != nil {
				t.Fatal(err)
			}
			if got := out.URL.RequestURI(); got != c.want {
				t.Errorf("%s becomes %s, want %s", c.url, got, c.want)
			}
			if path, err := url.PathUnescape(out.URL.EscapedPath()); err != nil || path != out.URL.Path {
				t.Errorf("Path = %q, EscapedPath = %q: they differ", out.URL.Path, out.URL.EscapedPath())
			}
		})
	}
}

// TestRewrites: a request needs to be cloned if any of its parts changes.
func TestRewrites(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*route.Route)
		want   bool
	}{
		"nothing":         {func(*route.Route) {}, false},
		"response header": {func(r *route.Route) { r.Headers.Response.Remove = []string{"x"} }, false},
		"path":            {func(r *route.Route) { r.Rewrite.URI = "/x" }, true},
		"authority":       {func(r *route.Route) { r.Rewrite.Authority = "z" }, true},
		"request header":  {func(r *route.Route) { r.Headers.Request.Remove = []string{"x"} }, true},
	} {
		r := to("a")
		c.change(&r)
		if got := table(t, r).Rule(0).Pick(nil).Rewrites(); got != c.want {
			t.Errorf("%s: Rewrites() = %v, want %v", name, got, c.want)
		}
	}
}

func TestRewriteOpaque(t *testing.T) {
	r := to("b", route.Match{URI: prefix("/a/")})
	r.Rewrite.URI = "/b/"
	req := get(t, "http://a/?q")
	req.URL.Opaque = "/a/x%2Fy"
	out, err := outgoing(t, r, req)
	if err != nil || out.URL.RequestURI() != "/b/x%2Fy?q" {
		t.Errorf("becomes %s, %v, want /b/x%%2Fy?q", out.URL.RequestURI(), err)
	}
}

func TestRewritePathErrors(t *testing.T) {
	for _, c := range []struct{ name, pattern, substitution, url string }{
		{"no slash", "^/", "x", "http://a/b"},
		{"nothing left", "^.*$", `\1`, "http://a/b"},
		{"broken escape", "2F", "x", "http://a/b%2F"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := to("b")
			r.Rewrite = route.Rewrite{Pattern: c.pattern, Substitution: c.substitution}
			if c.substitution == `\1` {
				r.Rewrite.Pattern = "^.*()$"
			}
			_, err := outgoing(t, r, get(t, c.url))
			if !errors.Is(err, route.ErrPath) {
				t.Errorf("Rewrite = %v, want ErrPath", err)
			}
		})
	}
}

func TestAuthority(t *testing.T) {
	set := func(name, value string) route.Headers {
		return route.Headers{Request: route.HeaderOps{Set: []route.Header{{Name: name, Value: value}}}}
	}
	add := func(name, value string) route.Headers {
		return route.Headers{Request: route.HeaderOps{Add: []route.Header{{Name: name, Value: value}}}}
	}
	both := set("Host", "set")
	both.Request.Add = add("host", "added").Request.Add

	for _, c := range []struct {
		name        string
		rewrite     string
		route, dest route.Headers
		want        string
	}{
		{"kept", "", route.Headers{}, route.Headers{}, "a:80"},
		{"rewrite", "b:8080", route.Headers{}, route.Headers{}, "b:8080"},
		{"header of the route", "", set("host", "h"), route.Headers{}, "h"},
		{"header of the destination", "", route.Headers{}, add(":authority", "d"), "d"},
		{"rewrite over header", "b", set("Host", "h"), set("Host", "d"), "b"},
		{"route over destination", "", add("Host", "h"), set("Host", "d"), "h"},
		{"set over add", "", both, route.Headers{}, "set"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := to("dest")
			r.Rewrite.Authority, r.Headers, r.Destinations[0].Headers = c.rewrite, c.route, c.dest
			out, err := outgoing(t, r, get(t, "http://a:80/"))
			if err != nil {
				t.Fatal(err)
			}
			if out.Host != c.want || len(out.Header) != 0 {
				t.Errorf("Host = %q, Header = %v, want %q and none", out.Host, out.Header, c.want)
			}
		})
	}
}

func TestRedirect(t *testing.T) {
	for _, c := range []struct {
		name     string
		redirect route.Redirect
		match    route.StringMatch
		url      string
		status   int
		want     string
	}{
		{"nothing", route.Redirect{}, prefix("/"), "http://a/b?c", 301, "http://a/b?c"},
		{"status", route.Redirect{Status: 308}, prefix("/"), "http://a/b", 308, "http://a/b"},
		{"uri", route.Redirect{URI: "/x"}, prefix("/b"), "http://a/b/c", 301, "http://a/x"},
		{"uri keeps the query", route.Redirect{URI: "/x"}, prefix("/b"), "http://a/b?c", 301, "http://a/x?c"},
		{"uri with a query", route.Redirect{URI: "/x?y"}, prefix("/b"), "http://a/b?c", 301, "http://a/x?y"},
		{"prefix", route.Redirect{PrefixRewrite: "/x"}, prefix("/b"), "http://a/b/c?d", 301, "http://a/x/c?d"},
		{"prefix of an exact match", route.Redirect{PrefixRewrite: "/x"}, exact("/b/c"), "http://a/b/c", 301, "http://a/x"},
		{"authority", route.Redirect{Authority: "z"}, prefix("/"), "http://a:81/b", 301, "http://z/b"},
		{"authority with port", route.Redirect{Authority: "z:82"}, prefix("/"), "http://a:81/b", 301, "http://z:82/b"},
		{"port", route.Redirect{Port: 8080}, prefix("/"), "http://a:81/b", 301, "http://a:8080/b"},
		{"port is the default", route.Redirect{Port: 443}, prefix("/"), "https://a:81/b", 301, "https://a/b"},
		{"port is another default", route.Redirect{Port: 80}, prefix("/"), "https://a/b", 301, "https://a:80/b"},
		{"port of an authority", route.Redirect{Port: 1, Authority: "z"}, prefix("/"), "http://a/", 301, "http://z:1/"},
		{"keep port", route.Redirect{}, prefix("/"), "http://a:81/b", 301, "http://a:81/b"},
		{"scheme", route.Redirect{Scheme: "https"}, prefix("/"), "http://a/b", 301, "https://a/b"},
		{"scheme, port of the old one", route.Redirect{Scheme: "https"}, prefix("/"), "http://a:80/", 301, "https://a/"},
		{"scheme, other port", route.Redirect{Scheme: "https"}, prefix("/"), "http://a:8080/", 301, "https://a:8080/"},
		{"same scheme, default port", route.Redirect{Scheme: "http"}, prefix("/"), "http://a:80/", 301, "http://a:80/"},
		{"from protocol", route.Redirect{DerivePort: route.FromProtocol}, prefix("/"), "http://a:81/", 301, "http://a/"},
		{"from request", route.Redirect{DerivePort: route.FromRequest, Authority: "z"}, prefix("/"), "http://a:81/", 301,
			"http://z:81/"},
		{"from request, default", route.Redirect{DerivePort: route.FromRequest, Authority: "z"}, prefix("/"), "https://a/", 301,
			"https://z/"},
		{"from request, default of the old scheme", route.Redirect{Scheme: "https", DerivePort: route.FromRequest}, prefix("/"), "http://a/", 301,
			"https://a:80/"},
		{"from request that has none", route.Redirect{Scheme: "https", DerivePort: route.FromRequest}, prefix("/"), "x://a/", 301, "https://a/"},
		{"port is the default of the new scheme", route.Redirect{Scheme: "https", Port: 443}, prefix("/"), "http://a:81/", 301, "https://a/"},
		{"IPv6", route.Redirect{Port: 82}, prefix("/"), "http://[::1]/b", 301, "http://[::1]:82/b"},
		{"IPv6 with port", route.Redirect{Port: 82}, prefix("/"), "http://[::1]:81/b", 301, "http://[::1]:82/b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := route.Route{Matches: []route.Match{{URI: c.match}}, Redirect: &c.redirect}
			req := get(t, c.url)
			resp := respond(t, r, req)
			if resp.StatusCode != c.status || resp.Header.Get("Location") != c.want {
				t.Errorf("%d %q, want %d %q", resp.StatusCode, resp.Header.Get("Location"), c.status, c.want)
			}
			if resp.Request != req || resp.ContentLength != 0 || resp.Body == nil {
				t.Errorf("response %+v is not complete", resp)
			}
		})
	}
}

func respond(t *testing.T, r route.Route, req *http.Request) *http.Response {
	t.Helper()
	view := route.NewRequest(req)
	e, match, ok := table(t, r).Match(&view)
	if !ok {
		t.Fatal("the route does not match")
	}
	return e.Respond(req, match)
}

func TestDirectResponse(t *testing.T) {
	for _, c := range []struct {
		name, method string
		direct       route.DirectResponse
		body         string
		length       int64
		contentType  string
	}{
		{"body", "GET", route.DirectResponse{Status: 503, Body: []byte("later")}, "later", 5, "text/plain"},
		{"no body", "GET", route.DirectResponse{Status: 200}, "", 0, ""},
		{"HEAD", "HEAD", route.DirectResponse{Status: 200, Body: []byte("later")}, "", 5, "text/plain"},
		{"no content", "GET", route.DirectResponse{Status: 204}, "", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest(c.method, "http://a/", nil)
			resp := respond(t, route.Route{Direct: &c.direct}, req)
			body, err := io.ReadAll(resp.Body)
			if err != nil || string(body) != c.body || resp.StatusCode != c.direct.Status {
				t.Errorf("%d %q, %v, want %d %q", resp.StatusCode, body, err, c.direct.Status, c.body)
			}
			if resp.ContentLength != c.length || resp.Header.Get("Content-Type") != c.contentType || resp.Request != req {
				t.Errorf("response %+v, want length %d and type %q", resp, c.length, c.contentType)
			}
		})
	}
}

func TestRespondHeaders(t *testing.T) {
	r := route.Route{Direct: &route.DirectResponse{Status: 200, Body: []byte("{}")}}
	r.Headers.Response.Set = headers("content-type", "application/json", "x-p", "%REQ(:path)%")
	resp := respond(t, r, get(t, "http://a/b?c"))
	if resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("X-P") != "/b?c" {
		t.Errorf("Header = %v", resp.Header)
	}
}

func TestRespondForwarded(t *testing.T) {
	if resp := respond(t, to("b"), get(t, "http://a/")); resp != nil {
		t.Errorf("Respond = %v for a route with a destination, want nil", resp)
	}
}

func FuzzRewrite(f *testing.F) {
	f.Add("/api", uint8(route.Prefix), "/v1", "", "", "/api/a%2Fb?c=%zz")
	f.Add("/", uint8(route.Any), "", "^/service/([^/]+)(/.*)$", `/x\2/\1`, "/service/s/v1?q")
	f.Add("/a.*", uint8(route.Regex), "/%2F", "", "", "/a//../b;c")
	f.Add("/A", uint8(route.Exact), "/b c", "", "", "/a")
	f.Add("", uint8(route.Prefix), "", "%", `$\\`, "/%25%41")
	f.Fuzz(func(t *testing.T, match string, kind uint8, uri, pattern, substitution, target string) {
		req, err := http.NewRequest("GET", "http://a"+target, nil)
		if err != nil || req.URL.Host != "a" {
			return
		}
		m := route.StringMatch{Kind: route.MatchKind(kind), Value: match}
		if m.Kind == route.Exact || m.Kind == route.Prefix {
			m.IgnoreCase = true
		}
		r := to("b", route.Match{URI: m})
		r.Rewrite = route.Rewrite{URI: uri, Pattern: pattern, Substitution: substitution}
		routes, err := route.NewTable([]route.Route{r})
		if err != nil {
			return
		}
		view := route.NewRequest(req)
		e, i, ok := routes.Match(&view)
		if !ok {
			return
		}
		out := req.Clone(req.Context())
		if err := e.Pick(nil).Rewrite(out, i); err != nil {
			if !errors.Is(err, route.ErrPath) {
				t.Errorf("Rewrite = %v, want ErrPath", err)
			}
			return
		}
		again, err := url.Parse(out.URL.String())
		if err != nil {
			t.Fatalf("%q is not a URL: %v", out.URL, err)
		}
		if again.Path != out.URL.Path || again.RawQuery != out.URL.RawQuery || again.Host != "a" {
			t.Errorf("%q is read as %+v, want %+v", out.URL, again, out.URL)
		}
	})
}
