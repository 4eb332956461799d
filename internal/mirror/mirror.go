// Package mirror copies calls to other destinations. A copy has no effect on its original. It is not retried, has a deadline of its own, and
// does not end with the context of its original. The Host of a copy is that of the original with "-shadow" before the port.
package mirror

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/refusal"
)

const (
	defaultLimit   = 64
	defaultTimeout = 15 * time.Second // Envoy's default for a route without a timeout

	million = 1_000_000

	bodyLimit = 64 << 10 // the maximum size of a request body that must be kept
	drain     = 64 << 10 // how much of a response body is read, so that its connection can be reused
)

// The reasons why a copy was not sent; see [Mirrorer.Done].
var (
	ErrLimit  = refusal.New("route: too many mirrored requests in flight")
	ErrBody   = refusal.New("route: request body not mirrored: too large, or not read to its end")
	ErrClosed = refusal.New("route: mirroring closed")
)

// Mirrorer sends copies of calls and discards the responses. M is the type of the mirrors, which are the destinations of copies.
//
// A Mirrorer is safe for concurrent use. Its fields must not be changed after its first use. The caller closes it.
type Mirrorer[M any] struct {
	// Share returns how many of a million calls are copied to a mirror.
	Share func(*M) uint32

	// Send sends a copy to a mirror. It must return when the context of req ends. It is called on a goroutine of the Mirrorer.
	Send func(to *M, req *http.Request) (*http.Response, error)

	// Limit is the maximum number of copies in flight; further copies are dropped. 0 means 64.
	Limit int

	// Timeout is the timeout of a copy, including its response, if its route has no timeout. 0 means 15 s.
	Timeout time.Duration

	// Done, if not nil, is called once per copy: with nil after a response, with the error of Send, or with one of [ErrLimit],
	// [ErrBody] and [ErrClosed]. It may be called on the goroutine of the original, so it must not block.
	Done func(to *M, err error)

	// Rand returns an integer in [0, n). Nil means math/rand/v2.
	Rand func(n uint32) uint32

	running sync.WaitGroup

	mu       sync.Mutex
	ctx      context.Context // of all copies; nil before the first one
	cancel   context.CancelFunc
	underWay int
	closed   bool
}

// Copy is [Mirrorer.Fork] for calls that are not net/http requests. For each mirror that is drawn, Copy calls prepare with the authority of
// the copy, which is derived from that of the original. prepare returns the function that sends the copy. It is called on a goroutine of
// the Mirrorer, with a context that has the values of ctx but does not end with it.
func (m *Mirrorer[M]) Copy(ctx context.Context, mirrors []M, timeout time.Duration, authority string,
	prepare func(to *M, authority string) (send func(context.Context) error, err error)) {
	for i := range mirrors {
		to := &mirrors[i]
		if !m.drawn(to) {
			continue
		}
		send, err := prepare(to, shadowHost(authority))
		if err != nil {
			m.done(to, err)
			continue
		}
		all, err := m.enter()
		if err != nil {
			m.done(to, err)
			continue
		}
		go func() {
			defer m.leave()
			ctx, cancel := m.bound(detach(ctx), all, timeout)
			defer cancel()
			m.done(to, send(ctx))
		}()
	}
}

// bound returns the context of a copy, which ends with all or at its timeout.
func (m *Mirrorer[M]) bound(ctx, all context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout <= 0 {
		timeout = m.Timeout
	}
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(all, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// Fork copies out, a request that is about to be sent, to the mirrors that are drawn. timeout is that of the route, or 0 if it has none. out
// must not be the caller's request, since its Body may be replaced by one that records what is read: without GetBody, a copy is sent after
// the body was read to its end, if it is not larger than 64 KiB.
func (m *Mirrorer[M]) Fork(out *http.Request, mirrors []M, timeout time.Duration) {
	var tee *teeBody[M]
	for i := range mirrors {
		to := &mirrors[i]
		if !m.drawn(to) {
			continue
		}
		c := mirrored[M]{to: to, req: copyOf(out), timeout: timeout}
		switch {
		case out.Body == nil || out.Body == http.NoBody:
			m.start(c)
		case out.GetBody != nil:
			rc, err := caller.BodyAgain(out.GetBody)
			if err != nil {
				m.done(c.to, err)
				continue
			}
			c.req.Body, c.req.ContentLength = owned(rc), out.ContentLength
			m.start(c)
		case out.ContentLength > bodyLimit:
			m.done(c.to, ErrBody)
		default:
			if tee == nil {
				tee = &teeBody[M]{rc: out.Body, m: m, length: out.ContentLength}
				out.Body = tee
			}
			tee.waiting = append(tee.waiting, c)
		}
	}
}

// Close cancels the copies in flight and waits for them. Later copies are not sent. It always returns nil, and may be called more than once.
func (m *Mirrorer[M]) Close() error {
	m.mu.Lock()
	m.closed = true
	cancel := m.cancel
	m.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	m.running.Wait()
	return nil
}

func (m *Mirrorer[M]) drawn(to *M) bool {
	perMillion := m.Share(to)
	switch {
	case perMillion == 0:
		return false
	case m.Rand == nil:
		return rand.Uint32N(million) < perMillion
	}
	return m.Rand(million) < perMillion
}

// mirrored is a copy that is ready to be sent.
type mirrored[M any] struct {
	to      *M
	req     *http.Request
	timeout time.Duration
}

// start sends c on a new goroutine, if the limit allows it.
func (m *Mirrorer[M]) start(c mirrored[M]) {
	ctx, err := m.enter()
	if err != nil {
		body.CloseRequest(c.req)
		m.done(c.to, err)
		return
	}
	go func() {
		defer m.leave()
		m.done(c.to, m.send(ctx, c))
	}()
}

func (m *Mirrorer[M]) send(all context.Context, c mirrored[M]) error {
	ctx, cancel := m.bound(c.req.Context(), all, c.timeout)
	defer cancel()

	resp, err := m.Send(c.to, c.req.WithContext(ctx))
	if err != nil {
		return err
	}
	if resp.Body == nil {
		return nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil // it has no end to wait for
	}
	_, err = io.CopyN(io.Discard, resp.Body, drain)
	if err == io.EOF {
		return nil
	}
	return err
}

// enter takes a slot and returns the context that Close cancels.
func (m *Mirrorer[M]) enter() (context.Context, error) {
	limit := m.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrClosed
	case m.underWay >= limit:
		return nil, ErrLimit
	}
	if m.ctx == nil {
		m.ctx, m.cancel = context.WithCancel(context.Background())
	}
	m.underWay++
	m.running.Add(1)
	return m.ctx, nil
}

func (m *Mirrorer[M]) leave() {
	m.mu.Lock()
	m.underWay--
	m.mu.Unlock()
	m.running.Done()
}

func (m *Mirrorer[M]) done(to *M, err error) {
	if m.Done != nil {
		m.Done(to, err)
	}
}

// copyOf returns a copy of out without a body. It shares nothing with out.
func copyOf(out *http.Request) *http.Request {
	u := *out.URL
	host := out.Host
	if host == "" {
		host = u.Host
	}
	c := &http.Request{
		Method:     out.Method,
		URL:        &u,
		Proto:      out.Proto,
		ProtoMajor: out.ProtoMajor,
		ProtoMinor: out.ProtoMinor,
		Header:     out.Header.Clone(),
		Host:       shadowHost(host),
	}
	if c.Header == nil {
		c.Header = make(http.Header)
	}
	return c.WithContext(detach(out.Context()))
}

func shadowHost(authority string) string {
	host := authority
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		host = authority[:i]
	}
	return host + "-shadow" + authority[len(host):]
}

