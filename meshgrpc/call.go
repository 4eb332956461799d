package meshgrpc

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/engine/enginehttp"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/pause"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// call is one call on its way through the mesh. It has what unary calls and streams have in common.
type call struct {
	engine.Call
	options
	ctx       context.Context // the caller's
	client    *client
	cc        *grpc.ClientConn
	asked     head      // as the call enters the mesh
	sent      *head     // as it leaves the mesh: asked, unless documents change it
	setCookie string    // for a call without the cookie of its hash key
	observed  *observed // nil if there are no observers
	waits     waits     // until an endpoint is ready
	restarts  int32     // after waits for an endpoint
	first     try
	last      *try // the latest try; nil before the first
}

// observed is the part of a call that only observers need.
type observed struct {
	sent        atomic.Int64    // the sizes of messages
	description                 // of the first start of the call; keeps the two sums apart, which different processors may write
	begun       bool            // description is in use
	told        bool            // that the message of a unary call was sent
	messages    engine.Messages // of the first start of a stream
	received    atomic.Int64
}

// head is the part of a call that precedes its messages.
type head struct {
	method    string
	authority string // "" for that of the ClientConn
	header    http.Header
}

// attempter is a unary call or a stream. It makes its attempts one after the other.
type attempter interface {
	engine.Adapter
	grpcreplay.Tries

	// send makes the attempt t, up to the beginning of its response. It reports whether that is still pending.
	send(t *try) (pending bool)

	// replayable reports whether another attempt can follow.
	replayable() bool
}

// begin sets the fields of a call that the caller makes.
func (c *call) begin(ctx context.Context, client *client, cc *grpc.ClientConn, method string, opts []grpc.CallOption) {
	c.ctx, c.client, c.cc = ctx, client, cc
	var authority string
	authority, c.waits = c.options.read(opts)
	c.asked = head{method, authority, requestHeader(ctx, c.contentType())}
}

// description is a call as an HTTP request, for observers and documents.
type description struct {
	request http.Request
	url     url.URL
}

// describe sets d to a call with the head h.
func (c *call) describe(d *description, h *head) {
	d.request = *blank.WithContext(c.ctx)
	d.url = url.URL{Scheme: "http", Host: authority(c.cc), Path: h.method}
	r := &d.request
	r.URL, r.Host, r.Header = &d.url, h.authority, h.header
}

// request returns the call with the head h as an HTTP request.
func (c *call) request(h *head) *http.Request {
	d := new(description)
	c.describe(d, h)
	return &d.request
}

// route sets r to what routes see of the call with the head h: the same as of its request, which would be an allocation.
func (c *call) route(r *route.Request, h *head) {
	r.Method, r.Authority, r.Scheme, r.Header = http.MethodPost, h.authority, "http", h.header
	r.Path = field.SentPath(&url.URL{Path: h.method})
	if r.Authority == "" {
		r.Authority = authority(c.cc)
	}
}

// described returns the call as it leaves the mesh for the observers, nil if there are none.
func (c *call) described() any {
	o := c.observed
	switch {
	case o == nil:
		return nil
	case o.begun: // observers may have kept the description
		return c.request(c.sent)
	}
	o.begun = true
	c.describe(&o.description, c.sent)
	return &o.request
}

// serve takes the call through the mesh. Its error may be engine.ErrSuspended.
func (c *call) serve(a attempter) (*engine.Refusal, error) {
	answer, err := c.start(a)
	return c.served(a, answer, err)
}

// start takes the call through the stages of the engine, once.
func (c *call) start(a attempter) (*engine.Refusal, error) {
	c.sent = &c.asked
	return c.pass(engine.Routed, route.Target{}, a)
}

// served returns the result of a call that has passed the stages with a result. A wait-for-ready call is repeated until it can be sent.
func (c *call) served(a attempter, answer *engine.Refusal, err error) (*engine.Refusal, error) {
	if err == nil || err == engine.ErrSuspended || c.waits == no || !a.replayable() || !unready(err) {
		return answer, err
	}
	c.cc.Connect() // a ClientConn without a call is idle, and has no service config yet
	config := c.cc.GetMethodConfig(c.asked.method)
	if c.waits == asConfigured && (config.WaitForReady == nil || !*config.WaitForReady) {
		return answer, err
	}
	ctx := c.ctx
	if config.Timeout != nil { // gRPC applies it to a try, and there is none
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *config.Timeout)
		defer cancel()
	}
	for err != nil && a.replayable() && unready(err) {
		if cause := pause.For(ctx, patience(int(c.restarts))); cause != nil {
			return nil, &neverReady{cause: cause, last: err}
		}
		c.Renew()
		c.restarts++
		answer, err = c.start(a)
	}
	return answer, err
}

// patience returns how long a wait-for-ready call waits after the n-th time that it could not be sent, counted from 0.
func patience(n int) time.Duration {
	return min(50*time.Millisecond<<min(n, 5), time.Second)
}

// pass takes the call, with the head c.sent, through the stages of the engine.
func (c *call) pass(kind engine.Kind, target route.Target, a engine.Adapter) (*engine.Refusal, error) {
	c.Begin(c.ctx, c.client.engine, kind, c.described())
	view := engine.Request{Host: authority(c.cc), Target: target}
	c.route(&view.Request, c.sent)
	if kind == engine.Copied {
		view.Authority = "" // the authority of a copy only marks it as one
	}
	return c.Serve(c.Context(), &view, a)
}

// Outside implements engine.Adapter.
func (c *call) Outside(context.Context) error {
	if host := authority(c.cc); host != "" && host[0] != ':' && !strings.ContainsAny(host, "/?#") {
		return c.NotInMesh()
	}
	return &engine.Refusal{Layer: engine.LayerRoute, Flags: engine.FlagNoRoute, Err: refusal.Because(&noHost{c.cc.Target()})}
}

