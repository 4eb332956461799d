package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// shop is a document that is in force.
const shop = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}\n---\n"

// TestForGatewaysAlone has documents that are refused unless they are about gateways alone.
func TestForGatewaysAlone(t *testing.T) {
	const (
		routes     = "gateway.networking.k8s.io/v1 HTTPRoute "
		refused    = "gateway.networking.k8s.io/v1alpha2 TLSRoute "
		filter     = "networking.istio.io/v1alpha3 EnvoyFilter "
		plugin     = "extensions.istio.io/v1alpha1 WasmPlugin "
		ofGateway  = "{group: gateway.networking.k8s.io, kind: Gateway, name: edge}"
		ofWaypoint = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}"
	)
	for _, tt := range []struct {
		name, document string
		skipped        string // the field that says so; "" if the document is refused
	}{
		{"route of a gateway", routes + "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}", "spec.parentRefs"},
		{"route of a gateway elsewhere", routes + "{parentRefs: [{name: edge, namespace: infra, sectionName: https}, " + ofGateway + "]}", "spec.parentRefs"},
		{"route of a set of listeners", routes + "{parentRefs: [{group: gateway.networking.x-k8s.io, kind: XListenerSet, name: a}]}", "spec.parentRefs"},
		{"GRPCRoute", "gateway.networking.k8s.io/v1 GRPCRoute {parentRefs: [{name: edge}]}", "spec.parentRefs"},
		{"TLSRoute", "gateway.networking.k8s.io/v1alpha2 TLSRoute {parentRefs: [{name: edge}]}", "spec.parentRefs"},
		{"route of a Service", refused + "{parentRefs: [{group: '', kind: Service, name: web}]}", ""},
		{"route of both", refused + "{parentRefs: [{name: edge}, {group: core, kind: Service, name: web}]}", ""},
		{"route of a core Gateway", routes + "{parentRefs: [{group: '', name: edge}]}", ""},
		{"route of a ServiceEntry", refused + "{parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: web}]}", ""},
		{"route of nothing", refused + "{rules: []}", ""},
		{"route of no list", routes + "{parentRefs: {name: edge}}", ""},
		{"kind that is no text", routes + "{parentRefs: [{name: edge, kind: [Service]}]}", ""},
		{"parents twice", routes + "{parentRefs: [{name: edge}], parentRefs: [{kind: Service, name: web}]}", ""},
		{"HTTPRoute of Linkerd", "policy.linkerd.io/v1beta3 HTTPRoute {parentRefs: [{name: edge}]}", ""},
		{"other kind", "gateway.networking.k8s.io/v1 BackendTLSPolicy {targetRefs: [{kind: Service, name: web}]}", ""},

		{"filter of gateways", filter + "{configPatches: [{applyTo: HTTP_FILTER, match: {context: GATEWAY}}]}", "spec.configPatches"},
		{"filter of any proxy", filter + "{configPatches: [{match: {context: GATEWAY}}, {match: {context: ANY}}]}", ""},
		{"filter without a context", filter + "{configPatches: [{applyTo: HTTP_FILTER}]}", ""},
		{"filter without patches", filter + "{}", ""},
		{"filter of the ingress", filter + "{workloadSelector: {labels: {istio: ingressgateway}}, configPatches: [{applyTo: CLUSTER}]}", "spec.workloadSelector.labels"},
		{"filter of a workload", filter + "{workloadSelector: {labels: {istio: pilot}}, configPatches: [{applyTo: CLUSTER}]}", ""},
		{"filter of a waypoint", filter + "{targetRefs: [" + ofWaypoint + "], configPatches: [{applyTo: CLUSTER}]}", ""},

		{"plugin of a gateway", plugin + "{targetRef: " + ofGateway + "}", "spec.targetRef"},
		{"plugin of gateways", plugin + "{targetRefs: [" + ofGateway + "]}", "spec.targetRefs"},
		{"plugin of a gateway and a Service", plugin + "{targetRefs: [" + ofGateway + ", {group: '', kind: Service, name: web}]}", ""},
		{"plugin that selects a gateway", plugin + "{selector: {matchLabels: {app: istio-egressgateway}}}", "spec.selector.matchLabels"},
		{"plugin that selects one that Istio made", plugin + "{selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: edge}}}", "spec.selector.matchLabels"},
		{"plugin that selects an app", plugin + "{selector: {matchLabels: {app: gateway}}}", ""},
		{"plugin for all", plugin + "{}", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			part := strings.SplitN(tt.document, " ", 3)
			text := shop + "apiVersion: " + part[0] + "\nkind: " + part[1] + "\nmetadata: {name: a}\nspec: " + part[2] + "\n"
			plan, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(text)}}, policy.Workload{})
			if tt.skipped == "" {
				if plan != nil || findings.Err() == nil {
					t.Fatalf("accepted, with the findings %v", findings)
				}
				return
			}
			if plan == nil || len(findings) != 1 || findings[0].Field != tt.skipped || findings[0].Severity != policy.Warning {
				t.Fatalf("findings %v, want a warning about %s", findings, tt.skipped)
			}
			if n := plan.InForce(); n[0] != 1 {
				t.Errorf("%d documents are in force, want the Service", n[0])
			}
		})
	}
}

