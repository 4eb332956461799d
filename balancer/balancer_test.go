package balancer_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
)

// newBalancer returns a balancer whose picks are the same in every run of a test, if they are made one by one.
func newBalancer(t testing.TB, cfg balancer.Config) *balancer.Balancer {
	t.Helper()
	b, err := balancer.New(cfg, balancer.Hooks{})
	if err != nil {
		t.Fatalf("New(%+v): %v", cfg, err)
	}
	balancer.SetRand(b, rand.NewPCG(1, 2).Uint64)
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

// weighted returns endpoints with weights, of which 0 drain.
func weighted(weights ...uint32) []discovery.Endpoint {
	set := endpoints(len(weights))
	for i, w := range weights {
		set[i].Weight, set[i].Draining = w, w == 0
	}
	return set
}

func pick(t testing.TB, b *balancer.Balancer, info balancer.PickInfo) *balancer.Host {
	t.Helper()
	h, err := b.Pick(info)
	if err != nil {
		t.Fatalf("Pick(%+v): %v", info, err)
	}
	return h
}

// tally makes calls, one by one, and returns how many each endpoint of set got.
func tally(t testing.TB, b *balancer.Balancer, set []discovery.Endpoint, calls int, info func() balancer.PickInfo) []int {
	t.Helper()
	index := map[string]int{}
	for i := range set {
		index[set[i].ID()] = i
	}
	counts := make([]int, len(set))
	for range calls {
		h := pick(t, b, info())
		counts[index[h.ID()]]++
		h.Release(0, false)
	}
	return counts
}

func noKey() balancer.PickInfo { return balancer.PickInfo{} }

// keys returns the picks of ever new keys.
func keys() func() balancer.PickInfo {
	n := 0
	return func() balancer.PickInfo {
		n++
		return keyed(fmt.Sprint("key-", n))
	}
}

func keyed(key string) balancer.PickInfo {
	return balancer.PickInfo{Hash: balancer.Hash(key), HasHash: true}
}

// wantShares fails the test if the counts are not those of draws with the given shares (chi-square test, p > 0.001).
func wantShares(t testing.TB, counts []int, shares ...float64) {
	t.Helper()
	calls, sum, freedom, statistic := 0, 0.0, -1.0, 0.0
	for i := range counts {
		calls += counts[i]
		sum += shares[i]
	}
	for i, got := range counts {
		if shares[i] == 0 {
			if got != 0 {
				t.Errorf("endpoint %d got %d calls of %v, want none", i, got, counts)
			}
			continue
		}
		want := shares[i] / sum * float64(calls)
		statistic += (float64(got) - want) * (float64(got) - want) / want
		freedom++
	}
	if freedom == 0 {
		return
	}
	// The quantile of the chi-square distribution after Wilson and Hilferty; 3.09 is that of the normal one.
	limit := freedom * math.Pow(1-2/(9*freedom)+3.09*math.Sqrt(2/(9*freedom)), 3)
	if statistic > limit {
		t.Errorf("calls %v, want shares %v: chi-square is %.1f, want at most %.1f", counts, shares, statistic, limit)
	}
}

func TestEmptySets(t *testing.T) {
	b := newBalancer(t, balancer.Config{})
	if _, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoEndpoints) {
		t.Errorf("Pick before Update: %v, want ErrNoEndpoints", err)
	}
	b.Update(weighted(1, 0))
	pick(t, b, balancer.PickInfo{}).Release(0, false)
	b.Update(weighted(0, 0))
	if _, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoEndpoints) {
		t.Errorf("Pick with all draining: %v, want ErrNoEndpoints", err)
	}
	b.Update(nil)
	if _, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoEndpoints) {
		t.Errorf("Pick after empty Update: %v, want ErrNoEndpoints", err)
	}
}

