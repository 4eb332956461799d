package gateway_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

const head = "apiVersion: gateway.networking.k8s.io/v1\nkind: %s\nmetadata: {name: a, namespace: shop%s}\n" +
	"spec:\n  parentRefs: [{group: '', kind: Service, name: a}]\n  rules: %s\n"

// read reads a document, and returns what is wrong with it.
func read(kind, text string) (gateway.Document, *yamldoc.Document) {
	doc := yamldoc.Parse([]byte(text))[0][0]
	var is gateway.Document = new(gateway.HTTPRoute)
	if kind == "GRPCRoute" {
		is = new(gateway.GRPCRoute)
	}
	if new(yamldoc.Decoder).Decode(doc, is) {
		is.Check(doc)
	}
	return is, doc
}

// routes returns the routes of a document with these rules, sorted by precedence.
func routes(t *testing.T, kind, annotations, rules string) []gateway.Route {
	t.Helper()
	is, doc := read(kind, fmt.Sprintf(head, kind, annotations, rules))
	if doc.Failed() {
		t.Fatal(doc.Problems)
	}
	out := is.Routes("cluster.local")
	slices.SortStableFunc(out, func(a, b gateway.Route) int { return gateway.Compare(&a, &b) })
	return out
}

func table(t *testing.T, list []gateway.Route) *route.Table {
	t.Helper()
	plain := make([]route.Route, len(list))
	for i := range list {
		plain[i] = list[i].Route
	}
	table, err := route.NewTable(plain)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestPrecedence has rules with a name each, and the name of the one that a request matches.
func TestPrecedence(t *testing.T) {
	const rules = `
  - {name: all, backendRefs: [{name: b, port: 80}]}
  - {name: expression, matches: [{path: {type: RegularExpression, value: "/(a|b)/c/d/e/f"}}], backendRefs: [{name: b, port: 80}]}
  - {name: short, matches: [{path: {value: /a}}], backendRefs: [{name: b, port: 80}]}
  - {name: long, matches: [{path: {value: /a/c/}}], backendRefs: [{name: b, port: 80}]}
  - {name: exact, matches: [{path: {type: Exact, value: /a}}], backendRefs: [{name: b, port: 80}]}
  - {name: query, matches: [{path: {value: /a/c}, queryParams: [{name: q, value: "1"}]}], backendRefs: [{name: b, port: 80}]}
  - {name: headers, matches: [{path: {value: /a/c}, headers: [{name: Version, value: two}, {name: version, value: three}]}], backendRefs: [{name: b, port: 80}]}
  - {name: second, matches: [{path: {value: /a/c}, headers: [{name: other, type: RegularExpression, value: t.o}]}], backendRefs: [{name: b, port: 80}]}
  - {name: method, matches: [{path: {value: /a/c}, method: POST}], backendRefs: [{name: b, port: 80}]}
`
	list := table(t, routes(t, "HTTPRoute", "", rules))
	for _, tt := range []struct{ method, url, header, want string }{
		{"GET", "/", "", "all"},
		{"GET", "/ab", "", "all"},
		{"GET", "/a/", "", "short"},
		{"GET", "/a/b", "", "short"},
		{"GET", "/a", "", "exact"},
		{"GET", "/a/cd", "", "short"},
		{"GET", "/a/c", "", "long"},
		{"GET", "/a/c/d/e/f", "", "long"},
		{"GET", "/b/c/d/e/f", "", "all"}, // a prefix, whatever its length, precedes an expression
		{"GET", "/a/c?q=1", "", "query"},
		{"GET", "/a/c?q=2&q=1", "", "long"},
		{"GET", "/a/c?q=1", "Version=two", "headers"},
		{"GET", "/a/c", "Version=three", "long"}, // the second condition with this name does not count
		{"GET", "/a/c", "Other=two", "second"},
		{"POST", "/a/c?q=1", "Version=two", "method"},
	} {
		req := httptest.NewRequest(tt.method, "http://a"+tt.url, nil)
		if name, value, ok := strings.Cut(tt.header, "="); ok {
			req.Header.Set(name, value)
		}
		view := route.NewRequest(req)
		rule, _, ok := list.Match(&view)
		if !ok || rule.Route.Name != tt.want {
			t.Errorf("%s %s %s: %v, want %s", tt.method, tt.url, tt.header, rule, tt.want)
		}
	}
}

// TestReplaced has the table of the specification, for rewrites and redirects.
func TestReplaced(t *testing.T) {
	for _, tt := range []struct{ path, prefix, with, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo", "/xyz/", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"},
		{"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"},
		{"/foo/", "/foo", "", "/"},
		{"/foo", "/foo", "", "/"},
		{"/foo/", "/foo", "/", "/"},
		{"/foo", "/foo", "/", "/"},
		{"/bar", "/", "/xyz", "/xyz/bar"},
		{"/", "/", "/xyz", "/xyz/"},
		{"/foo/a%2Fb", "/foo", "/x", "/x/a%2Fb"},
		{"/foo/bar", "/foo", "full /x", "/x"},
		{"/foo", "/foo", "full ", "/"},
	} {
		modifier := fmt.Sprintf("{type: ReplacePrefixMatch, replacePrefixMatch: '%s'}", tt.with)
		if with, full := strings.CutPrefix(tt.with, "full "); full {
			modifier = fmt.Sprintf("{type: ReplaceFullPath, replaceFullPath: '%s'}", with)
		}
		match := fmt.Sprintf("matches: [{path: {value: %s}}]", tt.prefix)
		rewrite := fmt.Sprintf("[{%s, filters: [{type: URLRewrite, urlRewrite: {path: %s}}], backendRefs: [{name: b, port: 80}]}]", match, modifier)
		redirect := fmt.Sprintf("[{%s, filters: [{type: RequestRedirect, requestRedirect: {path: %s}}]}]", match, modifier)

		req := httptest.NewRequest("GET", "http://a"+tt.path+"?q=1", nil)
		view := route.NewRequest(req)
		rule, n, ok := table(t, routes(t, "HTTPRoute", "", redirect)).Match(&view)
		if !ok {
			t.Fatalf("%+v: no match", tt)
		}
		if got := rule.Respond(req, n).Header.Get("Location"); got != "http://a"+tt.want+"?q=1" {
			t.Errorf("%+v: redirected to %s", tt, got)
		}
		rule, n, _ = table(t, routes(t, "HTTPRoute", "", rewrite)).Match(&view)
		if err := rule.Pick(nil).Rewrite(req, n); err != nil || req.URL.EscapedPath() != tt.want {
			t.Errorf("%+v: rewritten to %s, %v", tt, req.URL.EscapedPath(), err)
		}
	}
}

