package admin

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/policy/route"
)

// The bounds of what is kept. The figures of everything beyond them are kept together, under "others".
const (
	mostDestinations = 250
	mostEndpoints    = 100   // of a destination
	mostAllEndpoints = 2_000 // of all
	mostCallers      = 100
	longestHost      = 255          // a longer host is not a valid name, and belongs to others
	keepIdle         = historySlots // for how many slots a destination or a caller keeps its place without calls
)

// collector keeps the figures of what the observer reports. The maps are copied when they change, so that calls read them without a
// lock.
type collector struct {
	slow  time.Duration // the duration from which a call is kept
	began time.Time
	inner sync.Mutex // held while one of the maps changes

	destinations atomic.Pointer[map[route.Target]*destination]
	callers      atomic.Pointer[map[string]*caller]

	// The slots in which idle entries were last removed. That is done at most once per slot.
	sweptDestinations, sweptCallers atomic.Int64
	sweptEndpoints                  int64 // under inner

	others       *destination // the destinations for which there is no room
	otherCallers caller

	lifetime atomic.Int64 // how long the identity was valid when it came into force; 0 if there was none

	attempts attempts
	calls    ring[call]
	loads    ring[load]
	events   ring[event]
	unfound  ring[event] // failures of discovery, which take no room of other events: callers may choose hosts that nobody finds
	tcp      connections

	changed func() // called when the page should be updated immediately
}

// destination is what is known of one target.
type destination struct {
	target route.Target
	*series
	outside atomic.Bool

	endpoints atomic.Pointer[map[string]*series]
	full      atomic.Int64 // the last slot in which there was no room for another endpoint
	causes    causes
	kept      throttle
	refused   throttle

	mu     sync.Mutex
	opened breaker.Change // the change that opened the circuit; zero while it is closed
}

// caller is what is known of one peer: the series of its requests.
type caller struct {
	id string // SPIFFE ID; "" for peers without an identity
	*series
	kept throttle
}

func newCollector(slow time.Duration, changed func()) *collector {
	c := &collector{slow: slow, began: time.Now(), changed: changed}
	c.calls.size, c.loads.size, c.events.size, c.unfound.size = mostCalls, mostLoads, mostEvents, mostEvents
	c.destinations.Store(new(map[route.Target]*destination))
	c.callers.Store(new(map[string]*caller))
	c.others, c.otherCallers.series = newDestination(route.Target{}, c.began), newSeries(c.began)
	return c
}

func newSeries(now time.Time) *series {
	return &series{last: slotOf(now), long: new(history)} // a new series is not idle
}

func newDestination(target route.Target, now time.Time) *destination {
	d := &destination{target: target, series: newSeries(now), refused: throttle{most: mostRefused, period: refusedEvery}}
	d.endpoints.Store(new(map[string]*series))
	return d
}

// destination returns the figures of a target, which it creates if necessary, or those of others if there is no room.
func (c *collector) destination(target route.Target, now time.Time) *destination {
	if d := (*c.destinations.Load())[target]; d != nil {
		return d
	}
	if len(target.Host) > longestHost || len(*c.destinations.Load()) >= mostDestinations && c.sweptDestinations.Load() == slotOf(now) {
		return c.others
	}
	c.inner.Lock()
	defer c.inner.Unlock()
	old := *c.destinations.Load()
	if d := old[target]; d != nil {
		return d
	}
	next := maps.Clone(old)
	if next == nil {
		next = make(map[route.Target]*destination)
	}
	if len(next) >= mostDestinations {
		c.sweptDestinations.Store(slotOf(now))
		maps.DeleteFunc(next, func(_ route.Target, d *destination) bool { return d.idle(slotOf(now), keepIdle) })
		if len(next) >= mostDestinations {
			return c.others
		}
	}
	target = cloned(target)
	d := newDestination(target, now)
	next[target] = d
	c.destinations.Store(&next)
	return d
}

// cloned returns a target to keep. The strings of t may be large, or share the memory of something large.
func cloned(t route.Target) route.Target {
	t.Host, t.Subset = cut(t.Host, longestHost), strings.Clone(t.Subset)
	return t
}

// endpoint returns the series of an endpoint, which it creates if necessary, or nil if there is no room for it.
func (c *collector) endpoint(d *destination, address string, now time.Time) *series {
	if s := (*d.endpoints.Load())[address]; s != nil {
		return s
	}
	if d == c.others || d.full.Load() == slotOf(now) {
		return nil
	}
	c.inner.Lock()
	defer c.inner.Unlock()
	if s := (*d.endpoints.Load())[address]; s != nil {
		return s
	}
	if !c.roomIn(d) && c.sweptEndpoints != slotOf(now) {
		c.sweptEndpoints = slotOf(now)
		for _, d := range *c.destinations.Load() {
			d.sweep(slotOf(now))
		}
	}
	if !c.roomIn(d) {
		d.full.Store(slotOf(now))
		return nil
	}
	next := maps.Clone(*d.endpoints.Load())
	if next == nil {
		next = make(map[string]*series)
	}
	s := &series{last: slotOf(now)}
	next[address] = s
	d.endpoints.Store(&next)
	return s
}

// roomIn reports whether there is room for another endpoint of d. The caller holds c.inner.
func (c *collector) roomIn(d *destination) bool {
	all := 0
	for _, other := range *c.destinations.Load() {
		all += len(*other.endpoints.Load())
	}
	return len(*d.endpoints.Load()) < mostEndpoints && all < mostAllEndpoints
}

// sweep removes the endpoints without calls in the last minute. The caller holds the collector's inner.
func (d *destination) sweep(now int64) {
	old := *d.endpoints.Load()
	next := maps.Clone(old)
	maps.DeleteFunc(next, func(_ string, s *series) bool { return s.idle(now, windowSlots) })
	if len(next) < len(old) {
		d.endpoints.Store(&next)
	}
}

// caller returns the figures of a peer, which it creates if necessary, or those of others if there is no room.
func (c *collector) caller(id string, now time.Time) *caller {
	if p := (*c.callers.Load())[id]; p != nil {
		return p
	}
	if len(*c.callers.Load()) >= mostCallers && c.sweptCallers.Load() == slotOf(now) {
		return &c.otherCallers
	}
	c.inner.Lock()
	defer c.inner.Unlock()
	old := *c.callers.Load()
	if p := old[id]; p != nil {
		return p
	}
	next := maps.Clone(old)
	if next == nil {
		next = make(map[string]*caller)
	}
	if len(next) >= mostCallers {
		c.sweptCallers.Store(slotOf(now))
		maps.DeleteFunc(next, func(_ string, p *caller) bool { return p.idle(slotOf(now), keepIdle) })
		if len(next) >= mostCallers {
			return &c.otherCallers
		}
	}
	p := &caller{id: id, series: newSeries(now)}
	next[id] = p
	c.callers.Store(&next)
	return p
}

// observer returns the observer that feeds the collector.
func (c *collector) observer() mesh.Observer {
	return mesh.Observer{
		CallEnd: c.callEnd, AttemptEnd: c.attemptEnd, InboundEnd: c.inboundEnd,
		ConnStart: c.tcp.start, ConnEnd: c.tcp.end,
		Ejection: c.ejection, EjectionWithheld: c.ejectionWithheld, Circuit: c.circuit,
		DiscoveryFailed: c.discoveryFailed, MirrorDropped: c.mirrorDropped, Identity: c.identity,
		ConnectionRefused: c.connectionRefused, PolicyLoad: c.policyLoad,
	}
}
