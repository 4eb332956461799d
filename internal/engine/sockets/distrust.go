package sockets

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

// wires are the connections with TLS of ours.
type wires struct {
	open    map[*wire]struct{}
	dialled uint64  // how many there have been
	proofs  []proof // of those that may be open
}

// proof is the certificates of a handshake. crypto/tls does not say over which connection it was made, but it was one of those that had been
// dialled by then.
type proof struct {
	certificates []*x509.Certificate
	last         uint64 // the number of the last connection that it can belong to
}

func (p *proof) is(certificates []*x509.Certificate) bool {
	return slices.EqualFunc(p.certificates, certificates, (*x509.Certificate).Equal)
}

// wired returns conn as one of c.
func (c *Connections) wired(conn net.Conn) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wires == nil {
		c.wires = &wires{open: make(map[*wire]struct{})}
	}
	c.wires.dialled++
	w := &wire{Conn: conn, owner: c, nth: c.wires.dialled}
	c.wires.open[w] = struct{}{}
	return w
}

func (c *Connections) forget(w *wire) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.wires.open, w)
}

// remember notes the certificates of a handshake, which are valid.
func (c *Connections) remember(certificates []*x509.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.wires
	if all == nil {
		return // over a connection of another origin
	}
	oldest := all.dialled
	for w := range all.open {
		oldest = min(oldest, w.nth)
	}
	all.proofs = slices.DeleteFunc(all.proofs, func(p proof) bool { return p.last < oldest || p.is(certificates) })
	all.proofs = append(all.proofs, proof{certificates, all.dialled})
}

// OnDistrust has f called when the bundles no longer vouch for the endpoint of conn, which [Connections.Connect] returned. f closes it.
func (c *Connections) OnDistrust(conn net.Conn, f func(why error)) {
	w := wireOf(conn)
	if w == nil {
		return
	}
	c.mu.Lock()
	w.onDistrust = f
	c.mu.Unlock()
	if why := w.distrust.Load(); why != nil {
		f(*why)
	}
}

// distrusted returns the connections whose endpoints identity does not vouch for, and why. That a certificate has expired is no reason:
// endpoints of a mesh end such connections, and sidecars let calls finish.
func (c *Connections) distrusted(identity *tlsid.Identity) (cut []*wire, why error) {
	c.mu.Lock()
	all := c.wires
	if all == nil {
		c.mu.Unlock()
		return nil, nil
	}
	proofs := slices.Clone(all.proofs)
	c.mu.Unlock()
	var last uint64
	for _, p := range proofs {
		at := time.Now()
		if expired := p.certificates[0].NotAfter; at.After(expired) {
			at = expired
		}
		_, err := identity.Verify(&tls.ConnectionState{PeerCertificates: p.certificates}, at)
		if refused, ok := errors.AsType[*tlsid.PeerError](err); ok && p.last > last {
			last, why = p.last, fmt.Errorf("the endpoint is not trusted any more: %w", refused)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range all.open {
		if w.nth <= last {
			cut = append(cut, w)
		}
	}
	return cut, why
}

// mutual is the Connections with mTLS that may have connections, including those that take no new attempts.
type mutual struct {
	mu  sync.Mutex
	all map[*Connections]struct{}
}

func (m *mutual) add(c *Connections) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all == nil {
		m.all = make(map[*Connections]struct{})
	}
	m.all[c] = struct{}{}
}

func (m *mutual) remove(c *Connections) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all, c)
}

// Recheck cuts off the connections to endpoints that the bundles of identity, which is in force now, do not vouch for, with the calls on them.
func (t *Template) Recheck(identity *tlsid.Identity) {
	t.mutual.mu.Lock()
	all := slices.Collect(maps.Keys(t.mutual.all))
	t.mutual.mu.Unlock()
	var cutting sync.WaitGroup // concurrently: observers of a connection may take their time
	for _, c := range all {
		cut, why := c.distrusted(identity)
		for _, w := range cut {
			cutting.Go(func() { w.cut(why) })
		}
	}
	cutting.Wait()
}