func TestRedirects(t *testing.T) {
	for _, tt := range []struct{ redirect, from, want string }{
		{"{hostname: example.org}", "http://a/x?q", "302 http://example.org/x?q"},
		{"{hostname: example.org}", "http://a:8080/x", "302 http://example.org:8080/x"},
		{"{hostname: example.org, statusCode: 301}", "http://a/", "301 http://example.org/"},
		{"{scheme: https}", "http://a:8080/x", "302 https://a/x"},
		{"{scheme: https, port: 8443}", "http://a/x", "302 https://a:8443/x"},
		{"{scheme: https, port: 443}", "http://a/x", "302 https://a/x"},
		{"{port: 80}", "http://a:8080/x", "302 http://a/x"},
		{"{port: 8083, statusCode: 308}", "http://a/x", "308 http://a:8083/x"},
		{"{hostname: b, path: {type: ReplaceFullPath, replaceFullPath: /y}, statusCode: 303}", "http://a/x?q=1", "303 http://b/y?q=1"},
	} {
		list := table(t, routes(t, "HTTPRoute", "", "[{filters: [{type: RequestRedirect, requestRedirect: "+tt.redirect+"}]}]"))
		req := httptest.NewRequest("GET", tt.from, nil)
		view := route.NewRequest(req)
		rule, n, _ := list.Match(&view)
		resp := rule.Respond(req, n)
		if got := fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Location")); got != tt.want {
			t.Errorf("%s of %s: %s, want %s", tt.redirect, tt.from, got, tt.want)
		}
	}
}

