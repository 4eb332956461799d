// Package balancer chooses the endpoint of a call.
//
// A [Balancer] serves one set of endpoints, the members of a service or of one of its subsets. It tracks the calls in flight
// on each endpoint, and knows which endpoints are ejected and which are near. As [Config] says, it picks by least request
// (the default), round robin, at random, by latency, by the load that endpoints report, or by consistent hash. A pick takes no lock and allocates nothing.
//
// [Transport] is the balancer as a standalone http.RoundTripper.
package balancer

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/refusal"
)

var (
	// ErrNoEndpoints means that the set has no endpoint that takes calls: it is empty, or all in it are draining.
	ErrNoEndpoints = refusal.New("balancer: no endpoints")

	// ErrNoHealthy means that every endpoint is ejected and [Config.PanicFraction] is 0.
	ErrNoHealthy = refusal.New("balancer: no healthy endpoint")
)

// Hooks tell the owner of a [Balancer] about its hosts. Each may be nil. They are called with no lock held.
type Hooks struct {
	// Attach makes what [Host.Value] returns, such as a connection pool. It runs inside [Balancer.Update], before the host
	// can be picked, and may call the host's Endpoint, ID and SetEjected. If two concurrent Updates both add the same
	// endpoint, one of the two hosts is dropped unused, through Removed and Drained.
	Attach func(*Host) any

	// Removed is called when no pick returns the host any more. Calls may still be in flight on it. It runs inside Update.
	Removed func(*Host)

	// Drained is called once, after Removed, when the last call on a removed host has ended: its connections may be closed.
	// It runs inside Update, or on the goroutine that released the last call.
	Drained func(*Host)

	// Outlier ejects hosts. It is told of each new host before that can be picked, and of those that take no calls after an
	// Update; the owner reports to it how calls end. nil means that only SetEjected ejects.
	Outlier Outlier
}

// Balancer picks endpoints from one set. It is safe for concurrent use. It starts no goroutine and needs no Close; an Update
// with no endpoints releases its hosts.
type Balancer struct {
	// Each pick, and its end, needs these and the beginning of cfg.
	outliers *outliers // nil without Hooks.Outlier
	picks    atomic.Pointer[snapshot]
	rand     func() uint64

	cfg      settings
	hooks    Hooks
	start    time.Time     // of the clock used for the times in hosts
	change   atomic.Uint64 // counts the changes that picks must notice
	weighing atomic.Int64  // when the weights of reports are due
	busy     atomic.Int64  // calls in flight on all hosts; kept only for bounded loads
	usual    usual         // latency; only for PeakEWMA

	mu     sync.Mutex
	seen   uint64  // the change up to which picks is current
	order  []*Host // the hosts as the latest Update gave them
	sorted []*Host // the same, by their addresses
	pools  []*pool

	updates  uint32
	aperture *aperture // nil without one
}

// address identifies an endpoint like [discovery.Endpoint.ID], without the cost of formatting it.
type address struct {
	host string
	port int
}

func addressOf(e *discovery.Endpoint) address {
	return address{e.Address, e.DialPort(0)}
}

func (a address) compare(b address) int {
	return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port))
}

// New returns a Balancer without endpoints. The error is that of [Config.Validate].
func New(cfg Config, hooks Hooks) (*Balancer, error) {
	set, err := cfg.compile()
	if err != nil {
		return nil, err
	}
	b := &Balancer{cfg: set, hooks: hooks, outliers: newOutliers(hooks.Outlier), rand: rand.Uint64, start: time.Now()}
	if cfg.Aperture > 0 {
		b.aperture = &aperture{least: cfg.Aperture}
	}
	b.picks.Store(&snapshot{refusal: ErrNoEndpoints})
	return b, nil
}

// PickInfo is what a pick depends on. The zero value is a first attempt without hash key.
type PickInfo struct {
	// Hash is the hash of the call's key, from [Hash]. It is used only with HasHash, and only by the hashing algorithms;
	// without it they pick at random.
	Hash    uint64
	HasHash bool

	// Now is the time, for PeakEWMA. It should be of [time.Now], so that it does not jump when the clock is set. Zero means that Pick
	// reads the clock.
	Now time.Time

	// Tried holds the IDs of the endpoints that earlier attempts of the same call were sent to. They are avoided while
	// another endpoint is available.
	Tried []string
}

// pick is what algorithms see of a PickInfo.
type pick struct {
	hash    uint64
	hasHash bool
	tried   []string
	now     int64 // only for PeakEWMA
}

