package engine

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
)

// attempted is one try. It ends with its response body, and then, exactly once, gives back its slots and says how the
// endpoint did.
type attempted struct {
	body     body.Reader
	call     *call
	host     *balancer.Host
	link     *Link
	slot     limit.Slot
	lease    breaker.Lease
	status   int
	grpc     *http.Response // of a gRPC call, whose status comes at its end
	sent     time.Time
	latency  time.Duration
	observer AttemptObserver // nil if nobody observes attempts
}

var _ retry.Attempter = (*call)(nil)

// Attempt implements retry.Attempter: it makes one try, stages 7 to 11.
func (c *call) Attempt(req *http.Request, n int) (*http.Response, error) {
	c.tries, c.tryFlags, c.layer = n, 0, LayerEndpoint
	a := &c.first
	if n > 1 {
		a = new(attempted)
	}
	a.call = c
	cluster := c.cluster

	// Limits come before the circuit: that a queue is full says nothing about the destination.
	ctx, stop := caller.Wait(req.Context(), req)
	slot, err := cluster.conns.pool.Acquire(ctx, cluster.conns.multiplexed.Load())
	stop()
	if err != nil {
		body.CloseRequest(req)
		if err == limit.ErrOverflow {
			return c.overflowed(), nil
		}
		c.layer = LayerLimit // the call ended while it waited for its turn
		return nil, err
	}
	a.slot = slot

	// The circuit is the destination's, so a try that it refuses is not worth another one.
	if cluster.circuit != nil {
		if a.lease, err = cluster.circuit.Allow(); err != nil {
			a.slot.Release()
			body.CloseRequest(req)
			return nil, c.refuse(LayerBreaker, FlagOverflow, err)
		}
	}

	sent := false
	defer func() {
		if !sent { // no endpoint, a panic or a Goexit
			a.release(breaker.NoResult, breaker.Ignored)
			if a.observer != nil {
				a.observeEnd(nil)
			}
		}
	}()
	if err = a.pick(req); err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	if at, ok := c.ctx.Deadline(); ok {
		req = c.withDeadline(req, at, n)
	}
	if cluster.config.timesAnswers() || c.engine.hooks.Attempts {
		a.sent = time.Now()
	}
	if c.engine.hooks.Attempts {
		req = a.observeStart(req, n)
	}
	c.attempts++
	c.sent = req
	resp, err := c.exchange(req, a)
	sent = true
	if err != nil {
		a.End(err)
		if errors.Is(err, limit.ErrOverflow) { // there was no room for another connection
			return c.overflowed(), nil
		}
		return nil, err
	}
	a.status = resp.StatusCode
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc") {
		a.grpc = resp
	}
	if resp.ProtoMajor == 2 && !cluster.conns.multiplexed.Load() {
		cluster.conns.multiplexed.Store(true)
	}
	if !a.sent.IsZero() {
		a.latency = time.Since(a.sent)
		a.lease.Answered()
	}
	a.body.Attach(resp, a)
	return resp, nil
}

// withDeadline returns the request of the n-th try with the header that tells the server how long its caller will wait.
func (c *call) withDeadline(req *http.Request, at time.Time, n int) *http.Request {
	if req == c.req || req == c.out {
		copied := *req
		req = &copied
	}
	if n == 1 { // the header of a retry is its own
		if req.Header = maps.Clone(req.Header); req.Header == nil {
			req.Header = make(http.Header)
		}
	}
	deadline.SetHeader(req.Header, at)
	return req
}

// overflowed returns the answer to a call for which the pool has no room.
func (c *call) overflowed() *http.Response {
	c.layer, c.tryFlags = LayerLimit, FlagOverflow
	return limit.OverflowResponse(c.req)
}

