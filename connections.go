package mesh

import (
	"context"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/policy/limit"
)

// connections are the connections to the endpoints of a target, within one pool.
type connections struct {
	pool     *limit.Pool
	template *http.Transport

	// multiplexed says that the endpoints speak HTTP/2, so that calls share connections.
	multiplexed atomic.Bool

	mu        sync.Mutex
	byAddress map[string]*endpointConns
}

// endpointConns are the connections to one endpoint. Two clusters that follow one another share them. They come about with
// the first call: most of ten thousand endpoints may never get one.
type endpointConns struct {
	owner   *connections
	address string
	refs    int // guarded by connections.mu

	opening sync.Once
	conns   atomic.Pointer[limit.Conns]
	err     error // why there are none
}

// RoundTrip implements http.RoundTripper.
func (e *endpointConns) RoundTrip(req *http.Request) (*http.Response, error) {
	e.opening.Do(func() {
		conns, err := e.owner.pool.Conns(dialling(e.owner.template, e.address))
		if e.err = err; err == nil {
			e.conns.Store(conns)
		}
	})
	if e.err != nil {
		body.CloseRequest(req)
		return nil, e.err
	}
	return e.conns.Load().RoundTrip(req)
}

func (e *endpointConns) closeIdle() {
	if conns := e.conns.Load(); conns != nil {
		conns.CloseIdleConnections()
	}
}

func newConnections(template *http.Transport, config limit.PoolConfig, upgrade bool) (*connections, error) {
	pool, err := limit.NewPool(config)
	if err != nil {
		return nil, err
	}
	template = template.Clone()
	template.Proxy = nil // an endpoint is dialled directly
	if upgrade {
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
	c := &connections{pool: pool, template: template, byAddress: make(map[string]*endpointConns)}
	c.multiplexed.Store(upgrade)
	return c, nil
}

// open returns the connections to the endpoint at address. The caller closes them.
func (c *connections) open(address string) *endpointConns {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byAddress[address]
	if e == nil {
		e = &endpointConns{owner: c, address: address}
		c.byAddress[address] = e
	}
	e.refs++
	return e
}

func (c *connections) close(e *endpointConns) {
	c.mu.Lock()
	e.refs--
	last := e.refs == 0
	if last {
		delete(c.byAddress, e.address)
	}
	c.mu.Unlock()
	if conns := e.conns.Load(); last && conns != nil {
		conns.Close()
	}
}

func (c *connections) closeIdle() {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.byAddress))
	c.mu.Unlock()
	for _, e := range all {
		e.closeIdle()
	}
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

// dialling returns a copy of template that dials address, whatever the URL says. Host header and TLS server name thus
// stay the service's, and the request stays the caller's.
func dialling(template *http.Transport, address string) *http.Transport {
	t := template.Clone()
	dial := t.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, network, address)
	}
	return t
}
