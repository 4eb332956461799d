package limit

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// roomCheck is how often a dial that waits for room looks for idle connections. No event tells when a connection becomes idle.
const roomCheck = 20 * time.Millisecond

// links has the open connections of a pool to all its endpoints.
type links struct {
	mu    sync.Mutex
	open  int
	conns []*Conns
	next  int           // where in conns to start closing idle connections to make room
	room  chan struct{} // closed when a connection closes; nil if no dial is waiting
}

func (l *links) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// wakeLocked makes waiting dials look for room again.
func (l *links) wakeLocked() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// reserve counts one connection. At MaxConnections it closes idle connections to other endpoints or for other origins, and then waits
// until a connection is closed. It does not wait if this would be the only connection to the endpoint, or if first is set. The call
// that needs the connection has a slot. So, unless an HTTP/2 connection is out of streams, some other connection is just being
// released.
func (c *Conns) reserve(ctx context.Context, first bool) error {
	if _, ok := c.take(false, false); ok {
		return nil
	}
	timer := time.NewTimer(roomCheck)
	defer timer.Stop()
	for {
		d, ok := ctx.Value(diallingKey{}).(*dialling)
		if ok && !c.http.needed(d.origin) {
			return errNotNeeded
		}
		c.evict(d)
		room, ok := c.take(true, first)
		if ok {
			return nil
		}
		select {
		case <-room:
		case <-timer.C:
			timer.Reset(roomCheck)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrOverflow, context.Cause(ctx))
		}
	}
}

// take counts one connection if there is room, if only is set and the endpoint has no connection, or if first is set. Otherwise it
// returns a channel that is closed when the next connection closes.
func (c *Conns) take(only, first bool) (<-chan struct{}, bool) {
	limit := c.pool.config.MaxConnections
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	if limit == 0 || l.open < limit || only && c.open == 0 || first {
		l.open++
		c.open++
		return nil, true
	}
	if l.room == nil {
		l.room = make(chan struct{})
	}
	return l.room, false
}

// evict closes idle connections to other endpoints, one endpoint at a time, until there is room. Of those to the same endpoint it
// closes the ones for other origins than that of the dial, if d is not nil.
func (c *Conns) evict(d *dialling) {
	l := &c.pool.links
	l.mu.Lock()
	conns := slices.Clone(l.conns)
	next := l.next
	l.next++
	l.mu.Unlock()
	for i := range conns {
		if l.count() < c.pool.config.MaxConnections {
			return
		}
		switch other := conns[(next+i)%len(conns)]; {
		case other != c:
			other.CloseIdleConnections()
		case d != nil:
			c.http.closeOthers(d.origin)
		}
	}
}

func (c *Conns) remove(nc *conn) {
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(c.live, nc)
	c.unreserveLocked()
}

func (c *Conns) unreserve() {
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	c.unreserveLocked()
}

func (c *Conns) unreserveLocked() {
	l := &c.pool.links
	l.open--
	c.open--
	l.wakeLocked()
}
