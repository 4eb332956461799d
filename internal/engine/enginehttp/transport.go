// Package enginehttp takes the requests of net/http through an engine.
package enginehttp

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Transport is an http.RoundTripper over an engine. [New] makes one.
type Transport struct {
	engine *engine.Engine
	sets   atomic.Int32 // how many headers observers added to an attempt lately: a hint
}

// New returns the transport of e. There must be only one.
func New(e *engine.Engine) *Transport {
	t := &Transport{engine: e}
	e.Mirrors.Send = t.mirror
	return t
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || req.URL.Host == "" || req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return t.engine.Template().Outside().RoundTrip(req) // it has the best error for this
	}
	return t.do(req, engine.Routed, nil)
}

// CloseIdleConnections closes the connections that serve no call.
func (t *Transport) CloseIdleConnections() {
	t.engine.CloseIdleConnections()
}

// Engine returns the underlying engine.
func (t *Transport) Engine() *engine.Engine {
	return t.engine
}

// mirror sends the copy of a request. The mirrorer runs it on a goroutine of its own.
func (t *Transport) mirror(to *route.Mirror, req *http.Request) (*http.Response, error) {
	return t.do(req, engine.Copied, to)
}

// do makes a call, which lasts until the body of the response ends. A copy goes to a mirror.
func (t *Transport) do(req *http.Request, kind engine.Kind, to *route.Mirror) (*http.Response, error) {
	c := calls.Get().(*call)
	c.users, c.req = 1, req
	if t.engine.HeadersObserved() {
		c.observeHeaders(&t.sets)
	}
	answer, err := c.serve(t.engine, kind, to) // if it panics, nobody knows who still uses the call, so it is not released
	if err != nil {
		c.release()
		return nil, err
	}
	resp := c.resp
	switch {
	case answer != nil:
		resp = Respond(&c.Call, answer, req)
	case c.edits():
		c.edit(resp)
	}
	if resp.Request = req; c.tries > 1 {
		attempt.Restore(resp, req, int(c.tries))
	}
	c.status = int16(resp.StatusCode)
	if c.resp = nil; c.Observed() {
		c.observeResponse(resp, answer != nil, kind)
	}
	c.watch(resp)
	if resp.StatusCode == http.StatusSwitchingProtocols && c.Observed() {
		c.observed.upgraded, _ = resp.Body.(interface{ Written() int64 })
	}
	if limits := c.Limits(); limits != nil {
		limits.Watch(resp) // outside; they end with the call
	}
	if c.tries == 1 && c.users > 1 {
		c.users-- // nobody else has the response yet
	} else {
		c.release()
	}
	return resp, nil
}

// observeResponse tells the observers of the call what the caller gets: an answer of this process, or the response of a server.
func (c *call) observeResponse(resp *http.Response, answered bool, kind engine.Kind) {
	if answered || c.Backend() == nil && kind == engine.Routed { // or outside the mesh
		c.AnswerHeader(resp.Header)
	}
	if (answered || c.tries != 1 || c.first.grpc != nil) && field.IsGRPC(resp.Header) {
		c.resp = resp // which has its status at its end
	}
}

// call is one request in flight. It holds the first attempt, which is usually the only one. Calls are reused. What a program may
// keep after the end of a call is not part of it: the reader of the response body, and requests that were sent.
type call struct {
	engine.Call
	users    int32          // see release; atomic as soon as there may be more than one
	req      *http.Request  // the caller's
	out      *http.Request  // what is sent: a copy, or req itself
	sent     *http.Request  // what was sent last; nil as long as the body must be closed here
	resp     *http.Response // the server's; later the one that the caller got, if it is a gRPC response
	tries    int32          // attempts begun
	status   int16          // of the response that the caller got
	answered bool           // by a server, not by this process
	lent     bool           // see lend

	limited   *limited     // nil without limits
	inner     *body.Reader // of the first attempt
	outer     *body.Reader // of the response that the caller got; the same as inner if nothing else reads that
	setCookie *string      // for a request that came without the cookie of its hash key

	first    try
	observed observed
}

// calls has calls that have ended. Their fields are zero.
var calls = sync.Pool{New: func() any { return new(call) }}

// release ends the use of a call. Its users are RoundTrip, the call until its response body has ended, and each attempt until its own
// body has. The last one returns the call to the pool: two goroutines that have the body can end the call and its attempt at the same
// time.
func (c *call) release() {
	if atomic.LoadInt32(&c.users) == 1 || atomic.AddInt32(&c.users, -1) == 0 { // nobody joins the only user
		*c = call{}
		calls.Put(c)
	}
}

