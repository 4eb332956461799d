package balancer

import (
	"math"
	"slices"
	"sync/atomic"
)

// pool is the hosts of one place. It lasts until the set changes, so that what ejections do not change is kept.
type pool struct {
	place   int
	members []*Host // in the order of their addresses; none drains
	ring    *ring   // of all members; nil until RingHash needs it
	_       [64]byte
	turn    atomic.Uint64
	_       [56]byte
}

// snapshot is what picks are made from. It is never changed.
type snapshot struct {
	refusal error
	groups  []*group // with traffic, the nearest first
	shares  alias    // of the traffic
}

// group is the hosts of a pool that are picked.
type group struct {
	sampler
	picker
	panicking bool    // ejected hosts count as healthy
	weight    float64 // sum
}

// picker is an algorithm.
type picker interface {
	// next returns a candidate. try counts the candidates of one pick that were not fit, so that an algorithm that
	// would choose the same again can choose another.
	next(info PickInfo, try int) *Host
}

// redraws is how many candidates of the algorithm are looked at, before the first that is fit is taken.
const redraws = 16

// overprovisioning is how many times the traffic of a place its healthy part may have to carry before some of it goes
// elsewhere: with 1.4, up to 28% of a place may be ejected. It is Envoy's.
const overprovisioning = 1.4

func (b *Balancer) snapshotLocked() *snapshot {
	if len(b.pools) == 0 {
		return &snapshot{refusal: ErrNoEndpoints}
	}
	shares, panics := b.trafficLocked()
	s := &snapshot{}
	var used []float64
	for i, p := range b.pools {
		if shares[i] > 0 {
			s.groups = append(s.groups, b.group(p, panics[i]))
			used = append(used, shares[i])
		}
	}
	if len(s.groups) == 0 {
		return &snapshot{refusal: ErrNoHealthy}
	}
	s.shares = newAlias(used)
	return s
}

// trafficLocked returns the share of the traffic of each pool and whether its ejections are to be ignored.
func (b *Balancer) trafficLocked() (shares []float64, panics []bool) {
	n := len(b.pools)
	shares, panics = make([]float64, n), make([]bool, n)
	healthy, able, total := make([]int, n), make([]float64, n), 0.0
	allHealthy, all := 0, 0
	for i, p := range b.pools {
		for _, h := range p.members {
			if !h.ejected.Load() {
				healthy[i]++
			}
		}
		able[i] = min(1, overprovisioning*float64(healthy[i])/float64(len(p.members)))
		total += able[i]
		allHealthy += healthy[i]
		all += len(p.members)
	}
	tooFew := func(healthy, of int) bool { return healthy*100 < of*b.cfg.PanicPercent }

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

	// Places are priorities: the first carries what it can, and the next what is left. Only when all of them together
	// cannot carry the whole, ejections are doubted.
	if total >= 1 {
		left := 1.0
		for i := range able {
			shares[i] = min(left, able[i])
			left -= shares[i]
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
	g.entries = make([]entry, 0, len(p.members))
	weights := make([]float64, 0, len(p.members))
	for _, h := range p.members {
		if panicking || !h.ejected.Load() {
			w := float64(h.weight)
			g.entries = append(g.entries, entry{h, w})
			g.weight += w
			weights = append(weights, w)
		}
	}
	g.alias = newAlias(weights)
	switch b.cfg.Algorithm {
	case LeastRequest:
		g.picker = &leastRequest{&g.sampler}
	case RoundRobin:
		g.picker = &roundRobin{&g.sampler, &p.turn}
	case Random:
		g.picker = &random{&g.sampler}
	case PeakEWMA:
		g.picker = &peakEWMA{&g.sampler}
	case RingHash:
		if p.ring == nil {
			p.ring = newRing(p.members, b.cfg.MinRingSize, b.cfg.MaxRingSize)
		}
		g.picker = &ringHash{&g.sampler, p.ring.only(g.entries, p.members)}
	case Maglev:
		g.picker = &maglev{&g.sampler, newMaglevTable(g.entries, b.cfg.TableSize)}
	}
	return g
}

// choose returns the host of a pick, or nil if all were ejected since the snapshot was made.
func (s *snapshot) choose(b *Balancer, info PickInfo) *Host {
	g := s.groups[0]
	if len(s.groups) > 1 {
		r := mix(info.Hash) // not the hash itself: the algorithm uses its high bits too
		if !info.HasHash {
			r = b.rand()
		}
		g = s.groups[s.shares.at(r, len(s.groups))]
	}
	for try := range redraws {
		if h := g.next(info, try); g.fit(h, info.Tried, true) {
			return h
		}
	}
	return s.sweep(b, g, info)
}

// sweep looks at all hosts for the most fit, beginning with the group g.
func (s *snapshot) sweep(b *Balancer, g *group, info PickInfo) *Host {
	r := mix(info.Hash + redraws)
	if !info.HasHash {
		r = b.rand()
	}
	search := func(tried []string, bounded bool) *Host {
		if h := g.first(r, tried, bounded); h != nil {
			return h
		}
		for _, other := range s.groups {
			if h := other.first(r, tried, bounded); h != nil {
				return h
			}
		}
		return nil
	}
	if b.cfg.BoundedLoad > 0 {
		if h := search(info.Tried, true); h != nil {
			return h
		}
	}
	if h := search(info.Tried, false); h != nil {
		return h
	}
	if len(info.Tried) > 0 {
		if h := search(nil, false); h != nil {
			return h
		}
	}
	if b.cfg.PanicPercent > 0 { // all ejected is below any threshold
		return g.next(info, 0)
	}
	return nil
}

// first returns the first host from place r on that is fit, or nil.
func (g *group) first(r uint64, tried []string, bounded bool) *Host {
	n := uint64(len(g.entries))
	for i := range n {
		if h := g.entries[(r%n+i)%n].host; g.fit(h, tried, bounded) {
			return h
		}
	}
	return nil
}

// fit reports whether the call may go to h.
func (g *group) fit(h *Host, tried []string, bounded bool) bool {
	if h.ejected.Load() && !g.panicking {
		return false // ejected since the snapshot was made
	}
	if len(tried) > 0 && slices.Contains(tried, h.id) {
		return false
	}
	return !bounded || g.balancer.cfg.BoundedLoad == 0 || !g.full(h)
}

// full reports whether h has as many calls in flight as a bounded load allows, one more call counted in.
func (g *group) full(h *Host) bool {
	calls := float64(g.balancer.busy.Load() + 1)
	share := float64(weightOf(h.endpoint.Load())) / g.weight
	return float64(h.InFlight()) >= math.Ceil(g.balancer.cfg.BoundedLoad*calls*share)
}