func TestStuckEndpointGetsNothing(t *testing.T) {
	for _, algorithm := range []balancer.Algorithm{balancer.LeastRequest, balancer.PeakEWMA} {
		for _, n := range []int{2, 3, 10} {
			for _, weight := range []uint32{1, 10} {
				t.Run(fmt.Sprintf("%v/%d/%d", algorithm, n, weight), func(t *testing.T) {
					b := newBalancer(t, balancer.Config{Algorithm: algorithm})
					set := endpoints(n)
					set[0].Weight = weight
					b.Update(set[:1])
					for range 1000 {
						pick(t, b, balancer.PickInfo{}) // never released
					}
					b.Update(set)
					if counts := tally(t, b, set, 5000, noKey); counts[0] != 0 {
						t.Errorf("the stuck endpoint got %d of 5000 calls", counts[0])
					}
				})
			}
		}
	}
}

func TestSharesFollowWeights(t *testing.T) {
	for _, algorithm := range algorithms {
		for _, weights := range [][]uint32{{1, 1}, {1, 3}, {3, 1}, {1, 100}, {1, 0}, {1, 3, 0, 7, 100}, {5, 5, 5, 5}, {7, 1, 1, 1}} {
			t.Run(fmt.Sprint(algorithm, weights), func(t *testing.T) {
				b := newBalancer(t, balancer.Config{Algorithm: algorithm})
				set := weighted(weights...)
				b.Update(set)
				shares := make([]float64, len(weights))
				for i, w := range weights {
					shares[i] = float64(w)
				}
				wantShares(t, tally(t, b, set, 10_000, noKey), shares...)
				if algorithm == balancer.Maglev {
					wantShares(t, tally(t, b, set, 10_000, keys()), shares...)
				}
			})
		}
	}
}

func TestLeastRequestUnderLoad(t *testing.T) {
	const inFlight = 200
	random := rand.New(rand.NewPCG(3, 4))
	for _, weights := range [][]uint32{{1, 1}, {1, 3}, {1, 9}, {1, 2, 3, 4}} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			b := newBalancer(t, balancer.Config{})
			b.Update(weighted(weights...))
			var calls []*balancer.Host
			for range inFlight {
				calls = append(calls, pick(t, b, balancer.PickInfo{}))
			}
			for range 5000 {
				i := random.IntN(inFlight)
				calls[i].Release(0, false)
				calls[i] = pick(t, b, balancer.PickInfo{})
			}
			sum := 0
			for _, w := range weights {
				sum += int(w)
			}
			for i, h := range b.Hosts() {
				want := inFlight * int(weights[i]) / sum
				if got := h.InFlight(); got < want-want/10-3 || got > want+want/10+3 {
					t.Errorf("weight %d of %v has %d calls in flight, want about %d", weights[i], weights, got, want)
				}
			}
		})
	}
}

// Round robin keeps to the weights over any stretch of calls, not only on average.
func TestRoundRobinIsSmooth(t *testing.T) {
	b := newBalancer(t, balancer.Config{Algorithm: balancer.RoundRobin})
	set := weighted(1, 3, 6)
	b.Update(set)
	for range 100 {
		counts := tally(t, b, set, 50, noKey)
		for i, want := range []int{5, 15, 30} {
			if counts[i] < want-2 || counts[i] > want+2 {
				t.Fatalf("50 calls fell %v, want about [5 15 30]", counts)
			}
		}
	}
	b.Update(endpoints(7))
	if counts := tally(t, b, endpoints(7), 7*3, noKey); slices.Min(counts) != 3 {
		t.Errorf("three rounds over equal weights fell %v", counts)
	}
}

