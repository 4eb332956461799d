package route

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/refusal"
)

// Defaults and bounds of a [Mirrorer].
const (
	DefaultMirrorLimit   = 64
	DefaultMirrorTimeout = 15 * time.Second // Envoy's for a route without timeout

	mirrorBodyLimit = 64 << 10 // of a request body that has to be kept
	mirrorDrain     = 64 << 10 // of a response body that is read so that its connection can be used again
)

// Why a copy was not sent; see [Mirrorer.Done].
var (
	ErrMirrorLimit  = refusal.New("route: too many mirrored requests under way")
	ErrMirrorBody   = refusal.New("route: request body not mirrored: too large, or not read to its end")
	ErrMirrorClosed = refusal.New("route: mirroring closed")
)

// Mirrorer sends copies of requests to the mirrors of their route and drops the responses. Nothing that becomes of a copy
// has an effect on its original: a copy is not retried, has a deadline of its own and does not end with its original's
// context. Its Host is the original's with "-shadow" before the port.
//
// A Mirrorer is safe for concurrent use and must not be changed after its first use. Close it.
type Mirrorer struct {
	// Send sends a copy to its target. It must return when the context of req ends. It is called on a goroutine of the
	// Mirrorer's.
	Send func(target Target, req *http.Request) (*http.Response, error)

	// Limit is how many copies may be under way at once; further ones are dropped. 0 means 64.
	Limit int

	// Timeout bounds a copy, its response included, if its route has no timeout. 0 means 15 s.
	Timeout time.Duration

	// Done, if not nil, is called once for each copy that was due: with nil after a response, with the error of Send, or
	// with one of [ErrMirrorLimit], [ErrMirrorBody] and [ErrMirrorClosed]. It may be called on the goroutine of the
	// original, and must not block.
	Done func(target Target, err error)

	// Rand returns an integer in [0, n). Nil means math/rand/v2.
	Rand func(n uint32) uint32

	running sync.WaitGroup

	mu       sync.Mutex
	ctx      context.Context // of all copies; nil until the first
	cancel   context.CancelFunc
	underWay int
	closed   bool
}

// Fork copies out, a request that is about to be sent, to those mirrors of rule that are drawn. out must not be the caller's
// request, since its Body may be replaced by one that records what is read: without GetBody, a copy is sent once the body
// was read to its end, if it is no larger than 64 KiB.
func (m *Mirrorer) Fork(out *http.Request, rule *Rule) {
	m.fork(out, rule, m.Send)
}

// Copy is [Mirrorer.Fork] for calls that are not requests of net/http. For each mirror that is drawn, prepare is called, before
// Copy returns, with the authority of the copy, which is made from that of the original. It returns what sends the copy, on a
// goroutine of the Mirrorer's and within the context given to it: one with the values of ctx, but not its end.
func (m *Mirrorer) Copy(ctx context.Context, rule *Rule, authority string,
	prepare func(target Target, authority string) (send func(context.Context) error, err error)) {
	for i := range rule.Route.Mirrors {
		mirror := &rule.Route.Mirrors[i]
		if !m.drawn(mirror.PerMillion) {
			continue
		}
		send, err := prepare(mirror.Target, shadowHost(authority))
		if err != nil {
			m.done(mirror.Target, err)
			continue
		}
		all, err := m.enter()
		if err != nil {
			m.done(mirror.Target, err)
			continue
		}
		go func() {
			defer m.leave()
			ctx, cancel := m.bound(detach(ctx), all, rule.Route.Timeout)
			defer cancel()
			m.done(mirror.Target, send(ctx))
		}()
	}
}

