package metrics

import (
	"errors"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// conns has the open raw connections.
type conns struct {
	mu   sync.Mutex
	open map[*mesh.Conn]*conn
}

// conn is a connection, with the bytes that were already counted.
type conn struct {
	of             *watcher
	path           *path
	key            outcome
	side           *telemetry.Side
	sent, received int64 // as the server sees it
}

func (w *watcher) connStart(c *mesh.Conn) {
	if w.over.Load() || c.Local == nil { // the connection could not be made: connEnd counts it
		return
	}
	now := time.Now().Unix()
	n := w.newConn(c, now)
	if !n.count(n.key, [4]uint64{opened: 1}, now) {
		w.store.drop(c.Inbound)
	}
	w.conns.mu.Lock()
	defer w.conns.mu.Unlock()
	w.conns.open[c] = n
}

func (w *watcher) connEnd(c *mesh.Conn) {
	now := time.Now().Unix()
	if c.Local == nil {
		if !w.over.Load() {
			n := w.newConn(c, now)
			if !n.count(n.key|outcome(c.Flags), [4]uint64{opened: 1, closed: 1}, now) {
				w.store.drop(c.Inbound)
			}
		}
		return
	}
	w.conns.mu.Lock()
	defer w.conns.mu.Unlock()
	n := w.conns.open[c]
	if n == nil {
		return
	}
	delete(w.conns.open, c)
	key := n.key | outcome(c.Flags)
	n.update(c, key, now)
	n.count(key, [4]uint64{closed: 1}, now)
}

func (w *watcher) newConn(c *mesh.Conn, now int64) *conn {
	n := &conn{of: w, path: w.pathOfConn(c, now), key: kindTCP, side: overridden(c.Telemetry.Client())}
	if c.Inbound {
		n.side = overridden(c.Telemetry.Server())
	}
	if c.PeerID != "" {
		n.key |= isMTLS
	}
	return n
}

func (w *watcher) pathOfConn(c *mesh.Conn, now int64) *path {
	switch {
	case c.Inbound:
		return w.pathFrom(c.PeerID, nil, now)
	case c.Outside:
		return w.pathOutside(errors.Is(c.Err, mesh.ErrNotInMesh), now)
	case c.Endpoint == nil:
		return w.pathWithoutEndpoint(c.Target.Host, false, now)
	}
	return w.pathTo(c.Endpoint, c.Target.Host, false, c.PeerID, "", now)
}

// update counts the bytes that were sent and received since the previous update.
func (cs *conns) update(now int64) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c, n := range cs.open {
		n.update(c, n.key, now)
	}
}

func (n *conn) update(c *mesh.Conn, key outcome, now int64) {
	if n.path == nil || n.path.gone.Load() {
		n.path = n.of.pathOfConn(c, now)
	}
	sentBytes, receivedBytes := c.Bytes()
	if !c.Inbound {
		sentBytes, receivedBytes = receivedBytes, sentBytes // the names are the server's view
	}
	n.count(key, [4]uint64{sent: uint64(max(sentBytes-n.sent, 0)), received: uint64(max(receivedBytes-n.received, 0))}, now)
	n.sent, n.received = sentBytes, receivedBytes
}

// count adds to the counters. It is also called with zeros, to keep the series of an open connection from expiring. It reports false if
// there is no room for the series.
func (n *conn) count(key outcome, by [4]uint64, now int64) bool {
	if n.path == nil {
		return false
	}
	s := n.of.store.of(n.path, key, now)
	if s == nil {
		return false
	}
	n.of.store.bump(s, n.side, nil, by, now)
	return true
}
