package policy_test

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// The match of a root is known also where a delegate contradicts another one of its matches.
func TestHost_OriginOfContradiction(t *testing.T) {
	plan, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root}
spec:
  hosts: [orders]
  http:
  - match: [{uri: {prefix: /a}}, {uri: {prefix: /b}}]
    delegate: {name: team}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: team}
spec:
  http:
  - match: [{uri: {prefix: /b/x}}]
    route: [{destination: {host: orders}}]
`)}}, workload)
	if plan == nil {
		t.Fatal(findings)
	}
	h := plan.Host("orders")
	if o := h.Origin(h.Routes.Rule(0), 0); o.Route != 0 || o.Match != 1 {
		t.Errorf("the origin is route %d, match %d; want 0 and 1", o.Route, o.Match)
	}
}

// TestHost_Origin asks for calls to a host that documents of three kinds speak of.
func TestHost_Origin(t *testing.T) {
	data, err := os.ReadFile("testdata/combined/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plan := compile(t, string(data))
	const (
		virtual = "VirtualService default/shop"
		profile = "ServiceProfile default/alone.default.svc.cluster.local"
		split   = "TrafficSplit default/alone"
	)
	tests := []struct {
		name, method, url string
		header            string // that is set to 1
		want              policy.Origin
	}{
		{"first match", "GET", "http://shop/decided", "", policy.Origin{Document: virtual, File: "test.yaml", Line: 11, Route: 0, Match: 0}},
		{"with a profile", "GET", "http://shop/api/a?b=c/d", "", policy.Origin{Document: virtual, File: "test.yaml", Line: 16, Route: 1, Match: 0}},
		{"beside a profile", "GET", "http://shop/api/a/b", "", policy.Origin{Document: virtual, File: "test.yaml", Line: 16, Route: 1, Match: 0}},
		{"second match with a profile", "POST", "http://shop/shares", "", policy.Origin{Document: virtual, File: "test.yaml", Line: 24, Route: 3, Match: 1}},
		{"first match of two", "DELETE", "http://shop:8080/shares", "", policy.Origin{Document: virtual, File: "test.yaml", Line: 24, Route: 3, Match: 0}},
		{"no match", "GET", "http://shop/", "", policy.Origin{Document: virtual, File: "test.yaml", Line: 32, Route: 5, Match: -1}},
		{"a profile", "POST", "http://alone/beta/post", "", policy.Origin{Document: profile, File: "test.yaml", Line: 86, Route: 0, Match: -1}},
		{"a profile and a split", "POST", "http://alone/beta/post", "X-Beta", policy.Origin{Document: profile, File: "test.yaml", Line: 86, Route: 0, Match: -1}},
		{"a split", "GET", "http://alone/beta", "X-Beta", policy.Origin{Document: split, File: "test.yaml", Line: 72, Route: -1, Match: -1}},
		{"defaults", "GET", "http://alone/", "X-Beta", policy.Origin{Route: -1, Match: -1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequest(tt.method, tt.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.header != "" {
				req.Header.Set(tt.header, "1")
			}
			h := plan.Host(req.Host)
			view := route.NewRequest(req)
			entry, match, ok := h.Routes.Match(&view)
			if !ok {
				t.Fatal("no route")
			}
			if got := h.Origin(entry, match); got != tt.want {
				t.Errorf("Origin = %+v, want %+v", got, tt.want)
			}
		})
	}
	if got := (policy.HostPlan{}).Origin(nil, 0); got != (policy.Origin{Route: -1, Match: -1}) {
		t.Errorf("Origin without documents = %+v", got)
	}
}

// TestProfile_Namespace checks whose profile counts, as Linkerd looks for it.
func TestProfile_Namespace(t *testing.T) {
	const document = `
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: web.prod.svc.cluster.local, namespace: NAMESPACE}
spec: {retryBudget: {retryRatio: RATIO, minRetriesPerSecond: 1, ttl: 10s}}
`
	sources := []policy.Source{}
	for ratio, namespace := range []string{"prod", "client", "other"} {
		text := strings.NewReplacer("NAMESPACE", namespace, "RATIO", string(rune('1'+ratio))).Replace(document)
		sources = append(sources, policy.Source{Name: namespace, Data: []byte(text)})
	}
	for namespace, want := range map[string]retry.BudgetConfig{
		"client": {Ratio: 2, MinPerSecond: 1, Window: 10e9},
		"prod":   {Ratio: 1, MinPerSecond: 1, Window: 10e9},
		"third":  {Ratio: 1, MinPerSecond: 1, Window: 10e9},
	} {
		plan, findings := policy.Compile(sources, policy.Workload{Namespace: namespace})
		if plan == nil {
			t.Fatal(findings)
		}
		if got := plan.Cluster(route.Target{Host: "web.prod"}).RetryBudget; got != want {
			t.Errorf("from %s: %+v, want %+v", namespace, got, want)
		}
	}
}

// TestProfile_ShortName: a VirtualService may leave out the domain of the cluster.
func TestProfile_ShortName(t *testing.T) {
	plan := compile(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{route: [{destination: {host: web.prod.svc}}]}]}
---
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: web.prod.svc.cluster.local, namespace: prod}
spec:
  routes: [{name: all, condition: {pathRegex: /.*}, timeout: 3s}]
  retryBudget: {retryRatio: 0.5, minRetriesPerSecond: 1, ttl: 10s}
`)
	rule, _, ok := plan.Host("web").Routes.Match(&route.Request{Method: "GET", Path: "/", Port: 80})
	if !ok || rule.Route.Timeout != 3*time.Second {
		t.Errorf("the route is %+v, want the timeout of the profile", rule)
	}
	if got := plan.Cluster(rule.Route.Destinations[0].Target).RetryBudget; got.Ratio != 0.5 {
		t.Errorf("the budget is %+v, want that of the profile", got)
	}
}

