package policy_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// compiled compiles documents that have no errors.
func compiled(t *testing.T, documents string) (*policy.Plan, policy.Findings) {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(documents)}}, workload)
	if plan == nil {
		t.Fatalf("Compile = %v", findings)
	}
	return plan, findings
}

func virtualService(name, spec string) string {
	return "\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + "}\nspec: " + spec
}

func destinationRule(metadata, spec string) string {
	return "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {" + metadata + "}\nspec: " + spec
}

// TestShortNames has a service that only a Service document knows: its short names are the service.
func TestShortNames(t *testing.T) {
	plan, _ := compiled(t, "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80}]}\n")
	for _, name := range []string{"cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local", "CART.shop:80"} {
		if h := plan.Host(name); h.Service.Host != "cart.shop.svc.cluster.local" || h.Service.Namespace != "shop" || !h.Known {
			t.Errorf("Host(%s) = %+v, want the service cart of shop", name, h)
		}
	}
	if h := plan.Host("cart.shops"); h.Known || h.Service.Host != "cart.shops" {
		t.Errorf("Host(cart.shops) = %+v, want a host outside of the cluster", h)
	}
}

// TestShortNamesOfDiscovery asks for the service that a name means if discovery knows it.
func TestShortNamesOfDiscovery(t *testing.T) {
	plan, _ := compiled(t, virtualService("all", `{hosts: ["*.local"], http: [{route: [{destination: {host: a}}]}]}`)+
		virtualService("named", `{hosts: [api.example], http: [{route: [{destination: {host: a}}]}]}`))
	for name, host := range map[string]string{
		"cart.shop:8080": "cart.shop.svc.cluster.local", "cart.shop.svc": "cart.shop.svc.cluster.local", "cart": "cart.default.svc.cluster.local",
	} {
		h, ok := plan.InCluster(name)
		if !ok || h.Known || h.Service.Host != host || h.Document != "VirtualService default/all" || h.Routes == nil {
			t.Errorf("InCluster(%s) = %+v, %v, want %s with the routes of the wildcard", name, h, ok, host)
		}
	}
	for _, name := range []string{"cart.shop.svc.cluster.local", "api.example", "a.b.c", "10.0.0.1", "localhost", ""} {
		if h, ok := plan.InCluster(name); ok {
			t.Errorf("InCluster(%s) = %+v, want none", name, h)
		}
	}
	for _, name := range []string{"cart", "cart.shop.svc", "a", "a.default"} {
		plan, _ := compiled(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n")
		if h, ok := plan.InCluster(name); ok != (name[0] == 'c') || h.Routes != nil {
			t.Errorf("InCluster(%s) = %+v, %v without a wildcard", name, h, ok)
		}
	}
}

// TestWildcardsAndShortNames has a wildcard that would cover every name, were it taken for that of a service.
func TestWildcardsAndShortNames(t *testing.T) {
	plan, _ := compiled(t, virtualService("all", `{hosts: ["*.local"], http: [{route: [{destination: {host: a.default.svc.cluster.local}}]}]}`)+
		destinationRule("name: all", `{host: "*.cluster.local", trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}`))
	for _, name := range []string{"github.com", "github.com:443", "localhost", "localhost:8080"} {
		h := plan.Host(name)
		if host, _, _ := strings.Cut(name, ":"); h.Known || h.Routes != nil || h.Service.Host != host {
			t.Errorf("Host(%s) = %+v, want a host that no document knows", name, h)
		}
		host, _, _ := strings.Cut(name, ":")
		if c := plan.Cluster(route.Target{Host: host}); c.TLS.Mode != policy.TLSAuto {
			t.Errorf("Cluster(%s) is secured by %v, want the defaults", host, c.TLS.Mode)
		}
	}
	if h := plan.Host("typo"); h.Known || h.Routes != nil {
		t.Errorf("Host(typo) = %+v, want a host that only discovery may know", h)
	}
	for _, name := range []string{"x.y.svc.cluster.local", "printer.local"} {
		if h := plan.Host(name); !h.Known || h.Document != "VirtualService default/all" {
			t.Errorf("Host(%s) = %+v, want the routes of the wildcard", name, h)
		}
	}
}

// TestGatewayDocuments has documents for gateways that use what is not enforced: they are skipped.
func TestGatewayDocuments(t *testing.T) {
	const unenforced = `headers: {request: {set: {x: "%DOWNSTREAM_LOCAL_ADDRESS%"}}}, retries: {attempts: 1, retryRemoteLocalities: true}`
	plan, findings := compiled(t, virtualService("edge", `
  hosts: ["*"]
  gateways: [edge]
  http: [{route: [{destination: {host: a}}], `+unenforced+`}]
  tls: [{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]
`)+virtualService("mixed", `
  hosts: [mixed]
  gateways: [edge, mesh]
  http:
  - match: [{gateways: [edge]}]
    route: [{destination: {host: a}}]
    `+strings.ReplaceAll(unenforced, "}, ", "}\n    ")+`
  - match: [{gateways: [edge], uri: {prefix: /d}}]
    delegate: {name: nowhere}
  - route: [{destination: {host: b}}]
  tls: [{match: [{sniHosts: [a], gateways: [edge]}], route: [{destination: {host: a}}]}]
`))
	if len(findings) != 1 || findings[0].Field != "spec.gateways" || findings[0].Name != "edge" {
		t.Errorf("the findings are\n%v\nwant one, that edge is skipped", findings)
	}
	h := plan.Host("mixed")
	rule, _, ok := h.Routes.Match(&route.Request{Method: "GET", Path: "/d", Port: 80})
	if !ok || len(rule.Route.Destinations) != 1 || rule.Route.Destinations[0].Target.Host != "b.default.svc.cluster.local" {
		t.Fatalf("mixed routes to %+v, want b", rule)
	}
	if o := h.Origin(rule, -1); o.Route != 2 && o.Route != 1 {
		t.Errorf("Origin = %+v", o)
	}
	for name, spec := range map[string]string{
		"one match for the mesh": `{hosts: [a], gateways: [edge, mesh], http: [{match: [{gateways: [edge]}, {}], route: [{destination: {host: a}}], retries: {attempts: 1, retryRemoteLocalities: true}}]}`,
		"mesh":                   `{hosts: [a], gateways: [edge, mesh], http: [{route: [{destination: {host: a}}], retries: {attempts: 1, retryRemoteLocalities: true}}]}`,
	} {
		if plan, _ := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(virtualService("a", spec))}}, workload); plan != nil {
			t.Errorf("%s: a setting that is not enforced is accepted", name)
		}
	}
}

