package grpcreplay

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/pause"
	"github.com/nosidecar/mesh/retry"
)

// Outcome is the result of a try, as far as it matters for a retry.
type Outcome struct {
	// Kind is the kind of failure of a try that got no response, and None for one that did. Unsent says that nothing was sent.
	Kind   failure.Kind
	Unsent bool

	// HTTP is the HTTP status of the response, or 0 if it does not matter.
	HTTP int

	// Code is the status of a trailers-only response. A response with headers counts as a success, whatever follows.
	Code codes.Code

	// Reply is the metadata at the beginning of the response. Limited is what [grpcwire.LimitedBy] returns for its status.
	Reply   metadata.MD
	Limited string

	// Committed says that no other try can follow.
	Committed bool

	// Pending says that all this is not known yet.
	Pending bool
}

// Tries makes the tries of a call, one after the other.
type Tries interface {
	// Try makes the n-th try, up to the beginning of its response or less: then the outcome is pending. A limit of 0 means none.
	Try(ctx context.Context, limit time.Duration, n int) Outcome

	// Drop abandons the latest try so that another can follow. It reports false if none can follow.
	Drop() bool
}

// Do makes tries of a call as long as the loop allows. It returns the number of tries and the reason why there are no more. gone reports
// that ctx ended before the next try.
func Do(ctx context.Context, l *retry.Loop, tries Tries) (n int, reason retry.Reason, gone bool) {
	var s Series
	r := s.Begin(ctx, l, tries)
	return r.Tries, r.Reason, r.Gone
}

// Series is the tries of a call, made one after the other. It is suspended by a try whose outcome is pending.
type Series struct {
	n       int32
	held    bool // a slot of the limiter is held, from the decision to retry until the response
	limited bool // there is a limiter
}

// Result is the result of a Series.
type Result struct {
	Tries   int          // how many there were
	Reason  retry.Reason // why there are no more
	Gone    bool         // the context has ended before the next try
	Pending bool         // the outcome of the last try is not known yet
}

// Begin makes tries as long as the loop allows, or until an outcome is pending.
func (s *Series) Begin(ctx context.Context, l *retry.Loop, tries Tries) Result {
	*s = Series{limited: l.Limiter != nil}
	l.Budget.Deposit()
	return s.run(ctx, l, tries, nil)
}

// Holds reports whether a slot of the limiter is held for the try that is pending, so that its response should not be awaited for long.
func (s *Series) Holds() bool { return s.held && s.limited }

// Resume goes on with the try that was pending, whose outcome await waits for. It may be pending again.
func (s *Series) Resume(ctx context.Context, l *retry.Loop, tries Tries, await func() Outcome) Result {
	return s.run(ctx, l, tries, await)
}

// run makes tries. If await is not nil, it waits for the outcome of the first one, which was made before.
func (s *Series) run(ctx context.Context, l *retry.Loop, tries Tries, await func() Outcome) (r Result) {
	defer func() {
		if !r.Pending { // maybe a panic or a Goexit
			s.release(l)
		}
	}()
	for {
		var o Outcome
		if await != nil {
			o, await = await(), nil
		} else {
			s.n++
			o = tries.Try(ctx, limitOf(ctx, l.Policy), int(s.n))
		}
		n := int(s.n)
		if o.Pending {
			return Result{Tries: n, Pending: true}
		}
		s.release(l)
		var wait time.Duration
		var reason retry.Reason
		wait, reason, s.held = next(ctx, l, n, &o)
		switch {
		case !s.held:
			return Result{Tries: n, Reason: reason}
		case !tries.Drop():
			return Result{Tries: n, Reason: retry.BodyCommitted}
		case pause.For(ctx, wait) != nil:
			return Result{Tries: n, Reason: Ended(ctx), Gone: true}
		}
	}
}

// release gives back the slot of the limiter.
func (s *Series) release(l *retry.Loop) {
	if s.held {
		s.held = false
		l.Limiter.Release()
	}
}

