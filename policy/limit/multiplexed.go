package limit

import (
	"crypto/tls"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/transports"
)

// multiplexed has the HTTP/2 connections of a [Conns]. They belong to a separate transport without an idle timer. If a peer closes a
// connection with open streams, net/http resets the timer, which keeps the closed connection in memory until it fires, an hour later
// by default. So idle connections are closed here.
type multiplexed struct {
	conns *Conns
	idle  time.Duration // 0 means that idle connections are never closed
	apart bool          // connections take so few calls that none waits for that of another

	once   sync.Once
	holder atomic.Pointer[http.Transport] // has the connections, but does not dial; nil before the first connection

	secure, clear way // for calls with and without TLS

	born time.Time
	last atomic.Int64 // when a call was last answered, as a time.Duration since born

	line line

	mu      sync.Mutex
	timer   *time.Timer // nil before the first connection
	running bool
	closed  bool
}

// way sends calls over the open connections.
type way struct {
	// over sends calls. If no connection has room for a stream, it returns an error without touching the request. It is nil before
	// the first connection.
	over atomic.Pointer[http.RoundTripper]

	expected atomic.Bool // HTTP/2 is configured, and the peer has not chosen HTTP/1
	offered  bool        // the peer chooses in the handshake
	met      atomic.Bool // it has done so at least once

	mu       sync.Mutex
	openings map[string]*opening // by authority
}

// The keys in TLSNextProto of the functions that take over HTTP/2 connections.
const (
	protoSecure = "h2"
	protoClear  = "unencrypted_http2"
)

// bundled reports whether net/http has HTTP/2 in this process. GODEBUG and build tags can disable it.
var bundled = sync.OnceValue(func() bool {
	probe := &http.Transport{ForceAttemptHTTP2: true}
	probe.CloseIdleConnections() // sets up HTTP/2
	return probe.TLSNextProto[protoSecure] != nil
})

// share makes a multiplexed take over the HTTP/2 connections of t. It returns nil if t does not use HTTP/2, or uses another
// implementation of it.
func (c *Conns) share(t *http.Transport) *multiplexed {
	p := t.Protocols
	if t.TLSNextProto != nil || p != nil && !p.HTTP2() && !p.UnencryptedHTTP2() || !bundled() {
		return nil
	}
	m := &multiplexed{conns: c, idle: t.IdleConnTimeout, born: time.Now()}
	most := c.pool.config.MaxRequestsPerConnection
	m.apart = t.DisableKeepAlives || most > 0 && most < fewCalls
	m.secure.expected.Store(p != nil && !p.HTTP1() && p.HTTP2())
	m.secure.offered = p == nil || p.HTTP2()
	m.clear.expected.Store(p != nil && !p.HTTP1() && p.UnencryptedHTTP2())
	m.line.turn = make(chan struct{}, 1)
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{
		protoSecure: m.adopt(protoSecure, &m.secure),
		protoClear:  m.adopt(protoClear, &m.clear),
	}
	// net/http offers HTTP/2 in the handshake only if it takes over the connections itself.
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = new(tls.Config)
	}
	t.TLSClientConfig.NextProtos = offers(t.TLSClientConfig.NextProtos, p == nil || p.HTTP1(), p == nil || p.HTTP2())
	return m
}

// offers returns the protocols that a client offers in a handshake: the given ones, plus the versions of HTTP that it speaks.
func offers(protocols []string, http1, http2 bool) []string {
	protocols = slices.DeleteFunc(slices.Clone(protocols), func(p string) bool {
		return p == "h2" && !http2 || p == "http/1.1" && !http1
	})
	if http2 && !slices.Contains(protocols, "h2") {
		protocols = slices.Insert(protocols, 0, "h2")
	}
	if http1 && !slices.Contains(protocols, "http/1.1") {
		protocols = append(protocols, "http/1.1")
	}
	return protocols
}

// adopt returns the function that takes over an HTTP/2 connection.
func (m *multiplexed) adopt(protocol string, w *way) func(string, *tls.Conn) http.RoundTripper {
	return func(authority string, conn *tls.Conn) http.RoundTripper {
		m.once.Do(m.open)
		over := m.holder.Load().TLSNextProto[protocol](authority, conn)
		if _, failed := over.(interface{ RoundTripErr() error }); !failed {
			m.touch()
			w.over.Store(&over)
			m.watch()
		}
		return over
	}
}

func (m *multiplexed) open() {
	h := transports.Clone(m.conns.transport)
	h.IdleConnTimeout = 0
	h.TLSNextProto = nil
	h.DialContext = nil
	h.CloseIdleConnections() // sets up HTTP/2
	m.holder.Store(h)
}

// way returns the way of a call.
func (m *multiplexed) way(req *http.Request) *way {
	if req.URL.Scheme == "https" {
		return &m.secure
	}
	return &m.clear
}

// roundTrip sends a call over an open connection with room for it. Without such a connection it returns the request to send next.
func (m *multiplexed) roundTrip(req *http.Request) (resp *http.Response, next *http.Request, err error) {
	over := m.way(req).over.Load()
	if over == nil {
		return nil, req, nil
	}
	out, b := hold(req)
	resp, err = (*over).RoundTrip(out)
	if _, none := err.(interface{ IsHTTP2NoCachedConnError() }); none {
		next, err = b.again(req)
		return nil, next, err
	}
	b.release(err)
	m.touch()
	return resp, nil, err
}

// known reports whether the peer is known to speak HTTP/2 to calls like req.
func (m *multiplexed) known(req *http.Request) bool {
	w := m.way(req)
	return w.over.Load() != nil || w.expected.Load()
}

// answered looks at the response to a call that net/http's transport sent. If it is an HTTP/1 response, the peer no longer speaks
// HTTP/2.
func (m *multiplexed) answered(req *http.Request, resp *http.Response) {
	if resp == nil || resp.ProtoMajor != 1 || !m.known(req) {
		return
	}
	w := m.way(req)
	w.expected.Store(false)
	w.over.Store(nil)
}

func (m *multiplexed) touch() {
	m.last.Store(int64(time.Since(m.born)))
}

// watch starts the timer for idle connections, unless it is already running.
func (m *multiplexed) watch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.idle <= 0 || m.running || m.closed:
		return
	case m.timer == nil:
		m.timer = time.AfterFunc(m.idle, m.expire)
	default:
		m.timer.Reset(m.idle)
	}
	m.running = true
}

// expire closes the idle connections if there was no call for long enough. If there are several connections, it closes the idle ones
// even if there were calls, since the calls may have used the others.
func (m *multiplexed) expire() {
	rest := m.idle - (time.Since(m.born) - time.Duration(m.last.Load()))
	if rest <= 0 || m.conns.Open() > 1 {
		m.closeIdle()
	}
	if rest <= 0 {
		rest = m.idle
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.conns.Open() == 0 {
		m.running = false
		return
	}
	m.timer.Reset(rest)
}

// closeIdle closes the connections without streams.
func (m *multiplexed) closeIdle() {
	if h := m.holder.Load(); h != nil {
		h.CloseIdleConnections()
	}
}

// close stops the timer for idle connections.
func (m *multiplexed) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.timer != nil {
		m.timer.Stop()
	}
}