// TestGatewayDelegates has a delegate that only gateways hand requests to, and uses what is not enforced: it is skipped. It is
// refused as soon as a route for the mesh names it, in its own lines.
func TestGatewayDelegates(t *testing.T) {
	const leaf = `
  http:
  - match: [{uri: {prefix: /b}}]
    route: [{destination: {host: b, subset: v1}}]
    retries: {attempts: 1, retryRemoteLocalities: true}
    headers: {request: {set: {x: "%DOWNSTREAM_LOCAL_ADDRESS%"}}}
`
	atGateway := virtualService("edge", "{hosts: [a], gateways: [edge], http: [{delegate: {name: leaf}}]}")
	mixed := virtualService("mixed", "{hosts: [c], gateways: [edge, mesh], http: [{match: [{gateways: [edge]}], delegate: {name: leaf}}, {route: [{destination: {host: c}}]}]}")
	plan, findings := compiled(t, atGateway+mixed+virtualService("leaf", leaf))
	if len(findings) != 1 || findings[0].Field != "spec.gateways" {
		t.Errorf("the findings are\n%v\nwant one, that edge is skipped", findings)
	}
	if got := plan.InForce(); got[0] != 1 {
		t.Errorf("%d documents are in force, want mixed alone", got[0])
	}
	inMesh := virtualService("mesh", "{hosts: [d], http: [{delegate: {name: leaf}}]}")
	for range 2 { // read afresh, and known from the plan before
		var refused policy.Findings
		set := []policy.Source{{Name: "a.yaml", Data: []byte(atGateway + mixed + virtualService("leaf", leaf) + inMesh)}}
		if plan, refused = policy.Recompile(plan, set, workload); plan != nil {
			t.Fatal("a delegate in the mesh that uses what is not enforced is accepted")
		}
		refused = refused.Err().(policy.Findings)
		if len(refused) != 1 || refused[0].Name != "leaf" || refused[0].Line != 20 || refused[0].Field != "spec.http[0].retries.retryRemoteLocalities" {
			t.Errorf("the errors are\n%v\nwant one, in line 20 of leaf", refused)
		}
		plan, _ = compiled(t, atGateway+mixed+virtualService("leaf", leaf))
	}
	if _, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(virtualService("leaf", "{http: [{route: [{destination: {host: b}}], bogus: 1}]}"))}}, workload); findings.Err() == nil {
		t.Error("an unknown field of a delegate that nobody uses is accepted")
	}
}