func TestPeakEWMA(t *testing.T) {
	setup := func(t *testing.T) (*balancer.Balancer, []discovery.Endpoint) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.PeakEWMA, Decay: time.Second})
		set := endpoints(2)
		b.Update(set)
		return b, set
	}
	// call ends a call to host i that was picked.
	call := func(t *testing.T, b *balancer.Balancer, i int, latency time.Duration, failed bool) {
		t.Helper()
		other := b.Hosts()[1-i].ID()
		pick(t, b, balancer.PickInfo{Tried: []string{other}}).Release(latency, failed)
	}
	wantAll := func(t *testing.T, b *balancer.Balancer, set []discovery.Endpoint, i int) {
		t.Helper()
		if counts := tally(t, b, set, 100, noKey); counts[i] != 100 {
			t.Errorf("100 calls fell %v, want all on %d", counts, i)
		}
	}
	t.Run("the faster is picked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, set := setup(t)
			call(t, b, 0, 100*time.Millisecond, false)
			call(t, b, 1, 10*time.Millisecond, false)
			wantAll(t, b, set, 1)
		})
	})
	t.Run("a peak counts at once, and a fall slowly", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, set := setup(t)
			call(t, b, 0, 10*time.Millisecond, false)
			call(t, b, 1, 20*time.Millisecond, false)
			wantAll(t, b, set, 0)
			call(t, b, 0, 500*time.Millisecond, false)
			wantAll(t, b, set, 1)
			time.Sleep(100 * time.Millisecond)
			call(t, b, 0, 10*time.Millisecond, false)
			wantAll(t, b, set, 1)
		})
	})
	t.Run("a slow one is tried again in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, set := setup(t)
			others := func(d time.Duration) {
				for range d / (20 * time.Millisecond) {
					time.Sleep(20 * time.Millisecond)
					call(t, b, 1, 10*time.Millisecond, false)
				}
			}
			others(time.Second)
			call(t, b, 0, 100*time.Millisecond, false)
			others(time.Second)
			wantAll(t, b, set, 1)
			others(3 * time.Second)
			wantAll(t, b, set, 0)
		})
	})
	t.Run("failing fast is not being fast", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, set := setup(t)
			call(t, b, 0, 20*time.Millisecond, false)
			call(t, b, 1, 10*time.Millisecond, false)
			for range 20 {
				time.Sleep(100 * time.Millisecond)
				call(t, b, 0, time.Microsecond, true)
				call(t, b, 1, 10*time.Millisecond, false)
			}
			wantAll(t, b, set, 1)
		})
	})
	t.Run("calls in flight count", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, _ := setup(t)
			for range 40 {
				time.Sleep(10 * time.Millisecond)
				call(t, b, 0, 30*time.Millisecond, false)
				call(t, b, 1, 10*time.Millisecond, false)
			}
			for range 400 {
				pick(t, b, balancer.PickInfo{})
			}
			if got := b.Hosts()[1].InFlight(); got < 270 || got > 300 {
				t.Errorf("the endpoint that is 3 times as fast has %d of 400 calls, want nearly 300", got)
			}
		})
	})
}

func TestStateSurvivesUpdates(t *testing.T) {
	var attached atomic.Int32
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{Attach: func(h *balancer.Host) any {
		attached.Add(1)
		return h.ID()
	}})
	if err != nil {
		t.Fatal(err)
	}
	set := endpoints(3)
	b.Update(set)
	for range 9 {
		pick(t, b, balancer.PickInfo{})
	}
	before := b.Hosts()
	before[0].SetEjected(true)
	var calls []int
	for _, h := range before {
		calls = append(calls, h.InFlight())
	}

	changed := endpoints(4)
	changed[1].Labels = map[string]string{"version": "v2"}
	changed[1].Weight = 7
	changed[2].Locality.Zone = "b"
	slices.Reverse(changed)
	b.Update(changed)

	after := b.Hosts()
	slices.Reverse(after)
	for i := range before {
		if after[i] != before[i] || after[i].InFlight() != calls[i] || after[i].Ejected() != (i == 0) {
			t.Errorf("host %d: same %v, %d in flight, ejected %v; want the same host, %d, %v",
				i, after[i] == before[i], after[i].InFlight(), after[i].Ejected(), calls[i], i == 0)
		}
	}
	if e := after[1].Endpoint(); e.Labels["version"] != "v2" || e.Weight != 7 {
		t.Errorf("Endpoint() = %+v, want that of the latest Update", e)
	}
	if v := after[3].Value(); v != after[3].ID() || attached.Load() != 4 {
		t.Errorf("Value() = %v after %d calls of Attach, want %q after 4", v, attached.Load(), after[3].ID())
	}
}

// A record that is new at each update must not make a new description, which others keep things by.
func TestRecordsDescribeNothing(t *testing.T) {
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	set := endpoints(1)
	set[0].Record = new(int)
	b.Update(set)
	before := b.Hosts()[0].Endpoint()
	set = endpoints(1)
	set[0].Record = new(int)
	b.Update(set)
	if after := b.Hosts()[0].Endpoint(); after != before {
		t.Error("the endpoint has another description, though only its record is another")
	}
}

