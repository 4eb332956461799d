//go:build !race

// A simulation runs on one goroutine, and takes too long with the race detector.

package balancer_test

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
)

// simulation is servers that answer one request after the other, and clients that each have a balancer of their own.
type simulation struct {
	servers, clients int
	load             float64 // of the servers, if none is slow
	length           time.Duration
	slow             func(server int, at time.Duration) float64 // by how much longer a server takes; -1: it fails at once
	config           balancer.Config
	oracle           bool          // instead of balancers: it knows when each server would be done
	reports          reports       // of the servers, in their answers; 0: none
	quiet            time.Duration // so long there is a tenth of the load
}

// reports is what servers report as their utilization.
type reports int

const (
	inFlight reports = iota + 1 // the mean of their requests in flight
	busy                        // the share of their workers that are busy
)

// reporter makes the reports of a server, one a second.
type reporter struct {
	begin            time.Duration
	requests, failed float64
	took, worked     time.Duration
	latest           [3]float64 // utilization, requests and errors a second
}

// answer counts an answer, which it returns the report for.
func (r *reporter) answer(e *event, kind reports) (utilization, requests, errors float64) {
	r.requests++
	if e.failed {
		r.failed++
	}
	r.took += e.took
	r.worked += e.worked
	if past := e.at - r.begin; past >= time.Second {
		utilization := r.worked.Seconds() / workers
		if kind == inFlight {
			utilization = r.took.Seconds()
		}
		s := past.Seconds()
		*r = reporter{begin: e.at, latest: [3]float64{utilization / s, r.requests / s, r.failed / s}}
	}
	return r.latest[0], r.latest[1], r.latest[2]
}

const (
	serviceTime = 10 * time.Millisecond
	workers     = 10
	clockStep   = serviceTime / 100 // of the balancers' clock
)

type event struct {
	at     time.Duration
	server int // -1: a request comes
	took   time.Duration
	host   *balancer.Host
	failed bool
	worked time.Duration // by a worker
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// outcome is how a simulation went.
type outcome struct {
	p50, p99 time.Duration
	failed   float64 // share
	most     float64 // load of the server with the most requests, in terms of its share
}

func (s *simulation) run(t *testing.T, seed uint64) (o outcome) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 1))
		set := endpoints(s.servers)
		var clients []*balancer.Balancer
		for c := range s.clients {
			b := newBalancer(t, s.config)
			balancer.SetRand(b, rand.New(rand.NewPCG(seed, uint64(c)+2)).Uint64)
			b.Update(set)
			clients = append(clients, b)
		}
		index := map[string]int{}
		for i := range set {
			index[set[i].ID()] = i
		}
		free := make([][workers]time.Duration, s.servers) // when each worker is done with what it has
		idle := func(server int) *time.Duration {
			first := &free[server][0]
			for w := range free[server] {
				if free[server][w] < *first {
					first = &free[server][w]
				}
			}
			return first
		}
		requests := make([]int, s.servers)
		var took []time.Duration
		failed := 0
		capacity := 0.0
		for i := range s.servers {
			if s.slow == nil {
				capacity += workers
			} else if slow := s.slow(i, 0); slow > 0 {
				capacity += workers / slow
			}
		}
		every := float64(serviceTime) / s.load / capacity
		queue := &events{{at: 0, server: -1}}
		start := time.Now()
		reporters := make([]reporter, s.servers)
		warm := s.length / 5
		if s.quiet > 0 {
			warm = s.quiet + 2*time.Second
		}
		for {
			e := heap.Pop(queue).(event)
			if e.at > s.length {
				break
			}
			if ahead := e.at - time.Since(start); ahead > clockStep {
				time.Sleep(ahead)
			}
			if e.server >= 0 {
				if e.host != nil {
					if s.reports != 0 {
						e.host.Report(reporters[e.server].answer(&e, s.reports))
					}
					e.host.Release(e.took, e.failed)
				}
				continue
			}
			gap := random.ExpFloat64() * every
			if e.at < s.quiet {
				gap *= 10
			}
			heap.Push(queue, event{at: e.at + time.Duration(gap), server: -1})
			work := time.Duration(random.ExpFloat64() * float64(serviceTime))
			cost := func(i int) time.Duration {
				slow := 1.0
				if s.slow != nil {
					slow = s.slow(i, e.at)
				}
				return time.Duration(float64(work) * slow)
			}
			var server int
			var h *balancer.Host
			if s.oracle {
				best := time.Duration(1 << 62)
				for i := range s.servers {
					if c := cost(i); c >= 0 {
						if done := max(*idle(i), e.at) + c; done < best {
							best, server = done, i
						}
					}
				}
			} else {
				var err error
				if h, err = clients[random.IntN(s.clients)].Pick(balancer.PickInfo{}); err != nil {
					t.Fatal(err)
				}
				server = index[h.ID()]
			}
			c := cost(server)
			if e.at > warm {
				requests[server]++
			}
			if c < 0 {
				if e.at > warm {
					failed++
				}
				heap.Push(queue, event{e.at + time.Millisecond, server, time.Millisecond, h, true, time.Millisecond / 10})
				continue
			}
			worker := idle(server)
			*worker = max(*worker, e.at) + c
			latency := *worker - e.at + 1
			if e.at > warm {
				took = append(took, latency)
			}
			heap.Push(queue, event{e.at + latency, server, latency, h, false, c})
		}
		slices.Sort(took)
		o.p50, o.p99 = took[len(took)/2], took[len(took)*99/100]
		all := len(took) + failed
		o.failed = float64(failed) / float64(all)
		o.most = float64(slices.Max(requests)) * float64(s.servers) / float64(all)
	})
	return o
}