// TestClaimsAtGateways has a route for gateways that looks at claims, in a document that is for the mesh, too.
func TestClaimsAtGateways(t *testing.T) {
	plan, findings := compiled(t, virtualService("mixed", `
  hosts: [mixed]
  gateways: [edge, mesh]
  http:
  - match: [{gateways: [edge], headers: {"@request.auth.claims.sub": {exact: x}}}, {uri: {exact: /b}}]
    route: [{destination: {host: b}}]
  - route: [{destination: {host: c}}]
`))
	if len(findings) > 0 {
		t.Error(findings)
	}
	for path, want := range map[string]string{"/b": "b", "/": "c"} {
		rule, _, ok := plan.Host("mixed").Routes.Match(&route.Request{Method: "GET", Path: path, Port: 80})
		if !ok || rule.Route.Destinations[0].Target.Host != want+".default.svc.cluster.local" {
			t.Errorf("%s goes to %+v, want %s", path, rule, want)
		}
	}
	document := virtualService("a", `{hosts: [a], gateways: [edge, mesh], http: [{match: [{headers: {"@request.auth.claims.sub": {exact: x}}}], route: [{destination: {host: b}}]}]}`)
	if plan, _ := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(document)}}, workload); plan != nil {
		t.Error("a match on claims in the mesh is accepted")
	}
}

// TestOldestFirst_Kinds has DestinationRules, ServiceEntries and PeerAuthentications that a server has stored.
func TestOldestFirst_Kinds(t *testing.T) {
	created := func(day int) string { return fmt.Sprintf(`, creationTimestamp: "2026-01-0%dT00:00:00Z"`, day) }
	rule := func(name string, day, connections int) string {
		return destinationRule("name: "+name+created(day), fmt.Sprintf("{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: %d}}}}", connections))
	}
	entry := func(name string, day int) string {
		return "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " + name + created(day) + "}\n" +
			"spec: {hosts: [api.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}"
	}
	peers := func(name string, day int, mode string) string {
		return "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: " + name + ", namespace: default" + created(day) + "}\n" +
			"spec: {mtls: {mode: " + mode + "}}"
	}
	for name, documents := range map[string]string{
		"by age":  rule("a", 2, 2) + rule("z", 1, 1) + entry("a", 2) + entry("z", 1) + peers("a", 2, "DISABLE") + peers("z", 1, "STRICT"),
		"by name": rule("zz", 1, 2) + rule("z", 1, 1) + entry("zz", 1) + entry("z", 1) + peers("zz", 1, "DISABLE") + peers("z", 1, "STRICT"),
	} {
		plan, findings := compiled(t, documents)
		if got := plan.Cluster(route.Target{Host: "a"}).Pool.MaxConnections; got != 1 {
			t.Errorf("%s: maxConnections = %d, want that of the oldest", name, got)
		}
		if got := plan.Host("api.example").Entry.Document; got != "ServiceEntry default/z" {
			t.Errorf("%s: %s counts, want the oldest", name, got)
		}
		if got := plan.Inbound().Mode(80); got != tlsid.Strict {
			t.Errorf("%s: the mode is %v, want that of the oldest", name, got)
		}
		if len(findings) != 3 {
			t.Errorf("%s: the findings are\n%v\nwant one for each that does not count", name, findings)
		}
	}
}

