package engine

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/internal/reply"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// RoundTrip sends a request of net/http.
func (e *Engine) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil || req.URL.Host == "" || req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return e.outside.RoundTrip(req) // which knows best what to say
	}
	c := &call{engine: e, req: req, start: time.Now()}
	return c.run((*call).serve)
}

// mirror sends the copy of a request. The mirrorer runs it on a goroutine of its own.
func (e *Engine) mirror(target route.Target, req *http.Request) (*http.Response, error) {
	sender, _ := req.Context().Value(senderKey{}).(Sender)
	c := &call{engine: e, req: req, start: time.Now(), target: target, sender: sender, copied: true}
	return c.run((*call).serveCopy)
}

// call is one request on its way through the mesh. It is the one allocation that every request costs, and holds the first
// attempt, which usually is the only one.
type call struct {
	engine *Engine
	sender Sender        // what makes the tries; nil for net/http
	req    *http.Request // the caller's
	out    *http.Request // what is sent: a copy, or req itself
	sent   *http.Request // by the latest attempt; nil before
	start  time.Time
	ctx    context.Context // of the whole call, its deadline included

	// What the route decided.
	view    *view
	host    *host
	entry   *route.Entry
	backend *route.Backend
	match   int
	target  route.Target
	cluster *cluster

	limits *deadline.Call // nil if nothing is limited
	body   body.Reader

	// The key of consistent hashing, and the cookie that is set if the call came without one.
	key       uint64
	hasKey    bool
	setCookie string

	// How it went.
	layer    Layer
	flags    Flags // of the whole call
	tryFlags Flags // of the latest attempt
	tries    int   // attempts begun
	attempts int   // requests sent
	stopped  retry.Reason
	status   int
	entered  bool // the cluster counts the call
	copied   bool // a mirrored copy

	first attempted
	tried [2]string // endpoints; further ones are on the heap
	avoid []string

	observer CallObserver // nil if nobody observes
}

// run makes the call with serve, and ends it exactly once: here if there is no response, and else with its body.
func (c *call) run(serve func(*call, context.Context) (*http.Response, error)) (*http.Response, error) {
	ctx := c.req.Context()
	if c.engine.hooks.Call != nil {
		ctx = c.observeStart(ctx)
	}
	c.ctx = ctx
	returned := false
	defer func() {
		if !returned { // a panic or Goexit of the transport below, or of an observer
			c.end(nil)
			c.finish(nil)
		}
	}()
	resp, err := serve(c, ctx)
	returned = true
	if err != nil {
		err = c.failed(err)
		c.finish(err)
		return nil, err
	}
	c.status = resp.StatusCode
	attempt.Restore(resp, c.req, c.tries)
	if c.backend != nil && c.backend.Response != nil && c.attempts > 0 {
		sent := route.NewRequest(c.out)
		c.backend.Response.Apply(resp.Header, &sent)
	}
	if c.setCookie != "" {
		resp.Header.Add("Set-Cookie", c.setCookie)
	}
	if c.limits != nil {
		c.limits.Watch(resp)
	}
	c.body.Attach(resp, c)
	return resp, nil
}

// End implements body.Ender: the call is over when its body is.
func (c *call) End(err error) {
	if err != nil {
		c.flags |= flagsOf(failure.Of(c.ctx, c.sent, err), c.timedOut())
	}
	c.finish(err)
}

// finish releases what the call held and tells the observers. It runs once for each call.
func (c *call) finish(err error) {
	if c.entered {
		c.cluster.leave()
	}
	if c.observer != nil {
		c.observeEnd(err)
	}
}

// serve is the way of a request, stage by stage.
func (c *call) serve(ctx context.Context) (*http.Response, error) {
	resp, err := c.route()
	if resp != nil || err != nil {
		body.CloseRequest(c.req)
		return resp, err
	}
	if c.cluster == nil {
		return c.engine.outside.RoundTrip(c.request(ctx))
	}
	return c.send(ctx)
}