// observed is state for the observers of some calls.
type observed struct {
	body     *body.Counter                // of the request; nil if the length is known
	upgraded interface{ Written() int64 } // the body of a response that can be written to; mostly nil
	first    *outgoing.Request            // of the first attempt; nil unless observers set headers
	sets     *atomic.Int32                // of the Transport
}

// observeHeaders gives the call what observers of headers need. It is not part of the call, which is reused.
func (c *call) observeHeaders(sets *atomic.Int32) {
	o := &struct {
		first outgoing.Request
		inner body.Reader
	}{}
	c.observed.first, c.observed.sets, c.inner = &o.first, sets, &o.inner
}

// limited is what a call with limits needs, in one allocation, its first try included. Whoever has the context or the body may keep it.
type limited struct {
	deadline.Call
	first attempt.Timed
}

// NewLimits implements engine.Adapter.
func (c *call) NewLimits() *deadline.Call {
	c.limited = new(limited)
	return &c.limited.Call
}

// Room returns memory for the first try to retry.Loop.
func (c *call) Room() *attempt.Timed {
	if c.limited == nil || !c.limited.Began() {
		return nil
	}
	return &c.limited.first
}

// reader returns the reader for the body of the first attempt.
func (c *call) reader() *body.Reader {
	switch {
	case c.inner != nil:
		return c.inner
	case c.limited != nil && !c.limited.first.NeedsBody():
		return &c.limited.first.Body
	}
	return new(body.Reader)
}

var (
	_ engine.Adapter  = (*call)(nil)
	_ retry.Attempter = (*call)(nil)
)

// serve takes the call through the engine, up to its response. If nothing was sent, not even the body, that is closed, also after a panic of
// an observer.
func (c *call) serve(e *engine.Engine, kind engine.Kind, to *route.Mirror) (*engine.Refusal, error) {
	req, u := c.req, c.req.URL
	wait := req.Context()
	defer func() {
		caller.Stop(wait, req)
		if c.sent == nil {
			body.CloseRequest(c.req)
		}
	}()
	c.Begin(wait, e, kind, req)
	wait = caller.Wait(c.Context(), req)
	view := engine.Request{Host: u.Host}
	view.Method, view.Scheme, view.Authority = req.Method, u.Scheme, req.Host
	view.Path, view.RawQuery, view.Header = field.SentPath(u), u.RawQuery, req.Header
	if view.Method == "" {
		view.Method = http.MethodGet
	}
	if to != nil {
		view.Target, view.Authority = to.Target, "" // which only says that this is a copy
	} else if view.Authority == "" {
		view.Authority = u.Host
	}
	return c.Serve(wait, &view, c)
}

// watch has the call end with the body of resp.
func (c *call) watch(resp *http.Response) {
	reader, _ := resp.Body.(*body.Reader)
	only := c.tries == 1 && reader != nil && reader == c.inner // which nobody has read yet
	c.outer = c.inner
	if only {
		c.first.last = true
	} else { // the first attempt may be ending at the same time
		c.outer = new(body.Reader)
	}
	if c.Observed() {
		c.outer.Count()
	}
	if !only {
		atomic.AddInt32(&c.users, 1)
		c.outer.Attach(resp, (*ending)(c))
	}
}

// ending is a call whose response has a body.
type ending call

// End implements body.Ender: the call is over when its body is.
func (e *ending) End(err error) {
	c := (*call)(e)
	c.end(err)
	c.release()
}

// edits reports whether the caller gets the response of a server with another header.
func (c *call) edits() bool {
	return c.setCookie != nil || c.Backend() != nil && c.Backend().Response != nil
}

// edit turns the response of a server into the one that the caller gets.
func (c *call) edit(resp *http.Response) {
	if b := c.Backend(); b != nil && b.Response != nil {
		sent := route.NewRequest(c.out)
		b.Response.Apply(resp.Header, &sent)
	}
	if c.setCookie != nil {
		resp.Header.Add("Set-Cookie", *c.setCookie)
	}
}

