package balancer_test

import (
	"cmp"
	"fmt"
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

// What an error costs at least does not depend on how fast the others are.
func TestPeakEWMAErrorsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
		set := endpoints(2)
		b.Update(set)
		sick, well := set[0].ID(), set[1].ID()
		pickOf(t, b, well, 0).Release(time.Millisecond, false)
		pickOf(t, b, sick, 0).Release(time.Microsecond, true)
		for range 3000 {
			time.Sleep(time.Millisecond)
			if picked(t, b, 1, time.Millisecond)[sick] > 0 {
				t.Fatal("an endpoint that failed is tried again within 3 seconds")
			}
		}
	})
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

// An endpoint that was slow is tried again after a while, which Decay sets.
func TestPeakEWMADecay(t *testing.T) {
	for _, decay := range []time.Duration{0, 2 * time.Second, 10 * time.Second, time.Hour} {
		t.Run(decay.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA, Decay: decay})
				set := endpoints(2)
				b.Update(set)
				slow, usual := set[0].ID(), set[1].ID()
				const latency = 10 * time.Millisecond
				pickOf(t, b, usual, 0).Release(latency, false)
				pickOf(t, b, slow, 0).Release(4*latency, false)
				step := cmp.Or(decay, time.Second) / 10
				began := time.Now()
				for picked(t, b, 8, latency)[slow] == 0 && time.Since(began) < 100*step {
					time.Sleep(step)
				}
				// It counts until a twelfth of its only answer is left, which is after 2.5 times Decay.
				if tenths := time.Since(began) / step; tenths < 22 || tenths > 28 {
					t.Errorf("it is tried again after %d tenths of Decay, want 25", tenths)
				}
			})
		})
	}
}

// TestPeakEWMATimes: the time that a caller gives with a pick may be off, or jump. What is learned then goes by it, and nothing lasts.
func TestPeakEWMATimes(t *testing.T) {
	for _, jump := range []time.Duration{-time.Hour, -time.Minute, time.Hour, 10000 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA, Aperture: 2})
				set := endpoints(2)
				b.Update(set)
				now := time.Now().Add(-time.Minute) // a call may have begun before its balancer
				latency := map[string]time.Duration{set[0].ID(): 50 * time.Millisecond, set[1].ID(): 10 * time.Millisecond}
				slow := func(n int) (slow int) {
					for range n {
						h, err := b.Pick(balancer.PickInfo{Now: now})
						if err != nil {
							t.Fatal(err)
						}
						if h.ID() == set[0].ID() {
							slow++
						}
						h.Release(latency[h.ID()], false)
						now = now.Add(time.Millisecond)
					}
					return slow
				}
				if n := slow(100); n > 2 {
					t.Errorf("the slow endpoint got %d of 100 calls, want at most 2", n)
				}
				now = now.Add(jump)
				if n := slow(100); n > 2 {
					t.Errorf("after the jump, the slow endpoint got %d of 100 calls, want at most 2", n)
				}
				now = now.Add(-jump)
				if n := slow(100); n > 2 {
					t.Errorf("after the jump back, the slow endpoint got %d of 100 calls, want at most 2", n)
				}
			})
		})
	}
}

// Calls do not end in the order of their times, so a time that lies a little before another does not make anything forgotten.
func TestPeakEWMATimesOutOfOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := 0
		for range 10 {
			b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
			set := endpoints(2)
			b.Update(set)
			now := time.Now().Add(time.Hour)
			for i := range 20 {
				h, err := b.Pick(balancer.PickInfo{Now: now.Add(time.Duration(i%2) * 2 * time.Second)})
				if err != nil {
					t.Fatal(err)
				}
				if h.ID() == set[0].ID() {
					slow++
					h.Release(50*time.Millisecond, false)
				} else {
					h.Release(10*time.Millisecond, false)
				}
			}
		}
		if slow > 12 {
			t.Errorf("the slow endpoint got %d of 200 calls, want 1 for each of 10 callers", slow)
		}
	})
}

// An answer counts from when it came, whatever else is in flight.
func TestPeakEWMAOverlappingCalls(t *testing.T) {
	t.Run("that end together", func(t *testing.T) {
		for i := range 6 {
			synctest.Test(t, func(t *testing.T) {
				b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
				set := endpoints(2)
				slow, usual := set[0].ID(), set[1].ID()
				b.Update(set[:1])
				first, second := pickOf(t, b, slow, 0), pickOf(t, b, slow, 0)
				b.Update(set)
				latency := 3*time.Second + time.Duration(i)*1700*time.Nanosecond // they end in different ticks
				time.Sleep(latency)
				first.Release(latency, false)
				second.Release(latency, false)
				ended := time.Now()
				for {
					time.Sleep(2 * time.Millisecond)
					if picked(t, b, 1, 10*time.Millisecond)[usual] == 0 {
						break
					}
				}
				if took := time.Since(ended); took < 6*time.Second || took > 9500*time.Millisecond {
					t.Errorf("an endpoint that was slow is tried again after %v, want 6s to 9.5s", took)
				}
			})
		}
	})
	t.Run("while there is a stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for range 10 {
				b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
				set := endpoints(2)
				b.Update(set)
				slow := set[0].ID()
				both := func() (calls []*balancer.Host) { // one to each
					for range 2 {
						h, err := b.Pick(balancer.PickInfo{})
						if err != nil {
							t.Fatal(err)
						}
						calls = append(calls, h)
					}
					return calls
				}
				streams := both()
				time.Sleep(time.Hour)
				for _, h := range both() {
					if h.ID() == slow {
						h.Release(50*time.Millisecond, false)
					} else {
						h.Release(10*time.Millisecond, false)
					}
				}
				if n := picked(t, b, 20, 10*time.Millisecond)[slow]; n > 0 {
					t.Errorf("the slow endpoint got %d of 20 calls", n)
				}
				for _, h := range streams {
					h.Release(0, false)
				}
			}
		})
	})
	t.Run("one after the other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
			set := endpoints(2)
			b.Update(set[:1])
			busy := set[0].ID()
			last := pickOf(t, b, busy, 0)
			for range 50 {
				time.Sleep(5 * time.Millisecond)
				next := pickOf(t, b, busy, 0)
				time.Sleep(5 * time.Millisecond)
				last.Release(10*time.Millisecond, false)
				last = next
			}
			b.Update(set)
			if n := held(t, b, 10)[busy]; n < 2 {
				t.Errorf("an endpoint that is never idle and answers soon got %d of 10 calls", n)
			}
			last.Release(10*time.Millisecond, false)
		})
	})
}