func TestTriedAreAvoided(t *testing.T) {
	for _, algorithm := range algorithms {
		t.Run(algorithm.String(), func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm})
			b.Update(weighted(100, 1, 1, 1))
			for n := range 200 {
				info := keyed(fmt.Sprint(n))
				for k := range 4 {
					h := pick(t, b, info)
					if slices.Contains(info.Tried, h.ID()) {
						t.Fatalf("attempt %d went to %s again, after %v", k+1, h.ID(), info.Tried)
					}
					info.Tried = append(info.Tried, h.ID())
					h.Release(0, false)
				}
				pick(t, b, info).Release(0, false) // all were tried: any will do
			}
		})
	}
}

func TestEjection(t *testing.T) {
	for _, algorithm := range algorithms {
		t.Run(algorithm.String(), func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm})
			set := endpoints(4)
			b.Update(set)
			hosts := b.Hosts()
			for i, h := range hosts {
				h.SetEjected(true)
				if i == 3 {
					break
				}
				counts := tally(t, b, set, 2000, keys())
				for k, got := range counts {
					if (got == 0) != (k <= i) {
						t.Fatalf("with 0 to %d ejected, 2000 calls fell %v", i, counts)
					}
				}
			}
			if _, err := b.Pick(balancer.PickInfo{}); !errors.Is(err, balancer.ErrNoHealthy) {
				t.Errorf("Pick with all ejected: %v, want ErrNoHealthy", err)
			}
			hosts[2].SetEjected(false)
			if h := pick(t, b, balancer.PickInfo{}); h != hosts[2] {
				t.Errorf("Pick = %s, want %s, which is back", h.ID(), hosts[2].ID())
			}
		})
	}
}

func TestPanic(t *testing.T) {
	b := newBalancer(t, balancer.Config{PanicFraction: 0.5})
	set := endpoints(4)
	b.Update(set)
	hosts := b.Hosts()
	for _, step := range []struct {
		name   string
		host   int
		eject  bool
		shares []float64
	}{
		{"one of four", 0, true, []float64{0, 1, 1, 1}},
		{"half is not below 50%", 1, true, []float64{0, 0, 1, 1}},
		{"three of four", 2, true, []float64{1, 1, 1, 1}},
		{"all", 3, true, []float64{1, 1, 1, 1}},
		{"one is back", 0, false, []float64{1, 1, 1, 1}},
		{"half is back", 1, false, []float64{1, 1, 0, 0}},
	} {
		hosts[step.host].SetEjected(step.eject)
		t.Run(step.name, func(t *testing.T) {
			wantShares(t, tally(t, b, set, 4000, noKey), step.shares...)
		})
	}
}

