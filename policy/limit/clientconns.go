package limit

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/caller"
)

// clientConns are the connections of a [Conns] for HTTP. Of net/http they use what speaks the protocols, http.ClientConn, and not the pool of
// http.Transport: that looks connections up by URL and proxy, sets a timer each time that one becomes idle, dials once for each of a hundred calls
// that will share a connection, and does not tell when a stream is free. Callers and servers see what they see with that pool.
type clientConns struct {
	conns *Conns
	http1 func() *http.Transport // that speaks over connections of ours
	http2 func() *http.Transport

	byProxy      func() *http.Transport // that connects by the proxy in the context of a dial
	http1ByProxy func() *http.Transport
	proxy        func(*http.Request) (*url.URL, error) // nil without proxies
	idle         time.Duration                         // how long a connection may be idle; 0 or less means forever
	calls        int                                   // that a connection may serve; 0 means any number

	// HTTP/2 without TLS needs prior knowledge. With TLS the peer may choose.
	clear, offered bool

	mu      sync.Mutex
	origins map[origin]*originConns
	last    *originConns // that was looked up
	chosen  protocol     // by the peer, in the last handshake
	timer   *time.Timer  // for idle connections; nil before the first
	running bool
	closing bool // HTTP/1 connections when they become idle, until the next call, as net/http does after CloseIdleConnections
	closed  bool

	waits atomic.Int64 // calls that wait for a connection
}

// protocol is what a connection speaks.
type protocol uint8

const (
	unknown protocol = iota
	overHTTP1
	overHTTP2
)

// originConns are the connections for an origin, and the calls that wait for one. It is guarded by clientConns.mu.
type originConns struct {
	origin
	proxyURL *url.URL      // nil without one
	address  string        // to dial, or to have the proxy dial
	idle     []*clientConn // over HTTP/1, the one that was used last comes last
	shared   []*clientConn // over HTTP/2, those that take calls
	waiting  []*want       // first come, first served
	dials    []*clientConn // that are being made for calls that wait, or will
}

// grant is the permission to send a call over a connection.
type grant struct {
	*clientConn
	reused bool // it is not the first call on the connection
	last   bool // it is the last one
}

// want is a call that waits for a connection.
type want struct {
	ready   chan struct{} // closed when there is a connection or an error
	got     grant
	err     error
	dial    context.Context // for a dial
	pending bool            // it counts as one that waits for a stream
}

// newClientConns returns a set without connections. The transport of c has all settings.
func newClientConns(c *Conns) *clientConns {
	t, config := c.transport, &c.pool.config
	t.CloseIdleConnections() // has it set up HTTP/2, and the protocols to offer
	h := &clientConns{
		conns:        c,
		http1:        sync.OnceValue(func() *http.Transport { return overHTTP(t, overHTTP1) }),
		http2:        sync.OnceValue(func() *http.Transport { return overHTTP(t, overHTTP2) }),
		byProxy:      sync.OnceValue(func() *http.Transport { return overProxy(t) }),
		http1ByProxy: sync.OnceValue(func() *http.Transport { return onlyHTTP1(overProxy(t)) }),
		proxy:        t.Proxy,
		idle:         cmp.Or(config.IdleTimeout, defaultIdleTimeout),
		calls:        config.MaxRequestsPerConnection,
		clear:        t.Protocols != nil && t.Protocols.UnencryptedHTTP2() && !t.Protocols.HTTP1(),
		offered:      t.TLSClientConfig != nil && slices.Contains(t.TLSClientConfig.NextProtos, "h2"),
		origins:      make(map[origin]*originConns),
	}
	if t.DisableKeepAlives {
		h.calls = 1
	}
	return h
}

// get returns a connection for a call. If there is none with room for it, it dials, unless that has been done for another call, and returns the
// connection that is free first. One that comes too late is for a later call.
func (h *clientConns) get(req *http.Request) (g grant, err error) {
	o, proxy, err := h.originOf(req)
	if err != nil {
		return grant{}, err
	}
	trace := httptrace.ContextClientTrace(req.Context())
	if trace != nil && trace.GetConn != nil {
		trace.GetConn(address(cmp.Or(proxy, req.URL)))
	}
	g, w, err := h.take(req, o, proxy)
	if w != nil {
		g, err = h.await(req, o, w)
	}
	if err == nil && trace != nil && trace.GotConn != nil {
		sane := false
		defer func() {
			if !sane { // it panics
				h.giveBack(g)
			}
		}()
		trace.GotConn(g.info())
		sane = true
	}
	return g, err
}

