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
	out := is.Routes("cluster.local", nil)
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

// service reads the annotations of a Service.
func service(annotations map[string]string) (said gateway.Settings, wrong []string) {
	object := &yamldoc.Object{Kind: "Service", Metadata: yamldoc.Metadata{Annotations: annotations}}
	said = gateway.Annotated(object, func(key, format string, args ...any) { wrong = append(wrong, key+": "+fmt.Sprintf(format, args...)) })
	return said, wrong
}

func TestAnnotated_Service(t *testing.T) {
	said, wrong := service(map[string]string{
		"retry.linkerd.io/http": "5xx", "retry.linkerd.io/grpc": "internal", "retry.linkerd.io/limit": "2", "retry.linkerd.io/timeout": "0",
		"timeout.linkerd.io/request": " 1d ", "other": "x", "balancer.linkerd.io/failure-accrual": "consecutive",
	})
	if wrong != nil || *said.Timeout != 24*time.Hour || *said.Accrual != (gateway.Accrual{Failures: 7, Min: time.Second, Max: time.Minute, Jitter: 0.5}) {
		t.Errorf("%+v, %q", said, wrong)
	}
	both := said.Both()
	if both.On != (retry.On{Conditions: retry.ServerError | retry.Internal}) || both.Retries != 2 || said.HTTP.On.Conditions != retry.ServerError || said.GRPC.On.Conditions != retry.Internal {
		t.Errorf("both %+v, HTTP %+v, gRPC %+v", both, said.HTTP, said.GRPC)
	}
	const accrual = "balancer.linkerd.io/failure-accrual"
	for _, tt := range []struct {
		name, key, value string
		mode             string // of failure accrual
		want             string // the errors
	}{
		{"empty conditions", "retry.linkerd.io/http", "", "", `retry.linkerd.io/http: "" is no condition of Linkerd`},
		{"an empty item", "retry.linkerd.io/http", "5xx,", "", `retry.linkerd.io/http: "" is no condition of Linkerd`},
		{"no conditions", "retry.linkerd.io/timeout", "1s", "", "retry.linkerd.io/http: missing"},
		{"an empty limit", "retry.linkerd.io/limit", "", "", `retry.linkerd.io/limit: "" is not a number of retries, retry.linkerd.io/http: missing`},
		{"a large limit", "retry.linkerd.io/limit", "65536", "", `retry.linkerd.io/limit: "65536" is not a number of retries, retry.linkerd.io/http: missing`},
		{"an empty timeout", "timeout.linkerd.io/request", "", "", `timeout.linkerd.io/request: "" is not a duration`},
		{"without a unit", "timeout.linkerd.io/request", "5", "", `timeout.linkerd.io/request: "5" is not a duration`},
		{"a unit alone", "timeout.linkerd.io/request", "s", "", `timeout.linkerd.io/request: "s" is not a duration`},
		{"negative", "timeout.linkerd.io/request", "-5s", "", `timeout.linkerd.io/request: "-5s" is not a duration`},
		{"two parts", "timeout.linkerd.io/request", "1m5s", "", `timeout.linkerd.io/request: "1m5s" is not a duration`},
		{"zero", "timeout.linkerd.io/request", "0s", "", ""},
		{"the longest", "timeout.linkerd.io/request", "3650d", "", ""},
		{"too long", "timeout.linkerd.io/request", "3651d", "", `timeout.linkerd.io/request: "3651d" is too long: the longest duration is 3650d`},
		{"longer than a Duration", "timeout.linkerd.io/request", "4294967295d", "", `timeout.linkerd.io/request: "4294967295d" is too long`},
		{"longer than a number", "timeout.linkerd.io/request", "99999999999999999999ms", "", `timeout.linkerd.io/request: "99999999999999999999ms" is too long`},
		{"response", "timeout.linkerd.io/response", "1s", "", "timeout.linkerd.io/response: is not enforced"},
		{"idle", "timeout.linkerd.io/idle", "1s", "", "timeout.linkerd.io/idle: is not enforced"},
		{"unknown", "balancer.linkerd.io/failure-acrual", "consecutive", "", `balancer.linkerd.io/failure-acrual: is not enforced: remove it, did you mean "balancer.linkerd.io/failure-accrual"?`},

		{"another policy", accrual, "unified", "", accrual + `: "unified" is not enforced: write consecutive`},
		{"an empty policy", accrual, "", "", accrual + `: "" is not enforced`},
		{"no policy", accrual + "-consecutive-max-failures", "3", "", accrual + ": missing"},
		{"no failures", accrual + "-consecutive-max-failures", "0", "consecutive", accrual + `-consecutive-max-failures: "0" is not a number of failures`},
		{"many failures", accrual + "-consecutive-max-failures", "2147483647", "consecutive", ""},
		{"more failures", accrual + "-consecutive-max-failures", "2147483648", "consecutive", accrual + `-consecutive-max-failures: "2147483648" is not a number`},
		{"no penalty", accrual + "-consecutive-min-penalty", "0", "consecutive", accrual + `-consecutive-min-penalty: "0" is no penalty`},
		{"no longest penalty", accrual + "-consecutive-max-penalty", "0ms", "consecutive", accrual + `-consecutive-max-penalty: "0ms" is no penalty`},
		{"a long penalty", accrual + "-consecutive-min-penalty", "2m", "consecutive", accrual + "-consecutive-min-penalty: the first penalty of 2m0s is longer than the longest one, 1m0s"},
		{"a short longest penalty", accrual + "-consecutive-max-penalty", "1ms", "consecutive", accrual + "-consecutive-max-penalty: the first penalty of 1s is longer"},
		{"a negative ratio", accrual + "-consecutive-jitter-ratio", "-0.1", "consecutive", accrual + `-consecutive-jitter-ratio: "-0.1" is not a ratio`},
		{"a large ratio", accrual + "-consecutive-jitter-ratio", "100.1", "consecutive", accrual + `-consecutive-jitter-ratio: "100.1" is not a ratio`},
		{"no number", accrual + "-consecutive-jitter-ratio", "NaN", "consecutive", accrual + `-consecutive-jitter-ratio: "NaN" is not a ratio`},
		{"the largest ratio", accrual + "-consecutive-jitter-ratio", "100", "consecutive", ""},
	} {
		annotations := map[string]string{tt.key: tt.value}
		if tt.mode != "" {
			annotations[accrual] = tt.mode
		}
		_, wrong := service(annotations)
		if got := strings.Join(wrong, ", "); !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
