package mesh_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
)

// The tests below are the mesh conformance tests of the Gateway API, in their order: the same routes, but for names, and the same requests.

// echoes is a registry with the services echo, echo-v1 and echo-v2, whose answers say which one they are from, the path that it saw, and the
// headers that it saw whose names begin with X-Header.
func echoes(t *testing.T, namespaces ...string) *discovery.Memory {
	registry := new(discovery.Memory)
	for _, name := range []string{"echo", "echo-v1", "echo-v2"} {
		e := serve(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", name, r.URL.EscapedPath())
			for _, key := range []string{"X-Header-Add", "X-Header-Add-Append", "X-Header-Remove", "X-Header-Set"} {
				if values := r.Header[key]; values != nil {
					fmt.Fprintf(w, " %s=%s", key, strings.Join(values, ","))
				}
			}
		})
		registry.Set(name, e)
		for _, namespace := range namespaces {
			registry.Set(name+"."+namespace, e)
		}
	}
	return registry
}

// httpRoute is an HTTPRoute for the service echo.
func httpRoute(rules string) string {
	return "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: echo}\n" +
		"spec:\n  parentRefs: [{group: \"\", kind: Service, name: echo}]\n  rules:\n" + rules
}

// routedBy returns a client of a mesh with these rules for the service echo, which does not follow redirects.
func routedBy(t *testing.T, rules string) *http.Client {
	return unredirected(newMesh(t, httpRoute(rules), mesh.WithDiscovery(echoes(t))).Client())
}