// TestAccepted has documents that Istio takes.
func TestAccepted(t *testing.T) {
	for name, document := range map[string]string{
		"only a retryBudget": destinationRule("name: a", "{host: a, trafficPolicy: {retryBudget: {percent: 20}}}"),
		"weight 00":          virtualService("a", "{hosts: [a], http: [{route: [{destination: {host: a}, weight: 100}, {destination: {host: b}, weight: 00}]}]}"),
		"only prefixRewrite": virtualService("a", "{hosts: [a], http: [{match: [{uri: {prefix: /a}}], redirect: {prefixRewrite: /b}}]}"),
		"null fields":        virtualService("a", "{hosts: [a], gateways: ~, tls: null, http: [{match: ~, route: [{destination: {host: a, subset: ~}}], fault: ~, corsPolicy: null}]}"),
	} {
		if _, findings := compiled(t, document); len(findings) > 0 {
			t.Errorf("%s: %v", name, findings)
		}
	}
}

func TestCookieAttributes(t *testing.T) {
	document := destinationRule("name: a", "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 1s, attributes: [{name: Secure}, {name: secure, value: x}]}}}}}")
	plan, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(document)}}, workload)
	if plan != nil || len(findings) != 1 || !strings.Contains(findings[0].Message, "a cookie has an attribute once") {
		t.Errorf("Compile = %v", findings)
	}
}

// TestExportToAndMerging has rules for one host: those with the same exportTo count as one, and of others the last.
func TestExportToAndMerging(t *testing.T) {
	const first, second = `{host: a, exportTo: ["."], subsets: [{name: v1}], trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}`,
		`{host: a, exportTo: [%], subsets: [{name: v2}], trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}}}}`
	for exportTo, want := range map[string]int{`default`: 1, `"."`: 1, `"*"`: 2, `default, other`: 2} {
		plan, _ := compiled(t, destinationRule("name: a", first)+destinationRule("name: b", strings.Replace(second, "%", exportTo, 1)))
		if got := plan.Cluster(route.Target{Host: "a"}).Pool.MaxConnections; got != want {
			t.Errorf("exportTo %s: maxConnections = %d, want %d", exportTo, got, want)
		}
		if merged := !plan.Cluster(route.Target{Host: "a", Subset: "v1"}).Missing; merged != (want == 1) {
			t.Errorf("exportTo %s: the subset v1 exists: %v", exportTo, merged)
		}
		if plan.Cluster(route.Target{Host: "a", Subset: "v2"}).Missing {
			t.Errorf("exportTo %s: the subset v2 is missing", exportTo)
		}
	}
}

// TestSelectorThatDoesNotSelect has a rule for the very host, which is for other workloads: the host has the defaults, and
// not what is said of more hosts.
func TestSelectorThatDoesNotSelect(t *testing.T) {
	const general = `{host: "*.default.svc.cluster.local", trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}`
	plan, _ := compiled(t, destinationRule("name: all", general)+
		destinationRule("name: root, namespace: istio-system", `{host: a.default.svc.cluster.local, trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}}`)+
		destinationRule("name: a", `{host: a, workloadSelector: {matchLabels: {app: another}}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}}}}`))
	if got := plan.Cluster(route.Target{Host: "a"}).Pool.MaxConnections; got != 0 {
		t.Errorf("maxConnections of a = %d, want the default", got)
	}
	if got := plan.Cluster(route.Target{Host: "b"}).Pool.MaxConnections; got != 1 {
		t.Errorf("maxConnections of b = %d, want that of the wildcard", got)
	}
}

// TestOldestFirst has documents that a server has stored: the oldest counts, wherever it stands.
func TestOldestFirst(t *testing.T) {
	document := func(name, created, to string) string {
		if created != "" {
			created = ", creationTimestamp: " + created
		}
		return virtualService(name+created, "{hosts: [a], http: [{route: [{destination: {host: "+to+"}}]}]}")
	}
	for name, tt := range map[string]struct{ documents, want string }{
		"oldest last":   {document("b", `"2026-01-02T00:00:00Z"`, "b") + document("c", `"2026-01-01T00:00:00Z"`, "c"), "VirtualService default/c"},
		"same age":      {document("c", `"2026-01-01T00:00:00Z"`, "c") + document("b", `"2026-01-01T00:00:00Z"`, "b"), "VirtualService default/b"},
		"one unknown":   {document("b", `"2026-01-02T00:00:00Z"`, "b") + document("c", "", "c"), "VirtualService default/b"},
		"one is null":   {document("b", `"2026-01-02T00:00:00Z"`, "b") + document("c", "null", "c"), "VirtualService default/b"},
		"without times": {document("b", "", "b") + document("a", "", "a"), "VirtualService default/b"},
	} {
		plan, findings := compiled(t, tt.documents)
		if got := plan.Host("a").Document; got != tt.want || len(findings) != 1 {
			t.Errorf("%s: %s counts, want %s; %v", name, got, tt.want, findings)
		}
	}
}

