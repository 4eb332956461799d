package policy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// sidecarOf returns a Sidecar of a namespace.
func sidecarOf(namespace, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", name, namespace, spec)
}

// of returns a document of Istio.
func of(kind, namespace, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", kind, name, namespace, spec)
}

// forShop compiles documents for a workload app=web of the namespace shop.
func forShop(t *testing.T, documents string) (*policy.Plan, policy.Findings) {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(documents)}},
		policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}})
	if plan == nil {
		t.Fatalf("%v\nof\n%s", findings, documents)
	}
	return plan, findings
}

func TestSidecar_WhichCounts(t *testing.T) {
	const (
		web   = "workloadSelector: {labels: {app: web}}, "
		other = "workloadSelector: {labels: {app: other}}, "
		all   = "workloadSelector: {}, "
		any   = "outboundTrafficPolicy: {mode: ALLOW_ANY}"
		only  = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"
	)
	for name, test := range map[string]struct{ documents, want, warning string }{
		"none":                             {"", "", ""},
		"its namespace":                    {sidecarOf("shop", "a", only), "shop/a", ""},
		"another namespace":                {sidecarOf("other", "a", only), "", ""},
		"the root namespace":               {sidecarOf("istio-system", "a", only), "istio-system/a", ""},
		"its namespace before the root's":  {sidecarOf("istio-system", "a", only) + sidecarOf("shop", "b", any), "", ""},
		"and the other way around":         {sidecarOf("shop", "b", only) + sidecarOf("istio-system", "a", any), "shop/b", ""},
		"the one that selects it":          {sidecarOf("shop", "a", only) + sidecarOf("shop", "b", web+any), "", ""},
		"the one that selects it, refuses": {sidecarOf("shop", "a", any) + sidecarOf("shop", "b", web+only), "shop/b", ""},
		"one that does not select it":      {sidecarOf("shop", "a", any) + sidecarOf("shop", "b", other+only), "", ""},
		"a selector without labels": {sidecarOf("shop", "a", any) + sidecarOf("shop", "b", all+only), "shop/b",
			"spec.workloadSelector: warning: selects every workload"},
		"a selector in the root namespace": {sidecarOf("istio-system", "a", web+only), "",
			"selects workloads of the namespace istio-system only"},
		"an empty selector in the root namespace": {sidecarOf("istio-system", "a", all+only), "", "selects workloads of the namespace istio-system only"},
		"the first of two": {sidecarOf("shop", "a", any) + sidecarOf("shop", "b", only), "",
			"Sidecar shop/b: spec: warning: has no effect: Sidecar shop/a is about the same workloads"},
		"the first of two that select": {sidecarOf("shop", "a", web+only) + sidecarOf("shop", "b", "workloadSelector: {labels: {}}, "+any), "shop/a",
			"Sidecar shop/b: spec.workloadSelector: warning: has no effect: Sidecar shop/a is about the same workloads"},
		"two of another namespace": {sidecarOf("other", "a", only) + sidecarOf("other", "b", only), "", "Sidecar other/b: spec: warning: has no effect"},
		"the oldest of two": {strings.Replace(sidecarOf("shop", "a", any), "{name", `{creationTimestamp: "2026-01-02T00:00:00Z", name`, 1) +
			strings.Replace(sidecarOf("shop", "b", only), "{name", `{creationTimestamp: "2026-01-01T00:00:00Z", name`, 1), "shop/b", "Sidecar shop/a: spec: warning"},
		"no mode":   {sidecarOf("shop", "a", "outboundTrafficPolicy: {}"), "shop/a", "has no mode, which means REGISTRY_ONLY"},
		"no policy": {sidecarOf("shop", "a", "egress: [{hosts: ['*/*']}]"), "", ""},
	} {
		plan, findings := forShop(t, test.documents)
		want := test.want
		if want != "" {
			want = "Sidecar " + want
		}
		if h := plan.Host("nobody.example.com"); h.Document != want || h.RegistryOnly != (want != "") {
			t.Errorf("%s: calls outside the mesh are refused by %q, want %q", name, h.Document, want)
		}
		if text := findings.Error(); !strings.Contains(text, test.warning) || test.warning == "" && text != "" {
			t.Errorf("%s: the findings are\n%s\nwant %q", name, text, test.warning)
		}
	}
}

