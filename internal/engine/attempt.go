package engine

import (
	"context"
	"errors"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/orca"
	"github.com/nosidecar/mesh/policy/limit"
)

// Attempt is one attempt of a call, with the resources that it holds. [Call.Acquire] fills it in. Then it ends exactly once, with
// End or Abandon, which release the resources and report how the endpoint did.
type Attempt struct {
	call     *Call
	cluster  *cluster // that it counts in
	slot     limit.Slot
	lease    breaker.Lease
	endpoint *endpoint
	conns    *sockets.Connections
	sent     int64 // nanoseconds from the start of the call; see now and observeEnd
	latency  time.Duration
	observer AttemptObserver // nil if nobody observes
	status   int32           // HTTP status of the answer, or its equivalent; 0 if there is none
	grpc     int32           // the status of a gRPC answer, plus 1; 0 if there is none
	trial    uint32          // the number of the endpoint's trial that it is, or 0: see accrual

	// Copied from the cluster, of which the end of the attempt then needs only what it writes.
	timesAnswers bool // the balancer or the circuit depends on how long the endpoint takes to answer
	reports      bool // the balancer uses the load that the endpoint reports
}

// Acquire begins the n-th attempt, counted from 1: it passes the limits and the circuit, and picks an endpoint and the
// connections to it. ctx is the context of the attempt. If Acquire fails, nothing is held, and the attempt is over. If it panics, as an
// observer may, the caller abandons the attempt.
func (c *Call) Acquire(ctx context.Context, a *Attempt, n int) error {
	a.call, a.cluster = c, c.cluster
	if c.cluster.failover != nil {
		return a.acquireFirst(ctx, n)
	}
	return a.acquire(ctx, c.cluster, n)
}

// now reads the clock, and records the time as that at which the attempt is sent.
func (a *Attempt) now() time.Time {
	a.sent = int64(a.call.start.elapsed())
	return a.call.start.time().Add(a.Sent())
}

// acquire takes what the attempt needs from a cluster, in which it is counted. If it fails, nothing is held.
func (a *Attempt) acquire(ctx context.Context, cluster *cluster, n int) (err error) {
	c := a.call
	a.cluster = cluster
	a.timesAnswers, a.reports = cluster.timesAnswers || c.kind == Raw, cluster.reports

	// 8. The pool comes before the circuit: a full queue says nothing about the destination. A raw connection is counted when
	// it is made.
	if c.kind != Raw {
		multiplexed := cluster.sockets.Multiplexed.Load()
		if a.slot, err = cluster.sockets.Pool.Acquire(ctx, multiplexed); err != nil {
			return noSlot(err)
		}
		if cluster.mayQueue && !multiplexed {
			c.late = true
		}
	}

	// 9. The circuit belongs to the whole destination, so an attempt that it refuses is not worth retrying.
	if cluster.circuit != nil {
		if a.lease, err = cluster.circuit.Allow(); err != nil {
			a.give(breaker.NoResult, breaker.Ignored)
			return refuse(LayerBreaker, FlagOverflow, err)
		}
	}

	// 10 and 11. An endpoint, and the connections to it. The clock is read only if the time matters, and has not been read since the call
	// began, or has passed since then: in another attempt, or in a wait.
	now := c.start.roughly()
	switch {
	case n > 1 || c.late || a.timesAnswers && c.rough:
		now = a.now()
	case a.timesAnswers:
		now = c.start.time()
	}
	if err := a.pick(ctx, now); err != nil {
		a.give(breaker.NoResult, breaker.Ignored)
		return err
	}
	c.sent++
	return nil
}

// Timed reports whether it matters when the endpoint answers.
func (a *Attempt) Timed() bool { return a.observer != nil || a.timesAnswers }

// noSlot is the error of a call that the pool gave no slot.
func noSlot(err error) error {
	if err == limit.ErrOverflow {
		return overflow(err)
	}
	return interrupted(LayerLimit, err) // the call ended while it waited for its turn
}

// overflow is the answer to a call for which the pool has no room.
func overflow(err error) error {
	return prescribe(LayerLimit, FlagOverflow, err, AnswerOverloaded)
}

// pick chooses an endpoint of the cluster, and the connections to it.
func (a *Attempt) pick(ctx context.Context, now time.Time) error {
	c, cluster := a.call, a.cluster
	if c.last != nil {
		c.avoidLast()
	}
	if a.sent != 0 { // time has passed since the call entered the cluster
		cluster.sweep(now)
	}
	info := balancer.PickInfo{Hash: c.hash, HasHash: c.hashed, Now: now, Tried: c.tried}
	h, err := cluster.balancer.Pick(info)
	if err == nil && cluster.accruals != nil {
		h, err = a.pickUsable(h, info)
	}
	if err != nil {
		if h, err = a.pickLater(ctx, err, info); err != nil {
			return err
		}
		c.late = true
		now = a.now()
	}
	c.last = h
	e := h.Value().(*endpoint)
	a.endpoint = e
	if a.conns, err = e.enter(c.engine, now, c.ownTLS); err != nil {
		return refuse(LayerIdentity, FlagConnectFailure, err)
	}
	return nil
}