// take returns a connection. If there is none, the call is one that waits.
func (h *clientConns) take(req *http.Request, o origin, proxy *url.URL) (grant, *want, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closing = false
	f := h.ofLocked(o)
	if len(f.waiting) == 0 {
		if g, ok := h.grantLocked(f); ok {
			return g, nil, nil
		}
	}
	if f.address == "" {
		f.address, f.proxyURL = address(req.URL), proxy
	}
	w := &want{ready: make(chan struct{}), dial: context.WithoutCancel(req.Context())}
	f.waiting = append(f.waiting, w)
	h.waits.Add(1)
	if h.serveLocked(f); w.got.clientConn != nil {
		return w.got, nil, nil
	}
	if pool := h.conns.pool; pool.config.MaxConnections > 0 && h.speaksLocked(o) == overHTTP2 {
		w.pending = true
		if n, limit := pool.streams.Add(1), int64(pool.config.MaxPendingRequests); limit > 0 && n > limit {
			h.removeLocked(f, w)
			pool.overflows.Add(1)
			return grant{}, nil, ErrOverflow
		}
	}
	h.dialLocked(f)
	return grant{}, w, nil
}

func (h *clientConns) ofLocked(o origin) *originConns {
	if h.last != nil && h.last.origin == o {
		return h.last
	}
	f := h.origins[o]
	if f == nil {
		f = &originConns{origin: o}
		h.origins[o] = f
	}
	h.last = f
	return f
}

// tidyLocked forgets an origin of which there is nothing to know.
func (h *clientConns) tidyLocked(f *originConns) {
	if len(f.idle) == 0 && len(f.shared) == 0 && len(f.waiting) == 0 && len(f.dials) == 0 {
		delete(h.origins, f.origin)
		h.last = nil
	}
}

// grantLocked returns a connection that can take a call now, if there is one.
func (h *clientConns) grantLocked(f *originConns) (grant, bool) {
	for _, s := range f.shared {
		// With more reservations than streams, net/http would wait for ever. So a call goes alone until the number is known.
		if (s.told.Load() || s.InFlight() == 0) && s.Reserve() == nil {
			now := time.Now()
			s.rested, s.since = now.Sub(s.since), now
			return h.countLocked(f, s), true
		}
	}
	n := len(f.idle) - 1
	if n < 0 {
		return grant{}, false
	}
	s := f.idle[n]
	f.idle[n] = nil
	f.idle = f.idle[:n]
	return h.countLocked(f, s), true
}

// countLocked counts a call on a connection.
func (h *clientConns) countLocked(f *originConns, s *clientConn) grant {
	s.calls++
	limit := h.conns.pool.config.MaxConnectionDuration
	last := h.calls > 0 && s.calls >= h.calls || limit > 0 && time.Since(s.conn.born) >= limit
	if last && s.protocol == overHTTP2 {
		f.shared = without(f.shared, s)
		s.closeAfterCalls()
	}
	return grant{s, s.calls > 1, last}
}

// serveLocked gives connections that can take a call now to calls that wait.
func (h *clientConns) serveLocked(f *originConns) {
	for watched := false; len(f.waiting) > 0; {
		g, ok := h.grantLocked(f)
		switch {
		case ok:
			h.endLocked(f, f.waiting[0], g, nil)
		case watched:
			return
		default:
			watched = true
			h.watchStreamsLocked(f)
		}
	}
}

// endLocked ends the wait of a call.
func (h *clientConns) endLocked(f *originConns, w *want, g grant, err error) {
	h.removeLocked(f, w)
	w.got, w.err = g, err
	close(w.ready)
}

// removeLocked removes a call from those that wait, and reports whether it was one.
func (h *clientConns) removeLocked(f *originConns, w *want) bool {
	n := slices.Index(f.waiting, w)
	if n < 0 {
		return false
	}
	f.waiting = slices.Delete(f.waiting, n, n+1)
	h.waits.Add(-1)
	if w.pending {
		h.conns.pool.streams.Add(-1)
	}
	return true
}

// await waits for a connection.
func (h *clientConns) await(req *http.Request, o origin, w *want) (grant, error) {
	ctx := caller.Wait(req.Context(), req)
	defer caller.Stop(ctx, req)
	select {
	case <-w.ready:
	case <-ctx.Done():
		if !h.leave(o, w) && w.err == nil {
			h.giveBack(w.got)
		}
		return grant{}, context.Cause(ctx)
	}
	if w.err != nil && ctx.Err() != nil {
		return grant{}, context.Cause(ctx)
	}
	return w.got, w.err
}

// leave ends the wait of a call. It reports false if it had ended already. A dial with which calls have lost patience is not one that later calls wait
// for, unless others still do.
func (h *clientConns) leave(o origin, w *want) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(o)
	defer h.tidyLocked(f)
	if !h.removeLocked(f, w) {
		return false
	}
	if n := len(f.dials) - h.neededLocked(f); n > 0 {
		f.dials = slices.Delete(f.dials, 0, n)
	}
	return true
}

// giveBack gives a connection back that no call was sent over.
func (h *clientConns) giveBack(g grant) {
	if g.protocol == overHTTP1 {
		g.calls--
		g.put()
		return
	}
	g.Release()
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(g.origin)
	g.calls--
	h.serveLocked(f)
	h.tidyLocked(f)
}

