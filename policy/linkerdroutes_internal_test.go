package policy

import (
	"testing"

	"github.com/nosidecar/mesh/policy/internal/linkerd"
)

// A policy about a route authorizes nobody at a Server that does not have the route, rather than for all requests.
func TestPolicies_OfAnotherRoute(t *testing.T) {
	ap := &linkerd.AuthorizationPolicy{Spec: linkerd.AuthorizationPolicySpec{TargetRef: linkerd.TargetRef{Group: linkerd.PolicyGroup, Kind: "HTTPRoute", Name: "a"}}}
	other := &gatewayRoute{reading: &reading{group: linkerd.PolicyGroup, identity: identity{kind: "HTTPRoute", name: "b"}}}
	s := guardedPort{decoded[linkerd.Server]{&document{reading: other.reading}, new(linkerd.Server)}, 80}
	for name, of := range map[string]map[*gatewayRoute][]int{"without routes": nil, "with another route": {other: {0}}} {
		if got := s.policies([]any{ap}, of, "", linkerd.Authentications{}); len(got) > 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