func unredirected(c *http.Client) *http.Client {
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// routing is a request to the service echo, with headers, and what comes of it: the body of the answer, or its status with its Location.
type routing struct{ path, header, want string }

func (r routing) check(t *testing.T, c *http.Client) {
	t.Helper()
	var header []string
	for part := range strings.SplitSeq(r.header, " ") {
		if name, value, ok := strings.Cut(part, "="); ok {
			header = append(header, name, value)
		}
	}
	a := get(t, c, "http://echo"+r.path, header...)
	got := a.body
	if a.status != http.StatusOK {
		got = strings.TrimSpace(fmt.Sprint(a.status, " ", a.header.Get("Location")))
	}
	if got != r.want {
		t.Errorf("%s with %q: %s, want %s", r.path, r.header, got, r.want)
	}
}

func TestGatewayRoutes(t *testing.T) {
	noLeaks(t)
	for _, tt := range []struct {
		name, rules string
		cases       []routing
	}{
		{"SimpleSameNamespace", `
  - backendRefs: [{name: echo-v1, port: 80}]
`, []routing{{"/", "", "echo-v1 /"}, {"/a/b", "", "echo-v1 /a/b"}}},
		{"Matching", `
  - matches: [{path: {type: PathPrefix, value: /}}, {headers: [{name: version, value: one}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}]
    backendRefs: [{name: echo-v2, port: 80}]
`, []routing{
			{"/", "", "echo-v1 /"}, {"/example", "", "echo-v1 /example"}, {"/", "Version=one", "echo-v1 /"}, {"/v2", "", "echo-v2 /v2"},
			{"/v2/example", "", "echo-v2 /v2/example"}, {"/", "Version=two", "echo-v2 /"}, {"/v2/", "", "echo-v2 /v2/"},
			{"/v2example", "", "echo-v1 /v2example"}, {"/foo/v2/example", "", "echo-v1 /foo/v2/example"},
		}},
		{"QueryParamMatching", `
  - matches: [{queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{queryParams: [{name: animal, value: dolphin}]}, {queryParams: [{name: color, value: blue}]}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{path: {value: /path1}, queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v2, port: 80}]
`, []routing{
			{"/?animal=whale", "", "echo-v1 /"}, {"/?animal=dolphin", "", "echo-v2 /"}, {"/?animal=whale&otherparam=irrelevant", "", "echo-v1 /"},
			{"/?color=blue", "", "echo-v2 /"}, {"/?animal=dog", "", "404"}, {"/?animal=whaledolphin", "", "404"}, {"/", "", "404"},
			{"/path1?animal=whale", "", "echo-v2 /path1"}, {"/path2?animal=whale", "", "echo-v1 /path2"},
		}},
		{"RequestHeaderModifier", `
  - matches: [{path: {value: /set}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: set-overwrites-values}]}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /add}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: add-appends-values}]}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /remove}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /backend}}]
    backendRefs:
    - {name: echo-v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: "100%"}]}}]}
`, []routing{
			{"/set", "", "echo-v1 /set X-Header-Set=set-overwrites-values"}, {"/set", "X-Header-Set=some", "echo-v1 /set X-Header-Set=set-overwrites-values"},
			{"/add", "", "echo-v1 /add X-Header-Add=add-appends-values"}, {"/add", "X-Header-Add=some", "echo-v1 /add X-Header-Add=some,add-appends-values"},
			{"/remove", "X-Header-Remove=val X-Header-Set=kept", "echo-v1 /remove X-Header-Set=kept"}, {"/backend", "", "echo-v1 /backend X-Header-Set=100%"},
		}},
		{"Redirects", `
  - matches: [{path: {value: /original-prefix}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}}}]
  - matches: [{path: {value: /full}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /full-path-replacement}}}]
  - matches: [{path: {value: /path-and-host}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}}}]
  - matches: [{path: {value: /path-and-status}}]
    filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /replacement-full}}}]
  - {matches: [{path: {value: /hostname}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org}}]}
  - {matches: [{path: {value: /host-and-status}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 301}}]}
  - {matches: [{path: {value: /303}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 303}}]}
  - {matches: [{path: {value: /307}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 307}}]}
  - {matches: [{path: {value: /308}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 308}}]}
  - {matches: [{path: {value: /port}}], filters: [{type: RequestRedirect, requestRedirect: {port: 8083}}]}
  - {matches: [{path: {value: /port-and-host-and-status}}], filters: [{type: RequestRedirect, requestRedirect: {port: 8083, hostname: example.org, statusCode: 301}}]}
  - {matches: [{path: {value: /scheme}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}
  - {matches: [{path: {value: /scheme-and-port}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443}}]}
`, []routing{
			{"/original-prefix/lemon", "", "302 http://echo/replacement-prefix/lemon"}, {"/full/path/original", "", "302 http://echo/full-path-replacement"},
			{"/path-and-host", "", "302 http://example.org/replacement-prefix"}, {"/path-and-status", "", "301 http://echo/replacement-full"},
			{"/hostname", "", "302 http://example.org/hostname"}, {"/host-and-status", "", "301 http://example.org/host-and-status"},
			{"/303", "", "303 http://example.org/303"}, {"/307", "", "307 http://example.org/307"}, {"/308", "", "308 http://example.org/308"},
			{"/port", "", "302 http://echo:8083/port"}, {"/port-and-host-and-status", "", "301 http://example.org:8083/port-and-host-and-status"},
			{"/scheme", "", "302 https://echo/scheme"}, {"/scheme-and-port", "", "302 https://echo:8443/scheme-and-port"},
		}},
		{"RewritePath", `
  - matches: [{path: {value: /prefix/one}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /one}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /strip-prefix}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /full/one}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /prefix/rewrite-path-and-modify-headers}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /prefix}}}
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Header-Set, value: set-overwrites-values}]
        add: [{name: X-Header-Add, value: header-val-1}, {name: X-Header-Add-Append, value: header-val-2}]
        remove: [X-Header-Remove]
    backendRefs: [{name: echo-v1, port: 80}]
`, []routing{
			{"/prefix/one/two", "", "echo-v1 /one/two"}, {"/strip-prefix/three", "", "echo-v1 /three"}, {"/strip-prefix", "", "echo-v1 /"},
			{"/full/one/two", "", "echo-v1 /one"}, {"/prefix/rewrite-path-and-modify-headers/one",
				"X-Header-Remove=remove-val X-Header-Add-Append=append-val-1 X-Header-Set=set-val",
				"echo-v1 /prefix/one X-Header-Add=header-val-1 X-Header-Add-Append=append-val-1,header-val-2 X-Header-Set=set-overwrites-values"},
		}},
		{"without backends", `
  - {name: none, matches: [{path: {value: /none}}]}
  - {name: zero, matches: [{path: {value: /zero}}], backendRefs: [{name: echo-v1, port: 80, weight: 0}]}
`, []routing{{"/none", "", "500"}, {"/zero", "", "500"}, {"/", "", "404"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := routedBy(t, tt.rules)
			for _, r := range tt.cases {
				r.check(t, c)
			}
		})
	}
}

// TestGatewayRoutes_Parent: the requests of a rule without backends go to the Service itself if the route is written for Linkerd, as in the examples of
// its documentation.
func TestGatewayRoutes_Parent(t *testing.T) {
	const rules = "  - {matches: [{path: {value: /none}}]}\n  - {matches: [{path: {value: /zero}}], backendRefs: [{name: echo-v1, port: 80, weight: 0}]}\n"
	for _, tt := range []struct{ name, old, new, want string }{
		{"a route of the Gateway API", "", "", "500"},
		{"another annotation", "name: echo}\nspec", "name: echo, annotations: {app.linkerd.io/a: b}}\nspec", "500"},
		{"of Linkerd's own group", "gateway.networking.k8s.io/v1", "policy.linkerd.io/v1beta3", "echo /none"},
		{"retries of Linkerd", "name: echo}\nspec", "name: echo, annotations: {retry.linkerd.io/http: 5xx}}\nspec", "echo /none"},
		{"a timeout of Linkerd", "name: echo}\nspec", "name: echo, annotations: {timeout.linkerd.io/request: 2s}}\nspec", "echo /none"},
		{"Linkerd's name of the group of Services", `group: ""`, "group: core", "echo /none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newMesh(t, strings.Replace(httpRoute(rules), tt.old, tt.new, 1), mesh.WithDiscovery(echoes(t))).Client()
			routing{"/none", "", tt.want}.check(t, c)
			routing{"/zero", "", "500"}.check(t, c)
		})
	}
}

// TestGatewayRoutes_Weight: MeshTrafficSplit and MeshHTTPRouteWeight.
func TestGatewayRoutes_Weight(t *testing.T) {
	noLeaks(t)
	c := routedBy(t, "  - backendRefs: [{name: echo-v1, port: 80, weight: 70}, {name: echo-v2, port: 80, weight: 30}, {name: echo, port: 80, weight: 0}]\n")
	count := make(map[string]int)
	for range 1000 {
		count[get(t, c, "http://echo/").body]++
	}
	between(t, "requests to echo-v1", count["echo-v1 /"], 620, 780)
	if count["echo-v1 /"]+count["echo-v2 /"] != 1000 {
		t.Errorf("requests went to %v", count)
	}
}

// TestGatewayRoutes_NamedRule: the name of a rule is that of the route in the status, as in metrics and logs, with the place of the rule.
func TestGatewayRoutes_NamedRule(t *testing.T) {
	noLeaks(t)
	m := newMesh(t, httpRoute("  - {name: named-rule, matches: [{path: {value: /named}}], backendRefs: [{name: echo-v1, port: 80}]}\n"+
		"  - {matches: [{path: {value: /unnamed}}], backendRefs: [{name: echo-v2, port: 80}]}\n"), mesh.WithDiscovery(echoes(t)))
	routing{"/named", "", "echo-v1 /named"}.check(t, m.Client())
	routing{"/unnamed", "", "echo-v2 /unnamed"}.check(t, m.Client())
	var names []string
	for _, r := range m.Status().Routes {
		names = append(names, fmt.Sprintf("%s of %s:%d", r.Name, r.File, r.Line))
	}
	if want := "named-rule of test.yaml:7"; !slices.Contains(names, want) {
		t.Errorf("the status has the routes %q, want %s", names, want)
	}
}

// TestGatewayRoutes_Consumer: MeshConsumerRoute. A route of the caller's namespace is for callers there only, and takes the place of those of the service's.
func TestGatewayRoutes_Consumer(t *testing.T) {
	noLeaks(t)
	document := func(namespace, rule string) string {
		return fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: echo, namespace: %s}\n"+
			"spec:\n  parentRefs: [{group: \"\", kind: Service, name: echo, namespace: shop}]\n  rules: [%s]\n---\n", namespace, rule)
	}
	documents := document("shop", "{matches: [{path: {value: /producer}}], backendRefs: [{name: echo-v1, port: 80}]}") +
		document("consumer", "{matches: [{path: {value: /consumer}}], backendRefs: [{name: echo-v2, namespace: shop, port: 80}]}")
	for caller, want := range map[string][2]string{
		"consumer": {"404 ", "200 echo-v2 /consumer"},
		"shop":     {"200 echo-v1 /producer", "404 "},
		"other":    {"200 echo-v1 /producer", "404 "},
	} {
		m := newMesh(t, documents, mesh.WithDiscovery(echoes(t, "shop")), mesh.WithWorkload(policy.Workload{Namespace: caller}))
		for i, path := range []string{"/producer", "/consumer"} {
			a := get(t, m.Client(), "http://echo.shop"+path)
			if got := fmt.Sprint(a.status, " ", a.body); got != want[i] {
				t.Errorf("%s from %s: %s, want %s", path, caller, got, want[i])
			}
		}
	}
}