func tenth(server int, slow float64) float64 {
	if server%10 == 0 {
		return slow
	}
	return 1
}

// scenarios say by how much longer servers take.
var scenarios = map[string]func(server int, at time.Duration) float64{
	"even": nil,
	"slow": func(server int, _ time.Duration) float64 { return tenth(server, 5) },
	"bursts": func(server int, at time.Duration) float64 { // others each second
		return tenth(server+int(at/time.Second)*3, 5)
	},
	"failing": func(server int, _ time.Duration) float64 {
		if server == 0 {
			return -1 // at once
		}
		return 1
	},
}

// tail is what PeakEWMA needs for a short tail: more choices, and knowledge that is fresh.
var tail = balancer.Config{Algorithm: balancer.PeakEWMA, Choices: 10, Aperture: 10}

// limit bounds a 99th percentile, in milliseconds.
type limit struct{ low, high int }

func (l limit) check(t *testing.T, way string, p99 time.Duration) {
	t.Helper()
	if ms := int(p99.Milliseconds()); ms < l.low || ms > l.high {
		t.Errorf("%s: p99 is %d ms, want %d to %d", way, ms, l.low, l.high)
	}
}

// TestTail bounds the longest latencies, and where requests go, in some ways in which servers are slow or sick: with PeakEWMA in relation to
// the oracle, with least requests in milliseconds. The limits leave room: docs/performance.md has the results.
func TestTail(t *testing.T) {
	least, oracle := balancer.Config{}, &balancer.Config{}
	for _, test := range []struct {
		scenario string
		load     float64
		least    limit
		tail     float64 // the 99th percentile at most, in terms of the oracle's
		failed   float64 // at most, with tail
	}{
		{"even", 0.7, limit{40, 54}, 1.05, 0},
		{"slow", 0.7, limit{150, 5000}, 1.15, 0},
		{"bursts", 0.7, limit{150, 5000}, 1.2, 0},
		{"failing", 0.7, limit{40, 54}, 1.05, 0.005},
		{"even", 0.9, limit{40, 70}, 1.15, 0},
		{"slow", 0.9, limit{150, 5000}, 1.25, 0},
		{"bursts", 0.9, limit{150, 5000}, 1.45, 0},
	} {
		t.Run(fmt.Sprintf("%s at %v", test.scenario, test.load), func(t *testing.T) {
			t.Parallel()
			p99 := map[*balancer.Config]time.Duration{} // the mean of some seeds
			const seeds = 3
			for seed := range uint64(seeds) {
				for _, config := range []*balancer.Config{oracle, &least, &tail} {
					s := simulation{servers: 50, clients: 100, load: test.load, length: 2500 * time.Millisecond,
						slow: scenarios[test.scenario], config: *config, oracle: config == oracle}
					o := s.run(t, seed)
					t.Logf("seed %d: %v of %d choices, oracle %v: p99 %v, %.4f failed", seed, config.Algorithm, config.Choices, s.oracle, o.p99, o.failed)
					p99[config] += o.p99 / seeds
					if config == &tail && o.failed > test.failed {
						t.Errorf("%.4f of the requests failed, want at most %.4f", o.failed, test.failed)
					}
				}
			}
			t.Logf("p99: %v at best, %v with least requests, %v with PeakEWMA", p99[oracle], p99[&least], p99[&tail])
			limit{40, 52}.check(t, "oracle", p99[oracle])
			test.least.check(t, "least requests", p99[&least])
			if ratio := float64(p99[&tail]) / float64(p99[oracle]); ratio > test.tail {
				t.Errorf("p99 is %.2f of the oracle's, want at most %.2f", ratio, test.tail)
			}
			if test.scenario == "even" && float64(p99[&tail]) > 1.05*float64(p99[&least]) {
				t.Errorf("p99 is %v among servers that are alike, and %v with least requests", p99[&tail], p99[&least])
			}
		})
	}
}