// The calls per second, by which an aperture is as wide as it is, are counted again after a jump, too.
func TestApertureAfterAJump(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA, Aperture: 5})
			b.Update(endpoints(50))
			now := time.Now().Add(2 * time.Hour)
			call := func(every time.Duration) int {
				used := map[string]bool{}
				for range 2000 {
					h, err := b.Pick(balancer.PickInfo{Now: now})
					if err != nil {
						t.Fatal(err)
					}
					used[h.ID()] = true
					h.Release(time.Millisecond, false)
					now = now.Add(every)
				}
				return len(used)
			}
			for _, step := range []struct {
				jump        time.Duration
				every       time.Duration // a call
				least, most int           // of the endpoints that are used
			}{
				{0, time.Millisecond, 40, 50},
				{jump, 5 * time.Millisecond, 5, 39},
				{-jump, time.Millisecond, 40, 50},
			} {
				now = now.Add(step.jump)
				call(step.every)
				if n := call(step.every); n < step.least || n > step.most {
					t.Errorf("with a call every %v, %d endpoints are used, want %d to %d", step.every, n, step.least, step.most)
				}
			}
		})
	}
}

// Extreme latencies and settings neither overflow nor divide by zero.
func TestPeakEWMAExtremes(t *testing.T) {
	for _, decay := range []time.Duration{1, 0, math.MaxInt64} {
		for _, latency := range []time.Duration{math.MinInt64, 0, 1, time.Minute, math.MaxInt64} {
			t.Run(fmt.Sprintf("%v, %v", decay, latency), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA, Decay: decay})
					set := endpoints(2)
					b.Update(set)
					counts := map[string]int{}
					for range 100 {
						h, err := b.Pick(balancer.PickInfo{})
						if err != nil {
							t.Fatal(err)
						}
						counts[h.ID()]++
						if h.ID() == set[0].ID() {
							h.Release(latency, false)
						} else {
							h.Release(10*time.Millisecond, false)
						}
						time.Sleep(time.Millisecond)
					}
					if slow := counts[set[0].ID()]; latency > time.Second && decay != 1 && slow > 2 {
						t.Errorf("an endpoint as slow as %v got %d of 100 calls, want at most 2", latency, slow)
					}
					for _, h := range b.Hosts() {
						if h.InFlight() != 0 || !h.TakesCalls() || h.Ejected() {
							t.Errorf("%s: %d calls in flight, takes calls: %v, ejected: %v", h.ID(), h.InFlight(), h.TakesCalls(), h.Ejected())
						}
					}
				})
			})
		}
	}
}

// What failures took says nothing about how long answers take: an endpoint that nothing is known of is expected to take about as long as
// the others do, however fast another one fails.
func TestPeakEWMAFailuresAreNotUsual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
		set := endpoints(3)
		b.Update(set[:2])
		well, sick := b.Hosts()[0], b.Hosts()[1]
		sick.SetEjected(true)
		picked(t, b, 1, 10*time.Millisecond)
		well.SetEjected(true)
		sick.SetEjected(false)
		for range 200 {
			time.Sleep(2 * time.Millisecond)
			h, err := b.Pick(balancer.PickInfo{})
			if err != nil {
				t.Fatal(err)
			}
			h.Release(time.Microsecond, true)
		}
		well.SetEjected(false)
		sick.SetEjected(true)
		b.Update(set)
		if got := held(t, b, 10); got[set[0].ID()] < 3 || got[set[2].ID()] < 3 {
			t.Errorf("ten calls at once fell %v, want a share for the one that answers and the new one", got)
		}
	})
}

// An endpoint that has failed for long is tried again about as soon as one that took a minute to answer.
func TestPeakEWMAErrorsCostAMinuteAtMost(t *testing.T) {
	for _, failures := range []int{60, 100, 200} {
		synctest.Test(t, func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA})
			set := endpoints(2)
			b.Update(set)
			well, sick := b.Hosts()[0], b.Hosts()[1]
			sick.SetEjected(true)
			picked(t, b, 1, 10*time.Millisecond)
			sick.SetEjected(false)
			well.SetEjected(true)
			for range failures {
				h, err := b.Pick(balancer.PickInfo{})
				if err != nil {
					t.Fatal(err)
				}
				h.Release(time.Millisecond, true)
			}
			well.SetEjected(false)
			ended := time.Now()
			for picked(t, b, 1, 10*time.Millisecond)[sick.ID()] == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(ended); took < 11*time.Second || took > 12200*time.Millisecond {
				t.Errorf("after %d failures, an endpoint is tried again after %v, want 11s to 12.2s", failures, took)
			}
		})
	}
}