// TestBudget_Backends checks that a budget goes with the calls where they are split, unless the backend has its own.
func TestBudget_Backends(t *testing.T) {
	plan := compile(t, `
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: a.default.svc.cluster.local}
spec: {retryBudget: {retryRatio: 0.1, minRetriesPerSecond: 1, ttl: 10s}}
---
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: a2.default.svc.cluster.local}
spec: {retryBudget: {retryRatio: 0.2, minRetriesPerSecond: 2, ttl: 20s}}
---
apiVersion: split.smi-spec.io/v1alpha2
kind: TrafficSplit
metadata: {name: a}
spec: {service: a, backends: [{service: a1, weight: 1}, {service: a2, weight: 1}]}
`)
	for host, want := range map[string]float64{"a": 0.1, "a1": 0.1, "a2": 0.2} {
		if got := plan.Cluster(route.Target{Host: host}).RetryBudget; got.Ratio != want || got.Off {
			t.Errorf("budget of %s = %+v, want a ratio of %v", host, got, want)
		}
	}
	if got := plan.Cluster(route.Target{Host: "b"}).RetryBudget; got != (retry.BudgetConfig{Off: true}) {
		t.Errorf("budget of b = %+v, want none", got)
	}
}

func TestCombine_Bounds(t *testing.T) {
	var b strings.Builder
	b.WriteString("apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: a.default.svc.cluster.local}\nspec:\n  routes:\n")
	for range 200 {
		b.WriteString("  - {name: a, condition: {method: GET}}\n")
	}
	b.WriteString("---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n")
	for range 200 {
		b.WriteString("  - {match: [{uri: {exact: /a}}], route: [{destination: {host: a}}]}\n")
	}
	plan, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(b.String())}}, workload)
	if plan != nil || !strings.Contains(findings.Error(), "more than 10000 routes and matches together") {
		t.Errorf("plan %v, findings:\n%s", plan != nil, findings)
	}
}

func TestEntry_Equal(t *testing.T) {
	document := func(endpoints string) string {
		return `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: ` + endpoints
	}
	entry := func(endpoints string) *policy.ServiceEntry {
		return compile(t, document(endpoints)).Host("a.example.com").Entry
	}
	first := entry("[{address: 10.0.0.1, labels: {a: b}, weight: 2}]")
	if first == nil || len(first.Endpoints) != 1 || first.LookUp {
		t.Fatalf("Entry = %+v", first)
	}
	if !first.Equal(entry("[{address: 10.0.0.1, labels: {a: b}, weight: 2}]")) {
		t.Error("the same document gives another entry")
	}
	for _, other := range []string{
		"[{address: 10.0.0.2, labels: {a: b}, weight: 2}]",
		"[{address: 10.0.0.1, labels: {a: c}, weight: 2}]",
		"[{address: 10.0.0.1, labels: {a: b}, weight: 3}]",
		"[{address: 10.0.0.1, labels: {a: b}, weight: 2, ports: {http: 81}}]",
		"[{address: 10.0.0.1, labels: {a: b}, weight: 2, locality: eu}]",
		"[{address: 10.0.0.1, labels: {a: b}, weight: 2}, {address: 10.0.0.2}]",
	} {
		if first.Equal(entry(other)) {
			t.Errorf("Equal does not see the difference of %s", other)
		}
	}
	var none *policy.ServiceEntry
	if first.Equal(nil) || none.Equal(first) || !none.Equal(nil) {
		t.Error("Equal with nil is wrong")
	}
	want := discovery.Port{Name: "http", Number: 80}
	if got := first.Endpoints[0].Ports; len(got) != 1 || got[0] != want {
		t.Errorf("ports = %+v, want %+v", got, want)
	}
}

