package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// What applies to the whole mesh stands in the root namespace of the workload, and nowhere else.
func TestRootNamespace(t *testing.T) {
	const documents = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: NS}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: NS}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: fast, namespace: NS}
spec: {host: api.shop.svc.cluster.local, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: quiet, namespace: NS}
spec: {accessLogging: [{disabled: true}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: NS}
spec: {jwtRules: [{issuer: a, jwksUri: "https://a.example/keys"}]}
`
	for _, test := range []struct {
		root, in string
		applies  bool
	}{
		{"", "istio-system", true},
		{"", "mesh-config", false},
		{"istio-system", "istio-system", true},
		{"mesh-config", "mesh-config", true},
		{"mesh-config", "istio-system", false},
	} {
		w := policy.Workload{Namespace: "shop", RootNamespace: test.root}
		plan, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(strings.ReplaceAll(documents, "NS", test.in))}}, w)
		if plan == nil {
			t.Fatal(findings)
		}
		d := plan.Inbound().Authorize(&authz.Request{Method: "GET", Target: "/admin", Principal: "cluster.local/ns/shop/sa/a"})
		if d.Allowed == test.applies {
			t.Errorf("root %q, an AuthorizationPolicy in %q: allowed %v", test.root, test.in, d.Allowed)
		}
		if _, set := plan.Peers("shop").Mode(nil, 80); set != test.applies {
			t.Errorf("root %q, a PeerAuthentication in %q: applies %v", test.root, test.in, set)
		}
		if got := plan.Inbound().Tokens() != nil; got != test.applies {
			t.Errorf("root %q, a RequestAuthentication in %q: applies %v", test.root, test.in, got)
		}
	}
}

// What protects the whole mesh and cannot be read closes the workload, in whatever namespace it stands.
func TestRootNamespace_Alone(t *testing.T) {
	f := newFeed(t)
	f.workload = policy.Workload{Namespace: "shop", RootNamespace: "mesh-config"}
	refused := object{kind: "AuthorizationPolicy", namespace: "mesh-config", name: "deny", uid: 1, spec: badRules}
	f.yields(refused)
	f.denies("mesh-config/deny")
	refused.namespace = "istio-system" // which is a namespace like any other
	f.yields(refused)
	f.allows("/")
}

// A name that no namespace has is refused: nothing would apply to the whole mesh, or to the workload.
func TestRootNamespace_BadNames(t *testing.T) {
	for _, name := range []string{"Istio-System", "a/b", "..", "a b", "-a", "a.b", "*", strings.Repeat("a", 64)} {
		for field, w := range map[string]policy.Workload{
			"Workload.RootNamespace": {RootNamespace: name},
			"Workload.Namespace":     {Namespace: name},
		} {
			if plan, findings := policy.Compile(nil, w); plan != nil || !strings.Contains(findings.Error(), field) {
				t.Errorf("Compile with %s %q: %v", field, name, findings)
			}
			if report := policy.Check([]policy.Source{{}}, w); report.Findings.Err() == nil || len(report.InForce) != 1 {
				t.Errorf("Check with %s %q: %+v", field, name, report)
			}
		}
	}
}

// What selects by labels in the root namespace could be about a process that does not know its labels, except PeerAuthentications, which select
// there only.
func TestRootNamespace_WithoutLabels(t *testing.T) {
	const selector = "selector: {matchLabels: {app: a}}, "
	tokens := "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: %s}\nspec: {" + selector +
		"jwtRules: [{issuer: a, jwksUri: 'https://a.example/keys'}]}\n"
	strict := peerAuthentication("shop", "strict", "{mtls: {mode: STRICT}}") // without it, nothing would protect the workload, and only that would be reported
	for _, test := range []struct {
		document  string
		in        string
		mayBeMine bool
	}{
		{authorizationPolicy("%s", "a", "{"+selector+"action: DENY, rules: [{}]}"), "shop", true},
		{authorizationPolicy("%s", "a", "{"+selector+"action: DENY, rules: [{}]}"), "istio-system", true},
		{authorizationPolicy("%s", "a", "{"+selector+"action: DENY, rules: [{}]}"), "other", false},
		{tokens, "shop", true},
		{tokens, "istio-system", true},
		{tokens, "other", false},
		{peerAuthentication("%s", "a", "{"+selector+"mtls: {mode: STRICT}}"), "shop", true},
		{peerAuthentication("%s", "a", "{"+selector+"mtls: {mode: STRICT}}"), "istio-system", false},
	} {
		document := fmt.Sprintf(test.document, test.in)
		_, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(document + strict)}}, policy.Workload{Namespace: "shop"})
		if got := strings.Contains(findings.Error(), "set Labels"); got != test.mayBeMine {
			t.Errorf("%s\nin %s: a warning %v, want %v: %v", document, test.in, got, test.mayBeMine, findings)
		}
	}
}
