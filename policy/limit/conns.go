package limit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/httpclone"
)

const (
	// idlePerEndpoint is how many idle connections to an endpoint are kept. net/http's own 2 makes every burst of calls
	// dial anew; a number beyond any burst keeps the pool as large as the calls in flight made it, as Envoy's is.
	idlePerEndpoint = 4096

	// idleAnywhere is how many idle connections are kept over all hosts, where there may be any number of these. It is that of
	// http.DefaultTransport.
	idleAnywhere = 100

	// A peer that vanished is noticed by an HTTP/2 connection only through a ping.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second

	// roomCheck is how often a dial that waits for room looks for idle connections, which come up without notice.
	roomCheck = 20 * time.Millisecond
)

// links are the open connections of a pool, over all its endpoints.
type links struct {
	mu    sync.Mutex
	open  int
	conns []*Conns
	next  int           // where in conns to begin when idle connections must make room
	room  chan struct{} // closed when a connection closes; nil if no dial waits
}

func (l *links) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// wake has those that wait for room look again.
func (l *links) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeLocked()
}

func (l *links) wakeLocked() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// Conns is the connections of a [Pool] to one endpoint: an http.RoundTripper over a clone of a template, to which the
// pool's settings were applied. It is safe for concurrent use.
type Conns struct {
	pool      *Pool
	transport *http.Transport
	shared    *multiplexed // its HTTP/2 connections; nil if it makes none
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	counts    bool // every call must be counted on its connection

	// The rest is guarded by pool.links.mu.

	open   int                // connections open or being opened
	live   map[*conn]struct{} // those that are open
	closed bool
}

// Conns returns a new set of connections, to which the pool's settings apply and which count against its
// MaxConnections. The caller closes it.
//
// The template is cloned, and keeps its TLS configuration, proxy and dialer, inside a dial function that applies
// ConnectTimeout, Keepalive and MaxConnections. The clone speaks HTTP/2 where the endpoint does, unless
// template.Protocols or template.TLSNextProto say otherwise: that a TLSClientConfig or a dialer is set does not turn it
// off. It pings HTTP/2 peers that fall silent and keeps as many idle connections as there were calls at once, unless the
// template has settings of its own.
//
// A nil *Pool applies the defaults of [PoolConfig], and is for connections to any host: of these no more than
// template.MaxIdleConns are kept idle, of which 0 means 100.
//
// It is an error if the template dials TLS itself, since then neither timeouts nor limits can be enforced, or if it sets
// MaxConnsPerHost, which MaxConnections replaces.
func (p *Pool) Conns(template *http.Transport) (*Conns, error) {
	switch {
	//lint:ignore SA1019 DialTLS is deprecated, but still honoured by net/http
	case template.DialTLSContext != nil || template.DialTLS != nil:
		return nil, errors.New("limit: the template transport has a DialTLS function; set TLSClientConfig and DialContext")
	case template.MaxConnsPerHost != 0:
		// With HTTP/2 it makes calls wait that could share a connection.
		return nil, errors.New("limit: the template transport sets MaxConnsPerHost; set PoolConfig.MaxConnections")
	}
	anywhere := p == nil
	if anywhere {
		p = &Pool{}
	}
	config := p.config

	t := httpclone.Transport(template)
	c := &Conns{
		pool:      p,
		transport: t,
		dial:      t.DialContext,
		counts:    config.MaxRequestsPerConnection > 1 || config.MaxConnectionDuration > 0,
		live:      make(map[*conn]struct{}),
	}
	if c.dial == nil {
		c.dial = contextDial(t)
	}
	t.DialContext = c.dialContext // goes before Dial, if that is set
	t.ForceAttemptHTTP2 = true

	if config.ConnectTimeout > 0 {
		t.TLSHandshakeTimeout = config.ConnectTimeout
	} else if t.TLSHandshakeTimeout == 0 {
		t.TLSHandshakeTimeout = defaultConnectTimeout
	}
	switch {
	case config.IdleTimeout > 0:
		t.IdleConnTimeout = config.IdleTimeout
	case config.IdleTimeout < 0:
		t.IdleConnTimeout = 0
	default:
		t.IdleConnTimeout = defaultIdleTimeout
	}
	if !anywhere {
		t.MaxIdleConns = 0 // a limit over all hosts of a template says nothing of one endpoint
	} else if t.MaxIdleConns == 0 {
		t.MaxIdleConns = idleAnywhere
	}
	if t.MaxIdleConnsPerHost == 0 {
		t.MaxIdleConnsPerHost = idlePerEndpoint
	}
	if config.MaxRequestsPerConnection == 1 {
		t.DisableKeepAlives = true
	}
	if t.HTTP2 == nil {
		t.HTTP2 = &http.HTTP2Config{}
	}
	if t.HTTP2.SendPingTimeout == 0 {
		t.HTTP2.SendPingTimeout = pingAfter
	}
	if t.HTTP2.PingTimeout == 0 {
		t.HTTP2.PingTimeout = pingTimeout
	}
	c.shared = c.share(t)

	p.links.mu.Lock()
	p.links.conns = append(p.links.conns, c)
	p.links.mu.Unlock()
	return c, nil
}