// TestFindingsOfDelegates has mistakes that only compiling finds, in a delegate or in what it takes over from its root: they are
// reported once, in the line that they stand in.
func TestFindingsOfDelegates(t *testing.T) {
	for name, tt := range map[string]struct {
		root, leaf      string
		document, field string
		line            int
	}{
		"rewrite of the delegate": {
			"", "rewrite: {uri: no-slash}", "leaf", "spec.http[0].rewrite.uri", 19,
		},
		"header of the delegate": {
			"headers: {request: {set: {x-a: good}}}", "headers:\n      response:\n        set: {x-b: '%X%'}",
			"leaf", "spec.http[0].headers.response.set.x-b", 21,
		},
		"header that the delegate takes over": {
			"headers:\n      request:\n        add: {x-a: '%X%'}", "timeout: 1s", "root", "spec.http[0].headers.request.add.x-a", 12,
		},
		"header that the delegate has in another way": {
			"headers: {request: {set: {x-a: '%X%'}}}", "headers: {request: {set: {x-a: good}}}", "root", "spec.http[0].headers.request.set.x-a", 10,
		},
		"rewrite that the delegate takes over": {
			"rewrite: {uri: no-slash}", "timeout: 1s", "root", "spec.http[0].rewrite.uri", 10,
		},
		"match of the root": {
			"match: [{headers: {':x': {exact: a}}}]", "timeout: 1s", "root", "spec.http[0].match[0].headers[\":x\"]", 10,
		},
	} {
		documents := virtualService("root", `
  hosts: [a]
  http:
  - delegate: {name: leaf}
    `+cmp.Or(tt.root, "timeout: 1s")+`
`) + virtualService("leaf", `
  http:
  - route: [{destination: {host: b}}]
    `+tt.leaf+`
`)
		_, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(documents)}}, workload)
		if len(findings) != 1 || findings[0].Name != tt.document || findings[0].Line != tt.line || findings[0].Field != tt.field {
			t.Errorf("%s: the findings are\n%v\nwant one, in line %d of %s: %s", name, findings, tt.line, tt.document, tt.field)
		}
	}
}

// TestPortsOfEntries warns of destinations whose port their entry does not have.
func TestPortsOfEntries(t *testing.T) {
	const entry = "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db}\nspec: {hosts: [db.example, '*.db.example'], location: MESH_EXTERNAL, " +
		"resolution: STATIC, ports: [{number: 8080, name: http, protocol: HTTP}], endpoints: [{address: 10.0.0.1}]}"
	for destination, want := range map[string]string{
		"{host: db.example, port: {number: 80}}":    "spec.http[0].route[0].destination.port: ServiceEntry default/db has no port 80, it has 8080: requests to it fail",
		"{host: x.db.example, port: {number: 443}}": "spec.http[0].route[0].destination.port: ServiceEntry default/db has no port 443, it has 8080: requests to it fail",
		"{host: db.example, port: {number: 8080}}":  "",
		"{host: db.example}":                        "",
		"{host: other.example, port: {number: 80}}": "",
	} {
		_, findings := compiled(t, entry+virtualService("a", "{hosts: [a], http: [{route: [{destination: "+destination+"}]}]}"))
		got := ""
		for _, f := range findings {
			got += f.Field + ": " + f.Message
		}
		if got != want {
			t.Errorf("%s: %q, want %q", destination, got, want)
		}
	}
}

