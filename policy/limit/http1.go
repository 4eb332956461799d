package limit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/transports"
)

// http1Conns are the connections over HTTP/1 without TLS. Of net/http they use what speaks the protocol, http.ClientConn, and not the pool of
// http.Transport, which looks connections up by URL and proxy, and sets a timer each time that one becomes idle: that costs more than all that the
// mesh does for a call. Callers and servers see what they see with that pool.
type http1Conns struct {
	conns *Conns
	dials func() *http.Transport // makes connections; its pool is not used

	mu      sync.Mutex
	hosts   map[string]*hostConns
	last    *hostConns  // of hosts, that was looked up
	timer   *time.Timer // for idle connections; nil before the first
	running bool
	closed  bool
}

// hostConns are the idle connections for a host of URLs, and the calls that wait for one. It is guarded by http1Conns.mu.
type hostConns struct {
	host    string
	idle    []*http1Conn // the last one was used last
	waiting []*want      // first come, first served
}

// http1Conn is a connection. It is idle, or one call has it, which alone may touch used and since.
type http1Conn struct {
	*http.ClientConn
	of    *http1Conns
	host  string
	conn  *conn
	used  bool      // by a call before
	since time.Time // when it became idle; zero if it has not since the last call
}

// want is a call that waits for a connection.
type want struct {
	ready chan struct{} // closed when there is a connection or an error
	got   *http1Conn
	err   error
}

func newHTTP1Conns(c *Conns, template *http.Transport) *http1Conns {
	return &http1Conns{conns: c, hosts: make(map[string]*hostConns), dials: sync.OnceValue(func() *http.Transport {
		t := transports.Clone(template)
		t.DialContext = c.dialContext
		c.pool.config.apply(t)
		return t
	})}
}

// roundTrip sends a call.
func (h *http1Conns) roundTrip(req *http.Request) (*http.Response, error) {
	for {
		s, err := h.get(req)
		if err != nil {
			body.CloseRequest(req)
			return nil, err
		}
		out, b := hold(req)
		resp, err := s.RoundTrip(out)
		if err == nil {
			b.release(nil)
			s.lend(resp)
			return resp, nil
		}
		reused := s.used
		s.back()
		if !reused || !repeatable(req, err) {
			b.release(err)
			body.CloseRequest(out)
			return nil, unwrapped(err)
		}
		if req, err = b.again(req); err != nil {
			return nil, err
		}
	}
}

// get returns an idle connection for a call. If there is none, it dials, and returns the connection that is free first. One that comes too late is
// for a later call.
func (h *http1Conns) get(req *http.Request) (*http1Conn, error) {
	trace := httptrace.ContextClientTrace(req.Context())
	if trace != nil && trace.GetConn != nil {
		trace.GetConn(address(req))
	}
	s, w := h.take(req.URL.Host)
	if s == nil {
		var err error
		if s, err = h.await(req, w); err != nil {
			return nil, err
		}
	}
	if trace != nil && trace.GotConn != nil {
		info := httptrace.GotConnInfo{Conn: s.conn, Reused: s.used, WasIdle: !s.since.IsZero()}
		if info.WasIdle {
			info.IdleTime = time.Since(s.since)
		}
		trace.GotConn(info)
	}
	return s, nil
}

// take returns an idle connection. If there is none, the call is one that waits.
func (h *http1Conns) take(host string) (*http1Conn, *want) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(host)
	if n := len(f.idle); n > 0 {
		s := f.idle[n-1]
		f.idle[n-1] = nil
		f.idle = f.idle[:n-1]
		return s, nil
	}
	w := &want{ready: make(chan struct{})}
	f.waiting = append(f.waiting, w)
	return nil, w
}

func (h *http1Conns) ofLocked(host string) *hostConns {
	if h.last != nil && h.last.host == host {
		return h.last
	}
	f := h.hosts[host]
	if f == nil {
		f = &hostConns{host: host}
		h.hosts[host] = f
	}
	h.last = f
	return f
}

// tidyLocked forgets a host of which there is nothing to know.
func (h *http1Conns) tidyLocked(f *hostConns) {
	if len(f.idle) == 0 && len(f.waiting) == 0 {
		delete(h.hosts, f.host)
		h.last = nil
	}
}

// await waits for a connection.
func (h *http1Conns) await(req *http.Request, w *want) (*http1Conn, error) {
	ctx := caller.Wait(req.Context(), req)
	defer caller.Stop(ctx, req)
	go h.dial(context.WithoutCancel(req.Context()), req.URL.Host, address(req), w)
	select {
	case <-w.ready:
	case <-ctx.Done():
		if !h.leave(req.URL.Host, w) && w.got != nil {
			w.got.put(nil)
		}
		return nil, context.Cause(ctx)
	}
	if w.err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return w.got, w.err
}

// leave ends a wait. It reports false if the wait had ended already.
func (h *http1Conns) leave(host string, w *want) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(host)
	defer h.tidyLocked(f)
	return f.remove(w)
}

// remove removes a call from those that wait, and reports whether it was one.
func (f *hostConns) remove(w *want) bool {
	n := slices.Index(f.waiting, w)
	if n >= 0 {
		f.waiting = slices.Delete(f.waiting, n, n+1)
	}
	return n >= 0
}

// dialling is the context key of the connection that is being made.
type dialling struct{}

