package meshgrpc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/grpcconns"
	"github.com/nosidecar/mesh/policy/limit"
)

// group is the connections of a ClientConn over one link. Usually it is one.
type group struct {
	ready  grpcconns.Ready[conn, *conn]
	limits limits
	owner  *connections
	link   *sockets.Connections

	mu       sync.Mutex
	closed   bool
	dialling *conn     // nil if none is
	later    time.Time // when an additional connection may be tried
	failures int       // to connect, since a connection was ready
	backoff  time.Time // when the next may be tried
	failure  error     // the latest
	all      []*conn
	forget   func() // has the link forget the group; nil if it does not know it
}

var errGroupClosed = errors.New("closed")

// unready is the error of an endpoint that could not be connected to a moment ago, and is left alone for a while.
type unreadyError struct{ error }

func (e *unreadyError) Unwrap() error { return e.error }

// Between attempts to connect to an endpoint that could not be connected to: less than gRPC waits, since calls have no other
// connection to fall back on.
const (
	leastBackoff = 100 * time.Millisecond
	mostBackoff  = 10 * time.Second
)

// pauseAfter returns how long an endpoint is left alone after the n-th failure in a row, with some jitter.
func pauseAfter(n int) time.Duration {
	d := min(leastBackoff<<min(n-1, 10), mostBackoff)
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}

// limits are those of the connections of a group. 0 means that there is none.
type limits struct {
	calls int64         // per connection
	age   time.Duration // of a connection
	idle  time.Duration
	conns int
}

func limitsOf(config limit.PoolConfig) limits {
	l := limits{
		calls: int64(config.MaxRequestsPerConnection), age: config.MaxConnectionDuration, idle: config.IdleTimeout,
		conns: config.MaxConnections,
	}
	switch {
	case l.idle == 0:
		l.idle = time.Hour
	case l.idle < 0:
		l.idle = 0
	}
	return l
}

// pick returns a connection for a call, which is counted on it, or the one that the call is to wait for, or neither if
// there is none. A server that limits the streams of a connection lets those beyond wait without a word: they get another
// connection.
func (g *group) pick() (ready, dialling *conn) {
	best := g.ready.Fewest()
	if best == nil {
		return nil, nil
	}
	n := best.Enter()
	if n == 0 { // it was retired meanwhile
		return g.pick()
	}
	if streams := best.streams.Load(); streams > 0 && n > streams {
		if dialling, _ = g.dial(false); dialling != nil {
			best.release()
			return nil, dialling
		}
	}
	if !best.used.Load() { // seldom: a write that all calls make slows them down
		best.used.Store(true)
	}
	if l := &g.limits; l.calls > 0 || l.age > 0 {
		n := best.served.Add(1)
		if l.calls > 0 && n > l.calls { // others were faster
			best.retire()
			best.release()
			return g.pick()
		}
		if l.calls > 0 && n == l.calls || l.age > 0 && time.Since(best.born) >= l.age {
			best.retire() // this is its last call
		}
	}
	return best, nil
}

// dial has a connection made, unless one is already, and returns it. If first, it returns none where a connection has become
// ready meanwhile. Without first, it is an additional one, of which there may be none.
func (g *group) dial(first bool) (*conn, error) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, errGroupClosed
	}
	if c := g.dialling; c != nil {
		g.mu.Unlock()
		if err := c.failure.Load(); err == nil {
			return c, nil
		} else if first {
			return nil, &unreadyError{*err} // gRPC is about to notice
		}
		return nil, nil
	}
	if first && g.ready.Any() {
		g.mu.Unlock()
		return nil, nil
	}
	if first && time.Now().Before(g.backoff) {
		err := g.failure
		g.mu.Unlock()
		return nil, &unreadyError{err}
	}
	if !first && (g.limits.conns > 0 && len(g.all) >= g.limits.conns || time.Now().Before(g.later)) {
		g.mu.Unlock()
		return nil, nil
	}
	c := &conn{group: g, state: connectivity.Idle, extra: !first, only: len(g.all) == 0}
	g.dialling = c
	g.all = append(g.all, c)
	g.mu.Unlock()

	//lint:ignore SA1019 there is no other way yet, and one address is all it gets
	sub, err := g.owner.cc.NewSubConn(
		[]resolver.Address{{Addr: g.link.Address(), Attributes: attributesOf(c)}},
		balancer.NewSubConnOptions{StateListener: c.changed},
	)
	if err != nil {
		c.shutdown(errBalancerClosed) // there is no other reason
		return nil, errBalancerClosed
	}
	g.mu.Lock()
	c.sub = sub
	over := c.over
	g.mu.Unlock()
	if over {
		sub.Shutdown()
		return nil, errGroupClosed
	}
	sub.Connect()
	return c, nil
}

// removeLocked forgets a connection.
func (g *group) removeLocked(c *conn) {
	c.over = true
	if c.idle != nil {
		c.idle.Stop()
	}
	g.all = slices.DeleteFunc(g.all, func(other *conn) bool { return other == c })
	if g.dialling == c {
		g.dialling = nil
		if c.extra {
			const patience = 10 * time.Second
			g.later = time.Now().Add(patience)
		}
	}
	g.publishLocked()
}

