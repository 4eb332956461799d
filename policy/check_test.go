package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
)

// TestCompile_BoundsFindings: what is beyond the bound is told by its number, and fails as well.
func TestCompile_BoundsFindings(t *testing.T) {
	const documents = 3000
	bad := policy.Source{Name: "bad.yaml", Data: []byte(strings.Repeat("---\nkid: x\n", documents))}
	good := policy.Source{Name: "good.yaml", Data: []byte("apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n")}
	report := policy.Check([]policy.Source{bad, good}, policy.Workload{})
	if report.Documents != documents+1 {
		t.Errorf("%d documents, want %d", report.Documents, documents+1)
	}
	if len(report.Findings) != 1001 {
		t.Fatalf("%d findings, want 1001", len(report.Findings))
	}
	last := report.Findings[1000]
	if last.File != "bad.yaml" || last.Severity != policy.Error || last.Message != "and 2000 more findings in this file" {
		t.Errorf("the last finding is %q", last)
	}
}

// TestCompile_ListThatContainsItself: it is a mistake, not the end of the process.
func TestCompile_ListThatContainsItself(t *testing.T) {
	list := policy.Source{Name: "list.yaml", Data: []byte("apiVersion: v1\nkind: List\nitems: &a\n- {apiVersion: v1, kind: List, items: *a}\n")}
	plan, findings := policy.Compile([]policy.Source{list}, policy.Workload{})
	if plan != nil || findings.Err() == nil || !strings.Contains(findings.Error(), "nested more than 64 levels deep") {
		t.Errorf("compiled to %v with findings %v", plan, findings)
	}
}

// TestCompile_SourceWithoutDocuments: a file that was truncated beside others is warned of.
func TestCompile_SourceWithoutDocuments(t *testing.T) {
	good := policy.Source{Name: "good.yaml", Data: []byte("apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n")}
	for _, text := range []string{"", "# kind: Service\n", "---\n"} {
		report := policy.Check([]policy.Source{good, {Name: "blank.yaml", Data: []byte(text)}}, policy.Workload{})
		if got := report.Findings.Error(); got != "blank.yaml:1: warning: there is no document in it: remove it if that is meant" {
			t.Errorf("%q: findings %q", text, got)
		}
	}
}

// TestCheck_DocumentsOfOthers: what other controllers read lies in the same folders; a mistake about a mesh is still one.
func TestCheck_DocumentsOfOthers(t *testing.T) {
	for _, tt := range []struct {
		api, kind string
		want      policy.Severity
	}{
		{"cert-manager.io/v1", "Certificate", policy.Warning},
		{"monitoring.coreos.com/v1", "ServiceMonitor", policy.Warning},
		{"argoproj.io/v1alpha1", "Rollout", policy.Warning},
		{"kustomize.config.k8s.io/v1beta1", "Kustomization", policy.Warning},
		{"networking.gke.io/v1", "ManagedCertificate", policy.Warning},
		{"networking.istio.io/v1", "Certificate", policy.Error},
		{"security.istio.io/v1", "Certificate", policy.Error},
		{"networkin.istio.io/v1", "Certificate", policy.Error},
		{"istio.io/v1", "Certificate", policy.Error},
		{"linkerd.io/v1alpha2", "Certificate", policy.Error},
		{"viz.linkerd.io/v1", "Certificate", policy.Error},
		{"split.smi-spec.io/v1alpha1", "Certificate", policy.Error},
		{"specs.smi-spec.io/v1alpha1", "Certificate", policy.Error},
		{"networking/v1", "Certificate", policy.Error},
		{"gateway.solo.io/v1", "VirtualService", policy.Error},
		{"security.example.com/v1", "AuthorizationPolicy", policy.Error},
		{"gateway.networking.k8s.io/v1", "ListenerSet", policy.Warning},
		{"gateway.networking.k8s.io/v1", "HttpRoute", policy.Error},
		{"gateway.networking.k8s.io/v1alpha2", "BackendLBPolicy", policy.Error},
		{"gateway.networking.x-k8s.io/v1alpha1", "XMesh", policy.Warning},
		{"gateway.networking.x-k8s.io/v1alpha1", "XBackendTrafficPolicy", policy.Error},
		{"gateway.networking.x-k8s.io/v1alpha1", "XRoute", policy.Error},
		{"kuma.io/v1alpha1", "MeshTrafficPermission", policy.Error},
		{"appmesh.k8s.aws/v1beta2", "VirtualService", policy.Error},
		{"policy.openservicemesh.io/v1alpha1", "Egress", policy.Error},
		{"notkuma.io/v1alpha1", "MeshTrafficPermission", policy.Warning},
	} {
		source := policy.Source{Name: "a.yaml", Data: []byte("apiVersion: " + tt.api + "\nkind: " + tt.kind + "\nmetadata: {name: a}\nspec: {x: y}\n")}
		plan, findings := policy.Compile([]policy.Source{source}, policy.Workload{})
		if len(findings) != 1 || findings[0].Severity != tt.want || (plan != nil) != (tt.want == policy.Warning) {
			t.Errorf("%s %s: findings %v, want one %s", tt.api, tt.kind, findings, tt.want)
		}
	}
}