// dial makes a connection for a call, or for whoever needs it once it is there. Limits and timeouts are those of [Conns.dialContext].
func (h *http1Conns) dial(ctx context.Context, host, address string, w *want) {
	s := &http1Conn{of: h, host: host}
	cc, err := h.dials().NewClientConn(context.WithValue(ctx, dialling{}, s), "http", address)
	if err == nil {
		s.ClientConn = cc
		s.put(w)
		return
	}
	if h.leave(host, w) {
		w.err = err
		close(w.ready)
	}
}

// back gives a connection back when its call has ended, unless that has spoilt it.
func (s *http1Conn) back() {
	if s.Available() > 0 {
		s.used = true
		s.put(nil)
	}
}

// put gives a connection to a call that waits, to w if it does, or makes it idle.
func (s *http1Conn) put(w *want) {
	if !s.of.put(s, w) {
		s.Close()
	}
}

func (h *http1Conns) put(s *http1Conn, w *want) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(s.host)
	dead := w == nil && s.conn.owner.Load() == nil
	if len(f.waiting) > 0 && !dead {
		if w == nil || !slices.Contains(f.waiting, w) {
			w = f.waiting[0]
		}
		f.remove(w)
		s.since = time.Time{}
		w.got = s
		close(w.ready)
		return true
	}
	if h.closed || dead || len(f.idle) >= h.dials().MaxIdleConnsPerHost {
		h.tidyLocked(f)
		return false
	}
	s.since = time.Now()
	f.idle = append(f.idle, s)
	h.watchLocked()
	return true
}

// gone forgets a connection that was closed, by its peer perhaps, if it is idle.
func (h *http1Conns) gone(s *http1Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(s.host)
	if n := slices.Index(f.idle, s); n >= 0 {
		f.idle = slices.Delete(f.idle, n, n+1)
	}
	h.tidyLocked(f)
}

// watchLocked starts the timer for idle connections, unless it is running.
func (h *http1Conns) watchLocked() {
	idle := h.dials().IdleConnTimeout
	switch {
	case idle <= 0 || h.running:
		return
	case h.timer == nil:
		h.timer = time.AfterFunc(idle, h.expire)
	default:
		h.timer.Reset(idle)
	}
	h.running = true
}

// expire closes the connections that have been idle for long enough.
func (h *http1Conns) expire() {
	now, limit := time.Now(), h.dials().IdleConnTimeout
	var old []*http1Conn
	h.mu.Lock()
	next := limit
	h.running = false
	for _, f := range h.hosts {
		n := 0
		for ; n < len(f.idle); n++ {
			if rest := limit - now.Sub(f.idle[n].since); rest > 0 {
				next = min(next, rest)
				h.running = !h.closed
				break
			}
		}
		old = append(old, f.idle[:n]...)
		f.idle = slices.Delete(f.idle, 0, n)
		h.tidyLocked(f)
	}
	if h.running {
		h.timer.Reset(next)
	}
	h.mu.Unlock()
	for _, s := range old {
		s.Close()
	}
}

// closeIdle closes the idle connections.
func (h *http1Conns) closeIdle() {
	var idle []*http1Conn
	h.mu.Lock()
	for _, f := range h.hosts {
		idle = append(idle, f.idle...)
		f.idle = nil
		h.tidyLocked(f)
	}
	h.mu.Unlock()
	for _, s := range idle {
		s.Close()
	}
}

// close closes the idle connections, and the others when their calls have ended.
func (h *http1Conns) close() {
	h.mu.Lock()
	h.closed = true
	if h.timer != nil {
		h.timer.Stop()
	}
	h.mu.Unlock()
	h.closeIdle()
}

// lend has the connection given back at the end of a response.
func (s *http1Conn) lend(resp *http.Response) {
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols: // the connection is the caller's
	case resp.Body == http.NoBody:
		s.back()
	default:
		resp.Body = &lentBody{ReadCloser: resp.Body, from: s}
	}
}

// lentBody is the body of a response that ends the use of its connection. As in net/http, one that is closed before its end closes the connection.
type lentBody struct {
	io.ReadCloser
	from *http1Conn
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

// address is what net/http dials for a request.
func address(req *http.Request) string {
	return net.JoinHostPort(field.ASCII(req.URL.Hostname()), cmp.Or(req.URL.Port(), "80"))
}

// The types and the text of those errors of net/http, which it does not export, that say how far a call has got.
const (
	nothingWritten = "http.nothingWrittenError"
	notRead        = "http.transportReadFromServerError"
	closedIdle     = "http: server closed idle connection"
)

// repeatable reports whether a call can be sent again that failed with err over a connection that had served others: the peer may have closed it
// just then (RFC 9110, section 9.2.2). It is what net/http does.
func repeatable(req *http.Request, err error) bool {
	again := req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	switch kind := fmt.Sprintf("%T", err); {
	case !again:
		return false
	case kind == nothingWritten:
		return true
	case kind != notRead && err.Error() != closedIdle:
		return false
	}
	switch cmp.Or(req.Method, http.MethodGet) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil
}

// unwrapped returns an error as http.Transport does.
func unwrapped(err error) error {
	for _, wrapper := range []string{nothingWritten, notRead} {
		if fmt.Sprintf("%T", err) == wrapper {
			err = errors.Unwrap(err)
		}
	}
	if strings.HasPrefix(err.Error(), "http: invalid ") { // field or method
		err = fmt.Errorf("net/%w", err)
	}
	return err
}
