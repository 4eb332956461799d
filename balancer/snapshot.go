package balancer

import (
	"math"
	"slices"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/fraction"
)

// pool is the hosts of one place. It lasts until the set changes, so that ejections do not rebuild what does not depend on
// them.
type pool struct {
	place   int32
	members []*Host // none drains; in the order of their addresses for RingHash and Maglev
	ring    *ring   // of all members, or of those of an earlier pool; nil until RingHash needs it
	order   []int32 // of all members, for the aperture; nil until that needs it
	turn    *turn   // nil unless the hosts are taken in turn
}

// turn fills a cache line, because processors contend for it.
type turn struct {
	atomic.Uint64
	_ [56]byte
}

// find returns the pool of a place, or nil. There are few.
func find(pools []*pool, place int32) *pool {
	for _, p := range pools {
		if p.place == place {
			return p
		}
	}
	return nil
}

// snapshot is what picks are made from. It is immutable.
type snapshot struct {
	refusal error
	healthy bool     // some host in groups is not ejected
	groups  []*group // with traffic, the nearest first
	shares  alias    // of the traffic

	// Of the only group, if these are enough for its picks; else nil.
	simple  *sampler
	latency *peakEWMA
}

// group is the hosts of a pool that can be picked.
type group struct {
	sampler
	picker
	panicking bool // ejected hosts count as healthy
}

// picker is an algorithm.
type picker interface {
	// next returns the index of a candidate. try counts the unfit candidates of this pick, so that an algorithm that would
	// choose the same host again can choose another.
	next(info pick, try int) int
}

// redraws is how many candidates the algorithm may propose before the first fit host is taken.
const redraws = 16

// overprovisioning is how many times the traffic of a place its healthy part may have to carry before some of it goes
// elsewhere: with 1.4, up to 28% of a place may be ejected. It is Envoy's.
const overprovisioning = 1.4

func (b *Balancer) snapshotLocked() *snapshot {
	if len(b.pools) == 0 {
		return &snapshot{refusal: ErrNoEndpoints}
	}
	return b.snapshotOf(b.trafficLocked())
}

// snapshotOf returns the picks among pools with these shares of the traffic. Hosts may have been ejected since the shares were worked out.
func (b *Balancer) snapshotOf(shares []float64, panics []bool) *snapshot {
	s := &snapshot{}
	var used []float64
	for i, p := range b.pools {
		if shares[i] > 0 {
			g := b.group(p, panics[i])
			if len(g.hosts) == 0 {
				continue // the last one was ejected just now
			}
			s.groups = append(s.groups, g)
			s.healthy = s.healthy || slices.ContainsFunc(g.hosts, func(h *Host) bool { return !h.Ejected() })
			used = append(used, shares[i])
		}
	}
	if len(s.groups) == 0 {
		return &snapshot{refusal: ErrNoHealthy}
	}
	s.shares = newAlias(used)
	if g := s.groups[0]; len(s.groups) == 1 && b.cfg.BoundedLoad == 0 && !g.panicking {
		switch b.cfg.Algorithm {
		case LeastRequest:
			if b.cfg.Choices == 2 && len(g.hosts) > 1 && g.weights == nil && !slices.ContainsFunc(g.states, isWarming) {
				s.simple = &g.sampler
			}
		case PeakEWMA:
			s.latency = g.picker.(*peakEWMA)
		}
	}
	return s
}

func isWarming(state *atomic.Uint64) bool { return state.Load()&warming != 0 }

// trafficLocked returns the share of the traffic of each pool and whether its ejections are ignored.
func (b *Balancer) trafficLocked() (shares []float64, panics []bool) {
	n := len(b.pools)
	shares, panics = make([]float64, n), make([]bool, n)
	healthy, able, total := make([]int, n), make([]float64, n), 0.0
	allHealthy, all := 0, 0
	for i, p := range b.pools {
		for _, h := range p.members {
			if !h.Ejected() {
				healthy[i]++
			}
		}
		able[i] = min(1, overprovisioning*float64(healthy[i])/float64(len(p.members)))
		total += able[i]
		allHealthy += healthy[i]
		all += len(p.members)
	}
	tooFew := func(healthy, of int) bool { return !fraction.AtLeast(healthy, of, b.cfg.PanicFraction) }

	if b.cfg.topology.distributes() || n == 1 {
		panicking := tooFew(allHealthy, all)
		for i, p := range b.pools {
			panics[i] = panicking
			if panicking {
				able[i] = 1
			}
			shares[i] = b.cfg.topology.share(p.place) * able[i]
		}
		return shares, panics
	}

	// Places are priorities: the first carries what it can, and the next what is left. Ejections are doubted only when all
	// places together cannot carry the whole load.
	if total >= 1 {
		left := 1.0
		for i := range able {
			shares[i] = min(left, able[i])
			if left -= shares[i]; left < 1e-9 {
				left = 0 // apart from rounding
			}
		}
		return shares, panics
	}
	allPanic := true
	for i, p := range b.pools {
		panics[i] = tooFew(healthy[i], len(p.members))
		allPanic = allPanic && panics[i]
		shares[i] = able[i]
	}
	if allPanic {
		for i, p := range b.pools {
			shares[i] = float64(len(p.members))
		}
	}
	return shares, panics
}