// TestCheck_HiddenDocuments: a document in another one, or behind a line --- that is missing, is not lost in silence.
func TestCheck_HiddenDocuments(t *testing.T) {
	const (
		good   = "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80}]}}\n---\n"
		access = `{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "a", "namespace": "default"}}`
		below  = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: default}\nspec: {}\n"
	)
	for _, tt := range []struct{ file, text, want string }{
		{"a.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n" + below, `Deployment default/a: apiVersion: error: set twice, first in line 3: remove one or, if another document begins here`},
		{"a.yaml", "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a}\n" + below, "error: set twice"},
		{"a.yaml", "apiVersion: networking.istio.io/v1\nkind: Gateway\nkind: VirtualService\nmetadata: {name: a}\n", "a.yaml:5: Gateway default/a: kind: error: set twice, first in line 4"},
		{"a.yaml", `{"apiVersion": "v1", "kind": "List", "items": [], "items": [` + access + `]}`, "List: items: error: set twice"},
		{"a.yaml", `{"apiVersion": "v1", "kind": "List", "items": [], "Items": [` + access + `]}`, `List: Items: error: unknown field "Items", did you mean "items"?`},
		{"a.yaml", `{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicyList", "items": [], "item": [` + access + `]}`, `error: unknown field "item"`},
		{"a.yaml", `{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [` + access + `]}`, ""},
		{"a.yaml", `{"apiVersion": "v1", "kind": "Status", "status": "Failure"}`, "kind: error: a Status is an answer of an API server"},
		{"a.yaml", `{"apiVersion": "meta.k8s.io/v1", "kind": "Table", "rows": [{"object": ` + access + `}]}`, "kind: error: a Table is an answer"},
		{"a.yaml", `{"apiVersion": "meta.k8s.io/v1", "kind": "WatchEvent", "object": ` + access + `}`, "kind: error: a WatchEvent is an answer"},
		{"a.yaml", "\uFEFF" + below, "error: missing, since a byte order mark (U+FEFF) is before it"},
		{"a.json", `{"type": "ADDED", "object": ` + access + `}`, "kind: error: missing"},
		{"a.json", `{"items": [` + access + `]}`, "kind: error: missing"},
	} {
		text := good + tt.text
		if strings.HasSuffix(tt.file, ".json") {
			text = tt.text
		}
		findings := policy.Check([]policy.Source{{Name: tt.file, Data: []byte(text)}}, policy.Workload{}).Findings
		if failed := findings.Err() != nil; failed != (tt.want != "") || !strings.Contains(findings.Error(), tt.want) {
			t.Errorf("%s: %s\nfindings %v, want %q", tt.file, tt.text, findings, tt.want)
		}
	}
}