// Pick chooses a host and counts a call in flight on it. The caller calls [Host.Release] when that call is over. The
// error is [ErrNoEndpoints] or [ErrNoHealthy].
func (b *Balancer) Pick(info PickInfo) (*Host, error) {
	if b.outliers != nil {
		return b.outliers.pick(b, &info)
	}
	return b.pick(&info)
}

// pick is Pick without an Outlier.
func (b *Balancer) pick(info *PickInfo) (*Host, error) {
	if s := b.picks.Load(); len(info.Tried) == 0 {
		var h *Host
		if s.simple != nil {
			h = s.simple.pickOfTwo()
		} else if s.latency != nil {
			h = s.latency.pick(b.at(info.Now))
		}
		if h != nil {
			return h, nil
		}
	}
	return b.choose(info)
}

// choose is pick in the general case.
func (b *Balancer) choose(info *PickInfo) (*Host, error) {
	p := pick{hash: info.Hash, hasHash: info.HasHash, tried: info.Tried}
	if b.cfg.Algorithm == PeakEWMA {
		p.now = b.at(info.Now)
	}
	for {
		s := b.picks.Load()
		if s.refusal != nil {
			return nil, s.refusal
		}
		g, i := s.choose(b, p)
		if g == nil {
			return nil, ErrNoHealthy
		}
		h := g.hosts[i]
		if h.learned != nil {
			if !h.learned.enter(b.cfg.ticks(p.now), gone) {
				continue
			}
		} else if g.states[i].Add(1)&gone != 0 {
			h.exit() // removed since the snapshot was loaded; there is a newer one already
			continue
		}
		if b.cfg.BoundedLoad > 0 {
			b.busy.Add(1)
		}
		return h, nil
	}
}

// Healthy returns nil if there is an endpoint that is not ejected for Pick to choose, and else [ErrNoEndpoints] or
// [ErrNoHealthy], whatever [Config.PanicFraction] is. It takes no lock.
func (b *Balancer) Healthy() error {
	switch s := b.picks.Load(); {
	case s.refusal != nil:
		return s.refusal
	case !s.healthy:
		return ErrNoHealthy
	}
	return nil
}

// Update replaces the set of endpoints. State (calls in flight, latency, ejection) stays with the endpoints whose ID was
// there before. The Balancer does not keep the slice, but it does keep the labels. Of several endpoints with the same ID,
// the first one is used.
func (b *Balancer) Update(endpoints []discovery.Endpoint) {
	var fresh map[address]*Host
	b.mu.Lock()
	order, missing := b.lookLocked(endpoints, fresh)
	for len(missing) > 0 {
		states := b.newStates(len(missing), len(endpoints))
		b.mu.Unlock() // Attach is the caller's code
		if fresh == nil {
			fresh = make(map[address]*Host, len(missing))
		}
		for k, i := range missing {
			fresh[addressOf(&endpoints[i])] = b.newHost(&endpoints[i], states[k])
		}
		b.mu.Lock()
		order, missing = b.lookLocked(endpoints, fresh)
	}
	removed := b.replaceLocked(endpoints, order, fresh)
	hosts := b.order // never written to again
	b.mu.Unlock()

	for _, h := range removed {
		if b.hooks.Removed != nil {
			b.hooks.Removed(h)
		}
		h.remove()
	}
	if b.outliers != nil {
		b.outliers.updated(hosts, removed)
	}
}

// Hosts returns the hosts of the set in the order of the latest Update, draining ones included.
func (b *Balancer) Hosts() []*Host {
	b.mu.Lock()
	order := b.order // never written to again
	b.mu.Unlock()
	return slices.Clone(order)
}

// lookLocked returns the hosts of the endpoints, and the indices of those that have none yet.
func (b *Balancer) lookLocked(endpoints []discovery.Endpoint, fresh map[address]*Host) (order []*Host, missing []int) {
	order = make([]*Host, len(endpoints))
	before := places{order: b.order, sorted: b.sorted}
	var twice map[address]bool
	for i := range endpoints {
		a := addressOf(&endpoints[i])
		if order[i] = before.find(a); order[i] != nil {
			continue
		}
		if order[i] = fresh[a]; order[i] != nil || twice[a] {
			continue
		}
		if twice == nil {
			twice = map[address]bool{}
		}
		twice[a] = true
		missing = append(missing, i)
	}
	return order, missing
}

// places finds hosts. Most updates change little, so a host probably follows the one that was found before.
type places struct {
	order, sorted []*Host
	next          int
}

// find returns the host at an address, or nil.
func (p *places) find(a address) *Host {
	for ahead := range 2 {
		if at := p.next + ahead; at < len(p.order) && p.order[at].address() == a {
			p.next = at + 1
			return p.order[at]
		}
	}
	i, ok := slices.BinarySearchFunc(p.sorted, a, func(h *Host, a address) int { return h.address().compare(a) })
	if !ok {
		return nil
	}
	h := p.sorted[i]
	p.next = int(h.at) + 1
	return h
}