// TestLabelsOfGateways: a workload that has the labels of a gateway is one, so that what is for gateways is for it.
func TestLabelsOfGateways(t *testing.T) {
	const (
		custom = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: ask, namespace: istio-system}\n" +
			"spec: {selector: {matchLabels: {app: istio-ingressgateway}}, action: CUSTOM, provider: {name: ask}, rules: [{}]}\n"
		filter = "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: ask, namespace: istio-system}\n" +
			"spec: {workloadSelector: {labels: {app: istio-ingressgateway}}, configPatches: [{applyTo: HTTP_FILTER}]}\n"
	)
	for name, text := range map[string]string{"AuthorizationPolicy": custom, "EnvoyFilter": filter} {
		sources := []policy.Source{{Name: "a.yaml", Data: []byte(shop + text)}}
		edge := policy.Workload{Namespace: "istio-system", Labels: map[string]string{"app": "istio-ingressgateway", "version": "v1"}}
		if plan, findings := policy.Compile(sources, edge); plan != nil || !strings.Contains(findings.Error(), "is not enforced") {
			t.Errorf("%s: the gateway itself gets the findings %v, want an error", name, findings)
		}
		web := policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}}
		plan, findings := policy.Compile(sources, web)
		if plan == nil {
			t.Errorf("%s: findings %v, want no error", name, findings)
			continue
		}
		if plan.Inbound().Authorizes() {
			t.Errorf("%s: a policy for a gateway is enforced for another workload", name)
		}
		request := &authz.Request{Method: "GET", Target: "/", Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddrPort("10.0.0.2:80")}
		if d := plan.Inbound().Authorize(request); !d.Allowed {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// TestTokensOfGateways: a RequestAuthentication that is attached to a gateway does not concern the workload, and one of a waypoint is refused.
func TestTokensOfGateways(t *testing.T) {
	document := func(ref string) []policy.Source {
		return []policy.Source{{Name: "a.yaml", Data: []byte("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: default}\n" +
			"spec: {targetRefs: [" + ref + "], jwtRules: [{issuer: a, jwksUri: 'https://id.example.com/keys'}]}\n")}}
	}
	plan, findings := policy.Compile(document("{group: gateway.networking.k8s.io, kind: Gateway, name: edge}"), policy.Workload{Namespace: "default"})
	if plan == nil || plan.Inbound().Tokens() != nil {
		t.Errorf("the tokens of a gateway are verified here; findings %v", findings)
	}
	if plan, findings = policy.Compile(document("{group: '', kind: Service, name: web}"), policy.Workload{Namespace: "default"}); plan != nil {
		t.Errorf("the tokens of a waypoint are not verified, with the findings %v", findings)
	}
}

// TestConsulForGateways: what Consul's gateways and servers do with requests from outside concerns no call, in either form of an entry.
func TestConsulForGateways(t *testing.T) {
	for _, tt := range []struct {
		text, want string // the beginning of the finding behind its place
	}{
		{"Kind: ingress-gateway\nName: edge\nListeners: []\n", "ingress-gateway default/edge: Kind: warning: an ingress-gateway has no meaning in-process: it is skipped"},
		{"kind: http-route\nname: edge\n", "http-route default/edge: kind: warning: "},
		{"apiVersion: consul.hashicorp.com/v1alpha1\nkind: IngressGateway\nmetadata: {name: edge}\n", "IngressGateway default/edge: kind: warning: "},
		{"apiVersion: consul.hashicorp.com/v1alpha1\nkind: RouteRetryFilter\nmetadata: {name: edge}\n", "RouteRetryFilter default/edge: kind: warning: "},
		{"Kind: terminating-gateway\nName: edge\n", "terminating-gateway default/edge: Kind: error: "},
		{"apiVersion: consul.hashicorp.com/v1alpha1\nkind: TerminatingGateway\nmetadata: {name: edge}\n", "TerminatingGateway default/edge: kind: error: "},
		{"apiVersion: consul.hashicorp.com/v1alpha1\nkind: ingress-gateway\nmetadata: {name: edge}\n", "ingress-gateway default/edge: kind: error: "},
		{"Kind: ingress-gateway\nkind: service-intentions\nName: edge\n", "ingress-gateway default/edge: Kind: error: a field is set twice"},
	} {
		findings := policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(tt.text)}}, policy.Workload{}).Findings
		if got := findings.Error(); len(findings) != 1 || !strings.Contains(got, ": "+tt.want) {
			t.Errorf("%sfindings %s, want %s", tt.text, got, tt.want)
		}
	}
}