func TestSlowStart(t *testing.T) {
	for _, algorithm := range []balancer.Algorithm{
		balancer.LeastRequest, balancer.RoundRobin, balancer.Random, balancer.PeakEWMA,
	} {
		t.Run(algorithm.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBalancer(t, balancer.Config{
					Algorithm: algorithm, SlowStart: balancer.SlowStart{Window: 10 * time.Second},
				})
				set := endpoints(4)
				b.Update(set[:3])
				wantShares(t, tally(t, b, set, 10_000, noKey), 1, 1, 1, 0) // all are new, so none is slow
				b.Update(set)
				for _, step := range []struct {
					wait  time.Duration
					share float64
				}{{0, 0.1}, {500 * time.Millisecond, 0.1}, {4500 * time.Millisecond, 0.5}, {3 * time.Second, 0.8}, {2 * time.Second, 1}} {
					time.Sleep(step.wait)
					wantShares(t, tally(t, b, set, 10_000, noKey), 1, 1, 1, step.share)
				}
			})
		})
	}
	t.Run("aggression and minimum", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBalancer(t, balancer.Config{
				SlowStart: balancer.SlowStart{Window: 100 * time.Second, Aggression: 2, MinFraction: 0.3},
			})
			set := endpoints(3)
			b.Update(set[:2])
			b.Update(set)
			time.Sleep(4 * time.Second) // (4/100)^(1/2) is 20%
			wantShares(t, tally(t, b, set, 10_000, noKey), 1, 1, 0.3)
			time.Sleep(32 * time.Second)
			wantShares(t, tally(t, b, set, 10_000, noKey), 1, 1, 0.6)
		})
	})
	t.Run("not when most are new", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBalancer(t, balancer.Config{SlowStart: balancer.SlowStart{Window: time.Minute}})
			b.Update(endpoints(2))
			b.Update(endpoints(4))
			for i, h := range b.Hosts() {
				if balancer.Warming(h) != (i >= 2) {
					t.Errorf("2 of 4 new: host %d in slow start: %v", i, balancer.Warming(h))
				}
			}
			b.Update(endpoints(5)) // 3 of 5 would be
			if balancer.Warming(b.Hosts()[4]) {
				t.Error("3 of 5 new: the last is in slow start")
			}
			time.Sleep(time.Minute)
			b.Update(endpoints(7)) // 4 of 7 would be, if the third and the fourth still were
			if !balancer.Warming(b.Hosts()[5]) || !balancer.Warming(b.Hosts()[6]) || balancer.Warming(b.Hosts()[3]) {
				t.Error("later, the last two are not in slow start, or the fourth still is")
			}
		})
	})
}

