package limit

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/transports"
)

const (
	// idlePerEndpoint is the number of idle connections that are kept per endpoint. With net/http's default of 2, every burst of
	// calls dials again. A number larger than any burst keeps the pool as large as the peak of calls in flight, as in Envoy.
	idlePerEndpoint = 4096

	// idleAnywhere is the number of idle connections that are kept for all hosts together, if there may be any number of hosts.
	// http.DefaultTransport has the same value.
	idleAnywhere = 100

	// An HTTP/2 connection notices a vanished peer only through a ping.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

// Conns has the connections of a [Pool] to one endpoint. It is an http.RoundTripper that uses a clone of a template, with the
// settings of the pool. It is safe for concurrent use.
type Conns struct {
	pool      *Pool
	transport *http.Transport
	http      *clientConns // nil if net/http has the connections in the pool of transport
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)

	// The rest is guarded by pool.links.mu.

	open   int                // connections that are open or being opened
	live   map[*conn]struct{} // connections that are open
	closed bool
}

// Conns returns a new set of connections. They have the settings of the pool, and count against its MaxConnections. The caller
// closes it. Calls that find no connection with room for them wait, first come, first served. As many connections are made as they
// need, and calls over HTTP/2 share one, or its failure.
//
// The template is cloned. The clone keeps the TLS configuration, the proxy and the dialer, but wraps the dialer to apply
// ConnectTimeout, Keepalive and MaxConnections. It uses HTTP/2 if the endpoint does, unless template.Protocols or
// template.TLSNextProto say otherwise; setting a TLSClientConfig or a dialer does not turn HTTP/2 off. It pings HTTP/2 peers that
// fall silent, and keeps as many idle connections as there were calls in flight, unless the template has its own settings. A proxy
// has a minute to connect to the endpoint, on top of ConnectTimeout.
//
// A nil *Pool applies the defaults of [PoolConfig], and may be used for connections to any host. At most template.MaxIdleConns
// connections are then kept idle; 0 means 100.
//
// It is an error if the template dials TLS itself, because then neither timeouts nor limits can be enforced, or if it sets
// MaxConnsPerHost, which MaxConnections replaces.
func (p *Pool) Conns(template *http.Transport) (*Conns, error) {
	switch {
	//lint:ignore SA1019 DialTLS is deprecated, but still honoured by net/http
	case template.DialTLSContext != nil || template.DialTLS != nil:
		return nil, errors.New("limit: the template transport has a DialTLS function; set TLSClientConfig and DialContext")
	case template.MaxConnsPerHost != 0:
		// With HTTP/2, it makes calls wait although they could share a connection.
		return nil, errors.New("limit: the template transport sets MaxConnsPerHost; set PoolConfig.MaxConnections")
	}
	t, anywhere := transports.Clone(template), p == nil
	if anywhere {
		p = &Pool{}
		t.MaxIdleConns = cmp.Or(t.MaxIdleConns, idleAnywhere)
	} else {
		t.MaxIdleConns = 0 // the template's limit is for all hosts, not for one endpoint
	}
	c := &Conns{
		pool:      p,
		transport: t,
		dial:      transports.Dial(t),
		live:      make(map[*conn]struct{}),
	}
	t.DialContext = c.dialContext // takes precedence over Dial, if that is set
	p.config.apply(t)
	if !anywhere && len(t.TLSNextProto) == 0 {
		t.IdleConnTimeout = 0 // clientConns closes idle connections
		c.http = newClientConns(c)
	}

	p.links.mu.Lock()
	p.links.conns = append(p.links.conns, c)
	p.links.mu.Unlock()
	return c, nil
}

// apply copies those settings that a transport has too.
func (c *PoolConfig) apply(t *http.Transport) {
	t.TLSHandshakeTimeout = cmp.Or(c.ConnectTimeout, t.TLSHandshakeTimeout, defaultConnectTimeout)
	t.IdleConnTimeout = max(0, cmp.Or(c.IdleTimeout, defaultIdleTimeout))
	t.MaxIdleConnsPerHost = cmp.Or(t.MaxIdleConnsPerHost, idlePerEndpoint)
	if c.MaxRequestsPerConnection == 1 {
		t.DisableKeepAlives = true
	}
	t.ForceAttemptHTTP2 = true
	if t.HTTP2 == nil {
		t.HTTP2 = &http.HTTP2Config{}
	}
	t.HTTP2.SendPingTimeout = cmp.Or(t.HTTP2.SendPingTimeout, pingAfter)
	t.HTTP2.PingTimeout = cmp.Or(t.HTTP2.PingTimeout, pingTimeout)
}

// RoundTrip implements http.RoundTripper. It does not take a slot of the pool; see [Pool.Acquire].
func (c *Conns) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.send(req)
	if resp != nil {
		resp.Request = req // it may be that of a copy
	}
	return resp, err
}

func (c *Conns) send(req *http.Request) (*http.Response, error) {
	if c.http != nil && sendable(req) {
		return c.http.roundTrip(req)
	}
	if req.GetBody == nil || !caller.ToWatch(req) {
		return c.transport.RoundTrip(req)
	}
	// Over HTTP/2, net/http loses a body that it got from GetBody if it then has no connection for it.
	out, b := hold(req)
	resp, err := c.transport.RoundTrip(out)
	b.release(err)
	return resp, err
}

// sendable reports whether a request says where to send it. net/http refuses others.
func sendable(req *http.Request) bool {
	return req.URL != nil && (req.URL.Scheme == "http" || req.URL.Scheme == "https") && req.URL.Host != "" && req.Header != nil
}

// Dial makes a connection for a protocol other than HTTP, with the dialer of the template. The connection counts against
// MaxConnections until it is closed. Dial takes no slot of the pool. If there is no room, the error is [ErrOverflow].
func (c *Conns) Dial(ctx context.Context) (net.Conn, error) {
	nc, err := c.connect(ctx, "tcp", "", false)
	if errors.Is(err, ErrOverflow) {
		c.pool.overflows.Add(1)
	}
	return nc, err
}

// DialFirst is [Conns.Dial] for a caller that has no connection to the endpoint and cannot share those of other callers. It may
// exceed MaxConnections.
func (c *Conns) DialFirst(ctx context.Context) (net.Conn, error) {
	return c.connect(ctx, "tcp", "", true)
}

// CloseIdleConnections closes the connections that carry no call.
func (c *Conns) CloseIdleConnections() {
	c.transport.CloseIdleConnections()
	if c.http != nil {
		c.http.closeIdle()
	}
}

// Open returns the number of connections that are open or being opened.
func (c *Conns) Open() int {
	c.pool.links.mu.Lock()
	defer c.pool.links.mu.Unlock()
	return c.open
}

// Close closes all connections. Calls in flight fail, so wait for them to end first. It may be called more than once.
func (c *Conns) Close() {
	l := &c.pool.links
	l.mu.Lock()
	c.closed = true
	l.conns = slices.DeleteFunc(l.conns, func(other *Conns) bool { return other == c })
	live := slices.Collect(maps.Keys(c.live))
	l.mu.Unlock()
	c.CloseIdleConnections()
	if c.http != nil {
		c.http.close()
	}
	// An HTTP/2 connection becomes idle a little after its last call has ended, and nothing would close it later.
	for _, nc := range live {
		nc.Close()
	}
}