// limitOf returns the limit of a try of a call with ctx. It is not inlined, so that no copy of the configuration is on the stack during a try.
//
//go:noinline
func limitOf(ctx context.Context, policy *retry.Policy) time.Duration {
	return deadline.Within(ctx, policy.Config().PerTryTimeout)
}

// next decides after the n-th try of a call whether there is another one; see [retry.Loop.Next]. If again is true, a slot of the limiter is
// held.
func next(ctx context.Context, l *retry.Loop, n int, o *Outcome) (wait time.Duration, reason retry.Reason, again bool) {
	config := l.Policy.Config()
	if o.Kind != failure.None {
		reason = retry.NotRetriable
		if failure.Over(ctx) {
			return 0, Ended(ctx), false
		}
	}
	switch {
	case config.Retries == 0 || !o.retriable(&config):
		return 0, reason, false
	case o.Reply == nil && !config.AnyMethod && !o.Kind.Unprocessed() && !idempotent(ctx):
		return 0, retry.NotRetriable, false
	case !config.NestedRetries && nested(ctx):
		return 0, retry.Nested, false
	case o.Committed:
		return 0, retry.BodyCommitted, false
	}
	switch after, told := field.Pushback(o.Reply["grpc-retry-pushback-ms"]); {
	case !told:
		return l.Next(ctx, n, field.RetryAfter(o.Reply["retry-after"], time.Now()))
	case after >= 0:
		return l.NextAfter(ctx, n, after)
	}
	return 0, retry.NotRetriable, false
}

// retriable reports whether the outcome is one that config retries.
func (o *Outcome) retriable(config *retry.Config) bool {
	on := config.On
	switch {
	case o.Kind != failure.None:
		conditions := uint32(on.Conditions)
		return o.Kind.Retriable(conditions) || o.Unsent && failure.Unsent.Retriable(conditions)
	case o.Limited == grpcwire.Overloaded || o.Reply[grpcwire.Overloaded] != nil:
		return false
	case o.Limited == grpcwire.RateLimited || o.Reply[grpcwire.RateLimited] != nil:
		return on.Conditions&retry.RateLimited != 0
	case on.HTTP(o.HTTP):
		return true
	}
	for _, name := range config.RetriableHeaders {
		if len(o.Reply.Get(name)) > 0 {
			return true
		}
	}
	return on.GRPC(uint32(o.Code))
}

// retriesAnswers reports whether policy may retry a call whose response has headers. It is not inlined, for the reason of limitOf.
//
//go:noinline
func retriesAnswers(policy *retry.Policy) bool {
	config := policy.Config()
	return config.On.HTTP(http.StatusOK) || len(config.RetriableHeaders) > 0 || config.On.Conditions&retry.RateLimited != 0
}

// idempotent reports whether the metadata of a call says that it may be sent twice.
func idempotent(ctx context.Context) bool {
	return len(metadata.ValueFromOutgoingContext(ctx, "idempotency-key")) > 0
}

// nested reports whether a call is already a retry, by its context or its metadata, or is made by the handler of a retry.
func nested(ctx context.Context) bool {
	return attempt.Within(ctx) ||
		above(metadata.ValueFromOutgoingContext(ctx, "x-envoy-attempt-count"), 1) ||
		above(metadata.ValueFromOutgoingContext(ctx, grpcwire.PreviousAttempts), 0) ||
		above(metadata.ValueFromIncomingContext(ctx, grpcwire.PreviousAttempts), 0)
}

func above(values []string, n int) bool {
	if len(values) == 0 {
		return false
	}
	got, err := strconv.Atoi(values[0])
	return err == nil && got > n
}

// Ended returns the reason why a context has ended.
func Ended(ctx context.Context) retry.Reason {
	if ctx.Err() != nil && failure.Of(ctx, nil, ctx.Err()) == failure.Canceled {
		return retry.CallerGone
	}
	return retry.OutOfTime
}
