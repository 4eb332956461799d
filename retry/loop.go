package retry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
)

// Attempter makes one try of a call. Like http.RoundTripper it closes the request's body and does not change the request,
// which on the first try is the caller's own. n counts the tries from 1.
type Attempter interface {
	Attempt(req *http.Request, n int) (*http.Response, error)
}

// Reason is why there was no further try.
type Reason uint8

const (
	// Succeeded means that the server sent a response that is not to be retried.
	Succeeded Reason = iota
	// NotRetriable means that the policy does not retry this failure, or this response to this method.
	NotRetriable
	// LimitReached means that Retries tries were made after the first.
	LimitReached
	// BudgetRefused means that the Budget had no retry left.
	BudgetRefused
	// LimiterRefused means that the Limiter had no slot left.
	LimiterRefused
	// OutOfTime means that the deadline of the call passed, or would have passed before the next try, or that the server
	// asked for a wait longer than MaxRetryAfter.
	OutOfTime
	// BodyCommitted means that the request body could not be sent again.
	BodyCommitted
	// Nested means that the request was itself a retry.
	Nested
	// CallerGone means that the caller canceled the call.
	CallerGone
)

var reasons = [...]string{
	Succeeded: "succeeded", NotRetriable: "not retriable", LimitReached: "retry limit reached",
	BudgetRefused: "retry budget exhausted", LimiterRefused: "too many retries under way", OutOfTime: "no time left to retry",
	BodyCommitted: "request body cannot be replayed", Nested: "request is itself a retry", CallerGone: "caller gone",
}

// String returns the reason in words.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return "unknown"
}

// Summary is what [Loop.Do] did.
type Summary struct {
	Attempts int    // tries made, at least 1
	Stopped  Reason // why there were no more
}

// Loop makes the tries of calls. Policy must be set; the other fields may be nil, for no budget, no limit, and the global
// random source. A Loop may be created per call; what it points to lives longer. It is safe for concurrent use.
type Loop struct {
	Policy  *Policy
	Budget  *Budget
	Limiter *Limiter

	// Context is the context of the call, if it is not the request's. It must derive from that one.
	Context context.Context

	// Rand returns random numbers in [0, 1) for the backoff. It must be safe for concurrent use.
	Rand func() float64
}

// Do makes a call with as many tries as the policy permits, and counts it in the Budget. It returns the response or the
// error of the last try; an error after a retry is an *Error. Like http.RoundTripper, it closes the body of req and does not
// change req. The response's Request is req, or a copy that carries the number of tries (see [Attempts]).
func (l *Loop) Do(req *http.Request, a Attempter) (*http.Response, Summary, error) {
	l.Budget.Deposit()
	if l.Limiter.counts() {
		return l.counted(req, a)
	}
	return l.do(req, a, nil)
}

// counted makes a call that the Limiter counts.
func (l *Loop) counted(req *http.Request, a Attempter) (*http.Response, Summary, error) {
	l.Limiter.calls.Add(1)
	defer l.Limiter.calls.Add(-1)
	return l.do(req, a, nil)
}

// replayed makes a call whose body can be read only once.
func (l *Loop) replayed(req *http.Request, a Attempter) (*http.Response, Summary, error) {
	limit := l.Policy.config.BodyLimit
	if req.ContentLength > int64(limit) {
		limit = 0 // it will not fit, so do not begin
	}
	r := newReplay(req.Body, limit)
	panicked := true
	defer func() { r.finish(panicked) }()
	resp, summary, err := l.do(req, a, r)
	panicked = false // but the transport may still be sending the body
	return resp, summary, err
}

// do makes a call. r replays its body; nil if that is not necessary, or not yet known to be.
func (l *Loop) do(req *http.Request, a Attempter, r *replay) (*http.Response, Summary, error) {
	if r == nil && req.Body != nil && req.Body != http.NoBody && req.GetBody == nil && l.Policy.config.Retries > 0 {
		return l.replayed(req, a)
	}
	var (
		resp *http.Response
		sent = req
		err  error
	)
	if r == nil && l.Context == nil && l.Policy.untimed && !caller.ToWatch(req) {
		resp, err = a.Attempt(req, 1) // which is what try would come to
	} else {
		resp, sent, err = l.try(req, a, 1, r, step{})
	}
	if err != nil || l.Policy.retries(resp) {
		return l.failed(req, sent, a, r, resp, err)
	}
	restore(resp, req, sent)
	return resp, Summary{Attempts: 1, Stopped: Succeeded}, nil
}

