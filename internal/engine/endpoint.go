package engine

import (
	"errors"
	"sync/atomic"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// endpoint is what a cluster attaches to a host of its balancer.
type endpoint struct {
	cluster *cluster
	tracker *breaker.Tracker // nil if endpoints are never ejected
	plain   *sockets.Socket  // without TLS, or with the TLS that the caller's URL asks for
	secured atomic.Pointer[secured]

	described *discovery.Endpoint // how the latest update did; guarded by cluster.updating
}

// secured is the socket of an endpoint for its security. It is replaced when discovery describes the endpoint differently.
type secured struct {
	sockets.Security
	err    error           // why the endpoint cannot be called
	socket *sockets.Socket // nil for plaintext

	// always says that a document asked for it, so that it also applies to calls whose URL asks for TLS. Auto-mTLS leaves
	// those to their caller: it replaces plaintext only.
	always bool
}

// describe secures the endpoint as discovery describes it now.
func (c *cluster) describe(h *balancer.Host, e *endpoint) {
	security, err := c.secure(h.Endpoint())
	old := e.secured.Load()
	if old != nil && old.Security == security && sameText(old.err, err) {
		return
	}
	mode := c.config.TLS.Mode
	s := &secured{Security: security, err: err, always: mode != policy.TLSAuto && mode != policy.TLSDisable}
	if s.Kind != sockets.Plaintext {
		s.socket = c.sockets.Open(h.ID(), s.Security, c.tlsConfig(s.Security))
	}
	e.secured.Store(s)
	if old != nil && old.socket != nil {
		c.sockets.Close(old.socket)
	}
}

var errRemoved = errors.New("the endpoint was removed meanwhile")

func sameText(a, b error) bool {
	return a == b || a != nil && b != nil && a.Error() == b.Error()
}

// enter counts an attempt in, and returns the connections that it uses. ownTLS says that the caller's URL asks for TLS.
func (e *endpoint) enter(identity *tlsid.Keeper, ownTLS bool) (*sockets.Connections, error) {
	for {
		s, way := e.secured.Load(), e.plain
		if !ownTLS || s.always {
			if s.err != nil {
				return nil, s.err
			}
			if s.Kind == sockets.Mutual {
				// Open connections would keep working with an identity that has expired.
				if _, err := identity.Identity(); err != nil {
					return nil, err
				}
			}
			if s.socket != nil {
				way = s.socket
			}
		}
		if current := way.Enter(); current != nil {
			return current, nil
		}
		if e.secured.Load() == s {
			return nil, errRemoved
		}
	}
}

// close closes the sockets of an endpoint that has no attempts.
func (e *endpoint) close(c *sockets.Set) {
	c.Close(e.plain)
	if s := e.secured.Load(); s.socket != nil {
		c.Close(s.socket)
	}
}