func (c *call) end(err error) {
	if c.resp != nil {
		if code, ok := grpcCode(c.resp); ok {
			c.GRPC(code)
		}
	}
	if c.lent && c.tries == 1 && err == nil && c.outer.Complete() {
		c.Limits().Finish()
	}
	var last *engine.Attempt
	if c.tries == 1 {
		last = &c.first.Attempt // its body, inside that of the call, has just ended
	}
	c.Call.End(int(c.status), err, last)
}

// request returns the caller's request with the context ctx, and with a body that is counted if that is needed. It is the request
// itself if there is nothing to change.
func (c *call) request(ctx context.Context) *http.Request {
	req := c.req
	if !caller.SameContext(ctx, req.Context()) {
		req = req.WithContext(ctx)
	}
	return c.counted(req)
}

// counted returns the request with a body that is counted, if there are observers and the length is not announced.
func (c *call) counted(req *http.Request) *http.Request {
	if !c.Observed() {
		return req
	}
	return c.count(req)
}

func (c *call) count(req *http.Request) *http.Request {
	if req.Body == nil || req.Body == http.NoBody || req.ContentLength > 0 {
		return req
	}
	if req == c.req {
		req = c.copied()
	}
	counter := &body.Counter{ReadCloser: req.Body}
	c.observed.body, req.Body = counter, counter
	return req
}

// Bytes implements engine.Adapter. A body of known length counts as sent if there was an answer.
func (c *call) Bytes() (sent, received int64) {
	if c.answered {
		sent = max(0, c.req.ContentLength)
	}
	if counter := c.observed.body; counter != nil {
		sent = counter.Bytes()
	}
	if to := c.observed.upgraded; to != nil {
		sent += to.Written()
	}
	if c.outer != nil {
		received = c.outer.Bytes()
	}
	return sent, received
}

// Outside implements engine.Adapter.
func (c *call) Outside(ctx context.Context) (err error) {
	c.sent = c.request(ctx)
	if host := field.ASCII(c.sent.URL.Host); host != c.sent.URL.Host {
		// net/http would take characters for others that look alike, and dial a host that documents were not asked about.
		sent, u := *c.sent, *c.sent.URL
		u.Host = host
		sent.URL = &u
		c.sent = &sent
	}
	c.resp, err = c.Engine().Template().Outside().RoundTrip(c.sent)
	c.answered = err == nil
	return err
}

// Prepare implements engine.Adapter. The request that is sent is the caller's own if nothing about it changes, and a copy
// otherwise.
func (c *call) Prepare(backend *route.Backend, match int) error {
	c.out = c.counted(c.req)
	if !backend.Rewrites() {
		return nil
	}
	return c.rewrite(backend, match)
}

func (c *call) rewrite(backend *route.Backend, match int) error {
	if c.out == c.req {
		c.out = c.copied()
	}
	// Values are only ever replaced as a whole, so the caller's can be shared.
	if c.out.Header = maps.Clone(c.req.Header); c.out.Header == nil {
		c.out.Header = make(http.Header)
	}
	rewritten := *c.req.URL
	c.out.URL = &rewritten
	return backend.Rewrite(c.out, match)
}

func (c *call) copied() *http.Request {
	copied := *c.req
	return &copied
}

// Failure implements engine.Adapter.
func (c *call) Failure(err error) failure.Kind {
	sent := c.sent
	if sent == nil {
		sent = c.req
	}
	return failure.Of(c.Context(), sent, err)
}

// HashKey implements engine.Adapter.
func (c *call) HashKey(key *balancer.HashKey) (value string, ok bool) {
	if value, ok = key.Of(c.out); !ok {
		var cookie string
		if value, cookie, ok = key.NewCookie(); cookie != "" {
			c.setCookie = &cookie
		}
	}
	return value, ok
}

// Mirror implements engine.Adapter.
func (c *call) Mirror(rule *route.Rule) {
	if c.out == c.req { // its body may be replaced by one that is recorded
		c.out = c.copied()
	}
	c.Engine().Mirrors.Fork(c.out, rule.Route.Mirrors, rule.Route.Timeout)
}

// Send implements engine.Adapter.
func (c *call) Send(ctx context.Context) (stopped retry.Reason, err error) {
	loop := c.Loop()
	if loop.Policy == nil {
		c.sent = c.request(ctx)
		c.resp, err = c.Attempt(c.sent, 1)
		return retry.Succeeded, err
	}
	c.sent = c.out
	var summary retry.Summary
	c.resp, summary, err = loop.Do(c.out, c)
	return summary.Stopped, err
}
