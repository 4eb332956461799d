package limit

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/transports"
)

// clientConn is a connection for HTTP. Over HTTP/1 it is idle, or one call has it, which alone may touch calls and since. Over HTTP/2 they are
// guarded by clientConns.mu.
type clientConn struct {
	*http.ClientConn
	of       *clientConns
	origin   origin
	protocol protocol
	conn     *conn
	secure   *tls.Conn            // above conn; nil without TLS, and if net/http speaks to a proxy first
	state    *tls.ConnectionState // of secure

	calls   int           // so far
	since   time.Time     // when an HTTP/1 connection became idle, zero if it has not since its last call; when the last call over HTTP/2 began
	rested  time.Duration // between the beginnings of the last two calls over HTTP/2
	told    atomic.Bool   // the HTTP/2 peer has said how many streams it permits
	streams int           // see permitted
	watched bool          // it tells when a stream is free
}

var (
	errHandshakeTimeout error = handshakeTimeout{}
	errNotNeeded              = errors.New("limit: the connection is not needed any more")
	errNoStream               = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("the peer ended the connection before the first call, or permits no streams")}
)

// handshakeTimeout is an error like that of net/http.
type handshakeTimeout struct{}

func (handshakeTimeout) Error() string   { return "net/http: TLS handshake timeout" }
func (handshakeTimeout) Timeout() bool   { return true }
func (handshakeTimeout) Temporary() bool { return true }

// The keys of values of the context of a dial.
type (
	diallingKey struct{} // a *dialling
	madeKey     struct{} // a net.Conn to take instead of a new one
	proxyKey    struct{} // a *url.URL
)

// dialling has the connection that a dial is for, until it ends: a timer of the context that was stopped stays in memory until it would have fired.
type dialling struct{ *clientConn }

// overHTTP returns a transport like t that speaks HTTP/1 or HTTP/2 over connections which exist already, with TLS or without.
func overHTTP(t *http.Transport, p protocol) *http.Transport {
	t = transports.Clone(t)
	t.Proxy, t.TLSClientConfig, t.Protocols = nil, nil, new(http.Protocols)
	t.Protocols.SetHTTP1(p == overHTTP1)
	t.Protocols.SetUnencryptedHTTP2(p == overHTTP2)
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return ctx.Value(madeKey{}).(net.Conn), nil }
	return t
}

// overProxy returns a transport like t that connects by the proxy in the context of a dial.
func overProxy(t *http.Transport) *http.Transport {
	t = transports.Clone(t)
	t.Proxy = func(req *http.Request) (*url.URL, error) { return req.Context().Value(proxyKey{}).(*url.URL), nil }
	return t
}

// onlyHTTP1 has t offer no other protocol.
func onlyHTTP1(t *http.Transport) *http.Transport {
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	if t.TLSClientConfig != nil {
		t.TLSClientConfig.NextProtos = nil
	}
	return t
}

// connect makes a connection. Limits and timeouts are those of [Conns.dialContext]. The TLS handshake is ours, since net/http does not tell of the
// settings of an HTTP/2 peer, which are seen below HTTP and above TLS.
func (s *clientConn) connect(ctx context.Context, f *originConns) error {
	d := &dialling{s}
	defer func() { d.clientConn = nil }()
	ctx = context.WithValue(ctx, diallingKey{}, d)
	if f.proxyURL != nil {
		return s.connectByProxy(ctx, f)
	}
	return s.connectDirectly(ctx, f)
}

func (s *clientConn) connectDirectly(ctx context.Context, f *originConns) error {
	h := s.of
	nc, err := h.conns.dialContext(ctx, "tcp", f.address)
	if err != nil {
		return err
	}
	if f.secure {
		if err := s.handshake(ctx, nc, f.address); err != nil {
			return err
		}
		nc = s.secure
	} else if h.clear {
		s.protocol = overHTTP2
	}
	speak := h.http1
	if s.protocol == overHTTP2 {
		nc, speak = &settingsConn{Conn: nc, of: s}, h.http2
	}
	s.ClientConn, err = speak().NewClientConn(context.WithValue(ctx, madeKey{}, nc), "http", f.address)
	if err != nil { // nothing can be written
		nc.Close()
	}
	return err
}

// proxyTimeout is how long a proxy may take to connect. It is net/http's for the response to CONNECT, and there is none for SOCKS.
const proxyTimeout = time.Minute

// connectByProxy has net/http connect by a proxy.
func (s *clientConn) connectByProxy(ctx context.Context, f *originConns) (err error) {
	scheme, speaks, speak := "http", overHTTP1, s.of.byProxy
	if f.secure {
		scheme = "https"
	} else if s.of.clear {
		speaks = overHTTP2
	}
	if f.http1 {
		speak = s.of.http1ByProxy
	}
	ctx, cancel := context.WithTimeout(ctx, s.of.conns.connectTimeout()+proxyTimeout)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{TLSHandshakeDone: func(state tls.ConnectionState, _ error) {
		speaks = protocolOf(state) // the last one is that with the peer, or with the proxy if calls end there
	}})
	s.ClientConn, err = speak().NewClientConn(context.WithValue(ctx, proxyKey{}, f.proxyURL), scheme, f.address)
	s.protocol = speaks
	return err
}

