package balancer_test

import (
	"errors"
	"testing"

	"github.com/nosidecar/mesh/balancer"
)

// TestEjection_WhileThePicksAreBuilt: the last hosts of a place may be ejected after it was given a share of the traffic.
func TestEjection_WhileThePicksAreBuilt(t *testing.T) {
	for _, algorithm := range algorithms {
		t.Run(algorithm.String(), func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm})
			b.Update(endpoints(2))
			hosts := b.Hosts()
			balancer.PublishWhile(b, func() { balancer.Eject(hosts[0]) })
			for range 100 {
				if h := pick(t, b, balancer.PickInfo{}); h != hosts[1] {
					t.Fatalf("Pick = %s, which is ejected", h.ID())
				}
			}
			balancer.PublishWhile(b, func() { balancer.Eject(hosts[1]) })
			if h, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoHealthy) {
				t.Errorf("Pick = %v, %v, want ErrNoHealthy", h, err)
			}
		})
	}
}

// TestEjection_BeforeThePicksAreBuilt: a host that is ejected is not picked, even if the picks still have it.
func TestEjection_BeforeThePicksAreBuilt(t *testing.T) {
	for _, algorithm := range algorithms {
		t.Run(algorithm.String(), func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm})
			b.Update(endpoints(2))
			hosts := b.Hosts()
			balancer.Eject(hosts[0])
			for range 100 {
				if h := pick(t, b, balancer.PickInfo{}); h != hosts[1] {
					t.Fatalf("Pick = %s, which is ejected", h.ID())
				}
			}
			balancer.Eject(hosts[1])
			if h, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoHealthy) {
				t.Errorf("Pick = %v, %v, want ErrNoHealthy", h, err)
			}
		})
	}
}
