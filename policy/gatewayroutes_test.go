package policy_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// attachedRoute returns a route of the Gateway API whose rules have this name.
func attachedRoute(kind, namespace, name, day, parents, rules string) string {
	return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s, creationTimestamp: \"2026-01-%sT00:00:00Z\"}\n"+
		"spec: {parentRefs: [%s], rules: [%s]}\n", kind, name, namespace, day, parents, rules)
}

// TestAttached_GRPCWhateverItsAge: a VirtualService between the ages of an HTTPRoute and a GRPCRoute does not part them.
func TestAttached_GRPCWhateverItsAge(t *testing.T) {
	const to = `{group: "", kind: Service, name: echo}`
	routes := attachedRoute("HTTPRoute", "shop", "echo", "01", to, "{backendRefs: [{name: v1, port: 80}]}") +
		attachedRoute("GRPCRoute", "shop", "echo", "03", to, "{backendRefs: [{name: v2, port: 80}]}")
	for about, want := range map[string]string{"other": "GRPCRoute shop/echo", "echo": "GRPCRoute shop/echo"} {
		vs := fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop, creationTimestamp: \"2026-01-02T00:00:00Z\"}\n"+
			"spec: {hosts: [%s], http: [{route: [{destination: {host: v3}}]}]}\n", about)
		plan, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(routes + vs)}}, policy.Workload{Namespace: "web"})
		if plan == nil {
			t.Fatal(findings)
		}
		if got := plan.Host("echo.shop").Document; got != want {
			t.Errorf("with a VirtualService about %s: %s routes the service, want %s", about, got, want)
		}
	}
}

// routedDocument is a document of TestAttached_Model. Each match is in a rule of its own.
type routedDocument struct {
	kind, namespace, name string
	day                   int
	ports                 []int // 0: all
	matches               []routedMatch
}

// routedMatch is a match, which has the name of its rule.
type routedMatch struct {
	name, kind, path, method, header, query string
}

func randomRoute(rng *rand.Rand, name string) routedDocument {
	r := routedDocument{kind: pick(rng, "HTTPRoute", "HTTPRoute", "GRPCRoute"), namespace: pick(rng, "shop", "shop", "web"), name: name, day: 1 + rng.IntN(3)}
	if r.ports = []int{0, 80, 8080}[rng.IntN(3):]; rng.IntN(2) == 0 {
		r.ports = r.ports[:1]
	}
	for i := range 1 + rng.IntN(4) {
		m := routedMatch{name: fmt.Sprintf("%s-%d", name, i), header: pick(rng, "", "", "one", "two")}
		if r.kind == "HTTPRoute" {
			m.kind, m.path = pick(rng, "PathPrefix", "PathPrefix", "Exact", "RegularExpression"), pick(rng, "/", "/a", "/a/", "/a/b", "/a/bc")
			m.method, m.query = pick(rng, "", "GET", "POST"), pick(rng, "", "", "1")
		} else {
			m.kind, m.path = "Exact", pick(rng, "", ".", "a.", ".b", "a.b", "a.bc")
		}
		r.matches = append(r.matches, m)
	}
	return r
}

func (r *routedDocument) String() string {
	var parents, rules []string
	for _, port := range r.ports {
		parents = append(parents, `{group: "", kind: Service, name: echo, namespace: shop`+map[int]string{0: "", 80: ", port: 80", 8080: ", port: 8080"}[port]+"}")
	}
	for _, m := range r.matches {
		var of []string
		service, method, _ := strings.Cut(m.path, ".")
		if r.kind == "HTTPRoute" {
			of = append(of, fmt.Sprintf("path: {type: %s, value: %s}", m.kind, m.path))
		} else if service+method != "" {
			of = append(of, fmt.Sprintf("method: {service: %q, method: %q}", service, method))
		}
		if m.method != "" {
			of = append(of, "method: "+m.method)
		}
		switch m.header {
		case "one":
			of = append(of, "headers: [{name: x, value: y}]")
		case "two":
			of = append(of, "headers: [{name: x, value: y}, {name: z, type: RegularExpression, value: y+}]")
		}
		if m.query != "" {
			of = append(of, `queryParams: [{name: q, value: "1"}]`)
		}
		rules = append(rules, fmt.Sprintf("{name: %s, matches: [{%s}], backendRefs: [{name: b, port: 80}]}", m.name, strings.Join(of, ", ")))
	}
	return attachedRoute(r.kind, r.namespace, r.name, fmt.Sprintf("%02d", r.day), strings.Join(parents, ", "), strings.Join(rules, ", "))
}

