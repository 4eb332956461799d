package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// wrap returns a document of another kind with a document in it.
func wrap(kind, inner string) string {
	return fmt.Sprintf("apiVersion: template.openshift.io/v1\nkind: %s\nmetadata: {name: shop, namespace: tools}\nobjects:\n- %s\n", kind, inner)
}

const (
	wrappedPolicy = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, namespace: shop}, spec: {action: DENY, rules: [{}]}}"
	wrappedRule   = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: x, namespace: shop}, spec: {host: a.example, trafficPolicy: {tls: {mode: SIMPLE}}}}"
	wrappedRoute  = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: x, namespace: shop}, spec: {hosts: [a], http: [{route: [{destination: {host: b}}]}]}}"
)

// TestWrappedDocuments: documents in a document that is skipped would not take effect, and nobody would notice.
func TestWrappedDocuments(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"policy", wrap("Template", wrappedPolicy), "objects[0]: error: an AuthorizationPolicy in a Template does not take effect: make it a document of its own, as oc process does"},
		{"route", wrap("Template", wrappedRoute), "objects[0]: error: a VirtualService in a Template does not take effect"},
		{"refused kind", wrap("Template", "{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: x}, spec: {}}"), "objects[0]: error: a Server in a Template"},
		{"deeper", "apiVersion: work.example/v1\nkind: Manifest\nmetadata: {name: x}\nspec: {workload: {manifests: [" + wrappedPolicy + "]}}", "spec.workload.manifests[0]: error: an AuthorizationPolicy in a Manifest"},
		{"reference", wrap("Template", "{apiVersion: networking.istio.io/v1, kind: VirtualService, name: x}"), ""},
		{"document without a meaning", wrap("Template", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}"), ""},
		{"Service", wrap("Template", "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ports: [{port: 80}]}}"), ""},
		{"field twice", wrap("Template", wrappedPolicy) + "objects: []\n", "set twice"},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := policy.Check([]policy.Source{{Name: "x.yaml", Data: []byte(test.text)}}, policy.Workload{}).Findings
			err := found.Err()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("found %v, want the error %q", found, test.want)
			}
		})
	}
}

// TestAlone_WrappedDocuments: what a policy in such a document forbids is not in force, wherever the document itself is.
func TestAlone_WrappedDocuments(t *testing.T) {
	f := newFeed(t)
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte(wrap("Template", wrappedPolicy))})
	f.refused("Template tools/shop: denial")
	f.denies("Template tools/shop")
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte(wrap("Template", wrappedRoute))})
	f.refused("Template tools/shop: nothing")
	f.allows("/")
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte(wrap("Template", wrappedRule))})
	f.refused("Template tools/shop: denial")
	if c := f.plan.Cluster(route.Target{Host: "a.example"}); c.Closed == "" {
		t.Error("calls that a rule in a Template would secure are not closed")
	}
	f.allows("/")
}

// TestAlone_OtherMeshes: documents of other meshes say what is not in force. Those that restrict who may call whom deny, in whatever namespace: those
// of Kuma are about all of its mesh.
func TestAlone_OtherMeshes(t *testing.T) {
	for kind, denies := range map[string]bool{
		"MeshTrafficPermission of kuma.io/v1alpha1":            true,
		"TrafficPermission of kuma.io/v1alpha1":                true,
		"IngressBackend of policy.openservicemesh.io/v1alpha1": true,
		"MeshTimeout of kuma.io/v1alpha1":                      false,
		"VirtualNode of appmesh.k8s.aws/v1beta2":               false,
	} {
		f := newFeed(t)
		f.yields(object{kind: kind, namespace: "kuma-system", name: "x", spec: "{}"})
		name, _, _ := strings.Cut(kind, " of ")
		if !denies {
			f.refused(name + " kuma-system/x: nothing")
			f.allows("/")
			continue
		}
		f.refused(name + " kuma-system/x: denial")
		f.denies(name + " kuma-system/x")
	}
}
