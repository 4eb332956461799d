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

// PoolConfig bounds the calls and connections of one destination. Values are comparable. The zero value has no limits, and Envoy's
// timeouts.
type PoolConfig struct {
	// MaxConnections is the maximum number of connections to all endpoints of the destination together. An HTTP/1 call has a
	// connection to itself, so this also bounds the HTTP/1 calls in flight; calls beyond it wait their turn. The first connection to
	// an endpoint may always be opened. 0 means no limit.
	MaxConnections int

	// MaxPendingRequests is the maximum number of calls that wait because of MaxConnections: HTTP/1 calls for a connection, and HTTP/2
	// calls for a stream while each connection has as many as its peer permits. Calls beyond it are refused. 0 means no limit.
	// Without MaxConnections no call waits.
	MaxPendingRequests int

	// MaxRequests is the maximum number of calls in flight, over HTTP/1 and HTTP/2. Calls beyond it are refused. 0 means no limit.
	MaxRequests int

	// MaxRequestsPerConnection is the number of calls after which a connection is closed. 1 means no keep-alive; 0 means no limit.
	MaxRequestsPerConnection int

	// ConnectTimeout bounds the wait for a connection and, separately, the TLS handshake on it. 0 means 10 seconds for the
	// connection and the template's value for the handshake.
	ConnectTimeout time.Duration

	// IdleTimeout is how long a connection may be without calls before it is closed. 0 means one hour; a negative value means
	// forever. Over HTTP/2 that time counts from the beginning of the last call, but an HTTP/2 connection with a call is not closed.
	IdleTimeout time.Duration

	// MaxConnectionDuration is the age after which a connection serves one last call and is then closed. 0 means no limit.
	MaxConnectionDuration time.Duration

	// Keepalive says how TCP connections are probed. The zero value leaves that to the dialer of the template.
	Keepalive Keepalive
}

// Keepalive says how the kernel probes a silent TCP connection. If a field is set, the zero value of the others means the default of
// the system.
type Keepalive struct {
	// Probes is the number of unanswered probes after which the connection is considered dead.
	Probes int

	// Time is how long the connection is silent before the first probe.
	Time time.Duration

	// Interval is the time between probes.
	Interval time.Duration
}

// Pool is the connection pool of one destination. It hands out slots to calls, and opens the connections to the endpoints through its
// [Conns]. A nil *Pool and the zero value have no limits. It is safe for concurrent use.
type Pool struct {
	active    atomic.Int64 // calls that hold a slot
	streams   atomic.Int64 // calls that hold a slot and wait for a stream of a connection
	overflows atomic.Uint64

	config PoolConfig

	mu      sync.Mutex
	busy    int     // HTTP/1 calls that hold a slot, if MaxConnections is set
	pending int     // length of the list of waiters
	head    *waiter // the one that has waited longest
	tail    *waiter

	links links
}

// waiter is a call that waits for a connection. Pool.mu guards its fields, except ready, which is closed to hand over the slot.
type waiter struct {
	ready      chan struct{}
	granted    bool
	prev, next *waiter
}

// Validate returns an error that names the first field whose value is invalid.
func (c PoolConfig) Validate() error {
	for _, field := range []struct {
		name  string
		value int
	}{
		{"MaxConnections", c.MaxConnections},
		{"MaxPendingRequests", c.MaxPendingRequests},
		{"MaxRequests", c.MaxRequests},
		{"MaxRequestsPerConnection", c.MaxRequestsPerConnection},
		{"Keepalive.Probes", c.Keepalive.Probes},
	} {
		if field.value < 0 {
			return fmt.Errorf("limit: PoolConfig.%s is %d, want 0 or more", field.name, field.value)
		}
	}
	for _, field := range []struct {
		name  string
		value time.Duration
	}{
		{"ConnectTimeout", c.ConnectTimeout},
		{"MaxConnectionDuration", c.MaxConnectionDuration},
		{"Keepalive.Time", c.Keepalive.Time},
		{"Keepalive.Interval", c.Keepalive.Interval},
	} {
		if field.value < 0 {
			return fmt.Errorf("limit: PoolConfig.%s is %v, want 0 or more", field.name, field.value)
		}
	}
	return nil
}

// NewPool returns a pool without calls. The error is that of [PoolConfig.Validate].
func NewPool(config PoolConfig) (*Pool, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Pool{config: config}, nil
}

// Slot is the permission to make one call. The zero value is a slot of a nil pool.
type Slot struct {
	pool        *Pool
	multiplexed bool
}

// Acquire takes a slot for a call. The caller must release it exactly once, when the call has ended.
//
// It returns [ErrOverflow] immediately if there is no room. An HTTP/1 call that only lacks a connection waits for one, first come,
// first served. If ctx ends first, Acquire returns the cause. A multiplexed (HTTP/2) call shares a connection and does not wait here.
func (p *Pool) Acquire(ctx context.Context, multiplexed bool) (Slot, error) {
	if p == nil {
		return Slot{}, nil
	}
	slot := Slot{p, multiplexed}
	if multiplexed || p.config.MaxConnections == 0 {
		if !p.enter() {
			return p.overflow()
		}
		return slot, nil
	}

	p.mu.Lock()
	if p.busy < p.config.MaxConnections {
		if !p.enter() {
			p.mu.Unlock()
			return p.overflow()
		}
		p.busy++
		p.mu.Unlock()
		return slot, nil
	}
	if limit := p.config.MaxPendingRequests; p.full() || limit > 0 && p.pending >= limit {
		p.mu.Unlock()
		return p.overflow()
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
		// ctx ended just as the slot was handed over. Pass the slot on.
		slot.Release()
	}
	return Slot{}, context.Cause(ctx)
}

// overflow refuses a call.
func (p *Pool) overflow() (Slot, error) {
	p.overflows.Add(1)
	return Slot{}, ErrOverflow
}

// Release gives the slot back.
func (s Slot) Release() {
	p := s.pool
	if p == nil {
		return
	}
	if s.multiplexed || p.config.MaxConnections == 0 {
		p.active.Add(-1)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.head; w != nil {
		// The slot is handed over, so neither busy nor active changes.
		p.removeLocked(w)
		w.granted = true
		close(w.ready)
		return
	}
	p.busy--
	p.active.Add(-1)
}

// enter counts a call, unless that would exceed MaxRequests. A refused call is not counted even for a moment, because that could make
// another call fail.
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
}

// Stats are the counters of a [Pool].
type Stats struct {
	Active      int    // calls that hold a slot
	Pending     int    // calls that wait for a slot, or for a stream
	Connections int    // connections that are open or being opened
	Overflows   uint64 // calls that were refused so far
}

// Stats returns the counters. They are not read atomically, so they may be off by one relative to each other.
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