// contextDial returns the dial function of a transport that has no DialContext.
func contextDial(t *http.Transport) func(context.Context, string, string) (net.Conn, error) {
	//lint:ignore SA1019 Dial is deprecated, but still honoured by net/http
	if dial := t.Dial; dial != nil {
		return func(_ context.Context, network, addr string) (net.Conn, error) { return dial(network, addr) }
	}
	return new(net.Dialer).DialContext
}

// RoundTrip implements http.RoundTripper. It does not take a slot of the pool; see [Pool.Acquire].
func (c *Conns) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := req
	if c.counts {
		call := &countedCall{conns: c}
		call.trace.GotConn = call.gotConn
		// The call may turn out to be the last on its connection, so it needs a header of its own to say so.
		sent = req.WithContext(httptrace.WithClientTrace(req.Context(), &call.trace))
		sent.Header = maps.Clone(req.Header)
		call.req = sent
	}
	resp, err := c.send(sent)
	if resp != nil {
		resp.Request = req // over HTTP/2 net/http sets a copy, where there is a request body
	}
	return resp, err
}

// send sends a call over an HTTP/2 connection that is open, if there is one, and else as net/http does.
func (c *Conns) send(req *http.Request) (*http.Response, error) {
	m := c.shared
	if m == nil || !simple(req) {
		return c.transport.RoundTrip(req)
	}
	limited := c.pool.config.MaxConnections > 0
	if !limited || !m.line.busy() {
		resp, next, err := m.roundTrip(req)
		if next == nil {
			return resp, err
		}
		req = next
	}
	if limited && m.known(req) {
		return m.await(req)
	}
	resp, err := c.transport.RoundTrip(req)
	m.answered(req, resp)
	return resp, err
}

// simple reports whether there is nothing about a request that net/http's transport would check or choose, and HTTP/2 alone
// would not.
func simple(req *http.Request) bool {
	return req.URL != nil && req.Header != nil && len(req.Trailer) == 0 && (req.Method == "" || field.IsToken(req.Method)) &&
		len(req.Header["Upgrade"]) == 0 // which is HTTP/1's
}

// Dial makes a connection for a protocol other than HTTP, as the template dials them, and counts it against MaxConnections
// until it is closed. It takes no slot of the pool. If there is no room, the error is [ErrOverflow].
func (c *Conns) Dial(ctx context.Context) (net.Conn, error) {
	return c.connect(ctx, "tcp", "", false)
}

// DialFirst is [Conns.Dial] for a caller that has no connection to the endpoint and cannot use those of others: it gets one,
// beyond MaxConnections if it must be.
func (c *Conns) DialFirst(ctx context.Context) (net.Conn, error) {
	return c.connect(ctx, "tcp", "", true)
}

// CloseIdleConnections closes the connections that serve no call.
func (c *Conns) CloseIdleConnections() {
	c.transport.CloseIdleConnections()
	if c.shared != nil {
		c.shared.closeIdle()
	}
}

// Open returns how many connections are open or being opened.
func (c *Conns) Open() int {
	c.pool.links.mu.Lock()
	defer c.pool.links.mu.Unlock()
	return c.open
}

// Close closes all connections, and fails what is still sent over them: wait for the calls to end first. It is
// idempotent.
func (c *Conns) Close() {
	l := &c.pool.links
	l.mu.Lock()
	c.closed = true
	l.conns = slices.DeleteFunc(l.conns, func(other *Conns) bool { return other == c })
	live := slices.Collect(maps.Keys(c.live))
	l.mu.Unlock()
	c.CloseIdleConnections()
	if c.shared != nil {
		c.shared.close()
	}
	// An HTTP/2 connection is not idle as soon as its last call is over, and nobody would come to close it later.
	for _, nc := range live {
		nc.Close()
	}
}

// countedCall is a call that is counted on the connection it is sent over.
type countedCall struct {
	conns *Conns
	trace httptrace.ClientTrace
	req   *http.Request
}

// gotConn runs on the goroutine of RoundTrip, after the connection is chosen and before the request is written.
func (call *countedCall) gotConn(info httptrace.GotConnInfo) {
	nc := info.Conn
	for {
		if conn, ok := nc.(*conn); ok {
			if conn.last(time.Now()) && !call.req.Close {
				call.sayClose()
			}
			return
		}
		layer, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		nc = layer.NetConn()
	}
}

// sayClose makes the call the last one on its connection.
func (call *countedCall) sayClose() {
	h := call.req.Header
	if h.Get("Upgrade") != "" {
		// If the peer agrees, the connection serves no further call anyway. If not, the next call is the last one.
		return
	}
	// HTTP/1 looks at the header, since it may have copied the request; HTTP/2 at either, and takes no further calls on
	// the connection. What the caller says of its own headers there stays.
	call.req.Close = true
	if options := strings.Join(h["Connection"], ", "); options != "" {
		h["Connection"] = []string{options + ", close"}
	} else {
		h["Connection"] = []string{"close"}
	}
}

