package catalog_test

import (
	"testing"

	"github.com/nosidecar/mesh/policy/internal/catalog"
)

// TestAll_HasEveryKindOnce: a kind that is missing is not followed, one that protects must be known to, and one that is refused says what to do.
func TestAll_HasEveryKindOnce(t *testing.T) {
	want := 0
	for _, api := range catalog.Groups() {
		for name, state := range api.Kinds {
			if instead := api.Instead[name]; (instead != "") != (state == catalog.Refused) {
				t.Errorf("%s: what to do instead is %q", name, instead)
			}
			if state == catalog.Enforced || state == catalog.Refused {
				want++
			}
		}
	}
	protects := map[string]bool{}
	seen := map[[2]string]bool{}
	for _, kind := range catalog.All() {
		if seen[[2]string{kind.Group, kind.Name}] {
			t.Errorf("%s of %s is there twice", kind.Name, kind.Group)
		}
		seen[[2]string{kind.Group, kind.Name}] = true
		protects[kind.Name+"."+kind.Group] = kind.Protects
	}
	if len(seen) != want {
		t.Errorf("%d kinds, want %d", len(seen), want)
	}
	for name, want := range map[string]bool{
		"AuthorizationPolicy.security.istio.io": true, "PeerAuthentication.security.istio.io": true, "RequestAuthentication.security.istio.io": true,
		"Server.policy.linkerd.io": true, "AuthorizationPolicy.policy.linkerd.io": true, "HTTPRoute.policy.linkerd.io": false,
		"TrafficTarget.access.smi-spec.io": true, "ServiceIntentions.consul.hashicorp.com": true,
		"VirtualService.networking.istio.io": false, "HTTPRoute.gateway.networking.k8s.io": false, "Service.": false,
	} {
		if got, known := protects[name]; got != want || !known {
			t.Errorf("%s protects: %t, known: %t, want %t", name, got, known, want)
		}
	}
}