// pickUsable returns a host that was picked from a cluster with failure accrual, or picks others until the attempt may use one: an endpoint that has
// failed is tried by one call alone.
func (a *Attempt) pickUsable(h *balancer.Host, info balancer.PickInfo) (_ *balancer.Host, err error) {
	for err == nil && !a.mayUse(h) {
		h.Release(0, false)
		h, err = a.cluster.balancer.Pick(info)
	}
	return h, err
}

func (a *Attempt) mayUse(h *balancer.Host) (ok bool) {
	earned := a.cluster.accruals.find(h.ID())
	if earned == nil || a.call.kind == Raw {
		return true
	}
	a.trial, ok = earned.enter(h.Value().(*endpoint), a.cluster.config.Balancer.PanicFraction > 0)
	return ok
}

// pickLater chooses an endpoint after a pick has failed with an error, once there are any. The error is a refusal, by discovery if pickLater
// waited for it.
func (a *Attempt) pickLater(ctx context.Context, failed error, info balancer.PickInfo) (*balancer.Host, error) {
	c := a.cluster
	if failed == balancer.ErrNoEndpoints {
		// There may be none, or none yet.
		if a.call.slow {
			return nil, undiscovered(ctx, errDiscoverySlow)
		}
		if err := c.wait(ctx); err != nil {
			return nil, undiscovered(ctx, err)
		}
		info.Now = time.Time{}
		var h *balancer.Host
		if h, failed = c.balancer.Pick(info); failed == nil && c.accruals != nil {
			h, failed = a.pickUsable(h, info)
		}
		if failed == nil {
			return h, nil
		}
	}
	if failed == balancer.ErrNoEndpoints {
		failed = c.noEndpoints()
	}
	return nil, refuse(LayerBalancer, FlagNoHealthyUpstream, failed)
}

// avoidLast has the next attempt prefer endpoints that were not tried. As in Istio, a hash key selects the same endpoint again,
// unless the route has several destinations.
func (c *Call) avoidLast() {
	if c.kind != Raw {
		if c.rule == nil { // a copy has one attempt
			return
		}
		if c.rule.Route.RetryTried || c.hashed && c.rule.Backends() <= 1 {
			return
		}
	}
	c.tried = append(c.tried, c.last.ID())
}

// Connections returns the connections that the attempt uses.
func (a *Attempt) Connections() *sockets.Connections { return a.conns }

// Multiplexed says that the endpoint speaks HTTP/2, so that attempts share connections.
func (a *Attempt) Multiplexed() { a.cluster.multiplexed() }

// Again chooses another endpoint for the same attempt, if there is one. It is for a protocol library that starts over on its
// own when it knows that nothing was sent. The attempt is timed from then on, so that the other endpoint is not charged with
// what the first one took. After an error the attempt still ends with End.
func (a *Attempt) Again(ctx context.Context) error {
	a.report(breaker.NoResult)
	a.leave(false)
	a.call.late = true
	if err := a.pick(ctx, a.now()); err != nil {
		if a.endpoint == nil {
			a.call.exit(a.cluster)
			a.cluster = a.call.cluster // so that it is not left again
		}
		return err
	}
	if a.observer != nil {
		a.observer.Moved(a.Peer(), a.Sent())
	}
	return nil
}

// Call returns the call that the attempt is of.
func (a *Attempt) Call() *Call { return a.call }

// Sent returns when the attempt was sent, as the time since the start of the call.
func (a *Attempt) Sent() time.Duration { return time.Duration(a.sent) }

// Left returns how long after it was sent the attempt may take, if there is a deadline: that of the call, or an earlier one of its caller.
func (a *Attempt) Left() (left time.Duration, limited bool) {
	c := a.call
	if c.limits != nil && c.sent == 1 && a.sent == 0 { // no time has passed since they began
		if left = c.limits.AtFirst(); left > 0 {
			return left, true
		}
	}
	at, limited := c.ctx.Deadline()
	if !limited {
		return 0, false
	}
	if c.rough && a.sent == 0 {
		a.now()
	}
	return c.start.until(at) - a.Sent(), true
}

// Deadlines returns the texts by which servers are told of what is left.
func (a *Attempt) Deadlines() *deadline.Texts { return &a.call.engine.deadlines }

// Answered records that the endpoint has begun to answer, with an HTTP status or its equivalent.
func (a *Attempt) Answered(status int) {
	a.status = int32(status)
	if a.timesAnswers {
		a.answered()
	}
}

func (a *Attempt) answered() {
	a.latency = a.call.start.elapsed() - a.Sent()
	a.lease.Answered()
}

// Reports reports whether the balancer uses the load that endpoints report.
func (a *Attempt) Reports() bool {
	return a.reports && a.endpoint != nil
}

// ReportedHeader takes the load report out of the header of an answer. It is called if Reports returns true.
func (a *Attempt) ReportedHeader(h map[string][]string) {
	if load, ok := orca.Take(h); ok {
		a.endpoint.host.Report(load.Utilization, load.Requests, load.Errors)
	}
}