// TestPortsOfEntries_Missing warns of destinations without a port that get requests to a port that their entry does not have.
func TestPortsOfEntries_Missing(t *testing.T) {
	const entry = "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db}\nspec: {hosts: [db.example, '*.db.example'], location: MESH_EXTERNAL, " +
		"resolution: STATIC, ports: [{number: 8080, name: a, protocol: HTTP}, {number: 9090, name: b, protocol: HTTP}], endpoints: [{address: 10.0.0.1}]}"
	const service = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: %d}]}"
	missing := func(at string, port int) string {
		return fmt.Sprintf("%s.port: missing, so that it is the port of the request: ServiceEntry default/db has no port %[2]d, it has 8080, 9090: requests to port %[2]d fail", at, port)
	}
	const first = "spec.http[0].route[0].destination"
	one := "\n---\n" + strings.Replace(strings.TrimPrefix(entry, "\n---\n"), "{number: 9090, name: b, protocol: HTTP}", "", 1)
	for _, tt := range []struct{ documents, http, want string }{
		{entry, "{route: [{destination: {host: db.example}}]}", missing(first, 80)},
		{entry + fmt.Sprintf(service, 7070), "{route: [{destination: {host: x.db.example}}]}", missing(first, 7070)},
		{entry + fmt.Sprintf(service, 8080), "{route: [{destination: {host: db.example}}]}", ""},
		{entry, "{route: [{destination: {host: db.example, port: {number: 9090}}}]}", ""},
		{entry, "{match: [{port: 8080}], route: [{destination: {host: db.example}}]}", ""},
		{entry, "{match: [{port: 8080}, {port: 81}], route: [{destination: {host: db.example}}]}", missing(first, 81)},
		{entry, "{match: [{port: 8080}, {uri: {exact: /}}], route: [{destination: {host: db.example}}]}", missing(first, 80)},
		{entry, "{route: [{destination: {host: b}}], mirror: {host: db.example}}", missing("spec.http[0].mirror", 80)},
		{one, "{route: [{destination: {host: db.example}}]}", ""},
		{one, "{route: [{destination: {host: x.db.example}}]}", strings.Replace(missing(first, 80), "8080, 9090", "8080", 1)},
	} {
		_, findings := compiled(t, tt.documents+virtualService("a", "{hosts: [a], http: ["+tt.http+"]}"))
		got := ""
		for _, f := range findings {
			got += f.Field + ": " + f.Message
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.http, got, tt.want)
		}
	}
	if _, findings := compiled(t, entry+virtualService("a", "{hosts: [db.example], http: [{route: [{destination: {host: db.example}}]}]}")); len(findings) > 0 {
		t.Errorf("a route of the entry's own host: %v", findings)
	}
}

// TestEntriesWithoutLocation warns of entries that are probably part of the mesh.
func TestEntriesWithoutLocation(t *testing.T) {
	entry := func(spec string) string {
		return "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, " + spec + "}"
	}
	for spec, want := range map[string]bool{
		"hosts: [a.shop.svc.cluster.local], endpoints: [{address: 10.0.0.1}]":                              true,
		"hosts: [a.example.com], endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, serviceAccount: a}]": true,
		"hosts: [a.example.com], endpoints: [{address: 10.0.0.1}]":                                         false,
		"hosts: [a.shop.svc.cluster.local], location: MESH_INTERNAL, endpoints: [{address: 10.0.0.1}]":     false,
		"hosts: [a.shop.svc.cluster.local], location: MESH_EXTERNAL, endpoints: [{address: 10.0.0.1}]":     false,
	} {
		_, findings := compiled(t, entry(spec))
		if got := slices.ContainsFunc(findings, func(f policy.Finding) bool { return f.Field == "spec.location" }); got != want {
			t.Errorf("%s: warned: %v, want %v", spec, got, want)
		}
	}
}

// TestNearestDocumentCounts has documents for one host that come to be visible in different ways, the nearest last: neither age nor order
// lets another namespace take a host away from the workload's own documents.
func TestNearestDocumentCounts(t *testing.T) {
	const to = `hosts: [api.example.com], %s http: [{route: [{destination: {host: api.example.com}}]}]`
	const at = `hosts: [api.example.com], %s ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.%d}]`
	all := []struct{ name, namespace, exportTo string }{
		{"public", "other", ""}, {"exported", "other", "exportTo: [default],"}, {"own", "default", `exportTo: ["."],`},
	}
	for n := range all {
		var documents string
		for i, d := range all[:n+1] {
			metadata := fmt.Sprintf("%s, namespace: %s, creationTimestamp: 2026-01-0%dT00:00:00Z", d.name, d.namespace, i+1)
			documents += virtualService(metadata, "{"+fmt.Sprintf(to, d.exportTo)+"}")
			documents += strings.Replace(destinationRule("name: "+metadata, "{"+fmt.Sprintf(at, d.exportTo, i)+"}"), "DestinationRule", "ServiceEntry", 1)
		}
		plan, _ := compiled(t, documents)
		h, nearest := plan.Host("api.example.com"), all[n]
		if want := "VirtualService " + nearest.namespace + "/" + nearest.name; h.Document != want {
			t.Errorf("%d documents: %s routes, want %s", n+1, h.Document, want)
		}
		if want := "ServiceEntry " + nearest.namespace + "/" + nearest.name; h.Entry == nil || h.Entry.Document != want {
			t.Errorf("%d documents: the endpoints are those of %+v, want %s", n+1, h.Entry, want)
		}
	}
}

