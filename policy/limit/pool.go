package limit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultConnectTimeout = 10 * time.Second
	defaultIdleTimeout    = time.Hour
)

// PoolConfig bounds the calls and connections of one destination. Values are comparable. The zero value limits nothing
// and has Envoy's timeouts.
type PoolConfig struct {
	// MaxConnections is how many connections to all endpoints of the destination may be open at once. An HTTP/1 call has a
	// connection to itself, so this also bounds the HTTP/1 calls in flight; calls beyond it wait their turn. An endpoint
	// that has no connection may always open one. 0 means no limit.
	MaxConnections int

	// MaxPendingRequests is how many calls may wait for one of MaxConnections: HTTP/1 calls for a connection to themselves,
	// HTTP/2 calls for a stream when each connection has as many as its peer permits. Calls beyond it are refused. 0 means
	// no limit. Without MaxConnections nothing waits.
	MaxPendingRequests int

	// MaxRequests is how many calls may be in flight at once, over HTTP/1 and HTTP/2. Calls beyond it are refused. 0 means
	// no limit.
	MaxRequests int

	// MaxRequestsPerConnection is how many calls a connection serves before it is closed. 1 means no keep-alive; 0 means no
	// limit.
	MaxRequestsPerConnection int

	// ConnectTimeout bounds the wait for a connection and, separately, the TLS handshake on it. 0 means 10 seconds for the
	// connection and the template's value for the handshake.
	ConnectTimeout time.Duration

	// IdleTimeout is how long a connection may be without calls before it is closed. 0 means one hour; a negative value
	// means forever. Of several HTTP/2 connections to an endpoint, those without calls at the moment are closed that often,
	// since it is not known how long they had none.
	IdleTimeout time.Duration

	// MaxConnectionDuration is the age after which a connection takes one last call and is then closed. 0 means no limit.
	MaxConnectionDuration time.Duration

	// Keepalive is how TCP connections are probed. The zero value keeps what the template's dialer does.
	Keepalive Keepalive
}

// Keepalive is how often the kernel probes a silent TCP connection. If any field is set, the zero value of another means the
// system's default.
type Keepalive struct {
	// Probes is how many probes may go unanswered before the connection is considered dead.
	Probes int

	// Time is how long the connection is silent before the first probe.
	Time time.Duration

	// Interval is the time between probes.
	Interval time.Duration
}

// Pool is the connection pool of one destination: it hands out slots to calls, and opens the connections to the endpoints
// through its [Conns]. A nil *Pool and the zero value limit nothing. It is safe for concurrent use.
type Pool struct {
	config PoolConfig

	active    atomic.Int64 // calls that hold a slot
	streams   atomic.Int64 // calls that hold one and wait for a stream of a connection
	overflows atomic.Uint64

	mu      sync.Mutex
	busy    int     // HTTP/1 calls that hold a slot, if MaxConnections is set
	pending int     // length of the list of waiters
	head    *waiter // first come
	tail    *waiter

	links links
}

// waiter is a call in line for a connection. Its fields are guarded by Pool.mu, except ready, which is closed to hand over
// the slot.
type waiter struct {
	ready      chan struct{}
	granted    bool
	prev, next *waiter
}

// Validate returns an error that names the field if the settings cannot be honoured.
func (c PoolConfig) Validate() error {
	for _, field := range []struct {
		name  string
		value int64
	}{
		{"MaxConnections", int64(c.MaxConnections)},
		{"MaxPendingRequests", int64(c.MaxPendingRequests)},
		{"MaxRequests", int64(c.MaxRequests)},
		{"MaxRequestsPerConnection", int64(c.MaxRequestsPerConnection)},
		{"ConnectTimeout", int64(c.ConnectTimeout)},
		{"MaxConnectionDuration", int64(c.MaxConnectionDuration)},
		{"Keepalive.Probes", int64(c.Keepalive.Probes)},
		{"Keepalive.Time", int64(c.Keepalive.Time)},
		{"Keepalive.Interval", int64(c.Keepalive.Interval)},
	} {
		if field.value < 0 {
			return fmt.Errorf("limit: PoolConfig.%s is %v, want 0 or more", field.name, field.value)
		}
	}
	return nil
}