// TestGatewayRoutes_Ports: MeshPorts. A route for a port says nothing about the others.
func TestGatewayRoutes_Ports(t *testing.T) {
	noLeaks(t)
	c := newMesh(t, strings.Replace(httpRoute("  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: v1}]}}]\n"+
		"    backendRefs: [{name: echo-v1, port: 80}]\n"), "name: echo}]", "name: echo, port: 80}]", 1), mesh.WithDiscovery(echoes(t))).Client()
	for url, want := range map[string]string{"http://echo/": "v1 echo-v1 /", "http://echo:8080/": " echo /"} {
		if a := get(t, c, url); a.header.Get("X-Header-Set")+" "+a.body != want {
			t.Errorf("%s: %s %s, want %s", url, a.header.Get("X-Header-Set"), a.body, want)
		}
	}
}

// TestGatewayRoutes_Frontend: MeshFrontend. A route applies to calls to the service that it is attached to, and not to calls to its backends.
func TestGatewayRoutes_Frontend(t *testing.T) {
	noLeaks(t)
	documents := httpRoute("  - backendRefs: [{name: echo-v1, port: 80}]\n") + "---\n" +
		strings.NewReplacer("metadata: {name: echo}", "metadata: {name: v1}", "name: echo}]", "name: echo-v1}]").Replace(httpRoute("  - backendRefs: [{name: echo-v2, port: 80}]\n"))
	c := newMesh(t, documents, mesh.WithDiscovery(echoes(t))).Client()
	for url, want := range map[string]string{"http://echo/": "echo-v1 /", "http://echo-v1/": "echo-v2 /", "http://echo-v2/": "echo-v2 /"} {
		if a := get(t, c, url); a.body != want {
			t.Errorf("%s: %s, want %s", url, a.body, want)
		}
	}
}

