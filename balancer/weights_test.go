package balancer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
)

// held returns how many of n calls, none of which ends before the last one has begun, each endpoint gets.
func held(t *testing.T, b *balancer.Balancer, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	var calls []*balancer.Host
	for range n {
		h, err := b.Pick(balancer.PickInfo{})
		if err != nil {
			t.Fatal(err)
		}
		counts[h.ID()]++
		calls = append(calls, h)
	}
	for _, h := range calls {
		h.Release(0, false)
	}
	return counts
}

// A light endpoint does not get a call for each one that a heavy endpoint has in flight.
func TestLightEndpointThatIsIdle(t *testing.T) {
	b := newBalancer(t, balancer.Config{})
	set := endpoints(2)
	set[0].Weight = 10
	b.Update(set)
	const trials = 2000
	light := 0
	for range trials {
		light += held(t, b, 2)[set[1].ID()]
	}
	// Each of two calls goes to it with a probability of 1/11, as at rest.
	if least, most := trials*12/100, trials*24/100; light < least || light > most {
		t.Errorf("the light endpoint got %d of %d calls, want %d to %d", light, 2*trials, least, most)
	}
}

// An endpoint in slow start has its reduced share of the calls in flight, too.
func TestSlowStartUnderLoad(t *testing.T) {
	for _, algorithm := range []balancer.Algorithm{balancer.LeastRequest, balancer.PeakEWMA} {
		synctest.Test(t, func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm, SlowStart: balancer.SlowStart{Window: 100 * time.Second}})
			set := endpoints(4)
			b.Update(set[:3])
			b.Update(set)
			for _, step := range []struct {
				after       time.Duration
				least, most int // of 400 calls
			}{
				{time.Second, 5, 25}, // a tenth of what the others have
				{49 * time.Second, 45, 75},
				{50 * time.Second, 90, 110},
				{50 * time.Second, 90, 110},
			} {
				time.Sleep(step.after)
				if got := held(t, b, 400)[set[3].ID()]; got < step.least || got > step.most {
					t.Errorf("%v: %v later, the new endpoint has %d of 400 calls, want %d to %d", algorithm, step.after, got, step.least, step.most)
				}
			}
		})
	}
}
