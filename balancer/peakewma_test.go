package balancer_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
)

// picked returns how often each of the endpoints is picked, with latency, out of n.
func picked(t *testing.T, b *balancer.Balancer, n int, latency time.Duration) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		h, err := b.Pick(balancer.PickInfo{})
		if err != nil {
			t.Fatal(err)
		}
		counts[h.ID()]++
		h.Release(latency, false)
	}
	return counts
}

// pickOf picks until it has the endpoint. The others take some time to answer.
func pickOf(t *testing.T, b *balancer.Balancer, id string, others time.Duration) *balancer.Host {
	t.Helper()
	for range 10000 {
		h, err := b.Pick(balancer.PickInfo{})
		if err != nil {
			t.Fatal(err)
		}
		if h.ID() == id {
			return h
		}
		time.Sleep(others)
		h.Release(others, false)
	}
	t.Fatal("never picked")
	return nil
}

func TestPeakEWMAErrors(t *testing.T) {
	for _, test := range []struct {
		name    string
		latency time.Duration // of the errors
		usual   time.Duration // of the other endpoint
	}{
		{"before an answer, of an endpoint that is not known yet", 0, 10 * time.Millisecond},
		{"that come fast", time.Microsecond, 10 * time.Millisecond},
		{"that come fast, where answers are slow", time.Millisecond, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
				set := endpoints(2)
				b.Update(set)
				sick, well := set[0].ID(), set[1].ID()
				pickOf(t, b, well, 0).Release(test.usual, false)
				errors := 0
				for range 100 {
					h, err := b.Pick(balancer.PickInfo{})
					if err != nil {
						t.Fatal(err)
					}
					if h.ID() == sick {
						errors++
						h.Release(test.latency, true)
					} else {
						h.Release(test.usual, false)
					}
				}
				if errors > 8 {
					t.Errorf("an endpoint that fails got %d of 100 calls", errors)
				}
				time.Sleep(time.Minute)
				pickOf(t, b, sick, test.usual).Release(time.Microsecond, false) // it is tried again
				if got := picked(t, b, 100, time.Microsecond); got[sick] == 0 {
					t.Error("an endpoint that answers again gets no calls")
				}
			})
		})
	}
}

func TestPeakEWMAEndpointThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
		set := endpoints(2)
		b.Update(set)
		one, two := set[0].ID(), set[1].ID()
		for range 4 {
			pickOf(t, b, one, 30*time.Millisecond).Release(10*time.Millisecond, false)
			pickOf(t, b, two, 10*time.Millisecond).Release(30*time.Millisecond, false)
		}
		if got := picked(t, b, 20, 10*time.Millisecond); got[one] != 20 {
			t.Errorf("the faster one of two got %d of 20 calls", got[one])
		}
		hangs := pickOf(t, b, one, 30*time.Millisecond)
		time.Sleep(100 * time.Millisecond) // nothing was heard of it, so it is slower than the other
		if got := picked(t, b, 20, 30*time.Millisecond); got[two] != 20 {
			t.Errorf("the one that answers got %d of 20 calls", got[two])
		}
		// It is a stream: in flight, and no sign of anything.
		time.Sleep(time.Minute)
		other := pickOf(t, b, two, 10*time.Millisecond) // now both have one
		if got := picked(t, b, 20, 10*time.Millisecond); got[one] == 0 {
			t.Error("an endpoint with a stream gets no other calls")
		}
		hangs.Release(0, false)
		other.Release(0, false)
	})
}

// What counts is when an endpoint answered, not when the body of the answer ended.
func TestPeakEWMAForgetsAnswersWhoseBodyTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
		set := endpoints(2)
		b.Update(set)
		one, two := set[0].ID(), set[1].ID()
		long := pickOf(t, b, one, 10*time.Millisecond)
		time.Sleep(time.Minute)
		pickOf(t, b, two, 0).Release(10*time.Millisecond, false)
		long.Release(50*time.Millisecond, false)
		if got := picked(t, b, 20, 10*time.Millisecond); got[one] == 0 {
			t.Error("an endpoint is avoided because it was slow a minute ago")
		}
	})
}

func TestPeakEWMADecay(t *testing.T) {
	for x := 0.0; x < 70; x += 0.01 {
		want := math.Exp2(-min(x, 64))
		if got := balancer.Fade(x); math.Abs(got/want-1) > 3e-4 {
			t.Fatalf("2^-%v is %v, want %v", x, got, want)
		}
	}
}

// A client keeps to the endpoints of its aperture, whichever of all come and go, and moves on.
func TestAperture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA, Aperture: 5})
		set := endpoints(100)
		b.Update(set)
		first := picked(t, b, 400, time.Millisecond)
		if len(first) != 5 {
			t.Errorf("%d endpoints are used, want 5", len(first))
		}
		b.Update(set[:99])
		kept := 0
		for id := range picked(t, b, 400, time.Millisecond) {
			if first[id] > 0 {
				kept++
			}
		}
		if kept < 4 {
			t.Errorf("of 5 endpoints %d are kept when one of 100 goes", kept)
		}
		for _, h := range b.Hosts() {
			if first[h.ID()] > 0 {
				h.SetEjected(true)
			}
		}
		for id := range picked(t, b, 400, time.Millisecond) {
			if first[id] > 0 {
				t.Errorf("%s is picked though it is ejected", id)
			}
		}
		for _, h := range b.Hosts() {
			h.SetEjected(false)
		}
		all := map[string]bool{}
		for range 120 {
			for id := range picked(t, b, 40, time.Millisecond) {
				all[id] = true
			}
			time.Sleep(2 * time.Second)
		}
		if len(all) != 99 {
			t.Errorf("%d of 99 endpoints are used in time", len(all))
		}

		// With so many calls that each endpoint gets enough, all are used.
		for range 3000 {
			picked(t, b, 1, time.Millisecond)
			time.Sleep(time.Millisecond / 2)
		}
		if got := picked(t, b, 4000, time.Millisecond); len(got) != 99 {
			t.Errorf("with 2,000 calls a second %d of 99 endpoints are used", len(got))
		}
	})
}