// detach returns a context with the values of ctx that does not end with it and has no httptrace hooks: the hooks belong to the original,
// and cannot be called for two requests at the same time.
func detach(ctx context.Context) context.Context {
	ctx = context.WithoutCancel(ctx)
	if httptrace.ContextClientTrace(ctx) == nil {
		return ctx
	}
	// A hook for connections also hides those that package net looks up.
	return httptrace.WithClientTrace(untraced{ctx}, &httptrace.ClientTrace{ConnectStart: func(_, _ string) {}})
}

type untraced struct {
	context.Context
}

func (c untraced) Value(key any) any {
	value := c.Context.Value(key)
	if _, ok := value.(*httptrace.ClientTrace); ok {
		return nil
	}
	return value
}

// owned returns a body for a copy, which may outlast its original: then the caller may use the memory of the request body again. So what
// is in memory is copied, unless it is large.
func owned(rc io.ReadCloser) io.ReadCloser {
	size, ok := caller.SizeInMemory(rc)
	if !ok || size == 0 || size > bodyLimit {
		return rc
	}
	kept := make([]byte, size)
	n, _ := io.ReadFull(rc, kept) // memory cannot fail, and its Close does nothing
	return io.NopCloser(bytes.NewReader(kept[:n]))
}

// teeBody is the request body of an original. Its copies wait until it was read.
type teeBody[M any] struct {
	rc     io.ReadCloser
	m      *Mirrorer[M]
	length int64 // as announced; 0 or less if unknown

	mu      sync.Mutex
	waiting []mirrored[M] // nil once they were sent or dropped
	kept    []byte
}

// Read implements io.Reader.
func (t *teeBody[M]) Read(p []byte) (int, error) {
	n, err := t.rc.Read(p)
	t.observe(p[:n], err)
	return n, err
}

// Close implements io.Closer. It may be called during a Read.
func (t *teeBody[M]) Close() error {
	defer t.giveUp()
	return t.rc.Close()
}

func (t *teeBody[M]) observe(p []byte, err error) {
	t.mu.Lock()
	if t.waiting == nil {
		t.mu.Unlock()
		return
	}
	fits := len(t.kept)+len(p) <= bodyLimit
	if fits {
		t.kept = append(t.kept, p...)
	}
	// A reader that knows the length may stop before EOF.
	ended := err == io.EOF || t.length > 0 && int64(len(t.kept)) == t.length
	if fits && !ended && err == nil {
		t.mu.Unlock()
		return
	}
	waiting, body := t.waiting, t.kept
	t.waiting, t.kept = nil, nil
	t.mu.Unlock()

	if !fits || !ended {
		t.m.abandon(waiting)
		return
	}
	for _, c := range waiting {
		c.req.Body, c.req.ContentLength = http.NoBody, int64(len(body))
		if len(body) > 0 {
			c.req.Body = io.NopCloser(bytes.NewReader(body))
		}
		t.m.start(c)
	}
}

func (t *teeBody[M]) giveUp() {
	t.mu.Lock()
	waiting := t.waiting
	t.waiting, t.kept = nil, nil
	t.mu.Unlock()
	t.m.abandon(waiting)
}

// abandon drops copies whose body is not available.
func (m *Mirrorer[M]) abandon(waiting []mirrored[M]) {
	for _, c := range waiting {
		m.done(c.to, ErrBody)
	}
}