// exchange sends the request of a try and waits for the answer.
func (c *call) exchange(req *http.Request, a *attempted) (*http.Response, error) {
	switch {
	case c.sender != nil:
		return c.sender(req, (*Try)(a))
	case c.engine.replaced != nil:
		return c.engine.replaced.RoundTrip(req)
	}
	return a.link.roundTrip(req)
}

// pick chooses the endpoint of a try, and the connections to it.
func (a *attempted) pick(req *http.Request) error {
	c, now := a.call, a.call.start
	if c.tries > 1 {
		now = time.Now()
	}
	ctx, stop := caller.Wait(req.Context(), req)
	host, err := c.pick(ctx, now)
	stop()
	if err != nil {
		return err
	}
	a.host = host
	if a.link, err = host.Value().(*endpoint).enter(c.engine.identity, req.URL.Scheme); err != nil {
		return c.refuse(LayerIdentity, FlagConnectFailure, err)
	}
	return nil
}

// pick chooses an endpoint.
func (c *call) pick(ctx context.Context, now time.Time) (*balancer.Host, error) {
	h, layer, err := c.cluster.pick(ctx, balancer.PickInfo{Hash: c.key, HasHash: c.hasKey, Tried: c.avoid}, now)
	switch {
	case err == nil:
	case layer == LayerDiscovery:
		return nil, c.undiscovered(ctx, err)
	default:
		return nil, c.refuse(layer, FlagNoHealthyUpstream, err)
	}
	if c.avoidsTried() {
		if c.avoid == nil {
			c.avoid = c.tried[:0]
		}
		c.avoid = append(c.avoid, h.ID())
	}
	return h, nil
}

// avoidsTried says whether retries prefer endpoints that were not tried. A key that leads to one endpoint, with no other
// destination to go to, leads there again, as in Istio.
func (c *call) avoidsTried() bool {
	return c.entry != nil && !c.entry.Route.RetryTried && (!c.hasKey || c.entry.Backends() > 1)
}

// End implements body.Ender: it reports the outcome of the try.
func (a *attempted) End(err error) {
	result, outcome := breaker.Result(a.status), breaker.Success
	if a.grpc != nil && err == nil {
		result = grpcResult(a.grpc, result)
	}
	if err != nil {
		result, outcome = a.judge(err)
	} else if result >= http.StatusInternalServerError {
		outcome = breaker.Failure
	}
	a.release(result, outcome)
	if a.observer != nil {
		a.observeEnd(err)
	}
}

// grpcResult is what a gRPC call counts as that was answered with a status of HTTP, which is 200 whatever became of it.
func grpcResult(resp *http.Response, status breaker.Result) breaker.Result {
	text := resp.Header.Get("Grpc-Status") // where there is nothing else to say
	if text == "" {
		text = resp.Trailer.Get("Grpc-Status")
	}
	code, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return status
	}
	return breaker.Result(failure.GRPCStatus(uint32(code)))
}

// judge says what an error means for the endpoint and for the destination.
func (a *attempted) judge(err error) (breaker.Result, breaker.Outcome) {
	c := a.call
	kind, ours := failure.Of(c.ctx, c.sent, err), c.timedOut()
	c.tryFlags = flagsOf(kind, ours)
	switch kind {
	case failure.Refused, failure.Canceled, failure.BadRequest:
		return breaker.NoResult, breaker.Ignored
	case failure.RequestTimeout:
		if !ours {
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

// release gives everything back that the try holds. Nothing of the try is used after it.
func (a *attempted) release(result breaker.Result, outcome breaker.Outcome) {
	a.leave(result, outcome == breaker.Failure)
	a.lease.Done(outcome)
	a.slot.Release()
}

// leave says how the endpoint did, and leaves it.
func (a *attempted) leave(result breaker.Result, failed bool) {
	if a.host != nil {
		if tracker := a.host.Value().(*endpoint).tracker; tracker != nil {
			tracker.Report(result)
		}
		a.host.Release(a.latency, failed)
	}
	if a.link != nil {
		a.link.leave()
	}
}