func TestSidecar_Imports(t *testing.T) {
	entry := func(namespace, name, host string) string {
		return of("ServiceEntry", namespace, name, "hosts: ["+host+"], addresses: [192.0.2."+fmt.Sprint(len(name))+"], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]")
	}
	documents := entry("ext", "a", "api.example.com") + entry("ext", "bb", "'*.wild.example.com'") + entry("shop", "ccc", "own.example.com") +
		of("VirtualService", "routes", "r", "hosts: [site.example.org, more.example.net], http: [{route: [{destination: {host: hidden.deep.svc.cluster.local}}]}]") +
		of("VirtualService", "routes", "w", "hosts: ['*.all.example.org'], http: [{route: [{destination: {host: api.example.com}}]}]") +
		of("DestinationRule", "prod", "d", "host: orders, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 7}}}")
	hosts := []string{"web", "web.shop.svc", "orders.prod.svc.cluster.local", "orders.prod", "ORDERS.prod.svc.cluster.local.:80", "db.prod.svc.cluster.local", "api.example.com", "x.wild.example.com",
		"own.example.com", "site.example.org", "more.example.net", "y.all.example.org", "hidden.deep.svc.cluster.local", "unknown.example.com", "10.0.0.7", "192.0.2.1", "localhost"}
	for _, test := range []struct{ hosts, visible string }{
		{"'*/*'", strings.Join(hosts, " ")},
		{"./*", "web web.shop.svc own.example.com"},
		{"shop/*", "web web.shop.svc own.example.com"},
		{"prod/*", "orders.prod.svc.cluster.local orders.prod ORDERS.prod.svc.cluster.local.:80 db.prod.svc.cluster.local"},
		{"prod/orders.prod.svc.cluster.local", "orders.prod.svc.cluster.local orders.prod ORDERS.prod.svc.cluster.local.:80"},
		{"shop/orders.prod.svc.cluster.local", ""},
		{"prod/orders", ""},
		{"'*/*.prod.svc.cluster.local'", "orders.prod.svc.cluster.local orders.prod ORDERS.prod.svc.cluster.local.:80 db.prod.svc.cluster.local"},
		{"'*/*svc.cluster.local'", "web web.shop.svc orders.prod.svc.cluster.local orders.prod ORDERS.prod.svc.cluster.local.:80 db.prod.svc.cluster.local hidden.deep.svc.cluster.local"},
		{"ext/*", "api.example.com x.wild.example.com 192.0.2.1"},
		{"ext/api.example.com", "api.example.com 192.0.2.1"},
		{"ext/x.wild.example.com", ""}, // only a part of *.wild.example.com
		{"'ext/*.example.com'", "api.example.com x.wild.example.com 192.0.2.1"},
		{"'*/api.example.com'", "api.example.com 192.0.2.1"},
		{"'*/unknown.example.com'", "unknown.example.com"}, // discovery may know it
		{"'./api.example.com'", ""},
		{"routes/site.example.org", "site.example.org more.example.net"}, // a VirtualService is imported as a whole
		{"'routes/*.example.net'", "site.example.org more.example.net"},
		{"routes/y.all.example.org", "y.all.example.org"}, // and a wildcard if anything below it is
		{"'routes/*'", "site.example.org more.example.net y.all.example.org"},
		{"~/*", ""},
		{"~/*, prod/db.prod.svc.cluster.local", "db.prod.svc.cluster.local"},
		{"./*, ext/api.example.com", "web web.shop.svc own.example.com api.example.com 192.0.2.1"},
		{"ext/API.example.com", ""},
	} {
		plan, _ := forShop(t, documents+sidecarOf("shop", "s", "egress: [{hosts: ["+test.hosts+"]}]"))
		var visible []string
		for _, host := range hosts {
			h := plan.Host(host)
			if service, ok := plan.InCluster(host); ok {
				h = service
			}
			if !h.Hidden {
				visible = append(visible, host)
				continue
			}
			if h.Document != "Sidecar shop/s" || h.Known || h.Routes != nil || h.RegistryOnly {
				t.Errorf("%s: the plan of %s is %+v", test.hosts, host, h)
			}
		}
		slices.Sort(visible)
		want := strings.Fields(test.visible)
		if slices.Sort(want); !slices.Equal(visible, want) {
			t.Errorf("%s imports\n%q, want\n%q", test.hosts, visible, want)
		}
	}
}