// ReportedTrailer takes the load report from the trailer of gRPC. It is called before End, if Reports returns true.
func (a *Attempt) ReportedTrailer(trailer map[string][]string) {
	if len(trailer) > 0 {
		if load, ok := orca.FromMetadata(trailer); ok {
			a.endpoint.host.Report(load.Utilization, load.Requests, load.Errors)
		}
	}
}

// GRPC records the gRPC status with which the endpoint answered. It is called before End. The attempt then counts as the HTTP
// status to which Envoy maps it.
func (a *Attempt) GRPC(code uint32) { a.grpc = int32(code) + 1 }

// End ends an attempt that was sent. Its result is that of the answer, or that of err if the answer was broken off. End returns
// the error of the attempt.
func (a *Attempt) End(err error) error {
	if err != nil {
		return a.endWith(err)
	}
	result, outcome := breaker.Result(a.status), breaker.Success
	if a.grpc > 0 {
		result = breaker.Result(failure.GRPCStatus(uint32(a.grpc - 1)))
	}
	if result >= statusFailed {
		outcome = breaker.Failure
	}
	a.finish(result, outcome, nil)
	return nil
}

// endWith ends an attempt that failed, or whose answer was broken off.
func (a *Attempt) endWith(err error) error {
	kind := a.call.failure(err)
	result, outcome := a.judge(kind)
	hint := a.hint(kind, err)
	a.finish(result, outcome, err)
	if hint != "" {
		return &hintedError{err, hint}
	}
	if errors.Is(err, limit.ErrOverflow) { // there was no room for another connection
		return overflow(err)
	}
	return err
}

// Abandon ends an attempt that was not sent, or that panicked.
func (a *Attempt) Abandon() {
	a.finish(breaker.NoResult, breaker.Ignored, nil)
}

// finish releases everything and tells the observers. Each step forgets what it gives back before it does so. So if an observer panics, the
// steps that are left are still taken, and none is taken twice.
func (a *Attempt) finish(result breaker.Result, outcome breaker.Outcome, err error) {
	over := false
	defer func() {
		if !over {
			a.finish(breaker.NoResult, outcome, err)
		}
	}()
	peerID := ""
	if a.observer != nil && a.conns != nil {
		peerID = a.conns.ProvenID()
	}
	a.give(result, outcome)
	if member, own := a.cluster, a.call.cluster; member != own {
		a.cluster = own
		member.leave()
	}
	if over = true; a.observer != nil {
		a.observeEnd(peerID, err)
	}
}

// give releases everything except the place in the cluster. The endpoint and the circuit learn the result before another call gets the slot.
func (a *Attempt) give(result breaker.Result, outcome breaker.Outcome) {
	a.report(result)
	a.lease.Done(outcome)
	a.leave(outcome == breaker.Failure)
	slot := a.slot
	a.slot = limit.Slot{}
	slot.Release()
}

// report tells outlier detection how the endpoint did, and discovery that it may be gone.
func (a *Attempt) report(result breaker.Result) {
	if result == breaker.ConnectFailure {
		a.cluster.refresh()
	}
	e := a.endpoint
	if e == nil {
		return
	}
	if e.tracker != nil {
		e.tracker.Report(result)
	}
	if a.cluster.accruals != nil && a.call.kind != Raw {
		a.accrue(result)
	}
}

// accrue tells failure accrual how the endpoint did.
func (a *Attempt) accrue(result breaker.Result) {
	earned := a.cluster.accruals.find(a.endpoint.host.ID())
	if earned == nil {
		return // removed
	}
	if result >= statusFailed && a.grpc-1 == 12 { // UNIMPLEMENTED, which says nothing of the endpoint: for Linkerd it is a success
		result = 200
	}
	earned.report(result, a.trial)
}

// leave leaves the endpoint.
func (a *Attempt) leave(failed bool) {
	if e := a.endpoint; e != nil {
		a.endpoint = nil
		if failed && a.latency == 0 && a.timesAnswers {
			a.latency = a.call.start.elapsed() - a.Sent() // until it failed
		}
		e.host.Release(a.latency, failed)
	}
	if conns := a.conns; conns != nil {
		a.conns = nil
		conns.Leave()
	}
}

// judge returns how a failure counts for the endpoint and for the destination.
func (a *Attempt) judge(kind failure.Kind) (breaker.Result, breaker.Outcome) {
	c := a.call
	switch kind {
	case failure.Refused, failure.Canceled, failure.BadRequest:
		return breaker.NoResult, breaker.Ignored
	case failure.RequestTimeout:
		if !c.timedOut() {
			return breaker.NoResult, breaker.Ignored
		}
		return breaker.Timeout, breaker.Failure
	case failure.TryTimeout:
		return breaker.Timeout, breaker.Failure
	case failure.Connect:
		return breaker.ConnectFailure, breaker.Failure
	}
	return breaker.Reset, breaker.Failure
}