// TestGatewayRoutes_Mirror: copies go to the mirror, with the headers of the rule.
func TestGatewayRoutes_Mirror(t *testing.T) {
	noLeaks(t)
	registry := echoes(t)
	copies := make(chan string, 10)
	registry.Set("shadow", serve(t, func(_ http.ResponseWriter, r *http.Request) {
		copies <- r.URL.Path + " " + r.Header.Get("X-Header-Set")
	}))
	c := newMesh(t, httpRoute("  - filters:\n    - {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}\n"+
		"    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: yes-set}]}}\n"+
		"    backendRefs: [{name: echo-v1, port: 80}]\n"), mesh.WithDiscovery(registry)).Client()
	routing{"/a", "", "echo-v1 /a X-Header-Set=yes-set"}.check(t, c)
	if got := <-copies; got != "/a yes-set" {
		t.Errorf("the copy is %s", got)
	}
}

// TestGatewayRoutes_Retry: answers with one of the codes are retried, and a try that takes too long.
func TestGatewayRoutes_Retry(t *testing.T) {
	noLeaks(t)
	registry := new(discovery.Memory)
	var calls atomic.Int32
	release := make(chan struct{})
	defer close(release)
	registry.Set("echo-v1", serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch n := calls.Add(1); {
		case r.URL.Path == "/slow" && n == 1:
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case r.URL.Path == "/code" && n < 3, r.URL.Path == "/other":
			w.WriteHeader(map[string]int{"/code": 429, "/other": 500}[r.URL.Path])
		default:
			io.WriteString(w, "echo-v1")
		}
	}))
	c := newMesh(t, httpRoute("  - retry: {codes: [429, 503], attempts: 2, backoff: 1ms}\n    timeouts: {backendRequest: 300ms}\n"+
		"    backendRefs: [{name: echo-v1, port: 80}]\n"), mesh.WithDiscovery(registry)).Client()
	c.Timeout = time.Minute
	for _, tt := range []struct {
		path, want string
		calls      int32
	}{{"/code", "echo-v1", 3}, {"/other", "500", 1}, {"/slow", "echo-v1", 2}} {
		calls.Store(0)
		routing{tt.path, "", tt.want}.check(t, c)
		if n := calls.Load(); n != tt.calls {
			t.Errorf("%s: %d calls, want %d", tt.path, n, tt.calls)
		}
	}
}

// TestGatewayRoutes_Reload: a route that changes is in force for the next call, and a broken one leaves its last good version in force.
func TestGatewayRoutes_Reload(t *testing.T) {
	noLeaks(t)
	to := func(name string, port int) policy.Source {
		return objectOf("gateway.networking.k8s.io/v1", "HTTPRoute", "echo",
			fmt.Sprintf("{parentRefs: [{group: '', kind: Service, name: echo}], rules: [{backendRefs: [{name: %s, port: %d}]}]}", name, port))
	}
	feed := newCluster(to("echo-v1", 80))
	m := newMesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithDiscovery(echoes(t)))
	routing{"/", "", "echo-v1 /"}.check(t, m.Client())
	feed.apply(t, to("echo-v2", 80))
	routing{"/", "", "echo-v2 /"}.check(t, m.Client())
	feed.apply(t, to("echo-v1", 0))
	routing{"/", "", "echo-v2 /"}.check(t, m.Client())
	if d := m.Status().Documents; len(d.Alone) != 1 || d.Alone[0].Document != "HTTPRoute default/echo" || d.Alone[0].InForce != "last good" {
		t.Errorf("the status is %+v", d)
	}
}