// NewPool returns a pool with nothing in flight. The error is that of [PoolConfig.Validate].
func NewPool(config PoolConfig) (*Pool, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Pool{config: config}, nil
}

// Slot is the right to make one call. The zero value is a slot of a nil pool.
type Slot struct {
	pool        *Pool
	multiplexed bool
}

// Acquire takes a slot for a call. The caller must release it exactly once, when the call is over.
//
// It returns [ErrOverflow] at once if there is no room. An HTTP/1 call that lacks only a connection waits for one, first
// come, first served; if ctx ends first, Acquire returns the cause. A multiplexed (HTTP/2) call shares its connection and
// does not wait here.
func (p *Pool) Acquire(ctx context.Context, multiplexed bool) (Slot, error) {
	if p == nil {
		return Slot{}, nil
	}
	slot := Slot{p, multiplexed}
	if multiplexed || p.config.MaxConnections == 0 {
		if !p.enter() {
			p.overflows.Add(1)
			return Slot{}, ErrOverflow
		}
		return slot, nil
	}

	p.mu.Lock()
	if p.busy < p.config.MaxConnections {
		if !p.enter() {
			p.mu.Unlock()
			p.overflows.Add(1)
			return Slot{}, ErrOverflow
		}
		p.busy++
		p.mu.Unlock()
		return slot, nil
	}
	if limit := p.config.MaxPendingRequests; p.full() || limit > 0 && p.pending >= limit {
		p.mu.Unlock()
		p.overflows.Add(1)
		return Slot{}, ErrOverflow
	}
	w := &waiter{ready: make(chan struct{})}
	p.pushLocked(w)
	p.mu.Unlock()

	select {
	case <-w.ready:
		return slot, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	granted := w.granted
	if !granted {
		p.removeLocked(w)
	}
	p.mu.Unlock()
	if granted {
		// The slot came as ctx ended; it goes to the next in line.
		slot.Release()
	}
	return Slot{}, context.Cause(ctx)
}

// Release gives the slot back.
func (s Slot) Release() {
	p := s.pool
	if p == nil {
		return
	}
	if s.multiplexed || p.config.MaxConnections == 0 {
		p.active.Add(-1)
		if p.streams.Load() > 0 {
			p.links.wake() // one is free, or about to be
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.head; w != nil {
		// The slot changes hands: neither busy nor active change.
		p.removeLocked(w)
		w.granted = true
		close(w.ready)
		return
	}
	p.busy--
	p.active.Add(-1)
}

// enter counts a call, unless that would exceed MaxRequests. A refused call is never counted, not even briefly, because it
// could displace another.
func (p *Pool) enter() bool {
	limit := int64(p.config.MaxRequests)
	if limit == 0 {
		p.active.Add(1)
		return true
	}
	for {
		n := p.active.Load()
		if n >= limit {
			return false
		}
		if p.active.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (p *Pool) full() bool {
	limit := int64(p.config.MaxRequests)
	return limit > 0 && p.active.Load() >= limit
}

func (p *Pool) pushLocked(w *waiter) {
	p.pending++
	w.prev = p.tail
	if p.tail == nil {
		p.head = w
	} else {
		p.tail.next = w
	}
	p.tail = w
}

func (p *Pool) removeLocked(w *waiter) {
	p.pending--
	if w.prev == nil {
		p.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		p.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
}

// Stats are the counters of a [Pool].
type Stats struct {
	Active      int    // calls that hold a slot
	Pending     int    // calls that wait for one, or for a stream
	Connections int    // connections open or being opened
	Overflows   uint64 // calls refused so far
}

// Stats returns the counters. They are read one after the other, so they may differ by a call.
func (p *Pool) Stats() Stats {
	if p == nil {
		return Stats{}
	}
	p.mu.Lock()
	pending := p.pending
	p.mu.Unlock()
	return Stats{
		Active:      int(p.active.Load()),
		Pending:     pending + int(p.streams.Load()),
		Connections: p.links.count(),
		Overflows:   p.overflows.Load(),
	}
}