// TestRulesBesideTheirServiceEntry has a host outside the cluster, whose rule stands in the namespace of its ServiceEntry. It is the rule of
// all callers that see it and have none of their own: without it, calls would be sent in plaintext.
func TestRulesBesideTheirServiceEntry(t *testing.T) {
	entry := strings.Replace(destinationRule("name: api, namespace: egress",
		`{hosts: ["*.example.com"], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}`), "DestinationRule", "ServiceEntry", 1)
	rule := func(namespace, exportTo, mode string) string {
		return destinationRule("name: api, namespace: "+namespace, `{host: "*.example.com", `+exportTo+`trafficPolicy: {tls: {mode: `+mode+`}}}`)
	}
	target := route.Target{Host: "api.example.com"}
	for name, tt := range map[string]struct {
		documents string
		want      policy.TLSMode
	}{
		"exported":             {entry + rule("egress", "", "SIMPLE"), policy.TLSSimple},
		"not exported":         {entry + rule("egress", `exportTo: ["."], `, "SIMPLE"), policy.TLSAuto},
		"own one":              {entry + rule("egress", "", "SIMPLE") + rule("default", "", "DISABLE"), policy.TLSDisable},
		"one of the root":      {entry + rule("egress", "", "SIMPLE") + rule("istio-system", "", "DISABLE"), policy.TLSSimple},
		"another namespace":    {entry + rule("other", "", "SIMPLE"), policy.TLSAuto},
		"without ServiceEntry": {rule("egress", "", "SIMPLE"), policy.TLSAuto},
	} {
		plan, _ := compiled(t, tt.documents)
		if got := plan.Cluster(target).TLS.Mode; got != tt.want {
			t.Errorf("%s: TLS is %v, want %v", name, got, tt.want)
		}
	}
}

// TestRulesForTheRootNamespace has a workload in the root namespace. For it, too, what the root namespace says about the whole mesh comes after
// what the namespace of a service says about it; what that namespace says to its own workloads alone comes first.
func TestRulesForTheRootNamespace(t *testing.T) {
	rule := func(metadata, host, more string, n int) string {
		return destinationRule("name: "+metadata, fmt.Sprintf(`{host: "%s", %s trafficPolicy: {connectionPool: {tcp: {maxConnections: %d}}}}`, host, more, n))
	}
	mesh := rule("mesh, namespace: istio-system", "*.local", "", 1)
	service := rule("cart, namespace: shop", "cart", "", 2)
	for name, tt := range map[string]struct {
		documents string
		want      int
	}{
		"the mesh's":    {mesh, 1},
		"the service's": {mesh + service, 2},
		"its own":       {mesh + service + rule("own, namespace: istio-system", "cart.shop.svc.cluster.local", `exportTo: ["."],`, 3), 3},
		"selected":      {mesh + service + rule("own, namespace: istio-system", "cart.shop.svc.cluster.local", `workloadSelector: {matchLabels: {app: a}},`, 4), 4},
	} {
		w := policy.Workload{Namespace: "istio-system", Labels: map[string]string{"app": "a"}}
		plan, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(tt.documents)}}, w)
		if plan == nil {
			t.Fatal(findings)
		}
		if got := plan.Cluster(route.Target{Host: "cart.shop.svc.cluster.local"}).Pool.MaxConnections; got != tt.want {
			t.Errorf("%s: maxConnections = %d, want %d", name, got, tt.want)
		}
	}
}