// Where an imported VirtualService leads to is not callable by itself, but the route has all that documents say of it.
func TestSidecar_Destinations(t *testing.T) {
	documents := of("VirtualService", "shop", "v", "hosts: [front.example.com], http: [{mirror: {host: mirror.prod.svc.cluster.local}, "+
		"route: [{destination: {host: orders.prod.svc.cluster.local}, weight: 1}, {destination: {host: api.example.com}, weight: 1}]}]") +
		of("ServiceEntry", "zeta", "e", "hosts: [api.example.com], location: MESH_INTERNAL, ports: [{number: 81, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.9}]") +
		of("ServiceEntry", "ext", "e", "hosts: [api.example.com], location: MESH_INTERNAL, ports: [{number: 81, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]") +
		of("DestinationRule", "prod", "d", "host: orders, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}") +
		of("DestinationRule", "istio-system", "d", "host: '*.example.com', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}") +
		sidecarOf("shop", "s", "egress: [{hosts: [./*]}]")
	plan, findings := forShop(t, documents)
	h := plan.Host("front.example.com")
	if h.Document != "VirtualService shop/v" || h.Routes.Rule(0).Route.Destinations[1].Target.Port != 81 {
		t.Errorf("front.example.com has %+v, want the VirtualService with the port of the entry", h)
	}
	for _, host := range []string{"orders.prod.svc.cluster.local", "api.example.com", "mirror.prod.svc.cluster.local"} {
		if !plan.Host(host).Hidden {
			t.Errorf("%s is imported, although it is only a destination", host)
		}
	}
	for _, host := range []string{"orders.prod.svc.cluster.local", "api.example.com"} {
		if c := plan.Cluster(route.Target{Host: host, Port: 81}); c.TLS.Mode != policy.TLSIstioMutual || c.TLS.External {
			t.Errorf("calls that are routed to %s are secured by %+v, want mutual TLS", host, c.TLS)
		}
	}
	if e := plan.Host("api.example.com").Entry; e == nil || e.Document != "ServiceEntry ext/e" {
		t.Errorf("the destination has the endpoints of %+v, want those of the first namespace by name", e)
	}
	if text := findings.Error(); text != "" {
		t.Errorf("the findings are\n%s", text)
	}
}

// A DestinationRule counts for an imported host wherever it is: the namespaces of egress.hosts are those of services and VirtualServices.
func TestSidecar_DestinationRules(t *testing.T) {
	const rule = "host: '*.prod.svc.cluster.local', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"
	for _, namespace := range []string{"shop", "prod", "istio-system"} {
		plan, _ := forShop(t, of("DestinationRule", namespace, "d", rule)+sidecarOf("shop", "s", "egress: [{hosts: [prod/*]}]"))
		if c := plan.Cluster(route.Target{Host: "orders.prod.svc.cluster.local", Port: 80}); c.TLS.Mode != policy.TLSIstioMutual {
			t.Errorf("with a DestinationRule in %s, calls are secured by %v, want mutual TLS", namespace, c.TLS.Mode)
		}
	}
	mine := strings.Replace(rule, "'*.", "'orders.", 1)
	_, findings := forShop(t, of("DestinationRule", "shop", "d", mine)+of("DestinationRule", "prod", "d", mine)+of("DestinationRule", "shop", "e", "host: db.prod.svc.cluster.local")+sidecarOf("shop", "s", "egress: [{hosts: [./*]}]"))
	const want = "DestinationRule shop/d: spec.host: warning: has no effect on calls of this workload: Sidecar shop/s does not import orders.prod.svc.cluster.local, so that no policy applies to them. The same goes for 1 more"
	if text := findings.Error(); strings.Count(text, "no effect on calls") != 1 || !strings.Contains(text, want) {
		t.Errorf("the findings are\n%s\nwant one:\n%s", text, want)
	}
}