func (c *Conns) dialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return c.connect(ctx, network, addr, false)
}

// connect makes a connection. A first one is made in any case.
func (c *Conns) connect(ctx context.Context, network, addr string, first bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.connectTimeout())
	defer cancel()
	if err := c.admit(ctx, first); err != nil {
		return nil, err
	}
	opened := false
	defer func() {
		if !opened {
			c.unreserve() // the dial failed, or panicked
		}
	}()
	nc, err := c.dial(ctx, network, addr)
	if err != nil {
		// Whatever dialled, a failure to connect says so: it is retried where nothing else would be.
		if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" {
			err = &net.OpError{Op: "dial", Net: network, Err: err}
		}
		return nil, err
	}
	err = c.setKeepalive(nc)
	if err == nil {
		var wrapped *conn
		if wrapped, err = c.add(nc); err == nil {
			opened = true
			return wrapped, nil
		}
	}
	nc.Close()
	return nil, &net.OpError{Op: "dial", Net: network, Addr: nc.RemoteAddr(), Err: err}
}

func (c *Conns) connectTimeout() time.Duration {
	if timeout := c.pool.config.ConnectTimeout; timeout > 0 {
		return timeout
	}
	return defaultConnectTimeout
}

// connected reports whether there is an open connection.
func (c *Conns) connected() bool {
	c.pool.links.mu.Lock()
	defer c.pool.links.mu.Unlock()
	return len(c.live) > 0
}

// add makes nc one of the open connections.
func (c *Conns) add(nc net.Conn) (*conn, error) {
	wrapped := &conn{Conn: nc, born: time.Now()}
	wrapped.owner.Store(c)
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	c.live[wrapped] = struct{}{}
	return wrapped, nil
}

// setKeepalive applies Keepalive to a TCP connection. There is nothing to probe on others.
func (c *Conns) setKeepalive(nc net.Conn) error {
	keepalive := c.pool.config.Keepalive
	if keepalive == (Keepalive{}) {
		return nil
	}
	tcp, ok := nc.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	})
	if !ok {
		return nil
	}
	// In net.KeepAliveConfig, unlike here, it is a negative value that leaves the system's default alone.
	config := net.KeepAliveConfig{Enable: true, Count: -1, Idle: -1, Interval: -1}
	if keepalive.Probes > 0 {
		config.Count = keepalive.Probes
	}
	if keepalive.Time > 0 {
		config.Idle = keepalive.Time
	}
	if keepalive.Interval > 0 {
		config.Interval = keepalive.Interval
	}
	return tcp.SetKeepAliveConfig(config)
}

// reserve counts one connection in. At MaxConnections it first closes idle connections to other endpoints and then
// waits for a connection to close, unless this would be the endpoint's only one, or is a first one. The call that wants the connection
// holds a slot, so unless an HTTP/2 connection is out of streams the wait is for one that is just being given up.
func (c *Conns) reserve(ctx context.Context, first bool) error {
	if _, ok := c.take(false, false); ok {
		return nil
	}
	timer := time.NewTimer(roomCheck)
	defer timer.Stop()
	for {
		c.evict()
		room, ok := c.take(true, first)
		if ok {
			return nil
		}
		select {
		case <-room:
		case <-timer.C:
			timer.Reset(roomCheck)
		case <-ctx.Done():
			c.pool.overflows.Add(1)
			return fmt.Errorf("%w: %w", ErrOverflow, context.Cause(ctx))
		}
	}
}

// take counts one connection in if there is room, if it is the endpoint's only one and that will do, or if it is a first one.
// Otherwise it returns a channel that is closed when the next connection closes.
func (c *Conns) take(only, first bool) (<-chan struct{}, bool) {
	limit := c.pool.config.MaxConnections
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	if limit == 0 || l.open < limit || only && c.open == 0 || first {
		l.open++
		c.open++
		return nil, true
	}
	if l.room == nil {
		l.room = make(chan struct{})
	}
	return l.room, false
}

// evict closes idle connections to other endpoints, one endpoint after the other, until there is room.
func (c *Conns) evict() {
	l := &c.pool.links
	l.mu.Lock()
	conns := slices.Clone(l.conns)
	next := l.next
	l.next++
	l.mu.Unlock()
	for i := range conns {
		if l.count() < c.pool.config.MaxConnections {
			return
		}
		if other := conns[(next+i)%len(conns)]; other != c {
			other.CloseIdleConnections()
		}
	}
}

func (c *Conns) remove(nc *conn) {
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(c.live, nc)
	c.unreserveLocked()
}

func (c *Conns) unreserve() {
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	c.unreserveLocked()
}

func (c *Conns) unreserveLocked() {
	l := &c.pool.links
	l.open--
	c.open--
	l.wakeLocked()
}