// Prepare implements engine.Adapter.
func (c *call) Prepare(backend *route.Backend, match int) error {
	c.setCookie = ""
	if !backend.Rewrites() {
		return nil
	}
	out := c.request(&c.asked)
	out.Header = maps.Clone(out.Header)
	if err := backend.Rewrite(out, match); err != nil {
		return err
	}
	if why := unsendableHeader(out.Header, c.asked.header); why != "" {
		document, _ := c.Origin()
		return refusal.New(cmp.Or(document, "the route") + " sets " + why)
	}
	c.sent = &head{out.URL.Path, out.Host, out.Header}
	return nil
}

// Failure implements engine.Adapter.
func (c *call) Failure(err error) failure.Kind { return failure.Of(c.Context(), nil, err) }

// timeouts are those of a call and of its first try, in one allocation, which gRPC may keep.
type timeouts struct {
	deadline.Call
	first deadline.Context
}

// NewLimits implements engine.Adapter.
func (c *call) NewLimits() *deadline.Call {
	if rule, _ := c.Rule(); rule.Route.Retry.PerTryTimeout == 0 || c.last != nil {
		return new(deadline.Call)
	}
	all := new(timeouts)
	c.first.limit = &all.first
	return &all.Call
}

// Bytes implements engine.Adapter.
func (c *call) Bytes() (sent, received int64) {
	return c.observed.sent.Load(), c.observed.received.Load()
}

// size returns the size of a message if the call is observed, and 0 otherwise.
func (c *call) size(m any) int64 {
	if c.observed == nil {
		return 0
	}
	size, _ := grpcwire.MessageSize(m)
	return int64(size)
}

// HashKey implements engine.Adapter.
func (c *call) HashKey(key *balancer.HashKey) (value string, ok bool) {
	if value, ok = key.Of(c.request(c.sent)); !ok {
		value, c.setCookie, ok = key.NewCookie()
	}
	return value, ok
}

// attempts implements Send of engine.Adapter: it makes attempts as long as the loop allows.
func (c *call) attempts(ctx context.Context, a attempter) (retry.Reason, error) {
	c.Multiplexed()
	loop := c.Loop()
	if loop.Policy == nil { // a copy is not retried
		a.Try(ctx, 0, 1)
		return retry.Succeeded, c.last.failed()
	}
	n, reason, gone := grpcreplay.Do(ctx, &loop, a)
	return c.attempted(ctx, n, reason, gone)
}

// attempted returns the result of Send for n attempts. gone says that ctx ended before another one.
func (c *call) attempted(ctx context.Context, n int, reason retry.Reason, gone bool) (retry.Reason, error) {
	if gone {
		return reason, after(n, context.Cause(ctx))
	}
	c.edit(c.last)
	return reason, after(n, c.last.failed())
}

// after returns the error of a call whose n-th attempt failed with err, which may be nil.
func after(n int, err error) error {
	if err == nil || n == 1 {
		return err
	}
	return &retry.Error{Attempts: n, Last: err}
}

// attempt makes the n-th attempt, up to the beginning of its response, and returns what retries are decided by.
func (c *call) attempt(ctx context.Context, limit time.Duration, a attempter, n int) (o grpcreplay.Outcome) {
	t := &c.first
	if c.last != nil {
		t = new(try)
	}
	c.last = t
	returned := false
	defer func() {
		if !returned { // a panic or a Goexit
			t.giveUp()
		}
	}()
	if t.begin(ctx, c, limit, n) && a.send(t) {
		o.Pending = true
	} else {
		o = t.settle(a)
	}
	returned = true
	return o
}

// edit applies the edits of documents to the response metadata that the caller gets.
func (c *call) edit(t *try) {
	backend := c.Backend()
	if t.status == 0 || !t.reads || c.setCookie == "" && backend.Response == nil {
		return
	}
	md := &t.header
	if t.header == nil { // a trailers-only response
		md = &t.trailer
	}
	h := httpHeader(*md)
	if md == &t.trailer && t.err != nil {
		h["Grpc-Status"], h["Grpc-Message"] = []string{strconv.Itoa(int(t.code))}, []string{status.Convert(t.err).Message()}
	}
	if backend.Response != nil {
		var sent route.Request
		c.route(&sent, c.sent)
		backend.Response.Apply(h, &sent)
	}
	if c.setCookie != "" {
		h.Add("Set-Cookie", c.setCookie)
	}
	*md = fromReply(h)
}

// conclude ends a call with the result of serve, and returns what the caller gets. The last attempt has already ended.
func (c *call) conclude(answer *engine.Refusal, err error) (header, trailer metadata.MD, _ error) {
	switch {
	case err != nil && c.last != nil && c.Failure(err) == failure.BadRequest:
		return nil, nil, c.last.err // as without the mesh, and as with net/http
	case err != nil:
		return nil, nil, failed(c.ctx, err)
	case answer != nil:
		resp := enginehttp.Respond(&c.Call, answer, c.request(&c.asked))
		c.AnswerHeader(resp.Header)
		defer resp.Body.Close()
		err = answered(resp)
		c.GRPC(uint32(status.Code(err)))
		c.End(resp.StatusCode, nil, nil)
		return nil, fromReply(resp.Header), err
	}
	last := c.last
	rest := last.rest
	if limits := c.Limits(); limits != nil {
		rest = limits.Received(rest)
	}
	if last.status == http.StatusOK && rest == nil {
		c.GRPC(uint32(last.code))
	}
	c.End(last.status, rest, nil)
	header, trailer = last.metadata()
	if _, ours := errors.AsType[*deadline.Error](rest); ours {
		return header, trailer, failed(c.ctx, rest)
	}
	return header, trailer, last.err
}
