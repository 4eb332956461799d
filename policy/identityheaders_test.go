package policy_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// A header that says who the peer is was written by the peer: handlers do not see it as it was sent, and no policy of any dialect goes by it.
func TestPoliciesGoByNoHeaderThatNamesThePeer(t *testing.T) {
	documents := map[string]string{
		"Istio": `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: shop}
spec: {rules: [{when: [{key: "request.headers[HEADER]", values: [alice]}]}]}`,
		"Linkerd": `
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: s, namespace: shop}
spec: {podSelector: {}, port: 80, accessPolicy: all-authenticated}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{group: policy.linkerd.io, kind: Server, name: s}], rules: [{matches: [{headers: [{name: HEADER, value: alice}]}]}]}`,
		"SMI": `
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: g, namespace: shop}
spec: {matches: [{name: m, headers: {HEADER: alice}}]}
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: t, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: orders, namespace: shop}
  sources: [{kind: ServiceAccount, name: web, namespace: shop}]
  rules: [{kind: HTTPRouteGroup, name: g}]`,
		"Consul": `
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceIntentions
metadata: {name: i}
spec: {destination: {name: orders}, sources: [{name: web, permissions: [{action: allow, http: {header: [{name: HEADER, exact: alice}]}}]}]}`,
	}
	w := policy.Workload{Namespace: "shop", ServiceAccount: "orders", Service: "orders", TrustDomain: "cluster.local"}
	for dialect, document := range documents {
		for name, refused := range map[string]bool{
			"x-user": false, "x-forwarded-client-cert": true, "X_Forwarded-Client_Cert": true, "l5d-client-id": true, "L5d_Client_Id": true,
		} {
			text := strings.ReplaceAll(document, "HEADER", name)
			plan, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: []byte(text)}}, w)
			allowed := false
			if findings.Err() == nil {
				r := authz.Request{
					Principal: "cluster.local/ns/shop/sa/web", Destination: netip.MustParseAddrPort("10.0.0.1:80"),
					Method: "GET", Target: "/", Header: http.Header{http.CanonicalHeaderKey(name): {"alice"}},
				}
				if dialect == "Consul" {
					r.Principal = "cluster.local/ns/default/dc/dc1/svc/web"
				}
				allowed = plan.Inbound().Authorize(&r).Allowed
			}
			if allowed == refused {
				t.Errorf("%s: a peer that writes %s: allowed %v; %v", dialect, name, allowed, findings)
			}
		}
	}
}