// bound returns the context of a copy, which ends with all others or when its time is up.
func (m *Mirrorer) bound(ctx, all context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout <= 0 {
		timeout = m.Timeout
	}
	if timeout <= 0 {
		timeout = DefaultMirrorTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(all, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

type sendFunc = func(target Target, req *http.Request) (*http.Response, error)

func (m *Mirrorer) fork(out *http.Request, rule *Rule, send sendFunc) {
	var tee *teeBody
	for i := range rule.Route.Mirrors {
		mirror := &rule.Route.Mirrors[i]
		if !m.drawn(mirror.PerMillion) {
			continue
		}
		c := mirrored{target: mirror.Target, req: copyOf(out), timeout: rule.Route.Timeout, send: send}
		switch {
		case out.Body == nil || out.Body == http.NoBody:
			m.start(c)
		case out.GetBody != nil:
			rc, err := out.GetBody()
			if err != nil {
				m.done(c.target, err)
				continue
			}
			c.req.Body, c.req.ContentLength = rc, out.ContentLength
			m.start(c)
		case out.ContentLength > mirrorBodyLimit:
			m.done(c.target, ErrMirrorBody)
		default:
			if tee == nil {
				tee = &teeBody{rc: out.Body, m: m, length: out.ContentLength}
				out.Body = tee
			}
			tee.waiting = append(tee.waiting, c)
		}
	}
}

// Close cancels the copies under way and waits for them. Later ones are not sent. It always returns nil, and may be called
// more than once.
func (m *Mirrorer) Close() error {
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

func (m *Mirrorer) drawn(perMillion uint32) bool {
	switch {
	case perMillion == 0:
		return false
	case m.Rand == nil:
		return rand.Uint32N(million) < perMillion
	}
	return m.Rand(million) < perMillion
}

// mirrored is a copy and what it takes to send it.
type mirrored struct {
	target  Target
	req     *http.Request
	timeout time.Duration
	send    sendFunc
}

// start sends c on a goroutine of its own, if there is room.
func (m *Mirrorer) start(c mirrored) {
	ctx, err := m.enter()
	if err != nil {
		body.CloseRequest(c.req)
		m.done(c.target, err)
		return
	}
	go func() {
		defer m.leave()
		m.done(c.target, m.send(ctx, c))
	}()
}

func (m *Mirrorer) send(all context.Context, c mirrored) error {
	ctx, cancel := m.bound(c.req.Context(), all, c.timeout)
	defer cancel()

	resp, err := c.send(c.target, c.req.WithContext(ctx))
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
	_, err = io.CopyN(io.Discard, resp.Body, mirrorDrain)
	if err == io.EOF {
		return nil
	}
	return err
}

// enter takes a slot and returns the context that Close cancels.
func (m *Mirrorer) enter() (context.Context, error) {
	limit := m.Limit
	if limit <= 0 {
		limit = DefaultMirrorLimit
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrMirrorClosed
	case m.underWay >= limit:
		return nil, ErrMirrorLimit
	}
	if m.ctx == nil {
		m.ctx, m.cancel = context.WithCancel(context.Background())
	}
	m.underWay++
	m.running.Add(1)
	return m.ctx, nil
}

func (m *Mirrorer) leave() {
	m.mu.Lock()
	m.underWay--
	m.mu.Unlock()
	m.running.Done()
}

func (m *Mirrorer) done(target Target, err error) {
	if m.Done != nil {
		m.Done(target, err)
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
	host, _ := splitPort(authority)
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
type teeBody struct {
	rc     io.ReadCloser
	m      *Mirrorer
	length int64 // as announced; 0 or less if it is not known

	mu      sync.Mutex
	waiting []mirrored // nil once they are sent or given up
	kept    []byte
}

// Read implements io.Reader.
func (t *teeBody) Read(p []byte) (int, error) {
	n, err := t.rc.Read(p)
	t.observe(p[:n], err)
	return n, err
}

// Close implements io.Closer. It may be called while a Read is under way.
func (t *teeBody) Close() error {
	defer t.giveUp()
	return t.rc.Close()
}

func (t *teeBody) observe(p []byte, err error) {
	t.mu.Lock()
	if t.waiting == nil {
		t.mu.Unlock()
		return
	}
	fits := len(t.kept)+len(p) <= mirrorBodyLimit
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

func (t *teeBody) giveUp() {
	t.mu.Lock()
	waiting := t.waiting
	t.waiting, t.kept = nil, nil
	t.mu.Unlock()
	t.m.abandon(waiting)
}

// abandon gives up copies whose body did not come.
func (m *Mirrorer) abandon(waiting []mirrored) {
	for _, c := range waiting {
		m.done(c.target, ErrMirrorBody)
	}
}