// route finds out where the request goes: it sets cluster, or leaves it nil if the host is outside the mesh. A response
// is the document's own answer.
func (c *call) route() (*http.Response, error) {
	for {
		c.view = c.engine.view.Load()
		c.host = c.view.hosts.lookup(c.req)
		if c.host.outside(c.start) {
			return nil, c.leaveMesh()
		}
		table := c.host.Routes
		if table == nil {
			table = c.view.plan.Defaults()
		}
		// The view of the request is the caller's: routing is by what was asked, not by what it is rewritten to.
		request := route.NewRequest(c.req)
		entry, match, ok := table.Match(&request)
		if !ok {
			c.layer, c.flags = LayerRoute, FlagNoRoute
			return reply.New(c.req, http.StatusNotFound, nil), nil
		}
		c.entry, c.match = entry, match
		if resp := entry.Respond(c.req, match); resp != nil {
			c.layer = LayerRoute
			return resp, nil
		}
		c.backend = entry.Pick(nil)
		c.target = c.resolve(c.backend.Target)

		cluster, err := c.engine.cluster(c.view, c.target)
		if err != nil {
			return nil, c.refuse(LayerRoute, 0, err)
		}
		if cluster == nil || !cluster.enter(c.start) {
			continue // the documents changed meanwhile; nothing was sent yet, so begin again with the new ones
		}
		c.cluster, c.entered = cluster, true
		if c.host.Known || c.host.confirmed.Load() {
			break
		}
		// No document names the host: it belongs to the mesh only if discovery knows it.
		ctx, stop := caller.Wait(c.ctx, c.req)
		defer stop()
		if err = cluster.wait(ctx); errors.Is(err, discovery.ErrUnknownService) {
			c.host.outsideUntil.Store(time.Now().Add(outsideFor).UnixNano())
			c.cluster, c.entered = nil, false
			c.engine.drop(cluster)
			cluster.leave()
			return nil, c.leaveMesh()
		} else if err != nil {
			return nil, c.undiscovered(ctx, err)
		}
		c.host.confirmed.Store(true)
		break
	}
	if c.cluster.config.Missing {
		return nil, c.refuse(LayerRoute, FlagNoCluster, ErrUnknownSubset)
	}
	return nil, nil
}

// resolve fills in what a document left to the request.
func (c *call) resolve(target route.Target) route.Target {
	if target.Host == "" {
		target.Host = c.host.Service.Host
	}
	if target.Port == 0 {
		target.Port = c.host.port
	}
	return target
}

// leaveMesh says what becomes of a call to a host outside the mesh.
func (c *call) leaveMesh() error {
	c.entry, c.backend = nil, nil
	c.target = route.Target{Host: c.host.Service.Host}
	if c.engine.closed.Load() {
		return c.refuse(LayerRoute, 0, ErrClosed)
	}
	if c.engine.config.RegistryOnly {
		return c.refuse(LayerRoute, FlagNoRoute, ErrNotInMesh)
	}
	c.layer = LayerEndpoint
	return nil
}

// serveCopy is the way of a mirrored copy: it is routed already, and tried once.
func (c *call) serveCopy(ctx context.Context) (*http.Response, error) {
	for !c.entered {
		c.view = c.engine.view.Load()
		c.host = c.view.hosts.get(c.req, c.req.URL.Host)
		c.target = c.resolve(c.target)
		cluster, err := c.engine.cluster(c.view, c.target)
		if err != nil {
			body.CloseRequest(c.req)
			return nil, c.refuse(LayerRoute, 0, err)
		}
		if cluster != nil && cluster.enter(c.start) {
			c.cluster, c.entered = cluster, true
		}
	}
	if c.cluster.config.Missing {
		body.CloseRequest(c.req)
		return nil, c.refuse(LayerRoute, FlagNoCluster, ErrUnknownSubset)
	}
	return c.Attempt(c.request(ctx), 1)
}

// request returns the caller's request with the context ctx: the request itself if that is the one it has.
func (c *call) request(ctx context.Context) *http.Request {
	if ctx == c.req.Context() {
		return c.req
	}
	return c.req.WithContext(ctx)
}

// send takes the request to its cluster: stages 3 to 11.
func (c *call) send(ctx context.Context) (*http.Response, error) {
	// Both once per request and outside the retries: what is refused or injected here is an answer.
	if rate := c.cluster.rate; rate != nil && !rate.Allow() {
		body.CloseRequest(c.req)
		c.layer, c.flags = LayerLimit, FlagRateLimited
		return limit.RateLimitedResponse(c.req), nil
	}
	if resp, err := c.injectFault(ctx); resp != nil || err != nil {
		body.CloseRequest(c.req)
		return resp, err
	}

	// The deadline covers all that follows. It is the route's, unless the caller's comes first.
	limits := deadline.Limits{Request: c.entry.Route.Timeout, BodyIdle: c.cluster.config.bodyIdle}
	if limits != (deadline.Limits{}) {
		c.limits = new(deadline.Call)
		c.ctx = c.limits.Begin(ctx, limits)
	}
	if err := c.prepare(); err != nil {
		body.CloseRequest(c.req)
		return nil, err
	}

	// What gets this far is copied, whatever becomes of it now.
	if len(c.entry.Route.Mirrors) > 0 {
		c.out = c.mirrored(c.out)
		c.engine.mirrors.Fork(c.out, c.entry)
	}

	loop := retry.Loop{
		Policy: c.host.policy(c.entry), Budget: c.cluster.budget, Limiter: c.cluster.limiter, Context: c.ctx,
	}
	resp, summary, err := loop.Do(c.out, c)
	c.stopped = summary.Stopped
	c.flags |= c.tryFlags
	switch summary.Stopped {
	case retry.LimitReached, retry.BudgetRefused, retry.LimiterRefused:
		c.flags |= FlagRetriesExhausted
	}
	return resp, err
}

