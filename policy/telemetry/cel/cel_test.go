package cel_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/attribute"
	"github.com/nosidecar/mesh/policy/telemetry/cel"
)

// attributes are those of a call, in a test.
type attributes map[string]any

func (a attributes) Attribute(name string) (any, bool) {
	v, ok := a[name]
	return v, ok
}

var sample = attributes{
	"request.path": "/v1beta3/orders?a=b", "request.url_path": "/v1beta3/orders", "request.host": "orders", "request.method": "GET",
	"request.headers":  http.Header{"X-Tenant": {"blue"}, "Accept": {"a", "b"}, "User-Agent": {"Amazon-Route53-Health-Check-Service"}},
	"request.duration": 2 * time.Second, "response.duration": 2 * time.Second,
	"response.code": int64(503), "response.flags": int64(2), "connection.mtls": true,
	"source.address": "10.0.0.1:4711", "destination.port": int64(8080), "xds.cluster_name": "outbound|80||orders.default.svc.cluster.local",
	"filter_state.upstream_peer.namespace": "shop", "filter_state.upstream_peer.labels": map[string]string{"app": "orders"},
}

// The expressions are those of Istio's documentation, and of what its users write.
func TestFilters(t *testing.T) {
	for expression, want := range map[string]bool{
		"response.code >= 400": true,
		"response.code >= 600": false,
		"connection.mtls && request.url_path.contains('v1beta3')":                                           true,
		`!has(request.useragent) || !(request.useragent.startsWith("Amazon-Route53-Health-Check-Service"))`: true,
		"has(request.useragent)":                                           false,
		"request.useragent == 'x'":                                         false, // there is none
		"request.useragent == 'x' || true":                                 true,  // CEL's own rule
		"has(response.grpc_status) && response.grpc_status != 0":           false,
		"request.headers['x-tenant'] == 'blue'":                            true,
		"request.headers['X-TENANT'] == 'blue'":                            true,
		"request.headers['accept'] == 'a,b'":                               true,
		"request.headers['missing'] == ''":                                 false,
		"'x-tenant' in request.headers && !('missing' in request.headers)": true,
		"request.headers.exists(name, name == 'x-tenant')":                 true,
		"size(request.headers) == 3":                                       true,
		"request.headers == request.headers":                               true,
		"response.flags != 0":                                              true,
		"response.duration > duration('1s')":                               true,
		"request.duration > duration('3s')":                                false,
		"source.address.startsWith('10.')":                                 true,
		"destination.port == 8080":                                         true,
		"xds.cluster_name.matches('^outbound[|]80')":                       true,
		"filter_state.upstream_peer.namespace == 'shop'":                   true,
		"filter_state.downstream_peer.namespace == 'shop'":                 false,
		"has(filter_state.downstream_peer.app)":                            false,
		"filter_state.upstream_peer.labels['app'] == 'orders'":             true,
		"request.method in ['GET', 'HEAD'] && request.host == 'orders'":    true,
		"request == request":                                               false,
		"int(request.headers['x-tenant']) == 1":                            false,
		"response.code / 0 == 1":                                           false,
		"true":                                                             true,
	} {
		filter, err := cel.Expressions{}.Filter(expression)
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		for range 2 {
			if got := filter.Keeps(sample); got != want {
				t.Errorf("%s: %t, want %t", expression, got, want)
			}
		}
		if text := fmt.Sprint(filter); text != expression {
			t.Errorf("%s prints as %s", expression, text)
		}
	}
}

