// Package mirror copies calls to other destinations. Nothing that becomes of a copy has an effect on its original: a copy is
// not retried, has a deadline of its own and does not end with its original's context. The Host of a copy is the original's
// with "-shadow" before the port.
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
	"github.com/nosidecar/mesh/internal/refusal"
)

const (
	defaultLimit   = 64
	defaultTimeout = 15 * time.Second // Envoy's for a route without timeout

	million = 1_000_000

	bodyLimit = 64 << 10 // of a request body that has to be kept
	drain     = 64 << 10 // of a response body that is read so that its connection can be used again
)

// Why a copy was not sent; see [Mirrorer.Done].
var (
	ErrLimit  = refusal.New("route: too many mirrored requests under way")
	ErrBody   = refusal.New("route: request body not mirrored: too large, or not read to its end")
	ErrClosed = refusal.New("route: mirroring closed")
)

// Mirrorer sends copies of calls and drops the responses. M is a mirror: where copies go.
//
// A Mirrorer is safe for concurrent use and must not be changed after its first use. Close it.
type Mirrorer[M any] struct {
	// Share returns how many calls in a million a mirror gets copies of.
	Share func(*M) uint32

	// Send sends a copy to a mirror. It must return when the context of req ends. It is called on a goroutine of the
	// Mirrorer's.
	Send func(to *M, req *http.Request) (*http.Response, error)

	// Limit is how many copies may be under way at once; further ones are dropped. 0 means 64.
	Limit int

	// Timeout bounds a copy, its response included, if its route has no timeout. 0 means 15 s.
	Timeout time.Duration

	// Done, if not nil, is called once for each copy that was due: with nil after a response, with the error of Send, or
	// with one of [ErrLimit], [ErrBody] and [ErrClosed]. It may be called on the goroutine of the original, and must not
	// block.
	Done func(to *M, err error)

	// Rand returns an integer in [0, n). Nil means math/rand/v2.
	Rand func(n uint32) uint32

	running sync.WaitGroup

	mu       sync.Mutex
	ctx      context.Context // of all copies; nil until the first
	cancel   context.CancelFunc
	underWay int
	closed   bool
}

// Copy is [Mirrorer.Fork] for calls that are not requests of net/http. For each mirror that is drawn, prepare is called, before
// Copy returns, with the authority of the copy, which is made from that of the original. It returns what sends the copy, on a
// goroutine of the Mirrorer's and within the context given to it: one with the values of ctx, but not its end.
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

// bound returns the context of a copy, which ends with all others or when its time is up.
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

// Fork copies out, a request that is about to be sent, to those of the mirrors that are drawn. The timeout is that of the
// route, 0 if it has none. out must not be the caller's request, since its Body may be replaced by one that records what is
// read: without GetBody, a copy is sent once the body was read to its end, if it is no larger than 64 KiB.
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
			rc, err := out.GetBody()
			if err != nil {
				m.done(c.to, err)
				continue
			}
			c.req.Body, c.req.ContentLength = rc, out.ContentLength
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

// Close cancels the copies under way and waits for them. Later ones are not sent. It always returns nil, and may be called
// more than once.
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

// mirrored is a copy and what it takes to send it.
type mirrored[M any] struct {
	to      *M
	req     *http.Request
	timeout time.Duration
}

// start sends c on a goroutine of its own, if there is room.
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
		return nil // there is no end to wait for
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

// copyOf returns a copy of out that shares nothing with it, without a body.
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

// detach keeps the values of ctx, but neither its end nor the hooks of httptrace: those belong to the original, and are
// not made to be called for two requests at once.
func detach(ctx context.Context) context.Context {
	ctx = context.WithoutCancel(ctx)
	if httptrace.ContextClientTrace(ctx) == nil {
		return ctx
	}
	// A hook for connections shadows also the ones that package net finds by itself.
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

// teeBody is the body of an original whose copies wait for it to be read.
type teeBody[M any] struct {
	rc     io.ReadCloser
	m      *Mirrorer[M]
	length int64 // as announced; 0 or less if it is not known

	mu      sync.Mutex
	waiting []mirrored[M] // nil once they are sent or given up
	kept    []byte
}

// Read implements io.Reader.
func (t *teeBody[M]) Read(p []byte) (int, error) {
	n, err := t.rc.Read(p)
	t.observe(p[:n], err)
	return n, err
}

// Close implements io.Closer. It may be called while a Read is under way.
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
	// Who knows the length may stop reading before it meets EOF.
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

// abandon gives up copies whose body did not come.
func (m *Mirrorer[M]) abandon(waiting []mirrored[M]) {
	for _, c := range waiting {
		m.done(c.to, ErrBody)
	}
}
