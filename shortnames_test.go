package mesh_test

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
)

// TestShortNameOfServiceThatOnlyDiscoveryKnows calls a service by name.namespace, which no document names: it is the
// service. A wildcard does not make services of other hosts.
func TestShortNameOfServiceThatOnlyDiscoveryKnows(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	m := newMesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all}
spec:
  hosts: ["*.local"]
  http:
  - headers: {response: {set: {x-route: all}}}
    route: [{destination: {host: cart.shop.svc.cluster.local}}]
`, mesh.WithDiscovery(&registry), mesh.WithRegistryOnly())
	srv := httptest.NewServer(says("cart"))
	t.Cleanup(srv.Close)
	registry.Set("cart.shop.svc.cluster.local", endpointOf(t, srv.Listener.Addr().String()))
	for _, host := range []string{"cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local"} {
		if a := get(t, m.Client(), "http://"+host+"/"); a.status != 200 || a.body != "cart" {
			t.Errorf("%s answers %d %q, want cart", host, a.status, a.body)
		}
	}
	for _, host := range []string{"cart.shops", "localhost", "github.com"} {
		if a, err := try(m.Client(), "http://"+host+"/"); err == nil {
			t.Errorf("%s, which neither a document nor discovery knows, answers %d %q", host, a.status, a.body)
		} else if failure, ok := errors.AsType[*mesh.Error](err); !ok || strings.HasPrefix(failure.Target.Host, "github.com.") {
			t.Errorf("%s: %v, want an error about the host as it was asked for", host, err)
		}
	}
}

// TestWildcardRoutesServicesThatOnlyDiscoveryKnows calls a service that no document names by all of its names: a wildcard that
// covers the full one routes them all, as in Istio, whose routes of a service have all its names. The wildcard answers for nothing
// that is no service.
func TestWildcardRoutesServicesThatOnlyDiscoveryKnows(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	m := newMesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all}
spec:
  hosts: ["*.local"]
  http:
  - match: [{uri: {prefix: /closed}}]
    directResponse: {status: 418}
  - match: [{uri: {prefix: /away}}]
    route: [{destination: {host: away}}]
  - headers: {response: {set: {x-route: all}}}
    route: [{destination: {host: cart.shop.svc.cluster.local}}]
`, mesh.WithDiscovery(&registry), mesh.WithRegistryOnly())
	srv := httptest.NewServer(says("cart"))
	t.Cleanup(srv.Close)
	for _, name := range []string{"cart.shop", "cart.default", "away.default"} {
		registry.Set(name+".svc.cluster.local", endpointOf(t, srv.Listener.Addr().String()))
	}
	for _, host := range []string{"cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local", "cart", "cart.default"} {
		for range 2 { // asked of discovery, and known
			if a := get(t, m.Client(), "http://"+host+"/"); a.status != 200 || a.header.Get("X-Route") != "all" {
				t.Errorf("%s answers %d with x-route %q, want the route of the wildcard", host, a.status, a.header.Get("X-Route"))
			}
			if a := get(t, m.Client(), "http://"+host+"/away"); a.status != 200 || a.header.Get("X-Route") != "" {
				t.Errorf("%s/away answers %d with x-route %q, want the service away", host, a.status, a.header.Get("X-Route"))
			}
			if a := get(t, m.Client(), "http://"+host+"/closed"); a.status != 418 {
				t.Errorf("%s/closed answers %d, want 418", host, a.status)
			}
		}
	}
	for _, host := range []string{"cart.shops", "cart.shops.svc", "typo", "localhost", "github.com"} {
		if a, err := try(m.Client(), "http://"+host+"/closed"); err == nil {
			t.Errorf("%s, which is no service, is answered by the wildcard: %d %q", host, a.status, a.body)
		}
	}
}
