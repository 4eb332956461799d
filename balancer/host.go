package balancer

import (
	"maps"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// Host is one endpoint in a [Balancer], with its state. Its methods are safe for concurrent use.
type Host struct {
	// A pick by PeakEWMA and its end need nothing but these, and what was learned, before them in the same cache line.
	state    *atomic.Uint64
	balancer *Balancer
	learned  *learned // only for PeakEWMA

	id       string
	value    any
	endpoint atomic.Pointer[discovery.Endpoint]
	reports  atomic.Pointer[reports] // only for WeightedRoundRobin; nil before the first
	warmed   atomic.Int64            // when slow start began, if warming

	// Guarded by Balancer.mu.
	place  int32
	at     int32 // in Balancer.order
	weight uint32
	update uint32 // the last Update that had the host; 0 before the first
}

// The state of a host is the number of calls in flight, these bits, and with PeakEWMA a time. Everything that a pick needs is in one word, and
// the words of large sets are adjacent: picking among 10,000 hosts then touches 80 KiB of memory, not megabytes.
const (
	unwanted = 1 << (58 + iota) // ejected by its owner: see SetEjected
	outlying                    // ejected by Hooks.Outlier
	aside                       // takes no calls: it drains, or has no share of the traffic
	warming                     // in slow start
	gone                        // removed: no new calls
	drained                     // removed, and Drained has been called

	ejected = unwanted | outlying

	// since is how long the calls in flight have waited at least, in ticks: since the first began, or the last one ended.
	since      = sinceMask << sinceShift
	sinceBits  = 34
	sinceMask  = 1<<sinceBits - 1
	sinceShift = 58 - sinceBits

	// overlapped is a bit of since, a tick that does not matter: a call has ended since then while others were in flight.
	overlapped = 1 << sinceShift

	calls = overlapped - 1
)

// newStates returns the states of n new hosts in a set of the given size, unless they are part of what is learned of the hosts. The hosts
// of a small set get a cache line each, because processors would contend for it.
func (b *Balancer) newStates(n, size int) []*atomic.Uint64 {
	states := make([]*atomic.Uint64, n)
	const small = 256
	switch {
	case b.cfg.Algorithm == PeakEWMA:
	case size > small:
		dense := make([]atomic.Uint64, n)
		for i := range states {
			states[i] = &dense[i]
		}
	default:
		for i := range states {
			states[i] = &new(struct {
				atomic.Uint64
				_ [56]byte
			}).Uint64
		}
	}
	return states
}

func (b *Balancer) newHost(e *discovery.Endpoint, state *atomic.Uint64) *Host {
	var h *Host
	if state != nil {
		h = &Host{state: state}
	} else {
		both := new(struct {
			learned
			Host
		})
		h, both.Host.state, both.Host.learned, both.learned.host = &both.Host, &both.learned.state, &both.learned, &both.Host
	}
	h.balancer, h.id = b, e.ID()
	h.state.Or(aside) // until it is in the set
	if b.outliers != nil {
		b.outliers.add(h)
	}
	h.describe(e)
	if b.hooks.Attach != nil {
		h.value = b.hooks.Attach(h)
	}
	return h
}

// ID returns the endpoint's [discovery.Endpoint.ID], which never changes.
func (h *Host) ID() string { return h.id }

// Endpoint returns the endpoint as the latest Update described it. It must not be changed. The pointer stays the same for as
// long as updates say the same, so it can be the key of a cache.
func (h *Host) Endpoint() *discovery.Endpoint { return h.endpoint.Load() }

// describe records how an Update describes the endpoint. It makes a copy, so that one endpoint does not keep a whole set in
// memory.
func (h *Host) describe(e *discovery.Endpoint) {
	if old := h.endpoint.Load(); old == nil || !same(old, e) {
		described := *e
		h.endpoint.Store(&described)
	}
}

// same reports whether two endpoints have the same description.
func same(a, b *discovery.Endpoint) bool {
	return a.Address == b.Address && a.Port == b.Port && a.OnlyPorts == b.OnlyPorts && slices.Equal(a.Ports, b.Ports) && sameLabels(a.Labels, b.Labels) &&
		a.Locality == b.Locality && a.Weight == b.Weight && a.Draining == b.Draining && a.ServiceAccount == b.ServiceAccount
}

// sameLabels reports whether two sets of labels are equal. Published labels do not change, so one set equals itself.
func sameLabels(a, b map[string]string) bool {
	return len(a) == len(b) &&
		(len(a) == 0 || reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer() || maps.Equal(a, b))
}

// address never changes, like the ID.
func (h *Host) address() address { return addressOf(h.endpoint.Load()) }

// Value returns what [Hooks.Attach] made for the host, or nil.
func (h *Host) Value() any { return h.value }

// InFlight returns the number of picks not yet released.
func (h *Host) InFlight() int { return int(h.state.Load() & calls) }

// Ejected reports whether the host is ejected.
func (h *Host) Ejected() bool { return h.state.Load()&ejected != 0 }

// TakesCalls reports whether picks may return the host: it does not drain, has a share of the traffic and is not removed.
// Ejections do not matter.
func (h *Host) TakesCalls() bool { return h.state.Load()&(aside|gone) == 0 }

// SetEjected takes the host out of the picks or brings it back, unless [Hooks.Outlier] ejects it. No Pick that begins after
// SetEjected(true) has returned gives the host, unless so many are ejected that [Config.PanicFraction] applies. It rebuilds the
// picks, which takes time proportional to the size of the set.
func (h *Host) SetEjected(eject bool) { h.eject(unwanted, eject) }

// eject sets or clears one of the reasons why the host is ejected.
func (h *Host) eject(why uint64, eject bool) {
	var before uint64
	if eject {
		before = h.state.Or(why)
	} else {
		before = h.state.And(^why)
	}
	if eject != (before&why != 0) && before&ejected&^why == 0 {
		h.balancer.noticeEjections()
	}
}

// Release ends the call that a Pick began. It must be called once for each pick. latency is the time from the pick to the
// first byte of the answer or to the failure, 0 if it is not known; more than a minute counts as a minute. failed means that the endpoint
// did not do what was asked. If there is nothing to learn, because the caller gave up, they are 0 and false. Both matter to [PeakEWMA] only.
func (h *Host) Release(latency time.Duration, failed bool) {
	if h.balancer.cfg.counts {
		h.exit()
		return
	}
	if h.balancer.cfg.BoundedLoad > 0 {
		h.balancer.busy.Add(-1)
	}
	if h.learned != nil {
		h.leave(latency, failed)
		return
	}
	if h.balancer.weighing.Load() > 0 { // reports expire even if there are no more
		h.balancer.reweigh(h.balancer.now())
	}
	h.exit()
}

// exit counts a call out.
func (h *Host) exit() {
	if state := h.state.Add(^uint64(0)); state&gone != 0 {
		h.drain()
	}
}

// remove closes the host to new calls. No snapshot has it any more.
func (h *Host) remove() {
	h.state.Or(gone)
	h.drain()
}

// drain calls Drained if no call is in flight. Late picks may bring a removed host to zero calls more than once; only the
// first calls it.
func (h *Host) drain() {
	for {
		state := h.state.Load()
		if state&(calls|drained) != 0 {
			return
		}
		if h.state.CompareAndSwap(state, state|drained) {
			break
		}
	}
	if h.balancer.hooks.Drained != nil {
		h.balancer.hooks.Drained(h)
	}
}

func compareHosts(a, b *Host) int { return a.address().compare(b.address()) }
