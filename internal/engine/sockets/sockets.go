// Package sockets has the connections of an engine: one set for each destination, each of its endpoints, and each way to
// secure the connections. A set is replaced when certificates change. This is where the engine meets net/http. An adapter
// sends requests over a set with [Connections.RoundTrip], or makes connections of its own protocol with [Connections.Dial]
// and [Connections.TLS].
package sockets

import (
	"crypto/tls"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/originate"
	"github.com/nosidecar/mesh/internal/smallmap"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
)

// Set holds the transport sockets to the endpoints of a target, within one pool.
type Set struct {
	Pool *limit.Pool

	// Multiplexed says that the endpoints speak HTTP/2, so that calls share connections.
	Multiplexed atomic.Bool

	from        *Template
	template    *http.Transport        // of from
	origination *originate.Origination // nil unless a document asks for TLS with certificates that it names

	Limits limit.PoolConfig // of Pool

	mu  sync.Mutex
	all smallmap.Map[string, *Socket] // by address, the first of those to the same one

	// Signals are used by one call after another, so they are not on a cache line with what calls only read.
	Signals deadline.Signals
}

// Security says how connections to an endpoint are secured. It is comparable: connections are shared only where it is equal.
type Security struct {
	Kind     Kind
	Expected tlsid.Expected // for Mutual: which IDs may answer
	Only     string         // the ID of Expected, if there is just one
}

// Kind is a way to secure connections.
type Kind uint8

const (
	Plaintext  Kind = iota // or whatever TLS the caller's URL asks for
	Mutual                 // mTLS with the identity of the mesh
	Originated             // TLS with what a DestinationRule names
)

// key separates endpoints that must not share connections: by the dialled address, and by the expected identity.
type key struct {
	address  string
	security Security
}

// Files opens the files that TLS settings of documents name: see [policy.Workload].
type Files struct{}

// Check implements what [policy.Workload] asks for.
func (Files) Check(t policy.TLS) error {
	_, err := originate.New(origination(&t))
	return err
}

func origination(t *policy.TLS) originate.Config {
	return originate.Config{
		ClientCertificate: t.ClientCertificate, PrivateKey: t.PrivateKey, CACertificates: t.CACertificates,
		SubjectAltNames: t.SubjectAltNames, ServerName: t.ServerName,
	}
}

// New returns the sockets of a target, with the settings of documents. before are the previous ones of the same target, or nil: what
// they have read from the files that the TLS settings name is kept, since a file may have disappeared.
func New(from *Template, config *policy.Cluster, before *Set) (*Set, error) {
	pool, err := limit.NewPool(config.Pool)
	if err != nil {
		return nil, err
	}
	var originated *originate.Origination
	if config.TLS.Mode == policy.TLSSimple || config.TLS.Mode == policy.TLSMutual {
		as := origination(&config.TLS)
		if before != nil {
			originated = before.origination.Renamed(as)
		}
		if originated == nil {
			if originated, err = originate.New(as); err != nil {
				return nil, err
			}
		}
	}
	template := from.direct(config.UpgradeHTTP2)
	// Whatever can be wrong with the template is wrong for every endpoint.
	probe, err := pool.Conns(template)
	if err != nil {
		return nil, err
	}
	probe.Close()
	c := &Set{Pool: pool, Limits: config.Pool, from: from, template: template, origination: originated}
	c.Multiplexed.Store(config.UpgradeHTTP2)
	return c, nil
}

// Open returns the socket to the endpoint at address. The caller closes it.
func (c *Set) Open(address string, under Security, config *tls.Config) *Socket {
	k := key{address, under}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.findLocked(k)
	if s == nil {
		s = &Socket{owner: c, key: k, config: config, next: c.all.Get(address)}
		s.current.Store(&Connections{socket: s})
		c.all.Set(address, s)
	}
	s.refs++
	return s
}

// Share is Open for a socket that is open already; it returns nil if none is.
func (c *Set) Share(address string, under Security) *Socket {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.findLocked(key{address, under})
	if s != nil {
		s.refs++
	}
	return s
}

// findLocked returns an open socket, or nil.
func (c *Set) findLocked(k key) *Socket {
	s := c.all.Get(k.address)
	for s != nil && s.key != k {
		s = s.next
	}
	return s
}

// removeLocked forgets an open socket.
func (c *Set) removeLocked(s *Socket) {
	first := c.all.Get(s.key.address)
	switch {
	case first != s:
		for first.next != s {
			first = first.next
		}
		first.next = s.next
	case s.next != nil:
		c.all.Set(s.key.address, s.next)
	default:
		c.all.Delete(s.key.address)
	}
}

// Close closes a socket that was opened, once for each Open and Share. A [Plaintext] one must have no attempts of its owner any more: they
// are not counted.
func (c *Set) Close(s *Socket) {
	c.mu.Lock()
	s.refs--
	last := s.refs == 0
	if last {
		c.removeLocked(s)
	}
	c.mu.Unlock()
	if last {
		s.current.Swap(nil).retire()
	}
}

// each calls f for each socket.
func (c *Set) each(f func(*Socket)) {
	c.mu.Lock()
	all := make([]*Socket, 0, c.all.Len())
	for _, s := range c.all.All() {
		for ; s != nil; s = s.next {
			all = append(all, s)
		}
	}
	c.mu.Unlock()
	for _, s := range all {
		f(s)
	}
}

// CloseIdle closes the connections that serve no call.
func (c *Set) CloseIdle() {
	c.each(func(s *Socket) {
		if current := s.current.Load(); current != nil {
			current.closeIdle()
		}
	})
}

// Rotate makes new calls use new connections wherever our identity is presented.
func (c *Set) Rotate() {
	c.each(func(s *Socket) {
		if s.key.security.Kind == Mutual {
			s.renew(s.current.Load())
		}
	})
}

// Originate returns the configuration for TLS to a host with the certificates that a document names.
func (c *Set) Originate(host string) *tls.Config { return c.origination.TLS(host) }

// Active returns the number of calls in flight.
func (c *Set) Active() int64 {
	return int64(c.Pool.Stats().Active)
}

// ConnectTimeout returns how long a connection may take.
func (c *Set) ConnectTimeout() time.Duration {
	if d := c.Limits.ConnectTimeout; d > 0 {
		return d
	}
	return 10 * time.Second
}

// Socket is the way to one endpoint under one Security: what Envoy calls a transport socket. A cluster and its successor
// share it. Its connections are replaced when certificates change.
type Socket struct {
	current atomic.Pointer[Connections] // nil once the socket is closed
	owner   *Set
	config  *tls.Config // nil for connections without TLS of ours
	key     key

	// Guarded by Set.mu.
	refs int
	next *Socket // to the same address
}

// Enter counts an attempt in at the time now, on the current connections. It returns nil if the socket is closed.
func (s *Socket) Enter(now time.Time) *Connections {
	if s.key.security.Kind == Plaintext {
		return s.current.Load() // for good: without certificates, there is no reason to replace them
	}
	for {
		current := s.current.Load()
		if current == nil {
			return nil
		}
		if at := current.expires.Load(); at != 0 && now.UnixNano() >= at {
			s.renew(current) // a certificate is about to expire
			continue
		}
		if current.enter() {
			return current
		}
	}
}

// renew replaces the connections old, unless that has already been done.
func (s *Socket) renew(old *Connections) {
	if old != nil && s.current.CompareAndSwap(old, &Connections{socket: s}) {
		old.retire()
	}
}