// replaceLocked makes endpoints, whose hosts are given, the set. It returns the hosts that are no longer in it.
func (b *Balancer) replaceLocked(endpoints []discovery.Endpoint, order []*Host, fresh map[address]*Host) (removed []*Host) {
	b.updates++
	changed := false
	var arrived []*Host
	before := b.order
	b.order = order[:0]
	for i, h := range order {
		e := &endpoints[i]
		if h.update == b.updates {
			continue // twice in the set
		}
		if h.update == 0 {
			delete(fresh, addressOf(e))
			arrived = append(arrived, h)
			changed = true
		}
		h.update = b.updates
		h.at = int32(len(b.order))
		h.describe(e)
		b.order = append(b.order, h)
		if weight, place := weightOf(e), b.cfg.topology.place(e); weight != h.weight || place != h.place {
			h.weight, h.place = weight, place
			if weight > 0 && place != nowhere && b.cfg.topology.share(place) > 0 {
				h.state.And(^uint64(aside))
			} else {
				h.state.Or(aside)
			}
			changed = true
		}
	}
	if len(b.order) < len(before)+len(arrived) {
		changed = true
		for _, h := range before {
			if h.update != b.updates {
				removed = append(removed, h)
			}
		}
	}
	for _, h := range fresh { // lost to a concurrent Update
		removed = append(removed, h)
	}
	if changed {
		b.warmUpLocked(arrived)
		b.sortLocked(arrived)
		b.poolLocked()
		b.publishLocked()
	}
	return removed
}

// sortLocked brings sorted up to date after some hosts have arrived and others were removed.
func (b *Balancer) sortLocked(arrived []*Host) {
	slices.SortFunc(arrived, compareHosts)
	before := b.sorted
	b.sorted = make([]*Host, 0, len(b.order))
	take := func(n int) {
		for _, h := range before[:n] {
			if h.update == b.updates {
				b.sorted = append(b.sorted, h)
			}
		}
		before = before[n:]
	}
	for _, h := range arrived {
		n, _ := slices.BinarySearchFunc(before, h, compareHosts)
		take(n)
		b.sorted = append(b.sorted, h)
	}
	take(len(before))
}

// poolLocked divides the hosts into pools, from the nearest to the farthest.
func (b *Balancer) poolLocked() {
	before := b.pools
	b.pools = nil
	hosts := b.order
	if b.cfg.Algorithm.hashes() {
		hosts = b.sorted // all processes must agree, whatever order their endpoints came in
	}
	var p *pool
	for _, h := range hosts {
		if h.weight == 0 || h.place == nowhere {
			continue
		}
		if p == nil || p.place != h.place {
			p = find(b.pools, h.place)
		}
		if p == nil {
			p = &pool{place: h.place}
			if b.cfg.topology.mode == anywhere {
				p.members = make([]*Host, 0, len(hosts))
			}
			if b.cfg.Algorithm.inTurn() {
				p.turn = new(turn)
				p.turn.Store(b.rand()) // otherwise all clients would begin with the same endpoint
			}
			if last := find(before, h.place); last != nil {
				p.ring = last.ring
			}
			b.pools = append(b.pools, p)
		}
		p.members = append(p.members, h)
	}
	slices.SortFunc(b.pools, func(x, y *pool) int { return int(x.place) - int(y.place) })
}

// noticeEjections brings the picks up to date. Calls that arrive while another builds share the next build.
func (b *Balancer) noticeEjections() {
	want := b.change.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen < want {
		b.publishLocked()
	}
}

func (b *Balancer) publishLocked() {
	b.seen = b.change.Load()
	b.picks.Store(b.snapshotLocked())
}

// now returns the time on the clock used in hosts. It is never 0.
func (b *Balancer) now() int64 {
	return int64(time.Since(b.start)) + 1
}

// at returns a time on that clock; the zero time is now. A call may have begun before its balancer.
func (b *Balancer) at(t time.Time) int64 {
	if t.IsZero() {
		return b.now()
	}
	return max(int64(t.Sub(b.start)), 0) + 1
}

func (b *Balancer) choices() int { return int(b.cfg.Choices) }

// float returns a random number in [0, 1).
func (b *Balancer) float() float64 {
	return float64(b.rand()>>11) / (1 << 53)
}

// weightOf returns the weight of e for the picks; 0 means that it drains.
func weightOf(e *discovery.Endpoint) uint32 {
	switch {
	case e.Draining:
		return 0
	case e.Weight == 0:
		return 1
	}
	return e.Weight
}