// failed goes on after a first try that failed, or whose response is to be retried.
func (l *Loop) failed(req, sent *http.Request, a Attempter, r *replay, resp *http.Response, err error) (*http.Response, Summary, error) {
	next := l.next(req, sent, r, 1, resp, err)
	if next.retry {
		return l.again(req, a, r, resp, next)
	}
	if resp != nil {
		restore(resp, req, sent)
	}
	return resp, Summary{Attempts: 1, Stopped: next.stopped}, attempt.Cause(err)
}

// restore sets the Request of the response to the only try, which was made with sent.
func restore(resp *http.Response, req, sent *http.Request) {
	if resp.Request == sent { // no layer below has counted tries
		resp.Request = req
	} else {
		attempt.Restore(resp, req, 1)
	}
}

// again makes the second and further tries. A slot of the limiter is held on entry, and for each retry from the decision
// to the response headers.
func (l *Loop) again(req *http.Request, a Attempter, r *replay, resp *http.Response, next step) (
	_ *http.Response, _ Summary, _ error) {
	held := true
	defer func() {
		if held {
			l.Limiter.Release()
		}
	}()
	for n := 2; ; n++ {
		if cause := l.pause(req, resp, next); cause != nil {
			return nil, Summary{Attempts: n - 1, Stopped: l.ended(req)}, wrap(n-1, cause)
		}
		var (
			sent *http.Request
			err  error
		)
		tried := next.tried
		resp, sent, err = l.try(req, a, n, r, next)
		l.Limiter.Release()
		held = false
		next = l.next(req, sent, r, n, resp, err)
		next.tried = append(tried[:len(tried):len(tried)], next.tried...)
		if !next.retry {
			if resp != nil {
				attempt.Restore(resp, req, n)
			}
			return resp, Summary{Attempts: n, Stopped: next.stopped}, wrap(n, err)
		}
		held = true
	}
}

// pause is what happens between two tries. The response of the first one, if any, is discarded. If there is no second one, since the caller
// has given up or the end of the response panics, the body for it is closed.
func (l *Loop) pause(req *http.Request, resp *http.Response, next step) error {
	over := false
	defer func() {
		if !over && next.body != nil {
			next.body.Close()
		}
	}()
	if resp != nil {
		discard(resp)
	}
	cause := l.sleep(req, next.wait)
	over = cause == nil
	return cause
}

// step is what follows a try: another one after a wait, with a slot of the limiter held and the request body rewound, or the
// reason why there is none.
type step struct {
	retry   bool
	wait    time.Duration
	body    io.ReadCloser // nil if the request has none
	tried   []string      // endpoints, if a balancer says to which the tries so far were sent
	stopped Reason
}

func stop(reason Reason) step { return step{stopped: reason} }

// next decides after the n-th try whether there is another one. sent is the request of that try.
func (l *Loop) next(req, sent *http.Request, r *replay, n int, resp *http.Response, err error) step {
	p := l.Policy
	ctx := l.context(req)
	var kind failure.Kind
	if err != nil {
		kind = failure.Of(ctx, sent, err)
		if kind == failure.RequestTimeout && !failure.Over(ctx) {
			kind = failure.TryTimeout // from a timeout.Transport below, so it bounds one try
		}
		switch {
		case failure.Over(ctx) || caller.Canceled(req):
			return stop(l.ended(req))
		case p.config.Retries == 0 || !p.config.On.failure(kind):
			return stop(NotRetriable)
		}
	} else if !p.retries(resp) {
		return stop(Succeeded)
	}

	switch {
	case !p.config.AnyMethod && !kind.Unprocessed() && !idempotent(req):
		return stop(NotRetriable)
	case !p.config.NestedRetries && attempt.IsRetry(req):
		return stop(Nested)
	case r != nil && !r.replayable():
		return stop(BodyCommitted)
	}
	wait, stopped, ok := l.nextTo(ctx, n, resp)
	if !ok {
		return stop(stopped)
	}
	// The current outcome must not be dropped for a try that cannot be made.
	again, lost := l.rewind(req, r, resp)
	if lost != nil {
		return stop(BodyCommitted)
	}
	s := step{retry: true, wait: wait, body: again}
	if endpoint := attempt.Endpoint(resp, err); endpoint != "" {
		s.tried = []string{endpoint}
	}
	return s
}

// nextTo is Next or NextAfter, depending on resp, which is nil after a failure.
func (l *Loop) nextTo(ctx context.Context, n int, resp *http.Response) (wait time.Duration, stopped Reason, ok bool) {
	if resp == nil {
		return l.Next(ctx, n, 0)
	}
	if field.IsGRPC(resp.Header) {
		if after, told := field.Pushback(resp.Header["Grpc-Retry-Pushback-Ms"]); told && after < 0 {
			return 0, NotRetriable, false
		} else if told {
			return l.NextAfter(ctx, n, after)
		}
	}
	return l.Next(ctx, n, field.RetryAfter(resp.Header["Retry-After"], time.Now()))
}