// Who may call, and how the workload is called, is not up to a Sidecar.
func TestSidecar_LeavesSecurityAlone(t *testing.T) {
	documents := "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: prod}\nspec: {mtls: {mode: STRICT}}\n" +
		"---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {}\n"
	before, _ := forShop(t, documents)
	after, _ := forShop(t, documents+sidecarOf("shop", "s", "egress: [{hosts: [~/*]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}"))
	for _, plan := range []*policy.Plan{before, after} {
		if mode, set := plan.Peers("prod").Mode(nil, 80); !set || mode.String() != "STRICT" || !plan.Inbound().Authorizes() {
			t.Errorf("the mode of prod is %v, set: %v, authorized: %v", mode, set, plan.Inbound().Authorizes())
		}
	}
}

// TestSidecar_AgreesWithTheModel compares what is hidden, and which document routes what is not, with a list of services and VirtualServices that
// is filtered one by one, as Istio does it.
func TestSidecar_AgreesWithTheModel(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	names := []string{"a.example.com", "b.example.com", "a.deep.example.com", "c.example.org", "a.n1.svc.cluster.local", "a.shop.svc.cluster.local"}
	wild := append([]string{"*.example.com", "*.deep.example.com", "*.org", "*"}, names...)
	subset := func(host, of string) bool { // of a wildcard, only another wildcard covers all
		if !strings.HasPrefix(of, "*") || strings.HasPrefix(host, "*") && len(host) < len(of) {
			return host == of
		}
		return strings.HasSuffix(strings.TrimPrefix(host, "*"), of[1:])
	}
	type document struct {
		namespace string
		hosts     []string
	}
	for round := range 400 {
		var text strings.Builder
		var entries, routes []document
		var hosts []string
		for i := range 1 + random.IntN(4) {
			d := document{pick("shop", "n1", "n2"), []string{pick(wild[:2]...)}}
			if random.IntN(2) == 0 {
				d.hosts = []string{pick(names[:4]...)}
			}
			entries = append(entries, d)
			text.WriteString(of("ServiceEntry", d.namespace, fmt.Sprint("e", i), "hosts: ['"+d.hosts[0]+"'], ports: [{number: 80, name: http, protocol: HTTP}]"))
		}
		for i := range random.IntN(4) {
			d := document{pick("shop", "n1", "n2"), []string{pick(wild[:3]...)}}
			if random.IntN(2) == 0 {
				d.hosts = []string{pick(names[:3]...), pick(names[3:]...)}
			}
			routes = append(routes, d)
			text.WriteString(of("VirtualService", d.namespace, fmt.Sprint("v", i), "hosts: ['"+strings.Join(d.hosts, "', '")+"'], http: [{directResponse: {status: 204}}]"))
		}
		for range 1 + random.IntN(3) {
			hosts = append(hosts, pick(".", "*", "n1", "n2", "~")+"/"+pick(wild...))
		}
		text.WriteString(sidecarOf("shop", "s", "egress: [{hosts: ['"+strings.Join(hosts, "', '")+"']}]"))
		plan, _ := forShop(t, text.String())

		imported := func(namespace string, matches func(pattern string) bool) bool {
			return slices.ContainsFunc(hosts, func(entry string) bool {
				in, pattern, _ := strings.Cut(strings.Replace(entry, "./", "shop/", 1), "/")
				return (in == namespace || in == "*") && matches(pattern)
			})
		}
		for _, host := range names {
			namespace := ""
			if strings.HasSuffix(host, ".svc.cluster.local") {
				namespace = strings.Split(host, ".")[1]
			}
			covers := func(pattern string) bool { return subset(host, pattern) }
			visible := imported(namespace, covers)
			for _, e := range entries {
				visible = visible || subset(host, e.hosts[0]) && imported(e.namespace, func(pattern string) bool { return subset(e.hosts[0], pattern) })
			}
			document, length := "", -1
			for i, v := range routes {
				if !slices.ContainsFunc(v.hosts, func(own string) bool {
					return imported(v.namespace, func(pattern string) bool { return subset(own, pattern) || subset(pattern, own) })
				}) {
					continue
				}
				for _, own := range v.hosts {
					n := len(own)
					if own == host {
						n = 1000
					}
					if subset(host, own) && n > length {
						document, length, visible = fmt.Sprintf("VirtualService %s/v%d", v.namespace, i), n, true
					}
				}
			}
			if h := plan.Host(host); h.Hidden == visible || visible && h.Document != document {
				t.Fatalf("round %d of seed %d: %s is hidden: %v, routed by %q, want visible: %v, routed by %q\n%s", round, seed, host, h.Hidden, h.Document, visible, document, &text)
			}
		}
	}
}