func TestCheck(t *testing.T) {
	const list = `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Service, metadata: {name: a}}]}
---
kind: [
---
apiVersion: v1
kind: List
`
	r := policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(list)}}, policy.Workload{})
	// The Namespace, the Service, the broken document and the List that is none.
	if r.Documents != 4 || len(r.Findings) != 3 || r.Findings.Err() == nil {
		t.Errorf("Check = %d documents and\n%s", r.Documents, r.Findings)
	}
	if r := policy.Check(nil, policy.Workload{}); r.Documents != 0 || r.Findings != nil {
		t.Errorf("Check of nothing = %+v", r)
	}
}

// A workload verifies the tokens that the RequestAuthentications about it describe, all of them together.
func TestRequestAuthentication(t *testing.T) {
	const document = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: default}\nspec: "
	find := func(spec string) policy.Findings {
		return policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(document + spec)}}, workload).Findings
	}
	if got := find("{}"); len(got) != 0 {
		t.Errorf("right:\n%s", got)
	}
	if got := find("{jwtRules: [{}]}"); len(got) != 1 || got[0].Severity != policy.Error {
		t.Errorf("wrong:\n%s", got)
	}

	of := func(namespace, selector, issuer string) string {
		return "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: " + issuer + ", namespace: " + namespace + "}\n" +
			"spec: {" + selector + "jwtRules: [{issuer: " + issuer + ", jwksUri: 'https://keys/" + issuer + "'}]}\n"
	}
	documents := of("default", "", "z") + of("default", "selector: {matchLabels: {app: web}}, ", "b") + of("istio-system", "", "a") +
		of("default", "selector: {matchLabels: {app: other}}, ", "c") + of("elsewhere", "", "d")
	w := policy.Workload{Namespace: "default", Labels: map[string]string{"app": "web"}, Keys: new(jwt.Remotes)}
	sources := []policy.Source{{Name: "a.yaml", Data: []byte(documents)}}
	plan, findings := policy.Compile(sources, w)
	if plan == nil {
		t.Fatal(findings)
	}
	var uris []string
	for _, source := range plan.Inbound().Tokens().Sources() {
		uris = append(uris, source.URI)
	}
	if want := []string{"https://keys/a", "https://keys/b", "https://keys/z"}; !slices.Equal(uris, want) {
		t.Errorf("keys at %v, want %v", uris, want)
	}
	again, _ := policy.Recompile(plan, append(sources, policy.Source{Name: "b.yaml", Data: []byte(of("elsewhere", "", "e"))}), w)
	if again.Inbound().Tokens() != plan.Inbound().Tokens() {
		t.Error("a change of other documents forgets the tokens that are known")
	}
	if without, _ := policy.Recompile(again, nil, w); without.Inbound().Tokens() != nil {
		t.Error("without documents there are rules about tokens")
	}
}

// A policy that asks for a token where none is verified is warned of, and so is one that allows nobody.
func TestPoliciesAboutTokens(t *testing.T) {
	policyOf := func(action, rule string) string {
		return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: default}\nspec: {action: " + action + ", rules: [" + rule + "]}\n"
	}
	const rules = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r, namespace: default}\n" +
		"spec: {jwtRules: [{issuer: i, jwksUri: 'https://keys'}]}\n"
	for _, tt := range []struct{ documents, want string }{
		{policyOf("ALLOW", "{from: [{source: {requestPrincipals: ['*']}}]}"), "asks for a token, and no RequestAuthentication"},
		{policyOf("DENY", "{when: [{key: 'request.auth.claims[a]', values: [b]}]}"), "asks for a token, and no RequestAuthentication"},
		{rules + policyOf("ALLOW", "{from: [{source: {requestPrincipals: ['*']}}]}"), ""},
		{rules + policyOf("ALLOW", "{from: [{source: {requestPrincipals: ['*/*']}}]}"), `spec.rules[0].from[0].source: warning: requestPrincipals: "*/*" matches nobody`},
		{rules + policyOf("DENY", "{from: [{source: {requestPrincipals: ['https://i']}}]}"), `spec.rules[0].from[0].source: error: cannot be enforced: requestPrincipals: "https://i" matches nobody`},
		{rules + policyOf("DENY", "{when: [{key: request.auth.principal, notValues: ['i']}]}"), `spec.rules[0].when[0]: error: cannot be enforced: request.auth.principal: "i" matches nobody`},
	} {
		findings := policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(tt.documents)}}, policy.Workload{Namespace: "default"}).Findings
		if got := fmt.Sprint(findings); tt.want == "" && len(findings) > 0 || !strings.Contains(got, tt.want) {
			t.Errorf("found %s\nwant %s", got, tt.want)
		}
	}
}