// rewind returns the request body for another try, nil if there is none. If it fails, the slot of the limiter is given back. If GetBody
// panics, the response, which nobody will see, is closed too.
func (l *Loop) rewind(req *http.Request, r *replay, resp *http.Response) (again io.ReadCloser, err error) {
	returned := false
	defer func() {
		if !returned || err != nil {
			l.Limiter.Release()
		}
		if !returned && resp != nil && resp.Body != nil {
			resp.Body.Close()
		}
	}()
	switch {
	case r != nil:
		again, err = r.next()
	case req.GetBody != nil && req.Body != nil && req.Body != http.NoBody:
		again, err = caller.BodyAgain(req.GetBody)
	}
	returned = true
	return again, err
}

// Next is the part of Do that does not depend on HTTP, for calls of other protocols. After the n-th try of a call that is to be
// retried, it decides whether there is another try, and how long to wait before it. asked is the wait that the server asked
// for, 0 if it did not.
//
// If ok is true, a retry was taken from the Budget, and a slot of the Limiter is held: the caller calls Limiter.Release when the
// next try has its response, or does not take place. Otherwise stopped says why there is no other try, and the caller keeps the
// outcome that it has.
func (l *Loop) Next(ctx context.Context, n int, asked time.Duration) (wait time.Duration, stopped Reason, ok bool) {
	config := &l.Policy.config
	if config.MaxRetryAfter < 0 {
		asked = 0
	}
	wait = delay(n, config.Backoff, config.MaxBackoff, l.random())
	return l.reserve(ctx, n, asked, max(wait, asked))
}

// NextAfter is [Loop.Next] for a server that says exactly when to come back, as with gRPC's grpc-retry-pushback-ms: there is no
// backoff. A negative MaxRetryAfter sets no limit here.
func (l *Loop) NextAfter(ctx context.Context, n int, asked time.Duration) (
	wait time.Duration, stopped Reason, ok bool) {
	return l.reserve(ctx, n, asked, asked)
}

// reserve takes what the retry after the n-th try needs, if there is one.
func (l *Loop) reserve(ctx context.Context, n int, asked, wait time.Duration) (time.Duration, Reason, bool) {
	config := &l.Policy.config
	switch {
	case n > config.Retries:
		return 0, LimitReached, false
	case ctx.Err() != nil:
		return 0, ended(ctx), false
	case config.MaxRetryAfter > 0 && asked > config.MaxRetryAfter:
		return 0, OutOfTime, false
	}
	// What is shared with other calls is taken last.
	if at, bounded := ctx.Deadline(); bounded && time.Until(at) <= wait {
		return 0, OutOfTime, false
	}
	if !l.Limiter.Acquire() {
		return 0, LimiterRefused, false
	}
	if !l.Budget.take() {
		l.Limiter.Release()
		return 0, BudgetRefused, false
	}
	return wait, Succeeded, true
}

// ended returns why a context is over.
func ended(ctx context.Context) Reason {
	if ctx.Err() != nil && failure.Of(ctx, nil, ctx.Err()) == failure.Canceled {
		return CallerGone
	}
	return OutOfTime
}

// ended returns why the call of req is over.
func (l *Loop) ended(req *http.Request) Reason {
	if ctx := l.context(req); failure.Over(ctx) {
		return ended(ctx)
	}
	return CallerGone
}

func (l *Loop) context(req *http.Request) context.Context {
	if l.Context != nil {
		return l.Context
	}
	return req.Context()
}

func (l *Loop) random() float64 {
	if l.Rand != nil {
		return l.Rand()
	}
	return rand.Float64()
}

// idempotent reports whether sending req twice has the same effect as once (RFC 9110, section 9.2.2). Like net/http, it trusts the
// two headers in which a client says so.
func idempotent(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil
}

// Error is returned by a call whose last try ended in an error after at least one retry.
type Error struct {
	Attempts int   // tries made
	Last     error // how the last one ended
}

// Error implements error.
func (e *Error) Error() string {
	return "retry: after " + strconv.Itoa(e.Attempts) + " attempts: " + e.Last.Error()
}

// Unwrap returns the error of the last try.
func (e *Error) Unwrap() error { return e.Last }

// Timeout reports whether the last try ended in a timeout. *url.Error asks for it by assertion.
func (e *Error) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Last, &t) && t.Timeout()
}

func wrap(n int, err error) error {
	if err == nil || n <= 1 {
		return err
	}
	return &Error{Attempts: n, Last: failure.Explain(attempt.Cause(err))}
}