// group returns the picks of a pool.
func (b *Balancer) group(p *pool, panicking bool) *group {
	g := &group{panicking: panicking, sampler: sampler{balancer: b}}
	g.hosts = make([]*Host, 0, len(p.members))
	g.states = make([]*atomic.Uint64, 0, len(p.members))
	equal := true
	for _, h := range p.members {
		if panicking || !h.Ejected() {
			g.hosts = append(g.hosts, h)
			g.states = append(g.states, h.state)
			g.total += float64(h.weight)
			equal = equal && h.weight == g.hosts[0].weight
		}
	}
	if !equal {
		g.weights = make([]float64, len(g.hosts))
		for i, h := range g.hosts {
			g.weights[i] = float64(h.weight)
		}
		g.alias = newAlias(g.weights)
	}
	switch b.cfg.Algorithm {
	case LeastRequest:
		g.picker = &leastRequest{&g.sampler}
	case RoundRobin:
		g.picker = &roundRobin{&g.sampler, p.turn}
	case WeightedRoundRobin:
		w := &weightedRoundRobin{roundRobin: roundRobin{&g.sampler, p.turn}}
		if b.weighing.Load() > 0 {
			w.weigh(b.now())
		}
		g.picker = w
	case Random:
		g.picker = &random{&g.sampler}
	case PeakEWMA:
		if b.aperture != nil && g.weights == nil {
			if p.order == nil {
				p.order = b.orderLocked(p.members)
			}
			g.near = p.near(g.hosts)
		}
		g.picker = newPeakEWMA(&g.sampler)
	case RingHash:
		if p.ring == nil || &p.ring.hosts[0] != &p.members[0] {
			p.ring = newRing(p.members, int(b.cfg.MinRingSize), int(b.cfg.MaxRingSize), p.ring)
		}
		g.picker = p.ring.of(&g.sampler)
	case Maglev:
		g.picker = &maglev{&g.sampler, newMaglevTable(g.hosts, int(b.cfg.TableSize))}
	}
	return g
}

// near returns the indices of hosts, which are some of the members, in the order of the aperture.
func (p *pool) near(hosts []*Host) []int32 {
	if len(hosts) == len(p.members) {
		return p.order
	}
	index := make([]int32, len(p.members)) // in hosts, and 1
	n := 0
	for i, h := range p.members {
		if n < len(hosts) && hosts[n] == h {
			n++
			index[i] = int32(n)
		}
	}
	near := make([]int32, 0, n)
	for _, i := range p.order {
		if index[i] > 0 {
			near = append(near, index[i]-1)
		}
	}
	return near
}

// choose returns the host of a pick, as a group and an index in it. It returns no group if all hosts were ejected since the
// snapshot was made.
func (s *snapshot) choose(b *Balancer, info pick) (*group, int) {
	g := s.groups[0]
	if len(s.groups) > 1 {
		r := mix(info.hash) // not the hash itself: the algorithm uses its high bits too
		if !info.hasHash {
			r = b.rand()
		}
		g = s.groups[s.shares.at(r, len(s.groups))]
	}
	for try := range redraws {
		if i := g.next(info, try); g.fit(i, info.tried, true) {
			return g, i
		}
	}
	return s.sweep(b, g, info)
}

// sweep searches all hosts for the fittest, beginning with group g.
func (s *snapshot) sweep(b *Balancer, g *group, info pick) (*group, int) {
	r := rehash(info.hash, redraws)
	if !info.hasHash {
		r = b.rand()
	}
	for _, but := range [...]struct { // what the host must not be
		tried []string
		full  bool
	}{{info.tried, true}, {info.tried, false}, {nil, false}} {
		if i := g.first(r, but.tried, but.full); i >= 0 {
			return g, i
		}
		for _, other := range s.groups {
			if i := other.first(r, but.tried, but.full); i >= 0 {
				return other, i
			}
		}
	}
	if b.cfg.PanicFraction > 0 { // with all ejected, any threshold is missed
		return g, g.next(info, 0)
	}
	return nil, 0
}

// first returns the index of the first fit host, in a circle from a start that r gives, or -1.
func (g *group) first(r uint64, tried []string, bounded bool) int {
	n := len(g.hosts)
	from := alias(nil).at(r, n)
	for k := range n {
		if i := (from + k) % n; g.fit(i, tried, bounded) {
			return i
		}
	}
	return -1
}

// fit reports whether the call may go to host i.
func (g *group) fit(i int, tried []string, bounded bool) bool {
	if g.states[i].Load()&ejected != 0 && !g.panicking {
		return false // ejected since the snapshot was made
	}
	if len(tried) > 0 && slices.Contains(tried, g.hosts[i].id) {
		return false
	}
	return !bounded || g.balancer.cfg.BoundedLoad == 0 || !g.full(i)
}

// full reports whether host i has as many calls in flight as the bounded load allows. The new call counts toward the total.
func (g *group) full(i int) bool {
	share := g.balancer.cfg.BoundedLoad * float64(g.balancer.busy.Load()+1) * g.weight(i) / g.total
	const rounding = 1e-9
	return float64(g.states[i].Load()&calls) >= math.Ceil(share-rounding)
}