func TestRefusedExpressions(t *testing.T) {
	for expression, want := range map[string]string{
		"response.code >=":                           "at character",
		"response.code":                              "is a int: an expression must be true or false",
		"request.path":                               "is a string",
		"response.duration > 1000":                   "no matching overload",
		"response.code == '200'":                     "no matching overload",
		"response.size > 10":                         "size is not enforced: calls of a process have no such attribute; there are connection.mtls,",
		"upstream.address == 'x'":                    "upstream is not enforced: calls of a process have no such attribute",
		"metadata.filter_metadata == 'x'":            "metadata is not enforced",
		"filter_state.upstream_peer.x == ''":         "x is not enforced",
		"filter_state.upstream_peer.cluster == ''":   "cluster is not enforced",
		"filter_state.downstream_peer.version == ''": "version is not enforced",
		"request.headers[':authority'] == 'a'":       ":authority is not among the headers of a request",
		"!(request.headers['Host'] == 'a')":          "Host is not among the headers of a request",
		"request{}.path == 'a'":                      "",
		"":                                           "at character",
		"dyn(request.path)":                          "is a dyn",
		"response.code > 1 &&\nfoo && bar":           "foo is not enforced",
		"request.path.matches(request.host)":         "matches needs a pattern that is a literal", // which callers would choose
		"matches('a', request.headers['x'])":         "matches needs a pattern that is a literal",
		strings.Repeat("!", 9000) + "true":           "is too long",
		strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000): "at character",
	} {
		filter, err := cel.Expressions{}.Filter(expression)
		if err == nil && want == "" {
			filter.Keeps(sample) // which it may not say
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40s: error %v, want one with %q", expression, err, want)
		}
	}
}

// Every attribute is known by its name.
func TestVariables(t *testing.T) {
	for name, kind := range attribute.Variables() {
		literal := map[attribute.Kind]string{
			attribute.Text: "'a'", attribute.Number: "1", attribute.Bool: "true", attribute.Duration: "duration('1s')",
			attribute.Header: "{'a': 'b'}", attribute.Labels: "{'a': 'b'}",
		}[kind]
		if _, err := (cel.Expressions{}).Filter(fmt.Sprintf("has(%s) && %s == %s", name, name, literal)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An expression that would not come to an end is not true of a call. One that is as long as a call needs is.
func TestEndlessExpressions(t *testing.T) {
	nested := func(depth int) string {
		expression := "true"
		for range depth {
			expression = "[1, 2, 3].all(x, " + expression + ")"
		}
		return expression
	}
	for expression, want := range map[string]bool{
		nested(5):  true,
		nested(40): false,
		"request.headers.all(a, request.headers.exists(b, a == b))": true,
	} {
		filter, err := cel.Expressions{}.Filter(expression)
		if err != nil {
			t.Fatalf("%s: %v", expression, err)
		}
		for range 2 {
			if got := filter.Keeps(sample); got != want {
				t.Errorf("%s: %t, want %t", expression, got, want)
			}
		}
	}
}

// path has a path that a caller has made long.
type path string

func (p path) Attribute(string) (any, bool) { return string(p), true }

// Each + copies all that stands before it: a path of 4 kB, 200 times, would be 80 MB per call.
func TestTextsThatGrow(t *testing.T) {
	filter, err := cel.Expressions{}.Filter("size(request.path" + strings.Repeat(" + request.path", 200) + ") > 0")
	if err != nil {
		t.Fatal(err)
	}
	for long, want := range map[int]bool{1: true, 4096: false} {
		if got := filter.Keeps(path(strings.Repeat("x", long))); got != want {
			t.Errorf("a path of %d bytes: %t, want %t", long, got, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, text := range []string{
		"response.code >= 400", "has(request.useragent)", "request.headers['a'] == 'b'", "request.headers.all(x, x == '')",
		"filter_state.upstream_peer.labels['a'].matches('a*')", "response.duration > 1000", "{}['a'] == 1", "b'\\xff' == b''", "'\\u2028' != ''",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, expression string) {
		filter, err := cel.Expressions{}.Filter(expression)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("%q: the error has several lines: %q", expression, err)
			}
			return
		}
		if first := filter.Keeps(sample); first != filter.Keeps(sample) && !strings.Contains(expression, "now") {
			t.Errorf("%q: two answers", expression)
		}
	})
}

func BenchmarkKeeps(b *testing.B) {
	for _, expression := range []string{
		"response.code >= 400", "connection.mtls && request.url_path.contains('v1beta3')", "request.headers['x-tenant'] == 'blue'",
		`!has(request.useragent) || !(request.useragent.startsWith("Amazon"))`,
	} {
		b.Run(expression, func(b *testing.B) {
			filter, err := cel.Expressions{}.Filter(expression)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				filter.Keeps(sample)
			}
		})
	}
}

func BenchmarkFilter(b *testing.B) {
	for b.Loop() {
		if _, err := (cel.Expressions{}).Filter("response.code >= 400"); err != nil {
			b.Fatal(err)
		}
	}
}