// publishLocked tells pick which connections are ready.
func (g *group) publishLocked() {
	var ready []*conn
	for _, c := range g.all {
		if c.state == connectivity.Ready && !c.retired {
			ready = append(ready, c)
		}
	}
	g.ready.Set(ready)
}

// watch has the group closed with its link. It reports false if the group is closed.
func (g *group) watch() bool {
	forget := g.link.OnClose(g.close)
	g.mu.Lock()
	g.forget = forget
	closed := g.closed
	g.mu.Unlock()
	if closed {
		forget()
	}
	return !closed
}

// close closes the connections. gRPC leaves them the calls that they have.
func (g *group) close() {
	g.mu.Lock()
	g.closed = true
	all, forget := slices.Clone(g.all), g.forget
	g.mu.Unlock()
	g.owner.groups.CompareAndDelete(g.link, g)
	if forget != nil {
		forget()
	}
	for _, c := range all {
		c.shutdown(nil)
	}
}

// conn is one connection.
type conn struct {
	grpcconns.Calls
	served  atomic.Int64 // calls, where somebody wants to know
	streams atomic.Int64 // how many the server allows at a time; 0 for any number
	group   *group
	used    atomic.Bool           // since somebody looked whether it is idle
	secured atomic.Bool           // by our credentials
	only    bool                  // the first of the group
	dialled time.Time             // guarded by gRPC: set before the handshake
	failure atomic.Pointer[error] // why it could not be made

	// Guarded by group.mu, except that sub and born do not change once calls are given the connection.
	sub     balancer.SubConn
	born    time.Time
	state   connectivity.State
	extra   bool        // beside others
	retired bool        // takes no more calls
	over    bool        // forgotten by the group
	idle    *time.Timer // nil if it may be idle for ever
}

// fail notes why the connection cannot be made, if nobody has yet.
func (c *conn) fail(err error) {
	c.failure.CompareAndSwap(nil, &err)
}

// changed is the listener of gRPC, called for one connection at a time.
func (c *conn) changed(s balancer.SubConnState) {
	switch s.ConnectivityState {
	case connectivity.Ready:
		if !c.secured.Load() {
			c.fail(errCredentials)
			c.shutdown(nil)
			return
		}
		c.begin()
	case connectivity.Connecting:
		c.move(connectivity.Connecting, nil)
	case connectivity.TransientFailure:
		err := s.ConnectionError
		if err == nil {
			err = errors.New("no connection")
		}
		c.shutdown(connectError(c.group.link.Address(), err))
	case connectivity.Idle:
		// It was lost. The next call makes another one.
		c.shutdown(connectError(c.group.link.Address(), errors.New("the connection was lost")))
	}
}

// move notes the state of the connection. meanwhile, if not nil, is done with it, so that nobody sees one without the other.
func (c *conn) move(to connectivity.State, meanwhile func()) {
	g := c.group
	g.mu.Lock()
	if c.over {
		g.mu.Unlock()
		return
	}
	from := c.state
	c.state = to
	if meanwhile != nil {
		meanwhile()
	}
	g.publishLocked()
	g.mu.Unlock()
	g.owner.changed(from, to, false)
}

// begin has calls use the connection.
func (c *conn) begin() {
	g := c.group
	c.move(connectivity.Ready, func() {
		c.born = time.Now()
		g.failures, g.backoff, g.failure = 0, time.Time{}, nil
		if g.dialling == c {
			g.dialling = nil
		}
		if idle := g.limits.idle; idle > 0 {
			c.idle = time.AfterFunc(idle, c.expire)
		}
	})
}

// expire closes the connection if it was idle since it was asked before.
func (c *conn) expire() {
	if !c.used.Swap(false) && c.Count() == 0 {
		c.retire()
		return
	}
	g := c.group
	g.mu.Lock()
	if !c.over {
		c.idle = time.AfterFunc(g.limits.idle, c.expire)
	}
	g.mu.Unlock()
}

// retire gives the connection no further calls. It is closed with its last one.
func (c *conn) retire() {
	g := c.group
	g.mu.Lock()
	c.retired = true
	g.publishLocked()
	g.mu.Unlock()
	if c.Retire() {
		c.shutdown(nil)
	}
}

// release ends a call that pick counted.
func (c *conn) release() {
	if c.Leave() {
		c.shutdown(nil)
	}
}

// shutdown closes the connection, once. err, if not nil, is for the goroutines that wait for it.
func (c *conn) shutdown(err error) {
	g := c.group
	if err != nil {
		c.fail(err)
	}
	g.mu.Lock()
	if c.over {
		g.mu.Unlock()
		return
	}
	from, sub := c.state, c.sub
	failed := err != nil && !c.extra && c.born.IsZero()
	if failed {
		g.failures++
		g.failure = *c.failure.Load()
		g.backoff = time.Now().Add(pauseAfter(g.failures))
	}
	g.removeLocked(c)
	g.mu.Unlock()
	if sub != nil {
		sub.Shutdown()
	}
	g.owner.changed(from, connectivity.Shutdown, failed)
}

// connectError is the failure of a connection as the mesh knows it.
func connectError(address string, err error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("%s: %w", address, err)}
}