// TestTailWithReports is TestTail for WeightedRoundRobin and what servers report of themselves: their requests in flight, or which part of their
// workers is busy. The reports count already when the full load comes. That evens out what lasts, and nothing that changes each second.
func TestTailWithReports(t *testing.T) {
	weighted := balancer.Config{Algorithm: balancer.WeightedRoundRobin}
	for _, test := range []struct {
		scenario       string
		load           float64
		inFlight, busy limit
		failed         float64 // at most
	}{
		{"even", 0.7, limit{40, 60}, limit{40, 60}, 0},
		{"slow", 0.7, limit{40, 90}, limit{40, 90}, 0},
		{"bursts", 0.7, limit{500, 10_000}, limit{500, 10_000}, 0},
		{"failing", 0.7, limit{40, 60}, limit{40, 60}, 0.045},
		{"even", 0.9, limit{40, 4000}, limit{40, 120}, 0},
		{"slow", 0.9, limit{40, 4000}, limit{40, 400}, 0},
	} {
		t.Run(fmt.Sprintf("%s at %v", test.scenario, test.load), func(t *testing.T) {
			for _, way := range []struct {
				name    string
				reports reports
				limit
			}{{"in flight", inFlight, test.inFlight}, {"busy", busy, test.busy}} {
				s := simulation{servers: 20, clients: 100, load: test.load, length: 20 * time.Second, quiet: 15 * time.Second,
					slow: scenarios[test.scenario], config: weighted, reports: way.reports}
				o := s.run(t, 7)
				t.Logf("%s: p99 %v, %.4f failed", way.name, o.p99, o.failed)
				way.check(t, way.name, o.p99)
				if o.failed > test.failed {
					t.Errorf("%s: %.4f of the requests failed, want at most %.4f", way.name, o.failed, test.failed)
				}
			}
		})
	}
}

// TestAperturesAreEvenTogether: clients that each keep to some endpoints use all of them alike, with no other than the calls of their own to
// go by.
func TestAperturesAreEvenTogether(t *testing.T) {
	for _, clients := range []int{10, 20, 100, 500} {
		t.Run(fmt.Sprintf("%d clients", clients), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(2) {
				s := simulation{servers: 50, clients: clients, load: 0.7, length: 8 * time.Second, config: tail}
				most := s.run(t, seed).most
				t.Logf("seed %d: the busiest endpoint has %.2f of its share", seed, most)
				if most > 1.2 {
					t.Errorf("seed %d: an endpoint has %.2f of its share, want at most 1.2", seed, most)
				}
			}
		})
	}
}
