package balancer_test

import (
	"testing"
	"time"

	"github.com/nosidecar/mesh/balancer"
)

// Ejected hosts leave the aperture to the others. All that is picked are healthy hosts, and not only the first ones of the set.
func TestEjectionsInAnAperture(t *testing.T) {
	const hosts = 12
	for gone := range hosts {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA, Aperture: hosts})
		b.Update(endpoints(hosts))
		all := b.Hosts()
		for _, h := range all[:gone] {
			h.SetEjected(true)
		}
		seen := map[*balancer.Host]bool{}
		for range 50 * hosts {
			h := pick(t, b, balancer.PickInfo{})
			if h.Ejected() {
				t.Fatalf("%d of %d are ejected: picked %s, which is one of them", gone, hosts, h.ID())
			}
			seen[h] = true
			h.Release(time.Millisecond, false)
		}
		if len(seen) != hosts-gone {
			t.Errorf("%d of %d are ejected: %d of the others were picked", gone, hosts, len(seen))
		}
	}
}