func TestBackends(t *testing.T) {
	const rules = `
  - backendRefs:
    - {name: b, port: 80}
    - {name: c, namespace: other, port: 8080, weight: 9, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: v, value: 5%}]}}]}
    - {group: networking.istio.io, kind: Hostname, name: d.example.com, port: 443, weight: 0}
    filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, fraction: {numerator: 1, denominator: 4}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: n, port: 80}, percent: 0}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: o, port: 80}}}
    timeouts: {request: 10s, backendRequest: 1s500ms}
    retry: {codes: [500, 429], attempts: 3, backoff: 100ms}
`
	r := routes(t, "HTTPRoute", "", rules)[0]
	var got []string
	for _, d := range r.Destinations {
		got = append(got, fmt.Sprint(d.Target, " ", d.Weight, " ", d.Headers.Request.Set))
	}
	want := []string{"b.shop.svc.cluster.local:80 1 []", "c.other.svc.cluster.local:8080 9 [{v 5%%}]", "d.example.com:443 0 []"}
	if !slices.Equal(got, want) {
		t.Errorf("destinations %q, want %q", got, want)
	}
	if got := fmt.Sprint(r.Mirrors); got != "[{m.shop.svc.cluster.local:80 0.25} {o.shop.svc.cluster.local:80 1}]" {
		t.Errorf("mirrors %s", got)
	}
	on := retry.On{
		Conditions: retry.ConnectFailure | retry.RefusedStream | retry.Unavailable | retry.Cancelled | retry.RetriableStatusCodes | retry.Reset,
		Status:     retry.Codes(429, 500),
	}
	if c := r.Retry; r.Timeout != 10*time.Second || c.PerTryTimeout != 1500*time.Millisecond || c.Retries != 3 || c.Backoff != 100*time.Millisecond || c.On != on {
		t.Errorf("timeout %v, retry %+v", r.Timeout, c)
	}
	for rules, status := range map[string]int{
		"[{}]": 500, "[{backendRefs: [{name: b, port: 80, weight: 0}]}]": 500, "[{filters: [{type: URLRewrite, urlRewrite: {hostname: c}}]}]": 500,
		"[{backendRefs: [{name: b, port: 80, weight: 0}, {name: c, port: 80, weight: 0}]}]": 500,
	} {
		r := routes(t, "HTTPRoute", "", rules)
		if table(t, r); r[0].Direct == nil || r[0].Direct.Status != status {
			t.Errorf("%s: %+v, want status %d", rules, r[0].Direct, status)
		}
	}
	if r := routes(t, "HTTPRoute", "", "[{backendRefs: [{name: b, port: 80}], retry: {attempts: 0}, timeouts: {request: 0s}}]")[0]; r.Retry.Retries != 0 || r.Timeout != 0 {
		t.Errorf("without retries and a timeout: %+v, %v", r.Retry, r.Timeout)
	}
}

