package engine

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine/sockets"
)

// endpoint is what a cluster attaches to a host of its balancer. Its sockets are opened by the first call that needs them:
// most of ten thousand endpoints may never get one.
type endpoint struct {
	cluster *cluster
	host    *balancer.Host
	tracker *breaker.Tracker               // nil if outlier detection ejects no endpoints; see also accruals
	plain   atomic.Pointer[sockets.Socket] // without TLS, or with the TLS that the caller's URL asks for
	secured atomic.Pointer[secured]

	described *discovery.Endpoint // by the latest update; guarded by cluster.updating
}

// secured is the socket of an endpoint for its security. It is replaced when discovery describes the endpoint differently.
// Endpoints with plaintext share one.
type secured struct {
	sockets.Security
	err    error                          // why the endpoint cannot be called
	socket atomic.Pointer[sockets.Socket] // never for plaintext

	// always says that a document asked for it, so that it also applies to calls whose URL asks for TLS. Auto-mTLS leaves
	// those to their caller: it replaces plaintext only.
	always bool
}

var plaintext sockets.Security

// closed takes the place of a socket, so that no call opens another.
var closed = new(sockets.Socket)

// replaces reports whether the endpoint takes the place of another with the same ID, which may be nil, in what outlives clusters. While a cluster that
// was replaced has calls left, it may be told of an endpoint after its successor.
func (e *endpoint) replaces(other *endpoint) bool {
	return other == nil || other.cluster.generation <= e.cluster.generation
}

// describe secures the endpoint as discovery describes it now.
func (c *cluster) describe(h *balancer.Host, e *endpoint) {
	security, err := c.secure(h.Endpoint())
	old := e.secured.Load()
	if old != nil && old.Security == security && sameText(old.err, err) {
		return
	}
	s := &c.plaintext
	if security != (sockets.Security{}) || err != nil {
		s = &secured{Security: security, err: err, always: c.plaintext.always}
	}
	if s.Kind != sockets.Plaintext {
		s.socket.Store(c.sockets.Share(h.ID(), s.Security))
	}
	e.secured.Store(s)
	if old != nil {
		c.closeSocket(old)
	}
}

// open opens the socket in a place of the endpoint, if there is none yet, and returns it.
func (e *endpoint) open(place *atomic.Pointer[sockets.Socket], security sockets.Security) *sockets.Socket {
	c := e.cluster
	if s := c.sockets.Open(e.host.ID(), security, c.tlsConfig(security)); !place.CompareAndSwap(nil, s) {
		c.sockets.Close(s) // another call was first, or the endpoint is closed
	}
	return place.Load()
}

var errRemoved = errors.New("the endpoint was removed meanwhile")

func sameText(a, b error) bool {
	return a == b || a != nil && b != nil && a.Error() == b.Error()
}

// enter counts an attempt in at the time now, and returns the connections that it uses. ownTLS says that the caller's URL asks for TLS.
func (e *endpoint) enter(engine *Engine, now time.Time, ownTLS bool) (*sockets.Connections, error) {
	for {
		s := e.secured.Load()
		place, security := &e.plain, &plaintext
		if !ownTLS || s.always {
			if s.err != nil {
				return nil, s.err
			}
			if s.Kind == sockets.Mutual {
				// Open connections would keep working with an identity that has expired.
				if err := engine.identified(now); err != nil {
					return nil, err
				}
			}
			if s.Kind != sockets.Plaintext {
				place, security = &s.socket, &s.Security
			}
		}
		socket := place.Load()
		if socket == nil {
			socket = e.open(place, *security)
		}
		if current := socket.Enter(now); current != nil {
			return current, nil
		}
		if e.secured.Load() == s {
			return nil, errRemoved
		}
	}
}

// close closes the sockets of an endpoint that has no attempts.
func (e *endpoint) close() {
	closeSocket(e.cluster.sockets, &e.plain)
	e.cluster.closeSocket(e.secured.Load())
}

// closeSocket closes the socket of a security that the endpoint no longer has.
func (c *cluster) closeSocket(s *secured) {
	if s.Kind != sockets.Plaintext {
		closeSocket(c.sockets, &s.socket)
	}
}

func closeSocket(set *sockets.Set, place *atomic.Pointer[sockets.Socket]) {
	if s := place.Swap(closed); s != nil && s != closed {
		set.Close(s)
	}
}
