package engine

import (
	"crypto/tls"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
)

// connections are the connections to the endpoints of a target, within one pool.
type connections struct {
	pool        *limit.Pool
	template    *http.Transport
	origination *tlsid.Origination // nil unless a document asks for TLS with certificates that it names

	// multiplexed says that the endpoints speak HTTP/2, so that calls share connections.
	multiplexed atomic.Bool

	mu    sync.Mutex
	lanes map[laneKey]*lane
}

// laneKey tells apart what must not share connections: who is dialled, and who is expected there.
type laneKey struct {
	address  string
	security security
}

func newConnections(template *http.Transport, config clusterConfig) (*connections, error) {
	pool, err := limit.NewPool(config.Pool)
	if err != nil {
		return nil, err
	}
	var origination *tlsid.Origination
	if config.TLS.Mode == policy.TLSSimple || config.TLS.Mode == policy.TLSMutual {
		if origination, err = tlsid.NewOrigination(tlsid.OriginateConfig{
			ClientCertificate: config.TLS.ClientCertificate, PrivateKey: config.TLS.PrivateKey,
			CACertificates: config.TLS.CACertificates, SubjectAltNames: config.TLS.SubjectAltNames,
			ServerName: config.TLS.ServerName,
		}); err != nil {
			return nil, err
		}
	}
	template = template.Clone()
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
	c := &connections{pool: pool, template: template, origination: origination, lanes: make(map[laneKey]*lane)}
	c.multiplexed.Store(config.UpgradeHTTP2)
	return c, nil
}

// open returns the lane to the endpoint at address. The caller closes it.
func (c *connections) open(address string, s security, config *tls.Config) *lane {
	key := laneKey{address, s}
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.lanes[key]
	if l == nil {
		l = &lane{owner: c, key: key, config: config}
		l.link.Store(&Link{lane: l})
		c.lanes[key] = l
	}
	l.refs++
	return l
}

func (c *connections) close(l *lane) {
	c.mu.Lock()
	l.refs--
	last := l.refs == 0
	if last {
		delete(c.lanes, l.key)
	}
	c.mu.Unlock()
	if last {
		l.link.Swap(nil).retire()
	}
}

// each calls f for each lane.
func (c *connections) each(f func(*lane)) {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.lanes))
	c.mu.Unlock()
	for _, l := range all {
		f(l)
	}
}

func (c *connections) closeIdle() {
	c.each(func(l *lane) {
		if link := l.link.Load(); link != nil {
			link.closeIdle()
		}
	})
}

// rotate makes new calls use new connections wherever our identity was presented.
func (c *connections) rotate() {
	c.each(func(l *lane) {
		if l.key.security.kind == mutual {
			l.renew(l.link.Load())
		}
	})
}

// active returns the number of calls in flight.
func (c *connections) active() int64 {
	return int64(c.pool.Stats().Active)
}

func (c *connections) connectTimeout() time.Duration {
	if d := c.pool.Config().ConnectTimeout; d > 0 {
		return d
	}
	return 10 * time.Second
}

// lane is the way to one endpoint under one security. Two clusters that follow one another share it. Its link is replaced
// when certificates change.
type lane struct {
	owner  *connections
	key    laneKey
	config *tls.Config // nil for connections without TLS of ours
	refs   int         // guarded by connections.mu

	link atomic.Pointer[Link] // nil once the lane is closed
}

// enter counts a call in, over the link of now. It returns nil if the lane is closed.
func (l *lane) enter() *Link {
	for {
		link := l.link.Load()
		if link == nil {
			return nil
		}
		if at := link.expires.Load(); at != 0 && time.Now().UnixNano() >= at {
			l.renew(link) // a certificate is nearly over, and with it what one side knows of the other
			continue
		}
		if link.enter() {
			return link
		}
	}
}

// renew puts a new link in the place of old, unless that has happened already.
func (l *lane) renew(old *Link) {
	if old != nil && l.link.CompareAndSwap(old, &Link{lane: l}) {
		old.retire()
	}
}
