package balancer

import (
	"cmp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// Host is one endpoint in a [Balancer], with its state. Its methods are safe for concurrent use.
type Host struct {
	// What a pick touches comes first, in one cache line.
	state    atomic.Uint64 // calls in flight, with the bits below
	warm     atomic.Int64  // when slow start began; 0 means it is over
	cost     atomic.Uint64 // float64 bits of the latency in ns; 0 means not known
	observed atomic.Int64  // when cost was valid
	ejected  atomic.Bool
	balancer *Balancer

	address  address
	id       string
	value    any
	endpoint atomic.Pointer[discovery.Endpoint]

	observing sync.Mutex // held to write cost and observed

	// Guarded by Balancer.mu.
	weight uint32
	place  int
}

const (
	gone    = 1 << 62 // removed: no new calls
	drained = 1 << 63 // removed, and Drained has been told
)

func (b *Balancer) newHost(e *discovery.Endpoint) *Host {
	h := &Host{balancer: b, address: addressOf(e), id: e.ID()}
	h.endpoint.Store(e)
	if b.hooks.Attach != nil {
		h.value = b.hooks.Attach(h)
	}
	return h
}

// ID returns the endpoint's [discovery.Endpoint.ID], which never changes.
func (h *Host) ID() string { return h.id }

// Endpoint returns the endpoint as the latest Update described it.
func (h *Host) Endpoint() discovery.Endpoint { return *h.endpoint.Load() }

// Value returns what [Hooks.Attach] made for the host, or nil.
func (h *Host) Value() any { return h.value }

// InFlight returns the number of picks not yet released.
func (h *Host) InFlight() int { return int(h.state.Load() &^ (gone | drained)) }

// Ejected reports whether the host is ejected.
func (h *Host) Ejected() bool { return h.ejected.Load() }

// SetEjected takes the host out of the picks or brings it back. No Pick that begins after SetEjected(true) returned
// gives the host, unless so many are ejected that [Config.PanicPercent] applies.
func (h *Host) SetEjected(ejected bool) {
	if h.ejected.Swap(ejected) != ejected {
		h.balancer.noticeEjections()
	}
}

// Release ends the call that a Pick began. It must be called once for each pick. latency is the time from the pick to
// the first byte of the answer, 0 if there was none to learn from (a call that its caller gave up); failed says that
// the endpoint did not do what was asked. Both matter to [PeakEWMA] only.
func (h *Host) Release(latency time.Duration, failed bool) {
	if latency > 0 && h.balancer.cfg.Algorithm == PeakEWMA {
		h.observe(h.balancer.now(), latency, failed)
	}
	h.leave()
}

// enter counts a call in, and reports false if the host is removed.
func (h *Host) enter() bool {
	if h.state.Add(1)&gone != 0 {
		h.exit()
		return false
	}
	if h.balancer.cfg.BoundedLoad > 0 {
		h.balancer.busy.Add(1)
	}
	return true
}

func (h *Host) leave() {
	if h.balancer.cfg.BoundedLoad > 0 {
		h.balancer.busy.Add(-1)
	}
	h.exit()
}

func (h *Host) exit() {
	if h.state.Add(^uint64(0)) == gone {
		h.drain()
	}
}

// remove closes the host to new calls. No snapshot has it any more.
func (h *Host) remove() {
	if h.state.Or(gone) == 0 {
		h.drain()
	}
}

// drain tells Drained. Late picks may bring a removed host to zero calls more than once; only one of them tells.
func (h *Host) drain() {
	if h.state.CompareAndSwap(gone, gone|drained) && h.balancer.hooks.Drained != nil {
		h.balancer.hooks.Drained(h)
	}
}

func compareAddress(a, b address) int {
	return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port))
}