func TestGRPC(t *testing.T) {
	const rules = `
  - {name: all, backendRefs: [{name: b, port: 80}]}
  - {name: method, matches: [{method: {method: Get}}], backendRefs: [{name: b, port: 80}]}
  - {name: service, matches: [{method: {service: shop.Cart}}], backendRefs: [{name: b, port: 80}]}
  - {name: headers, matches: [{method: {service: shop.Cart}, headers: [{name: Version, value: two}]}], backendRefs: [{name: b, port: 80}]}
  - {name: dot, matches: [{method: {service: .shop.Cart}}], backendRefs: [{name: b, port: 80}]}
  - {name: both, matches: [{method: {service: .shop.Cart, method: Get}}], backendRefs: [{name: b, port: 80}]}
  - {name: expression, matches: [{method: {type: RegularExpression, service: "shop|store", method: "(Put|Del).*"}}], backendRefs: [{name: b, port: 80}]}
`
	list := table(t, routes(t, "GRPCRoute", "", rules))
	for _, tt := range []struct{ path, version, want string }{
		{"/shop.Other/Put", "", "all"}, {"/shop.Other/Get", "", "method"}, {"/shop.Cart/Put", "", "service"}, {"/shop.Cart/Put", "two", "headers"},
		{"/shop.Cart/Get", "two", "both"}, {"/store/Putting", "", "expression"}, {"/store/Out", "", "all"}, {"/store2/Put", "", "all"},
	} {
		view := route.Request{Method: http.MethodPost, Path: tt.path, Header: map[string][]string{"version": {tt.version}}} // as gRPC has it
		if rule, _, ok := list.Match(&view); !ok || rule.Route.Name != tt.want {
			t.Errorf("%s: %v, want %s", tt.path, rule, tt.want)
		}
	}
	if r := routes(t, "GRPCRoute", "", "[{}]"); r[0].Direct == nil || r[0].Direct.Status != http.StatusServiceUnavailable {
		t.Errorf("without backends: %+v", r[0].Direct)
	}
}

func TestAnnotations(t *testing.T) {
	const rules = "[{backendRefs: [{name: b, port: 80}], timeouts: {request: 9s}}]"
	r := routes(t, "HTTPRoute", ", annotations: {retry.linkerd.io/http: '5xx,429,502-503', retry.linkerd.io/limit: '3', retry.linkerd.io/timeout: 400ms, timeout.linkerd.io/request: 2s}", rules)[0]
	on := retry.On{Conditions: retry.ServerError | retry.Reset, Status: retry.Codes(429, 502, 503)}
	if c := r.Retry; r.Timeout != 2*time.Second || c.Retries != 3 || c.PerTryTimeout != 400*time.Millisecond || c.On != on || c.Backoff >= 0 || !c.AnyMethod {
		t.Errorf("timeout %v, retry %+v", r.Timeout, c)
	}
	r = routes(t, "GRPCRoute", ", annotations: {retry.linkerd.io/grpc: 'unavailable,Internal', other: x}", "[{backendRefs: [{name: b, port: 80}]}]")[0]
	if on := (retry.On{Conditions: retry.Unavailable | retry.Internal}); r.Retry.On != on || r.Retry.Retries != 1 {
		t.Errorf("retry %+v", r.Retry)
	}
	for annotations, want := range map[string]time.Duration{
		"retry.linkerd.io/http: 5xx": time.Second, "retry.linkerd.io/http: 5xx, retry.linkerd.io/timeout: 400ms": 400 * time.Millisecond,
		"retry.linkerd.io/http: 5xx, retry.linkerd.io/timeout: 2s": time.Second, "timeout.linkerd.io/request: 3s": time.Second,
	} {
		r := routes(t, "HTTPRoute", ", annotations: {"+annotations+"}", "[{backendRefs: [{name: b, port: 80}], timeouts: {backendRequest: 1s}}]")[0]
		if r.Retry.PerTryTimeout != want {
			t.Errorf("%s, with backendRequest 1s: a try takes up to %v, want %v", annotations, r.Retry.PerTryTimeout, want)
		}
	}
	for annotation, want := range map[string]string{
		"retry.linkerd.io/limit: '3'":                              "missing",
		"retry.linkerd.io/http: 6xx":                               "no condition",
		"retry.linkerd.io/http: 503-500":                           "no condition",
		"retry.linkerd.io/grpc: internal":                          "no effect",
		"retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: many": "not a number",
		"timeout.linkerd.io/request: 1.5s":                         "not a duration",
		"timeout.linkerd.io/response: 1s":                          "is not enforced",
		"retry.linkerd.io/later: 1s":                               "is not enforced",
	} {
		_, doc := read("HTTPRoute", fmt.Sprintf(head, "HTTPRoute", ", annotations: {"+annotation+"}", rules))
		if len(doc.Problems) != 1 || !strings.Contains(doc.Problems[0].Message, want) || doc.Problems[0].Warning {
			t.Errorf("%s: %v, want %q", annotation, doc.Problems, want)
		}
	}
}