// routedRequest has the conditions that a request meets.
type routedRequest struct {
	port                        int
	method, path, header, query string
}

// meets reports whether a request meets a match, and how specific that is.
func (m *routedMatch) meets(kind string, r routedRequest) (rank []int, ok bool) {
	headers := map[string]int{"one": 1, "two": 2}[m.header]
	if headers > map[string]int{"one": 1, "two": 2}[r.header] {
		return nil, false
	}
	if kind == "GRPCRoute" {
		service, method, _ := strings.Cut(m.path, ".")
		of := strings.SplitN(r.path, "/", 3)
		if service+method != "" && (len(of) < 3 || service != "" && of[1] != service || method != "" && of[2] != method) {
			return nil, false
		}
		return []int{len(service), len(method), headers}, true
	}
	whole := strings.TrimSuffix(m.path, "/")
	switch {
	case m.method != "" && m.method != r.method, m.query != "" && m.query != r.query,
		m.kind != "PathPrefix" && m.path != r.path, m.kind == "PathPrefix" && r.path != whole && !strings.HasPrefix(r.path, whole+"/"):
		return nil, false
	}
	length := len(m.path)
	if m.kind == "PathPrefix" {
		length = max(1, len(whole))
	}
	return []int{map[string]int{"Exact": 2, "PathPrefix": 1}[m.kind], length, min(1, len(m.method)), headers, len(m.query)}, true
}

// routedTo returns the name of the rule that the specification says, "404" if none, and "" if no route is about the port.
func routedTo(routes []routedDocument, caller string, r routedRequest) string {
	has := func(yes func(*routedDocument) bool) bool {
		return slices.ContainsFunc(routes, func(m routedDocument) bool { return yes(&m) })
	}
	routes = slices.DeleteFunc(slices.Clone(routes), func(m routedDocument) bool {
		return m.namespace != "shop" && m.namespace != caller || !slices.Contains(m.ports, 0) && !slices.Contains(m.ports, r.port)
	})
	if len(routes) == 0 {
		return ""
	}
	if has(func(m *routedDocument) bool { return m.namespace != "shop" }) {
		routes = slices.DeleteFunc(routes, func(m routedDocument) bool { return m.namespace == "shop" })
	}
	if has(func(m *routedDocument) bool { return m.kind == "GRPCRoute" }) {
		routes = slices.DeleteFunc(routes, func(m routedDocument) bool { return m.kind != "GRPCRoute" })
	}
	slices.SortFunc(routes, func(a, b routedDocument) int { return cmp.Or(a.day-b.day, cmp.Compare(a.name, b.name)) })
	best, name := []int(nil), "404"
	for i := range routes {
		for j := range routes[i].matches {
			m := &routes[i].matches[j]
			if rank, ok := m.meets(routes[i].kind, r); ok && slices.Compare(rank, best) > 0 {
				best, name = rank, m.name
			}
		}
	}
	return name
}

// TestAttached_Model compares the precedence of random routes with that of a simple model, which follows the text of the specification.
func TestAttached_Model(t *testing.T) {
	matched := 0
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var routes []routedDocument
		var text strings.Builder
		for i := range 1 + rng.IntN(5) {
			routes = append(routes, randomRoute(rng, string(rune('f'-i))))
			text.WriteString(routes[i].String())
		}
		caller := pick(rng, "web", "web", "shop", "other")
		plan, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(text.String())}}, policy.Workload{Namespace: caller})
		if plan == nil {
			t.Fatalf("%v\nof%s", findings, &text)
		}
		for range 60 {
			r := routedRequest{[]int{80, 8080, 9090}[rng.IntN(3)], pick(rng, "GET", "POST"), pick(rng, "/", "/a", "/a/b", "/a/bc", "/a/b/c", "/c/b"),
				pick(rng, "", "one", "two"), pick(rng, "", "1")}
			req := httptest.NewRequest(r.method, fmt.Sprintf("http://echo.shop:%d%s?q=%s", r.port, r.path, r.query), nil)
			for _, name := range []string{"X", "Z"}[:map[string]int{"one": 1, "two": 2}[r.header]] {
				req.Header.Set(name, "y")
			}
			got, view := "", route.NewRequest(req)
			if h := plan.Host(req.Host); h.Routes != nil {
				got = "404"
				if rule, _, ok := h.Routes.Match(&view); ok {
					got, matched = rule.Route.Name, matched+1
				}
			}
			if want := routedTo(routes, caller, r); got != want {
				t.Fatalf("seed %d: %+v from %s matches %q, want %q, of\n%s", seed, r, caller, got, want, &text)
			}
		}
	}
	if matched < 2000 {
		t.Errorf("%d requests matched: the test says little", matched)
	}
}