// injectFault delays the call or answers it, if the route asks for that and chance has it so.
func (c *call) injectFault(ctx context.Context) (*http.Response, error) {
	if c.entry.Route.Fault == (fault.Config{}) {
		return nil, nil
	}
	injected := c.entry.Route.Fault.Decide(nil)
	if injected.Delay > 0 {
		c.flags |= FlagDelayInjected
		ctx, stop := caller.Wait(ctx, c.req)
		defer stop()
		if err := injected.Wait(ctx); err != nil {
			c.layer = LayerFault
			return nil, err
		}
	}
	if injected.Abort {
		c.layer = LayerFault
		c.flags |= FlagFaultInjected
		return injected.Response(c.req), nil
	}
	return nil, nil
}

// prepare makes the request that is sent. It is the caller's own if nothing about it changes, and else a copy.
func (c *call) prepare() error {
	rewrites := c.backend.Rewrites()
	out := c.req
	if rewrites || len(c.entry.Route.Mirrors) > 0 {
		copied := *c.req
		out = &copied
	}
	if rewrites {
		// Values are only ever replaced as a whole, so the caller's can be shared.
		if out.Header = maps.Clone(c.req.Header); out.Header == nil {
			out.Header = make(http.Header)
		}
		out.URL = cloneURL(c.req.URL)
		if err := c.backend.Rewrite(out, c.match); err != nil {
			return c.refuse(LayerRoute, FlagNoRoute, err)
		}
	}
	if hash := &c.cluster.config.Balancer.HashKey; hash.Source != balancer.NoKey {
		key, ok := hash.Of(out)
		if !ok {
			key, c.setCookie, ok = hash.NewCookie()
		}
		if ok {
			c.key, c.hasKey = balancer.Hash(key), true
		}
	}
	c.out = out
	return nil
}

func cloneURL(u *url.URL) *url.URL {
	clone := *u
	return &clone
}

// timedOut reports whether the call ended because of a limit of ours, and not of the caller's.
func (c *call) timedOut() bool {
	var exceeded *deadline.Error
	return errors.As(context.Cause(c.ctx), &exceeded)
}

// refuse notes that a layer of ours ends the call. Its error is not taken for one of the endpoint, nor retried.
func (c *call) refuse(layer Layer, flags Flags, err error) error {
	c.layer = layer
	c.tryFlags |= flags
	c.flags |= flags
	return refusal.Because(err)
}

// undiscovered is refuse for a wait for endpoints that ended with err, unless it was ctx that ended.
func (c *call) undiscovered(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		c.layer = LayerDiscovery
		return context.Cause(ctx)
	}
	return c.refuse(LayerDiscovery, FlagNoHealthyUpstream, err)
}

// end ends the limits of a call that got no response. It returns their error if it was they that ended it, and else err.
func (c *call) end(err error) error {
	if c.limits == nil {
		return err
	}
	return c.limits.Failed(err)
}

// failed returns err as the caller gets it.
func (c *call) failed(err error) error {
	sent := c.sent
	if sent == nil {
		sent = c.req
	}
	kind := failure.Of(c.ctx, sent, err) // before the limits end the context
	err = c.end(err)
	var exceeded *deadline.Error
	ours := errors.As(err, &exceeded)
	c.flags |= flagsOf(kind, ours)
	if kind == failure.Canceled || kind == failure.BadRequest || kind == failure.RequestTimeout && !ours {
		return err // the caller gave up or is at fault, and gets what net/http would give
	}
	if ours {
		c.layer = LayerTimeout
	}
	return c.engine.hooks.Error(Failure{Layer: c.layer, Target: c.target, Flags: c.flags, Attempts: c.attempts, Err: err})
}
