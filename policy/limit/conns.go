package limit

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"time"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/field"
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
	shared    *multiplexed // the HTTP/2 connections; nil if there are none
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	http1     *http1Conns // the HTTP/1 connections; nil if net/http has them
	counts    bool        // every call must be counted on its connection

	// The rest is guarded by pool.links.mu.

	open   int                // connections that are open or being opened
	live   map[*conn]struct{} // connections that are open
	closed bool
}

// Conns returns a new set of connections. They have the settings of the pool, and count against its MaxConnections. The caller
// closes it. Calls over HTTP/2 that find no connection with room for them share the one that the first of them opens, or its failure.
//
// The template is cloned. The clone keeps the TLS configuration, the proxy and the dialer, but wraps the dialer to apply
// ConnectTimeout, Keepalive and MaxConnections. It uses HTTP/2 if the endpoint does, unless template.Protocols or
// template.TLSNextProto say otherwise; setting a TLSClientConfig or a dialer does not turn HTTP/2 off. It pings HTTP/2 peers that
// fall silent, and keeps as many idle connections as there were calls in flight, unless the template has its own settings.
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
		counts:    p.config.MaxRequestsPerConnection > 1 || p.config.MaxConnectionDuration > 0,
		live:      make(map[*conn]struct{}),
	}
	t.DialContext = c.dialContext // takes precedence over Dial, if that is set
	p.config.apply(t)
	if t.Proxy == nil && !anywhere {
		c.http1 = newHTTP1Conns(c, template)
	}
	c.shared = c.share(t)

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
	sent := req
	if c.counts {
		call := &countedCall{conns: c}
		call.trace.GotConn = call.gotConn
		// The call may turn out to be the last one on its connection. Then its header must say so, so it needs a copy.
		sent = req.WithContext(httptrace.WithClientTrace(req.Context(), &call.trace))
		sent.Header = maps.Clone(req.Header)
		call.req = sent
	}
	resp, err := c.send(sent)
	if resp != nil {
		resp.Request = req // over HTTP/2, net/http sets a copy if the request has a body
	}
	return resp, err
}

// send sends a call over an open HTTP/2 connection if there is one, and otherwise through net/http's transport.
func (c *Conns) send(req *http.Request) (*http.Response, error) {
	m := c.shared
	switch {
	case m == nil || req.URL == nil || !simple(req):
		return c.through(req)
	case c.pool.config.MaxConnections == 0:
		return m.share(req)
	case !m.known(req):
		return c.through(req)
	case !m.line.busy():
		resp, next, err := m.roundTrip(req)
		if next == nil {
			return resp, err
		}
		req = next
	}
	if m.known(req) {
		return m.await(req)
	}
	resp, err := c.through(req)
	m.answered(req, resp)
	return resp, err
}

// through sends a call over a connection of http1Conns, or else with net/http's transport. Over HTTP/2, that loses a body that it got from GetBody if it then has no connection for it.
func (c *Conns) through(req *http.Request) (*http.Response, error) {
	if c.overHTTP1(req) {
		return c.http1.roundTrip(req)
	}
	if req.GetBody == nil || !caller.ToWatch(req) {
		return c.transport.RoundTrip(req)
	}
	out, b := hold(req)
	resp, err := c.transport.RoundTrip(out)
	b.release(err)
	return resp, err
}

// overHTTP1 reports whether a call has a connection of http1Conns.
func (c *Conns) overHTTP1(req *http.Request) bool {
	return c.http1 != nil && req.URL != nil && req.URL.Scheme == "http" && req.URL.Host != "" && req.Header != nil &&
		(c.shared == nil || !c.shared.known(req))
}

// simple reports whether a request can skip net/http's transport: it has nothing that only the transport would check or choose.
func simple(req *http.Request) bool {
	return req.Header != nil && len(req.Trailer) == 0 && (req.Method == "" || field.IsToken(req.Method)) &&
		len(req.Header["Upgrade"]) == 0 // HTTP/1 only
}

// Dial makes a connection for a protocol other than HTTP, with the dialer of the template. The connection counts against
// MaxConnections until it is closed. Dial takes no slot of the pool. If there is no room, the error is [ErrOverflow].
func (c *Conns) Dial(ctx context.Context) (net.Conn, error) {
	return c.connect(ctx, "tcp", "", false)
}

// DialFirst is [Conns.Dial] for a caller that has no connection to the endpoint and cannot share those of other callers. It may
// exceed MaxConnections.
func (c *Conns) DialFirst(ctx context.Context) (net.Conn, error) {
	return c.connect(ctx, "tcp", "", true)
}

// CloseIdleConnections closes the connections that carry no call.
func (c *Conns) CloseIdleConnections() {
	c.transport.CloseIdleConnections()
	if c.http1 != nil {
		c.http1.closeIdle()
	}
	if c.shared != nil {
		c.shared.closeIdle()
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
	if c.http1 != nil {
		c.http1.close()
	}
	if c.shared != nil {
		c.shared.close()
	}
	// An HTTP/2 connection becomes idle a little after its last call has ended, and nothing would close it later.
	for _, nc := range live {
		nc.Close()
	}
}