// watchStreamsLocked has calls that wait told when a stream is free. HTTP/2 connections that no call waits for save themselves the trouble.
func (h *clientConns) watchStreamsLocked(f *originConns) {
	for _, s := range f.shared {
		if s.watched {
			continue
		}
		s.watched = true
		s.SetStateHook(func(*http.ClientConn) { // may run where h.mu is held
			if h.waits.Load() > 0 {
				go h.serve(s.origin)
			}
		})
	}
}

func (h *clientConns) serve(o origin) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(o)
	h.serveLocked(f)
	h.tidyLocked(f)
}

// speaksLocked returns the protocol of the next connection for an origin, as far as is known.
func (h *clientConns) speaksLocked(o origin) protocol {
	switch {
	case !o.secure && h.clear:
		return overHTTP2
	case !o.secure || o.http1 || !h.offered:
		return overHTTP1
	}
	return h.chosen
}

// takesLocked returns how many calls a new connection for an origin is expected to take; 0 means any number.
func (h *clientConns) takesLocked(f *originConns) int {
	if h.speaksLocked(f.origin) == overHTTP1 {
		return 1
	}
	for _, s := range f.shared {
		if n := s.permitted(); n > 0 && (h.calls == 0 || n < h.calls) {
			return n
		}
	}
	return h.calls
}

// neededLocked returns how many new connections the calls need that wait.
func (h *clientConns) neededLocked(f *originConns) int {
	n := min(1, len(f.waiting))
	if each := h.takesLocked(f); each > 0 {
		n = (len(f.waiting) + each - 1) / each
	}
	for _, s := range f.shared {
		if !s.told.Load() { // it will take calls
			n--
		}
	}
	if limit := h.conns.pool.config.MaxConnections; limit > 0 { // one that waits until there is room for it is enough
		n = min(n, max(1, limit-h.conns.pool.links.count()+len(f.dials)))
	}
	return max(0, n)
}

// dialLocked makes as many connections as are needed.
func (h *clientConns) dialLocked(f *originConns) {
	for n := h.neededLocked(f); len(f.dials) < n; {
		s := &clientConn{of: h, origin: f.origin, protocol: overHTTP1}
		ctx := f.waiting[len(f.dials)].dial
		f.dials = append(f.dials, s)
		go h.dial(s, f, ctx)
	}
}

// dial makes a connection for those calls that wait first, or for later ones if none waits any more.
func (h *clientConns) dial(made *clientConn, f *originConns, ctx context.Context) {
	err := made.connect(ctx, f)
	h.mu.Lock()
	f = h.ofLocked(made.origin)
	each, wanted := h.takesLocked(f), slices.Contains(f.dials, made)
	f.dials = without(f.dials, made)
	s := made
	if err != nil {
		s = nil
	} else if f.secure && !f.http1 {
		h.chosen = s.protocol
	}
	switch {
	case err != nil:
	case s.protocol == overHTTP1:
		if h.putLocked(f, s, true) {
			s = nil
		}
	case h.shareLocked(f, s):
		s = nil
	default:
		err = errNoStream
	}
	if err != nil && wanted {
		h.failLocked(f, each, err)
	}
	h.dialLocked(f)
	h.tidyLocked(f)
	h.mu.Unlock()
	if s != nil { // it is not needed, or not usable
		s.Close()
	}
}

// shareLocked gives a new HTTP/2 connection to the calls that wait. It reports false if it takes none.
func (h *clientConns) shareLocked(f *originConns, s *clientConn) bool {
	if h.closed || s.isClosed() {
		return false
	}
	s.since = time.Now()
	f.shared = append(f.shared, s)
	s.permitted()
	if h.serveLocked(f); s.calls == 0 && len(f.waiting) > 0 {
		f.shared = without(f.shared, s)
		return false
	}
	h.watchLocked()
	return true
}

// failLocked ends the waits of the calls that a connection was meant for that could not be made.
func (h *clientConns) failLocked(f *originConns, each int, err error) {
	if err == errNotNeeded || errors.Is(err, ErrOverflow) && len(f.shared) > 0 { // a stream will be free
		return
	}
	if n := len(f.waiting); each == 0 || each > n {
		each = n
	}
	for range each {
		if errors.Is(err, ErrOverflow) {
			h.conns.pool.overflows.Add(1)
		}
		h.endLocked(f, f.waiting[0], grant{}, err)
	}
}

// needed reports whether calls wait for a connection for an origin.
func (h *clientConns) needed(o origin) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(o)
	return len(f.waiting) > 0
}

func without(conns []*clientConn, s *clientConn) []*clientConn {
	if n := slices.Index(conns, s); n >= 0 {
		return slices.Delete(conns, n, n+1)
	}
	return conns
}
