package engine

import (
	"crypto/tls"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/httpclone"
	"github.com/nosidecar/mesh/internal/originate"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
)

// sockets are the transport sockets to the endpoints of a target, within one pool.
type sockets struct {
	pool        *limit.Pool
	limits      limit.PoolConfig // of pool
	template    *http.Transport
	origination *originate.Origination // nil unless a document asks for TLS with certificates that it names

	// multiplexed says that the endpoints speak HTTP/2, so that calls share connections.
	multiplexed atomic.Bool

	mu  sync.Mutex
	all map[socketKey]*socket
}

// socketKey tells apart what must not share connections: who is dialled, and who is expected there.
type socketKey struct {
	address  string
	security security
}

func newSockets(template *http.Transport, config clusterConfig) (*sockets, error) {
	pool, err := limit.NewPool(config.Pool)
	if err != nil {
		return nil, err
	}
	var origination *originate.Origination
	if config.TLS.Mode == policy.TLSSimple || config.TLS.Mode == policy.TLSMutual {
		if origination, err = originate.New(originate.Config{
			ClientCertificate: config.TLS.ClientCertificate, PrivateKey: config.TLS.PrivateKey,
			CACertificates: config.TLS.CACertificates, SubjectAltNames: config.TLS.SubjectAltNames,
			ServerName: config.TLS.ServerName,
		}); err != nil {
			return nil, err
		}
	}
	template = httpclone.Transport(template)
	template.Proxy = nil // an endpoint is dialled directly
	if config.UpgradeHTTP2 {
		template.Protocols = new(http.Protocols)
		template.Protocols.SetHTTP2(true)
		template.Protocols.SetUnencryptedHTTP2(true)
	}
	// Whatever can be wrong with the template is so for every endpoint.
	probe, err := pool.Conns(template)
	if err != nil {
		return nil, err
	}
	probe.Close()
	c := &sockets{pool: pool, limits: config.Pool, template: template, origination: origination, all: make(map[socketKey]*socket)}
	c.multiplexed.Store(config.UpgradeHTTP2)
	return c, nil
}

// open returns the socket to the endpoint at address. The caller closes it.
func (c *sockets) open(address string, under security, config *tls.Config) *socket {
	key := socketKey{address, under}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.all[key]
	if s == nil {
		s = &socket{owner: c, key: key, config: config}
		s.current.Store(&Connections{socket: s})
		c.all[key] = s
	}
	s.refs++
	return s
}

func (c *sockets) close(s *socket) {
	c.mu.Lock()
	s.refs--
	last := s.refs == 0
	if last {
		delete(c.all, s.key)
	}
	c.mu.Unlock()
	if last {
		s.current.Swap(nil).retire()
	}
}

// each calls f for each socket.
func (c *sockets) each(f func(*socket)) {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.all))
	c.mu.Unlock()
	for _, s := range all {
		f(s)
	}
}

func (c *sockets) closeIdle() {
	c.each(func(s *socket) {
		if current := s.current.Load(); current != nil {
			current.closeIdle()
		}
	})
}

// rotate makes new calls use new connections wherever our identity was presented.
func (c *sockets) rotate() {
	c.each(func(s *socket) {
		if s.key.security.kind == mutual {
			s.renew(s.current.Load())
		}
	})
}

// active returns the number of calls in flight.
func (c *sockets) active() int64 {
	return int64(c.pool.Stats().Active)
}

func (c *sockets) connectTimeout() time.Duration {
	if d := c.limits.ConnectTimeout; d > 0 {
		return d
	}
	return 10 * time.Second
}

// socket is the way to one endpoint under one security: what Envoy calls a transport socket. Two clusters that follow one
// another share it. Its connections are replaced when certificates change.
type socket struct {
	owner  *sockets
	key    socketKey
	config *tls.Config // nil for connections without TLS of ours
	refs   int         // guarded by sockets.mu

	current atomic.Pointer[Connections] // nil once the socket is closed
}

// enter counts an attempt in, on the connections of now. It returns nil if the socket is closed.
func (s *socket) enter() *Connections {
	for {
		current := s.current.Load()
		if current == nil {
			return nil
		}
		if at := current.expires.Load(); at != 0 && time.Now().UnixNano() >= at {
			s.renew(current) // a certificate is nearly over, and with it what one side knows of the other
			continue
		}
		if current.enter() {
			return current
		}
	}
}

// renew puts new connections in the place of old ones, unless that has happened already.
func (s *socket) renew(old *Connections) {
	if old != nil && s.current.CompareAndSwap(old, &Connections{socket: s}) {
		old.retire()
	}
}
