package mesh_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

// answers returns a function that makes a resolver that yields the same answers to every watch, in the bubble of its test.
func answers(all ...any) func() discovery.Resolver {
	return func() discovery.Resolver {
		s := make(scripted, len(all))
		for _, answer := range all {
			s <- answer
		}
		return s
	}
}

func registered(service string, endpoints ...discovery.Endpoint) func() discovery.Resolver {
	return func() discovery.Resolver {
		m := new(discovery.Memory)
		m.Set(service, endpoints...)
		return m
	}
}

func fromDNS(d discovery.DNS) func() discovery.Resolver {
	return func() discovery.Resolver { return d }
}

// failingDNS is a DNS whose lookups fail, or find nothing if the error is nil.
type failingDNS struct{ err error }

func (f failingDNS) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return nil, f.err
}

func (f failingDNS) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", []*net.SRV{{Target: "."}}, f.err
}

// TestNoEndpoints: the error of a call that finds no endpoint says, in one line, what discovery has said last.
func TestNoEndpoints(t *testing.T) {
	const malformed = `api.default.svc.cluster.local:80: balancer: no endpoints: discovery: endpoint 0 left out: %s is neither an IP address nor a host name: ` +
		`write it without brackets, and the port into Port [UH]`
	for _, test := range []struct {
		name     string
		resolver func() discovery.Resolver
		want     string
		is       error
	}{
		{"a port without a host", registered("api", discovery.Endpoint{Port: 80}), ": endpoint 0 left out: it has no address [UH]", balancer.ErrNoEndpoints},
		{"a port in the address", registered("api", discovery.Endpoint{Address: "localhost:80"}), strings.Replace(malformed, "%s", `"localhost:80"`, 1), balancer.ErrNoEndpoints},
		{"two ports", registered("api", discovery.Endpoint{Address: "localhost:80:81"}), strings.Replace(malformed, "%s", `"localhost:80:81"`, 1), balancer.ErrNoEndpoints},
		{"brackets", registered("api", discovery.Endpoint{Address: "[::1]"}), strings.Replace(malformed, "%s", `"[::1]"`, 1), balancer.ErrNoEndpoints},
		{"a URL", registered("api", discovery.Endpoint{Address: "http://localhost"}), strings.Replace(malformed, "%s", `"http://localhost"`, 1), balancer.ErrNoEndpoints},
		{"a block", registered("api", discovery.Endpoint{Address: "10.0.0.0/8"}), strings.Replace(malformed, "%s", `"10.0.0.0/8"`, 1), balancer.ErrNoEndpoints},
		{"a port that is none", registered("api", discovery.Endpoint{Address: "localhost", Port: 65536}), ": localhost has port 65536 [UH]", balancer.ErrNoEndpoints},
		{"an empty set", registered("api"), ": no endpoints: discovery knows the service, and none that takes calls [UH]", balancer.ErrNoEndpoints},
		{"draining", registered("api", discovery.Endpoint{Address: "10.0.0.1", Port: 1, Draining: true}), ": no endpoints: all 1 that there are drain [UH]", balancer.ErrNoEndpoints},
		{"an error after an empty set", answers([]discovery.Endpoint{}, errors.New("403 ACL not found")), ": no endpoints: 403 ACL not found [UH]", balancer.ErrNoEndpoints},
		{"an error before any set", answers(errors.New("403 ACL not found")), ": discovery has not answered in time: 403 ACL not found [UH]", nil},
		{"another name", registered("api:80"), " knows it: discovery: unknown service: nothing is registered as api.default.svc.cluster.local or ", mesh.ErrNotInMesh},
		{"DNS without the host", fromDNS(discovery.DNS{Resolver: failingDNS{&net.DNSError{Err: "no such host", Name: "api", IsNotFound: true}}}),
			" knows it: discovery: unknown service: api.default.svc.cluster.local: lookup api: no such host [NR]", mesh.ErrNotInMesh},
		{"DNS that fails", fromDNS(discovery.DNS{Resolver: failingDNS{errors.New("server misbehaving")}}),
			": discovery has not answered in time: discovery: look up api.default.svc.cluster.local: server misbehaving [UH]", nil},
		{"DNS without a service", fromDNS(discovery.DNS{SRV: true, Resolver: failingDNS{}}), ": no endpoints: discovery knows the service, ", balancer.ErrNoEndpoints},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, "", mesh.WithDiscovery(test.resolver()), mesh.WithRegistryOnly())
				_, _ = try(m.Client(), "http://api/") // begins to watch
				synctest.Wait()
				_, err := try(m.Client(), "http://api/")
				if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || test.is != nil && !errors.Is(err, test.is) {
					t.Errorf("got %v, want %q in it", err, test.want)
				}
			})
		})
	}
}