func protocolOf(state tls.ConnectionState) protocol {
	if state.NegotiatedProtocol == "h2" {
		return overHTTP2
	}
	return overHTTP1
}

// handshake makes the connection a secure one, or closes nc.
func (s *clientConn) handshake(ctx context.Context, nc net.Conn, address string) error {
	t := s.of.conns.transport
	config := new(tls.Config)
	if t.TLSClientConfig != nil {
		config = t.TLSClientConfig.Clone()
	}
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(address)
	}
	if s.origin.http1 {
		config.NextProtos = nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.TLSHandshakeTimeout, errHandshakeTimeout)
	defer cancel()
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.TLSHandshakeStart != nil {
		trace.TLSHandshakeStart()
	}
	var state tls.ConnectionState
	secure := tls.Client(nc, config)
	err := secure.HandshakeContext(ctx)
	if err == nil {
		state = secure.ConnectionState()
		s.secure, s.state, s.protocol = secure, &state, protocolOf(state)
	} else {
		nc.Close()
		if context.Cause(ctx) == errHandshakeTimeout {
			err = errHandshakeTimeout
		}
	}
	if trace != nil && trace.TLSHandshakeDone != nil {
		trace.TLSHandshakeDone(state, err)
	}
	return err
}

// settingsConn is a connection that tells when net/http knows the settings of the peer, whose frame is the first (RFC 9113, section 3.4). It does so
// when net/http, which has read and applied that frame, reads on. One goroutine reads.
type settingsConn struct {
	net.Conn
	of     *clientConn
	length []byte // of the frame's content, the first three bytes
	read   int    // bytes so far
	told   bool
}

func (c *settingsConn) Read(p []byte) (int, error) {
	if c.told {
		return c.Conn.Read(p)
	}
	const header = 9
	if l := c.length; len(l) == 3 && c.read >= header+(int(l[0])<<16|int(l[1])<<8|int(l[2])) {
		c.told = true
		c.of.tell()
		return c.Conn.Read(p)
	}
	n, err := c.Conn.Read(p)
	c.length = append(c.length, p[:min(n, 3-len(c.length))]...)
	c.read += n
	return n, err
}

// tell says that the number of streams is known.
func (s *clientConn) tell() {
	h := s.of
	h.mu.Lock()
	defer h.mu.Unlock()
	s.told.Store(true)
	f := h.ofLocked(s.origin)
	if slices.Contains(f.shared, s) { // else it is not ready yet
		s.permitted()
	}
	h.serveLocked(f)
	h.dialLocked(f)
	h.tidyLocked(f)
}

// permitted returns how many streams the HTTP/2 peer permits, 0 if that is not known. net/http tells as long as it can take another call.
func (s *clientConn) permitted() int {
	if s.told.Load() {
		if free := s.Available(); free > 0 {
			s.streams = free + s.InFlight()
		}
	}
	return s.streams
}

// closeAfterCalls closes an HTTP/2 connection, which gets no more calls, when those on it have ended. A call that says so itself, with Close, could
// overtake one that was sent before, and net/http would refuse that one.
func (s *clientConn) closeAfterCalls() {
	s.SetStateHook(func(*http.ClientConn) { // may run where clientConns.mu is held
		if s.InFlight() == 0 {
			go s.Close()
		}
	})
}

// isClosed reports whether the connection was closed, by its peer perhaps.
func (s *clientConn) isClosed() bool {
	return s.conn.owner.Load() == nil
}

// info returns what net/http tells the trace of a call that gets the connection.
func (g grant) info() httptrace.GotConnInfo {
	h := g.of
	h.mu.Lock()
	defer h.mu.Unlock()
	info := httptrace.GotConnInfo{Conn: g.conn, Reused: g.reused, WasIdle: !g.since.IsZero()}
	if g.secure != nil {
		info.Conn = g.secure
	}
	switch {
	case g.protocol == overHTTP2:
		if info.WasIdle = g.reused && g.InFlight() == 1; info.WasIdle {
			info.IdleTime = g.rested
		}
	case info.WasIdle:
		info.IdleTime = time.Since(g.since)
	}
	return info
}

// lend has an HTTP/1 connection given back at the end of a response.
func (s *clientConn) lend(resp *http.Response) {
	switch {
	case s.protocol == overHTTP2 || resp.StatusCode == http.StatusSwitchingProtocols: // then the connection is the caller's
	case resp.Body == http.NoBody:
		s.back()
	default:
		resp.Body = &lentBody{ReadCloser: resp.Body, from: s}
	}
}

// back gives an HTTP/1 connection back when its call has ended, unless that has spoilt it.
func (s *clientConn) back() {
	if s.protocol == overHTTP1 && s.Available() > 0 {
		s.put()
	}
}

// lentBody is the body of a response that ends the use of its connection. As in net/http, one that is closed before its end closes the connection.
type lentBody struct {
	io.ReadCloser
	from *clientConn
	over atomic.Bool
}

func (l *lentBody) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if err == io.EOF {
		l.end()
	}
	return n, err
}

func (l *lentBody) Close() error {
	err := l.ReadCloser.Close()
	l.end()
	return err
}

func (l *lentBody) end() {
	if !l.over.Load() && l.from.Available() > 0 && l.over.CompareAndSwap(false, true) {
		l.from.back()
	}
}