// Routes of the Gateway API are imported like VirtualServices of their namespace.
func TestSidecar_GatewayRoutes(t *testing.T) {
	route := func(namespace string) string {
		return "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: " + namespace + "}\n" +
			"spec: {parentRefs: [{group: '', kind: Service, name: orders, namespace: prod}], rules: [{backendRefs: [{name: v2, port: 80}]}]}\n"
	}
	for _, test := range []struct {
		hosts, namespace, document string
		hidden                     bool
	}{
		{"'*/*'", "prod", "HTTPRoute prod/r", false},
		{"prod/*", "prod", "HTTPRoute prod/r", false},
		{"./*", "prod", "", true},
		{"prod/*", "shop", "", false},
		{"prod/*, ./*", "shop", "HTTPRoute shop/r", false},
		{"shop/orders.prod.svc.cluster.local", "shop", "HTTPRoute shop/r", false}, // although the service is in a namespace that is not imported
		{"shop/orders.prod.svc.cluster.local", "prod", "", true},
	} {
		plan, _ := forShop(t, route(test.namespace)+sidecarOf("shop", "s", "egress: [{hosts: ["+test.hosts+"]}]"))
		if h := plan.Host("orders.prod.svc.cluster.local"); h.Hidden != test.hidden || !h.Hidden && h.Document != test.document {
			t.Errorf("%s, a route in %s: hidden: %v, by %q, want %v, %q", test.hosts, test.namespace, h.Hidden, h.Document, test.hidden, test.document)
		}
	}
}

// TestSidecar_BesideDelegates: VirtualServices that claim no host, and routes that are not imported, lead nowhere.
func TestSidecar_BesideDelegates(t *testing.T) {
	documents := sidecarOf("shop", "a", `egress: [{hosts: ["./web.shop.svc.cluster.local"]}]`) + of("DestinationRule", "shop", "hidden", "host: hidden.other.svc.cluster.local") +
		of("VirtualService", "shop", "leaf", "http: [{route: [{destination: {host: hidden.other.svc.cluster.local}}]}]") +
		of("VirtualService", "shop", "edge", "hosts: [web], gateways: [edge], http: [{route: [{destination: {host: hidden.other.svc.cluster.local}}]}]") +
		attachedRoute("HTTPRoute", "shop", "gone", "01", `{group: "", kind: Service, name: gone}`, "{backendRefs: [{name: hidden, namespace: other, port: 80}]}")
	const wanted = "Sidecar shop/a does not import hidden.other.svc.cluster.local"
	if _, findings := forShop(t, documents); !strings.Contains(fmt.Sprint(findings), wanted) {
		t.Errorf("the findings are %v", findings)
	}
	documents = strings.ReplaceAll(documents, "name: gone", "name: web") // now the route is imported
	if _, findings := forShop(t, documents); strings.Contains(fmt.Sprint(findings), wanted) {
		t.Errorf("with a route that is imported, the findings are %v", findings)
	}
}