// TestRetiredAPIs: what to do about documents that no control plane of today reads, or that install one.
func TestRetiredAPIs(t *testing.T) {
	for kind, want := range map[string]string{
		"authentication.istio.io/v1alpha1 MeshPolicy": "a MeshPolicy of authentication.istio.io is not read: Istio has removed its API: write a PeerAuthentication",
		"rbac.istio.io/v1alpha1 ServiceRole":          "Istio has removed its API: write an AuthorizationPolicy",
		"config.istio.io/v1alpha2 rule":               "Istio has removed its API",
		"install.istio.io/v1alpha1 IstioOperator":     "an IstioOperator of install.istio.io is not read: it installs Istio: remove it",
		"multicluster.linkerd.io/v1alpha1 Link":       "it links clusters",
		"networkin.istio.io/v1 Gate":                  "check apiVersion and kind",
	} {
		api, kind, _ := strings.Cut(kind, " ")
		text := "apiVersion: " + api + "\nkind: " + kind + "\nmetadata: {name: a}\n"
		findings := policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(text)}}, policy.Workload{}).Findings
		if len(findings) != 1 || findings[0].Severity != policy.Error || !strings.Contains(findings[0].Message, want) {
			t.Errorf("%s: findings %v, want %s", kind, findings, want)
		}
	}
}

// TestNetworksOfServiceEntry: an entry with the networks of a large site has one warning about them.
func TestNetworksOfServiceEntry(t *testing.T) {
	for addresses, want := range map[string]string{
		"10.0.0.0/8":                          "spec.addresses[0]: warning: 10.0.0.0/8 has no meaning in-process",
		"10.0.0.1, 10.1.0.0/16, 192.0.2.0/24": "spec.addresses[1]: warning: 10.1.0.0/16, like 1 more, has no meaning in-process",
		"10.0.0.1, 10.0.0.2/32":               "",
	} {
		text := "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [site.example.com], addresses: [" + addresses +
			"], ports: [{number: 443, name: https, protocol: HTTPS}]}\n"
		findings := policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(text)}}, policy.Workload{}).Findings
		if got := findings.Error(); !strings.Contains(got, want) || len(findings) > 1 || (want == "") != (got == "") {
			t.Errorf("[%s]: findings %q, want %q", addresses, got, want)
		}
	}
}
