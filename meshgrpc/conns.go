package meshgrpc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/grpcconns"
	"github.com/nosidecar/mesh/policy/limit"
)

// group is the connections of a ClientConn for one link. Usually there is one.
type group struct {
	ready  grpcconns.Ready[*conn]
	limits limits
	owner  *connections
	link   *sockets.Connections

	mu       sync.Mutex
	closed   bool
	dialling *conn     // the connection that is being made, or nil
	later    time.Time // when the next additional connection may be tried
	failures int       // failed attempts to connect since a connection was ready
	backoff  time.Time // when the next attempt may be made
	failure  error     // that of the latest attempt
	all      []*conn
	forget   func() // removes the group from the link; nil if it was not added
}

var (
	errGroupClosed = errors.New("closed")
	errRoom        = errors.New("a connection has room")
)

// unreadyError is the error of an endpoint to which no connection could be made a moment ago, and which is not dialled for a while.
type unreadyError struct{ error }

func (e *unreadyError) Unwrap() error { return e.error }

// lostError is the error of a connection that was made, and lost before a call that waited for it had got it: a server may drain
// connections at any time. The call waits for another one, as with gRPC's own balancers.
type lostError struct{ error }

func (e *lostError) Unwrap() error { return e.error }

// The bounds of the pause after a failed attempt to connect. They are lower than gRPC's, since calls have no other connection to
// fall back on.
const (
	leastBackoff = 100 * time.Millisecond
	mostBackoff  = 10 * time.Second
)

// pauseAfter returns how long an endpoint is not dialled after the n-th failure in a row, with some jitter.
func pauseAfter(n int) time.Duration {
	d := min(leastBackoff<<min(n-1, 10), mostBackoff)
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}