func TestRemovedHostsDrain(t *testing.T) {
	var removed, drained []string
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{
		Removed: func(h *balancer.Host) { removed = append(removed, h.ID()) },
		Drained: func(h *balancer.Host) { drained = append(drained, h.ID()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	set := endpoints(3)
	b.Update(set[:1])
	calls := []*balancer.Host{pick(t, b, balancer.PickInfo{}), pick(t, b, balancer.PickInfo{})}
	b.Update(set[1:])
	if want := []string{"10.0.0.0:80"}; !slices.Equal(removed, want) || drained != nil {
		t.Fatalf("removed %v, drained %v; want %v and none yet", removed, drained, want)
	}
	for range 100 {
		if h := pick(t, b, balancer.PickInfo{}); h == calls[0] {
			t.Fatal("a removed host was picked")
		} else {
			h.Release(0, false)
		}
	}
	calls[0].Release(0, false)
	if drained != nil {
		t.Fatal("drained with a call in flight")
	}
	calls[1].Release(0, false)
	if !slices.Equal(drained, removed) {
		t.Fatalf("drained %v after the last call, want %v", drained, removed)
	}
	b.Update(set[2:])
	if want := []string{"10.0.0.0:80", "10.0.0.1:80"}; !slices.Equal(drained, want) {
		t.Errorf("drained %v, want %v: the second had no calls", drained, want)
	}
}

// Whatever happens at the same time, each host drains once, and has no call afterwards.
func TestDrainsOnce(t *testing.T) {
	var drained, wrong atomic.Int32
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{
		Attach: func(*balancer.Host) any { return new(atomic.Bool) },
		Drained: func(h *balancer.Host) {
			drained.Add(1)
			if h.Value().(*atomic.Bool).Swap(true) {
				wrong.Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	set := endpoints(4)
	b.Update(set[:2])
	var picking, updating sync.WaitGroup
	var stop atomic.Bool
	for range 2 {
		picking.Go(func() {
			for !stop.Load() {
				h, err := b.Pick(balancer.PickInfo{})
				if err != nil {
					t.Error(err)
					return
				}
				if h.Value().(*atomic.Bool).Load() {
					wrong.Add(1)
				}
				h.Release(0, false)
			}
		})
	}
	for range 2 {
		updating.Go(func() {
			for i := range 2000 {
				b.Update(set[i%3 : i%3+2])
			}
		})
	}
	updating.Wait()
	stop.Store(true)
	picking.Wait()
	b.Update(nil)
	if wrong.Load() > 0 || drained.Load() < 2000 {
		t.Errorf("%d hosts drained, %d times wrongly", drained.Load(), wrong.Load())
	}
}

func TestBoundedLoad(t *testing.T) {
	const n, held, factor = 10, 200, 1.25
	for _, algorithm := range algorithms {
		for _, weights := range [][]uint32{{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}} {
			t.Run(fmt.Sprint(algorithm, weights), func(t *testing.T) {
				b := newBalancer(t, balancer.Config{Algorithm: algorithm, BoundedLoad: factor})
				set := weighted(weights...)
				sum := uint32(0)
				for _, w := range weights {
					sum += w
				}
				b.Update(set)
				for call := 1; call <= held; call++ {
					h := pick(t, b, keyed("hot"))
					bound := math.Ceil(factor * float64(call) * float64(h.Endpoint().Weight) / float64(sum))
					if float64(h.InFlight()) > bound {
						t.Fatalf("call %d is number %d of %s, want at most %v", call, h.InFlight(), h.ID(), bound)
					}
				}
			})
		}
	}
	t.Run("a key goes to the same host while it can", func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.RingHash, BoundedLoad: factor})
		b.Update(endpoints(n))
		home := pick(t, b, keyed("hot"))
		second := pick(t, b, keyed("hot")) // ceil(1.25*2/10) is 1
		for range 100 {
			if h := pick(t, b, keyed("hot")); h == home {
				t.Fatal("a full host was picked")
			} else if h != second && second.InFlight() == 0 {
				t.Fatalf("the call went to %s, want %s as before", h.ID(), second.ID())
			} else {
				h.Release(0, false)
			}
			second.Release(0, false)
			second = pick(t, b, keyed("hot"))
		}
		home.Release(0, false)
		second.Release(0, false)
		if h := pick(t, b, keyed("hot")); h != home {
			t.Errorf("at rest the call went to %s, want %s", h.ID(), home.ID())
		}
	})
}

func TestManyEndpointsManyUpdates(t *testing.T) {
	for _, c := range []struct {
		algorithm  balancer.Algorithm
		n, updates int
	}{
		{balancer.LeastRequest, 10_000, 12},
		{balancer.RoundRobin, 10_000, 6},
		{balancer.LeastRequest, 100, 500},
		{balancer.RingHash, 100, 50},
	} {
		algorithm, n := c.algorithm, c.n
		t.Run(fmt.Sprint(algorithm, n), func(t *testing.T) {
			b, err := balancer.New(balancer.Config{Algorithm: algorithm}, balancer.Hooks{})
			if err != nil {
				t.Fatal(err)
			}
			full := endpoints(n)
			sets := [][]discovery.Endpoint{full[:n-1], full, endpoints(n), full}
			b.Update(full)
			steady := b.Hosts()[:n/2] // in every set

			var running sync.WaitGroup
			var stop atomic.Bool
			running.Go(func() { // outlier detection
				for i := 0; !stop.Load(); i++ {
					h := steady[i%len(steady)]
					h.SetEjected(true)
					for range 20 {
						got, err := b.Pick(balancer.PickInfo{})
						if err != nil || got == h {
							t.Errorf("Pick = %v, %v: want a host that is not ejected", got, err)
							return
						}
						got.Release(time.Millisecond, false)
					}
					h.SetEjected(false)
				}
			})
			running.Go(func() { // calls
				for !stop.Load() {
					h, err := b.Pick(balancer.PickInfo{})
					if err != nil {
						t.Error(err)
						return
					}
					h.Release(time.Millisecond, false)
				}
			})
			for i := range c.updates {
				b.Update(sets[i%len(sets)])
			}
			stop.Store(true)
			running.Wait()

			reached := map[*balancer.Host]bool{}
			for i := 0; i < 20*n && len(reached) < n; i++ {
				reached[pick(t, b, balancer.PickInfo{})] = true
			}
			if len(reached) != n {
				t.Errorf("%d of %d endpoints got calls", len(reached), n)
			}
		})
	}
}

// Whatever comes, goes, moves or is listed twice, an update keeps the hosts of the endpoints that stay, in its own order.
func TestUpdatesOfAnyKind(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var attached, removed, drained int
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{
		Attach:  func(*balancer.Host) any { attached++; return nil },
		Removed: func(*balancer.Host) { removed++ },
		Drained: func(*balancer.Host) { drained++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	all := endpoints(60)
	set := slices.Clone(all[:30])
	known := map[string]*balancer.Host{}
	arrived, left := 0, 0
	for round := range 500 {
		switch at := r.IntN(len(set) + 1); r.IntN(6) {
		case 0: // one goes
			set = slices.Delete(set, min(at, max(0, len(set)-1)), min(at+1, len(set)))
		case 1, 2: // one comes, perhaps again
			set = slices.Insert(set, at, all[r.IntN(len(all))])
		case 3: // some move
			r.Shuffle(at, func(i, j int) { set[i], set[j] = set[j], set[i] })
		case 4: // some go
			set = set[at/2:]
		case 5: // a part comes
			at = min(at, len(all))
			set = append(set, all[at/2:at]...)
		}
		b.Update(set)
		now := map[string]*balancer.Host{}
		var want, got []string
		for i := range set {
			if id := set[i].ID(); !slices.Contains(want, id) {
				want = append(want, id)
				if known[id] == nil {
					arrived++
				}
			}
		}
		for _, h := range b.Hosts() {
			got = append(got, h.ID())
			now[h.ID()] = h
			if old := known[h.ID()]; old != nil && old != h {
				t.Fatalf("seed %d, round %d: another host for %s", seed, round, h.ID())
			}
		}
		for id := range known {
			if now[id] == nil {
				left++
			}
		}
		if known = now; !slices.Equal(got, want) {
			t.Fatalf("seed %d, round %d: hosts %v, want %v", seed, round, got, want)
		}
		if attached != arrived || removed != left || drained != left {
			t.Fatalf("seed %d, round %d: %d attached, %d removed and %d drained, want %d, %d and %d", seed, round,
				attached, removed, drained, arrived, left, left)
		}
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, algorithm := range algorithms {
		for _, bound := range []float64{0, 2} {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm, BoundedLoad: bound})
			b.Update(weighted(1, 2, 3, 4, 5))
			info := keyed("key")
			info.Tried = []string{"10.0.0.0:80", "10.0.0.3:80"}
			for _, info := range []balancer.PickInfo{{}, keyed("key"), info} {
				if got := testing.AllocsPerRun(100, func() {
					h, _ := b.Pick(info)
					h.Release(time.Millisecond, false)
				}); got != 0 {
					t.Errorf("%v, bound %v: Pick(%+v) makes %v allocations", algorithm, bound, info, got)
				}
			}
		}
	}
}

func TestSubset(t *testing.T) {
	set := endpoints(3)
	set[0].Labels = map[string]string{"version": "v1", "canary": ""}
	set[1].Labels = map[string]string{"version": "v1"}
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   []int
	}{
		{"no labels", nil, []int{0, 1, 2}},
		{"one", map[string]string{"version": "v1"}, []int{0, 1}},
		{"two", map[string]string{"version": "v1", "canary": ""}, []int{0}},
		{"an empty value must be there", map[string]string{"other": ""}, nil},
		{"another value", map[string]string{"version": "v2"}, nil},
	} {
		var want []string
		for _, i := range c.want {
			want = append(want, set[i].Address)
		}
		var got []string
		for _, e := range balancer.Subset(set, c.labels) {
			got = append(got, e.Address)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: Subset(%v) = %v, want %v", c.name, c.labels, got, want)
		}
	}
}

// Of ten thousand endpoints most are never called, so each is to take little memory.
func TestMemoryOfEndpoints(t *testing.T) {
	const n = 10_000
	for algorithm, most := range map[balancer.Algorithm]int{
		balancer.LeastRequest: 512, balancer.PeakEWMA: 512, balancer.WeightedRoundRobin: 512, balancer.Maglev: 512, balancer.RingHash: 1024,
	} {
		b := newBalancer(t, balancer.Config{Algorithm: algorithm})
		set := endpoints(n)
		before := leak.Heap()
		b.Update(set)
		each := (leak.Heap() - before) / n
		t.Logf("%v: %d bytes", algorithm, each)
		if each > most {
			t.Errorf("%v: an endpoint takes %d bytes, want at most %d", algorithm, each, most)
		}
		runtime.KeepAlive(set)
		runtime.KeepAlive(b)
	}
}
