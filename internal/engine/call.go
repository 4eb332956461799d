package engine

import (
	"context"
	"errors"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Request is the engine's view of a call.
type Request struct {
	route.Request // its Port is that of Host

	// Host is what the caller dials: a host, or host:port. Authority may name another one, which takes precedence if a
	// document names it too.
	Host string

	// Target is where a copy goes.
	Target route.Target
}

// Kind says how a call finds its destination.
type Kind uint8

const (
	Routed Kind = iota // by the routes of its host
	Copied             // a copy of another call, to one of its mirrors
	Raw                // a connection without requests, which has no routes
)

// Adapter does what depends on the protocol of a call.
type Adapter interface {
	// Outside sends the call to a host outside the mesh.
	Outside(ctx context.Context) error

	// Prepare makes what is sent: the call with the rewrites of backend. match is the result of [route.Table.Match].
	Prepare(backend *route.Backend, match int) error

	// Failure returns the kind of failure of an error of the call or of an attempt.
	Failure(err error) failure.Kind

	// HashKey returns the key for consistent hashing, if the call has it.
	HashKey(key *balancer.HashKey) (value string, ok bool)

	// Mirror sends copies of the call to the mirrors of rule. Each is a call of the kind Copied.
	Mirror(rule *route.Rule)

	// Send makes the attempts, each with [Call.Acquire], for as long as [Call.Loop] asks for them. ctx bounds them all. Copies
	// are sent once. Its error may be ErrSuspended.
	Send(ctx context.Context) (retry.Reason, error)

	// NewLimits returns memory for the limits of the call.
	NewLimits() *deadline.Call

	// Bytes returns how many bytes of the bodies were sent and received. It is called at the end of observed calls.
	Bytes() (sent, received int64)
}

// Call is one call in flight. It is meant to be embedded in the value that an adapter allocates per call. It is used in this
// order: Begin, Serve, End.
type Call struct {
	engine   *Engine
	adapter  Adapter // nil for a connection
	start    moment
	ctx      context.Context // of the whole call; it has the deadline from stage 4 on
	observer CallObserver    // nil if nobody observes
	limits   *deadline.Call  // nil if nothing is limited

	// Where it goes.
	host    *host
	rule    *route.Rule    // nil if no route decided
	backend *route.Backend // of rule
	target  *route.Target  // nil as long as it is not known
	cluster *cluster       // it counts the call; nil outside the mesh

	waited time.Duration // for discovery, which counts against the deadline

	hash  uint64         // of the key, if hashed
	tried []string       // IDs of the endpoints of earlier attempts, if retries avoid them
	last  *balancer.Host // of the last attempt

	match   int32 // of rule
	kind    Kind
	ownTLS  bool // the caller's URL asks for TLS
	derived bool // ctx is not the caller's, since an observer has derived another one
	slow    bool // the call has waited for discovery as long as it may
	late    bool // it may have waited for something: see Attempt.acquire
	rough   bool // start is up to dateKept early, since nobody needs it so far
	hashed  bool // the call has a key for consistent hashing
	passed  bool // the call has passed stage 3

	// How it went.
	outside bool // it left the mesh
	shares  bool // attempts share connections, in every cluster that they go to
	stopped retry.Reason
	flags   Flags
	sent    int32 // attempts that were sent
	grpc    int32 // the status of a gRPC call, plus 1; 0 if there is none
}

// Begin begins a call with the caller's context, or with one that derives from it. described describes the call to the
// observers, in a form that they know; it may be nil unless the engine is [Engine.Observed]. [Call.Context] has the context
// for the rest of the call.
func (c *Call) Begin(ctx context.Context, e *Engine, kind Kind, described any) {
	c.engine, c.kind, c.ctx = e, kind, ctx
	if e.hooks.Call == nil {
		c.start, c.rough = e.clock.rough(), true
		return
	}
	c.start = e.clock.now()
	c.observe(ctx, described)
}

func (c *Call) observe(ctx context.Context, described any) {
	c.ctx, c.observer = c.engine.hooks.Call(ctx, CallStart{Described: described, Start: c.start.time(), Mirror: c.kind == Copied})
	c.derived = !caller.SameContext(c.ctx, ctx)
}

// Renew resets a call that Serve has failed so that it can be begun again, for a caller that waits until it can be sent.
// Rate limits and faults that let it pass are not applied again.
func (c *Call) Renew() { *c = Call{passed: c.passed} }

// Serve takes the call through all stages. It returns an error in the form that the caller gets, and then the call has ended;
// or a refusal that is answered with a response; or neither, and then Outside or Send of the adapter has the response. A call
// without an error lasts until [Call.End]. The context wait, which is the call's or one that ends earlier, is for waits before
// anything is sent.
//
// If neither Outside nor Send was called, the adapter must drop what was to be sent.
func (c *Call) Serve(wait context.Context, req *Request, a Adapter) (answer *Refusal, err error) {
	returned := false
	defer func() {
		if !returned { // a panic or Goexit below, or of an observer
			c.abort()
		}
	}()
	c.adapter = a
	err = c.serve(wait, req, a)
	if returned = true; err != nil {
		return c.served(err)
	}
	return nil, nil
}

// ErrSuspended is returned by Send of an adapter that does not wait for the response: the call goes on with [Call.Resume].
var ErrSuspended = errors.New("the call goes on")

// Resume goes on with a call for which Serve or Resume has returned ErrSuspended. send takes the place of Send, and may suspend the call
// again. Resume returns what Serve would have returned.
func (c *Call) Resume(send func(context.Context) (retry.Reason, error)) (answer *Refusal, err error) {
	returned := false
	defer func() {
		if !returned {
			c.abort()
		}
	}()
	c.stopped, err = send(c.ctx)
	c.exhausted()
	returned = true
	return c.served(err)
}

// abort ends a call that has panicked.
func (c *Call) abort() {
	c.endLimits(nil)
	c.finish(0, nil, nil)
}

// served returns what Serve returns for a call whose stages have ended with err.
func (c *Call) served(err error) (*Refusal, error) {
	if err == nil || err == ErrSuspended {
		return nil, err
	}
	if answer := answerOf(err); answer != nil {
		c.endLimits(nil)
		c.flags |= answer.Flags
		return answer, nil
	}
	err = c.failed(err)
	c.finish(0, err, nil)
	return nil, err
}

// serve takes the call through its stages, which are numbered as in the package documentation of mesh. That has the reasons
// for their order.
func (c *Call) serve(wait context.Context, req *Request, a Adapter) error {
	// 1 and 2. The plan, and the route.
	if err := c.locate(wait, req); err != nil {
		return err
	}
	if c.cluster == nil {
		return a.Outside(c.ctx)
	}
	if c.kind == Copied {
		_, err := a.Send(c.ctx)
		return err
	}

	r := c.rule.Route
	// 3. The rate limit and the fault act once per call, outside the retries: a refusal or an injected failure is an answer.
	if !c.passed {
		if rate := c.cluster.rate; rate != nil && !rate.Allow() {
			return prescribe(LayerLimit, FlagRateLimited, limit.ErrRateLimited, AnswerRateLimited)
		}
		if f := &r.Fault; f.Delay.Fraction != 0 || f.Abort.Fraction != 0 {
			if err := c.injectFault(wait); err != nil {
				return err
			}
		}
		c.passed = true
	}

	// 4. The deadline covers all that follows. It is the route's, unless the caller's comes first.
	if limits := (deadline.Limits{Request: r.Timeout, BodyIdle: c.cluster.bodyIdle}); limits != (deadline.Limits{}) {
		c.beginLimits(limits)
	}

	// 5. The rewrites, and then the hash key of the result.
	if err := a.Prepare(c.backend, int(c.match)); err != nil {
		return refuse(LayerRoute, FlagNoRoute, err)
	}
	if c.cluster.hashes {
		if value, ok := a.HashKey(&c.cluster.config.Balancer.HashKey); ok {
			c.hash, c.hashed = balancer.Hash(value), true
		}
	}

	// 6. A call that gets this far is mirrored, whatever becomes of it later.
	if len(r.Mirrors) > 0 {
		a.Mirror(c.rule)
	}

	// 7. The retry loop. Each of its attempts passes stages 8 to 11, in Acquire.
	var err error
	c.stopped, err = a.Send(c.ctx)
	c.exhausted()
	return err
}

// Loop returns the retry loop of the call. It has no Policy for a copy.
func (c *Call) Loop() retry.Loop {
	if c.rule == nil {
		return retry.Loop{}
	}
	loop := retry.Loop{Policy: c.host.policy(c.rule), Budget: c.cluster.budget, Limiter: c.cluster.limiter}
	if c.limits != nil || c.derived {
		loop.Context = c.ctx
	}
	return loop
}

// exhausted notes whether a call would have been retried again.
func (c *Call) exhausted() {
	switch c.stopped {
	case retry.LimitReached, retry.BudgetRefused, retry.LimiterRefused:
		c.flags |= FlagRetriesExhausted
	}
}

// injectFault delays or answers the share of the calls for which the route says so.
func (c *Call) injectFault(ctx context.Context) error {
	injected := c.rule.Route.Fault.Decide(nil)
	if injected.Delay > 0 {
		c.flags |= FlagDelayInjected
		c.late = true
		if err := injected.Wait(ctx); err != nil {
			return interrupted(LayerFault, err)
		}
	}
	if injected.Abort {
		return &Refusal{
			Layer: LayerFault, Flags: FlagFaultInjected, Err: refusal.Because(errAborted), Answer: AnswerFault, Fault: injected,
		}
	}
	return nil
}

func (c *Call) beginLimits(limits deadline.Limits) {
	since := c.start.since
	if c.late || c.rough {
		since += c.start.elapsed()
	}
	if c.rough { // from here on, the call is timed
		c.start.since, c.rough = since, false
	}
	c.limits = c.adapter.NewLimits()
	c.ctx = c.limits.BeginAt(c.ctx, limits, *c.start.read, since, c.waited)
}

// endLimits ends the limits of a call that got no response. It returns their error if they ended it, and err otherwise.
func (c *Call) endLimits(err error) error {
	if c.limits == nil {
		return err
	}
	return c.limits.Failed(err)
}

// timedOut reports whether a limit of ours ended the call, and not the caller's.
func (c *Call) timedOut() bool {
	_, ours := errors.AsType[*deadline.Error](context.Cause(c.ctx))
	return ours
}

// failure returns the kind of failure of err.
func (c *Call) failure(err error) failure.Kind {
	if c.adapter == nil {
		return failure.Of(c.ctx, nil, err)
	}
	return c.adapter.Failure(err)
}

// failed returns the error that the caller of a call without a response gets.
func (c *Call) failed(err error) error {
	kind := c.failure(err) // before the limits end the context
	err = c.endLimits(err)
	_, ours := errors.AsType[*deadline.Error](err)
	c.flags |= flagsOf(kind, ours)
	layer, flags, cause := explain(err)
	if kind == failure.Canceled || kind == failure.BadRequest || kind == failure.RequestTimeout && !ours {
		return cause // the caller gave up or is at fault, and gets the error that net/http would return
	}
	c.flags |= flags
	if ours {
		layer = LayerTimeout
	}
	if c.cluster == nil && kind != failure.Refused {
		outside := &outsideError{error: cause, unknown: c.host.unknown()}
		if c.host.Hidden {
			outside.sidecar = c.host.Document
		}
		cause = outside
	}
	return c.engine.hooks.Error(Failure{Layer: layer, Target: c.Target(), Flags: c.flags, Attempts: int(c.sent), Err: cause})
}

// GRPC records the status with which a gRPC call was answered. It is called before End.
func (c *Call) GRPC(code uint32) { c.grpc = int32(code) + 1 }

// End ends a call for which Serve returned no error, and its time limits. It is called once. status is the HTTP status, or 0.
// err is the error that broke off the response. last is the attempt that has just ended with the call, or nil: with it the
// clock is not read again.
func (c *Call) End(status int, err error, last *Attempt) {
	if err != nil {
		err = c.broken(err)
	}
	if c.limits != nil {
		_ = c.limits.Failed(nil)
	}
	c.finish(status, err, last)
}

// broken notes why a response was broken off. It returns the error of the limits if they ended it, and err otherwise.
func (c *Call) broken(err error) error {
	if c.limits != nil {
		err = c.limits.Received(err)
	}
	c.flags |= flagsOf(c.failure(err), c.timedOut()) // before the limits end the context
	return err
}

// finish leaves the destination and tells the observers.
func (c *Call) finish(status int, err error, last *Attempt) {
	if c.cluster != nil {
		c.cluster.leave()
	}
	if c.observer != nil {
		c.observeEnd(status, err, last)
	}
}

// Context returns the context of the whole call.
func (c *Call) Context() context.Context { return c.ctx }

// Target returns where the call goes.
func (c *Call) Target() route.Target {
	if c.target == nil {
		return route.Target{}
	}
	return *c.target
}

// Engine returns the engine that the call began with.
func (c *Call) Engine() *Engine { return c.engine }

// Backend returns the destination that a route has chosen, nil if none has.
func (c *Call) Backend() *route.Backend { return c.backend }

// Rule returns the rule that routed the call, and which of its matches did, nil if none did.
func (c *Call) Rule() (rule *route.Rule, match int) { return c.rule, int(c.match) }

// Limits returns the time limits of the call, which also watch its response. It is nil if there are none.
func (c *Call) Limits() *deadline.Call { return c.limits }

// Multiplexed says that the attempts of the call share connections, as in HTTP/2. The call must have a destination.
func (c *Call) Multiplexed() {
	c.shares = true
	c.cluster.multiplexed()
}

// ReadsHeader reports whether the header of a response is read or changed.
func (c *Call) ReadsHeader() bool {
	return c.backend != nil && c.backend.Response != nil ||
		c.rule != nil && len(c.rule.Route.Retry.RetriableHeaders) > 0
}
