package balancer_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

func newBalancer(t testing.TB, cfg balancer.Config) *balancer.Balancer {
	t.Helper()
	b, err := balancer.New(cfg, balancer.Hooks{})
	if err != nil {
		t.Fatalf("New(%+v): %v", cfg, err)
	}
	return b
}

// endpoints returns n endpoints, 10.0.0.0:80 and on.
func endpoints(n int) []discovery.Endpoint {
	set := make([]discovery.Endpoint, n)
	for i := range set {
		set[i] = discovery.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), Port: 80}
	}
	return set
}

func TestEmpty(t *testing.T) {
	b := newBalancer(t, balancer.Config{})
	if _, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoEndpoints) {
		t.Errorf("Pick before Update: %v, want ErrNoEndpoints", err)
	}
	b.Update(endpoints(2))
	if _, err := b.Pick(balancer.PickInfo{}); err != nil {
		t.Errorf("Pick: %v", err)
	}
	b.Update(nil)
	if _, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoEndpoints) {
		t.Errorf("Pick after empty Update: %v, want ErrNoEndpoints", err)
	}
}