// TestAttached_Origin: what a document does not have has no index, and its own line.
func TestAttached_Origin(t *testing.T) {
	const head = "# a comment\napiVersion: policy.linkerd.io/v1beta3\nkind: HTTPRoute\nmetadata: {name: echo}\nspec:\n  parentRefs: [{group: core, kind: Service, name: echo}]\n"
	for text, want := range map[string]policy.Origin{
		head:                              {Line: 2, Route: -1, Match: -1},
		head + "  rules: []\n":            {Line: 2, Route: -1, Match: -1},
		head + "  rules:\n  - {}\n":       {Line: 8, Route: 0, Match: -1},
		head + "  rules: [{matches: []}]": {Line: 7, Route: 0, Match: -1},
		head + "  rules:\n  - {matches: [{method: PUT}]}\n  - matches: [{method: POST}, {}]\n": {Line: 9, Route: 1, Match: 1},
	} {
		h := compile(t, text).Host("echo")
		view := route.NewRequest(httptest.NewRequest("GET", "http://echo/", nil))
		rule, match, _ := h.Routes.Match(&view)
		want.Document, want.File = "HTTPRoute default/echo", h.Origin(rule, match).File
		if got := h.Origin(rule, match); got != want {
			t.Errorf("the origin is %+v, want %+v, of\n%s", got, want, text)
		}
	}
}

// TestAttached_WhereTheTableErrs: what only the table of routes refuses is reported at its rule, once.
func TestAttached_WhereTheTableErrs(t *testing.T) {
	_, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(attachedRoute("HTTPRoute", "shop", "echo", "01", `{group: "", kind: Service, name: echo}`,
		"{matches: [{method: GET}, {method: PUT}], backendRefs: [{name: b, port: 80}]}, {matches: [{method: GET}, {method: PUT}], backendRefs: [{name: b, port: 80}], "+
			"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [content-length]}}]}"))}}, workload)
	if got := findings.Error(); len(findings) != 1 || !strings.Contains(got, "spec.rules[1]: error: Headers.Request.Remove[0]: ") {
		t.Errorf("the findings are %v", got)
	}
}

// TestAttached_Divided: routes have no effect on a service that has a ServiceProfile, also if they are attached to a wildcard that covers it.
func TestAttached_Divided(t *testing.T) {
	const entry, profile = `{hosts: ["*.example", b.other.test], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}`,
		"---\napiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: %s}\nspec: {routes: [{name: r, condition: {method: GET}, timeout: 1s}]}\n"
	plan := compile(t, "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: "+entry+"\n"+
		fmt.Sprintf(profile, "a.example")+fmt.Sprintf(profile, "b.other.test")+
		attachedRoute("HTTPRoute", "default", "e", "01", "{group: networking.istio.io, kind: ServiceEntry, name: e, port: 80}",
			"{backendRefs: [{group: networking.istio.io, kind: Hostname, name: c.example, port: 80}]}"))
	for host, want := range map[string]string{
		"a.example": "ServiceProfile default/a.example", "b.other.test": "ServiceProfile default/b.other.test",
		"d.example": "HTTPRoute default/e", "d.example:8080": "", "a.example:8080": "ServiceProfile default/a.example",
	} {
		if got := plan.Host(host).Document; got != want {
			t.Errorf("%s routes %s, want %q", got, host, want)
		}
	}
}

// TestAttached_NamesBackends: services that requests or copies are sent to are known by their short names, too, as with a VirtualService.
func TestAttached_NamesBackends(t *testing.T) {
	plan, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(attachedRoute("HTTPRoute", "shop", "echo", "01", `{group: "", kind: Service, name: echo}`,
		"{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copy, namespace: prod, port: 80}}}], backendRefs: [{name: v1, namespace: prod, port: 80}]}"))}},
		policy.Workload{Namespace: "shop"})
	if plan == nil {
		t.Fatal(findings)
	}
	for host, want := range map[string]string{
		"v1.prod": "v1.prod.svc.cluster.local", "copy.prod.svc": "copy.prod.svc.cluster.local", "other.prod": "other.prod",
	} {
		if got := plan.Host(host).Service.Host; got != want {
			t.Errorf("%s is %s, want %s", host, got, want)
		}
	}
}