// limits are the limits of the connections of a group. 0 means no limit.
type limits struct {
	calls int64         // per connection, over its lifetime
	age   time.Duration // of a connection
	idle  time.Duration // how long a connection may have no calls
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

// pick returns a connection for a call, which is counted on it, or the connection that the call must wait for, or neither if there
// is none. If a connection already has as many calls as the server allows streams, the next call would silently wait, so another
// connection is made for it.
func (g *group) pick() (ready, dialling *conn) {
	best := g.ready.Fewest()
	if best == nil {
		return nil, nil
	}
	n := best.Enter()
	if n == 0 { // it was retired in the meantime
		return g.pick()
	}
	if streams := best.streams.Load(); streams > 0 && n > streams {
		switch dialling, err := g.dial(best); {
		case dialling != nil:
			best.release()
			return nil, dialling
		case err == errRoom:
			best.release()
			return g.pick()
		}
	}
	if !best.used.Load() { // avoids a write to a shared cache line with every call
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

// dial starts to make a connection, unless one is being made already, and returns that connection. If full is nil, it returns nil
// if a connection has become ready in the meantime. Otherwise the connection is an additional one to full, on which the caller has
// counted one call too many: dial returns errRoom if there is room for it by now, and nil if there may be no other connection.
func (g *group) dial(full *conn) (*conn, error) {
	first := full == nil
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, errGroupClosed
	}
	if !first && g.roomLocked(full) {
		g.mu.Unlock()
		return nil, errRoom
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
		[]resolver.Address{{Addr: g.link.Address(), Attributes: attributes.New(connKey{}, c)}},
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

// roomLocked reports whether a connection has room for the call that is counted on full. The pick that found no room did not hold
// the lock: since then, another connection may have become ready, or a call may have ended.
func (g *group) roomLocked(full *conn) bool {
	for _, c := range g.all {
		if c.state != connectivity.Ready || c.retired {
			continue
		}
		n, streams := c.Count(), c.streams.Load()
		if c != full {
			n++
		}
		if streams == 0 || n <= streams {
			return true
		}
	}
	return false
}

// removeLocked removes a connection from the group.
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

// publishLocked updates the list of ready connections that pick uses.
func (g *group) publishLocked() {
	var ready []*conn
	for _, c := range g.all {
		if c.state == connectivity.Ready && !c.retired {
			ready = append(ready, c)
		}
	}
	g.ready.Set(ready)
}

// watch makes the link close the group when it is closed itself. It reports false if the group is already closed.
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

// keep makes the group the one that is found first with its link, if that is no other ClientConn's.
func (g *group) keep() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if kept := &g.link.Kept; !g.closed && !kept.CompareAndSwap(nil, g) {
		kept.CompareAndSwap((*group)(nil), g)
	}
}

// forgotten makes sure that a closed group is not found any more.
func (g *group) forgotten() {
	g.owner.groups.CompareAndDelete(g.link, g)
	g.link.Kept.CompareAndSwap(g, (*group)(nil))
}

// close closes the connections. gRPC lets the calls on them finish.
func (g *group) close() {
	g.mu.Lock()
	g.closed = true
	all, forget := slices.Clone(g.all), g.forget
	g.mu.Unlock()
	g.forgotten()
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
	served  atomic.Int64 // the number of calls so far, if a limit needs it
	streams atomic.Int64 // how many concurrent streams the server allows; 0 for any number
	group   *group
	used    atomic.Bool           // since the last check whether the connection is idle
	secured atomic.Bool           // by our credentials
	only    bool                  // the only connection of the group when it was dialled
	dialled bool                  // by our dialer; synchronised by gRPC: set before the handshake
	failure atomic.Pointer[error] // why the connection could not be made

	// Guarded by group.mu, except that sub and born do not change once calls are given the connection.
	sub     balancer.SubConn
	born    time.Time
	state   connectivity.State
	extra   bool        // an additional connection
	retired bool        // takes no more calls
	over    bool        // removed from the group
	idle    *time.Timer // nil if the connection may be idle forever
}

// fail records why the connection cannot be made. Only the first reason counts.
func (c *conn) fail(err error) {
	c.failure.CompareAndSwap(nil, &err)
}

// changed is the state listener that gRPC calls. Its calls for a connection do not overlap.
func (c *conn) changed(s balancer.SubConnState) {
	switch s.ConnectivityState {
	case connectivity.Connecting:
		c.move(connectivity.Connecting, nil)
	case connectivity.Ready, connectivity.TransientFailure:
		err := s.ConnectionError // nil if it is ready
		if err == nil && s.ConnectivityState != connectivity.Ready {
			err = errors.New("no connection")
		}
		switch misused := c.misused(err); {
		case misused != nil:
			c.fail(misused)
			c.shutdown(nil)
		case err != nil:
			c.shutdown(connectError(c.group.link.Address(), err))
		default:
			c.begin()
		}
	case connectivity.Idle:
		// The connection was made, and lost, perhaps before it became ready. The next call makes a new one.
		c.shutdown(&lostError{connectError(c.group.link.Address(), errors.New("the connection was lost"))})
	}
}

// misused returns a refusal if other options of the ClientConn kept the connection from being made as the mesh makes it, which says nothing
// about the endpoint. err is what gRPC says of a connection that could not be made.
func (c *conn) misused(err error) error {
	switch {
	case !c.dialled:
		return errDialer
	case !c.secured.Load() && c.failure.Load() == nil: // our dialer and our credentials say why they fail
		return errCredentials
	case err != nil && strings.Contains(err.Error(), "cannot send secure credentials on an insecure connection"):
		return errInsecure
	}
	return nil
}

// move sets the state of the connection. also, if not nil, is called under the same lock, so that both changes become visible
// together.
func (c *conn) move(to connectivity.State, also func()) {
	g := c.group
	g.mu.Lock()
	if c.over {
		g.mu.Unlock()
		return
	}
	from := c.state
	c.state = to
	if also != nil {
		also()
	}
	g.publishLocked()
	g.mu.Unlock()
	g.owner.changed(from, to, false)
}

// begin makes the connection ready for calls.
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

// expire closes the connection if it was idle since the previous check, and otherwise schedules the next check.
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

// retire ensures that the connection gets no more calls. It is closed when its last call ends.
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

// release ends a call that pick has counted.
func (c *conn) release() {
	if c.Leave() {
		c.shutdown(nil)
	}
}

// shutdown closes the connection, once. err, if not nil, is the error of the calls that wait for it.
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
	_, lost := err.(*lostError)
	failed := err != nil && !lost && !c.extra
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

// connectError returns the error of a failed connection in the form by which the mesh recognises it.
func connectError(address string, err error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("%s: %w", address, err)}
}