// TestCheck_KustomizationWithoutKind: kubectl takes the name of the file for it.
func TestCheck_KustomizationWithoutKind(t *testing.T) {
	for name, want := range map[string]policy.Severity{
		"mesh.d/kustomization.yaml": policy.Warning, "kustomization.yml": policy.Warning, "mesh.d/other.yaml": policy.Error,
	} {
		source := policy.Source{Name: name, Data: []byte("resources:\n- routes.yaml\n")}
		if _, findings := policy.Compile([]policy.Source{source}, policy.Workload{}); len(findings) != 1 || findings[0].Severity != want {
			t.Errorf("%s: findings %v, want one %s", name, findings, want)
		}
	}
}

// TestCheck_MistakesThatFollowFromOthers: a document that cannot be read is one mistake, also where others refer to it.
func TestCheck_MistakesThatFollowFromOthers(t *testing.T) {
	const (
		root = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: root}\n" +
			"spec: {hosts: [root], http: [{delegate: {name: child}}]}\n"
		child = "apiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: child}\nspec: {http: [{%sroute: [{destination: {host: a}}]}]}\n"
		split = "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: split}\n" +
			"spec: {service: web, matches: [{kind: HTTPRouteGroup, name: group}], backends: [{service: web-v1, weight: 1}]}\n"
		group = "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {name: group}\nspec: {%smatches: [{name: a, pathRegex: /a}]}\n"
	)
	for _, tt := range []struct {
		name, documents string
		want            int
	}{
		{"delegate with a mistake", root + "---\n" + fmt.Sprintf(child, "VirtualService", "bogus: 1, "), 1},
		{"delegate of an unknown kind", root + "---\n" + fmt.Sprintf(child, "VirtualServise", ""), 1},
		{"delegate that is not YAML", root + "---\n" + fmt.Sprintf(child, "VirtualService", "[ "), 1},
		{"delegate that is missing", root, 1},
		{"delegate", root + "---\n" + fmt.Sprintf(child, "VirtualService", ""), 0},
		{"group with a mistake", split + "---\n" + fmt.Sprintf(group, "bogus: 1, "), 1},
		{"group that is missing", split, 1},
		{"group", split + "---\n" + fmt.Sprintf(group, ""), 0},
	} {
		if r := policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(tt.documents)}}, policy.Workload{}); len(r.Findings) != tt.want {
			t.Errorf("%s: findings, want %d:\n%v", tt.name, tt.want, r.Findings)
		}
	}
}

// TestCheck_NullsThatWiden: a field without a value counts as absent, as in a cluster. Where that lets more in, there is a warning.
func TestCheck_NullsThatWiden(t *testing.T) {
	const access, widened = "{rules: [{%s}]}", "from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]"
	for _, tt := range []struct {
		document string
		want     []string // the fields that are warned of
	}{
		{authorizationPolicy("default", "a", fmt.Sprintf(access, "from: , to: [{operation: {methods: [GET]}}]")), []string{"spec.rules[0].from"}},
		{authorizationPolicy("default", "a", fmt.Sprintf(access, "from: [{source: {principals: ~, namespaces: [a]}}], when: null")),
			[]string{"spec.rules[0].from[0].source.principals", "spec.rules[0].when"}},
		{authorizationPolicy("default", "a", "{selector: &a , action: *a, rules: [{"+widened+"}]}"), []string{"spec.selector", "spec.action"}},
		{authorizationPolicy("default", "a", fmt.Sprintf(access, widened)), nil},
		{peerAuthentication("default", "a", "{selector: {matchLabels: {app: order-service}}, mtls: }"), []string{"spec.mtls"}},
		{destinationRule("name: a", "{host: a, exportTo: , trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}, tls: }}"), []string{"spec.trafficPolicy.tls"}},
		{destinationRule("name: a", "{host: a, subsets: [{name: b, labels: , trafficPolicy: {tls: {mode: SIMPLE, sni: a, subjectAltNames: }}}]}"),
			[]string{"spec.subsets[0].trafficPolicy.tls.subjectAltNames"}},
		{"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\n" +
			"spec: {hosts: [a.example], addresses: , ports: [{number: 443, name: https, protocol: HTTPS}], resolution: DNS, subjectAltNames: }", []string{"spec.subjectAltNames"}},
	} {
		_, findings := compiled(t, tt.document)
		var got []string
		for _, f := range findings {
			if strings.Contains(f.Message, "no value") {
				got = append(got, f.Field)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s\nwarns of %q, want %q: %v", tt.document, got, tt.want, findings)
		}
	}
}

// TestCheck_Annotations: those that restrict who may call a workload are errors, whatever they are on.
func TestCheck_Annotations(t *testing.T) {
	const inbound = "config.linkerd.io/default-inbound-policy"
	const namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {%s: %s}}}"
	const deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {template: {metadata: {annotations: {%s: %s}}}}}"
	const service = "{apiVersion: v1, kind: Service, metadata: {name: web, annotations: {%s: %q}}, spec: {ports: [{port: 80}]}}"
	for _, tt := range []struct{ document, name, value, want string }{
		{namespace, inbound, "deny", `metadata.annotations["` + inbound + `"]: error: deny is not enforced yet`},
		{namespace, inbound, "cluster-authenticated", "error: cluster-authenticated is not enforced yet"},
		{namespace, inbound, "all-unauthenticated", ""},
		{namespace, inbound, "audit", ""},
		{namespace, "linkerd.io/inject", "enabled", ""},
		{deployment, inbound, "all-authenticated", `spec.template.metadata.annotations["` + inbound + `"]: error: all-authenticated is not enforced yet`},
		{deployment, "config.linkerd.io/proxy-require-identity-inbound-ports", "'8080'", `inbound-ports"]: error: 8080 is not enforced yet`},
		{namespace, "config.linkerd.io/proxy-require-identity-inbound-ports", "8080", `inbound-ports"]: error: 8080 is not enforced yet`},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {" + inbound + ": audit, %s: %s}}}", inbound, "deny", "is not enforced yet"},
		{"{apiVersion: helm.toolkit.fluxcd.io/v2, kind: HelmRelease, metadata: {name: x}, spec: {values: {podAnnotations: {%s: %s}}}}", inbound, "deny",
			`spec.values.podAnnotations["` + inbound + `"]: error: deny is not enforced yet`},
		{service, "retry.linkerd.io/http", "5xx", ""},
		{service, "timeout.linkerd.io/request", "1s", ""},
		{service, "balancer.linkerd.io/failure-accrual", "consecutive", ""},
		{service, "timeout.linkerd.io/idle", "1s", `metadata.annotations["timeout.linkerd.io/idle"]: error: is not enforced: remove it`},
		{service, "timeout.linkerd.io/response", "1s", "error: is not enforced: remove it; timeout.linkerd.io/request is, and bounds the whole call"},
		{service, "retry.linkerd.io/limits", "1", `error: is not enforced: remove it, did you mean "retry.linkerd.io/limit"?`},
		{service, "balancer.alpha.linkerd.io/penalize-failures", "true", "warning: is not enforced: it is an experiment of Linkerd"},
		{service, "networking.istio.io/exportTo", ".", "warning: is not enforced"},
		{service, "linkerd.io/other", "x", ""},
	} {
		text := policy.Check([]policy.Source{{Name: "x.yaml", Data: fmt.Appendf(nil, tt.document, tt.name, tt.value)}}, workload).Findings.Error()
		if !strings.Contains(text, tt.want) || tt.want == "" && strings.Contains(text, "enforced") {
			t.Errorf("%s: %s: %q, want %q", tt.name, tt.value, text, tt.want)
		}
	}
}
