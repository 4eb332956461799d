package grpcreplay

import (
	"context"
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

// Outcome is how a try ended, as far as it decides about another one.
type Outcome struct {
	// Kind is how a try failed that was not answered, and None for one that was. Unsent says that nothing of the try was sent.
	Kind   failure.Kind
	Unsent bool

	// HTTP is the status of HTTP of an answer, if it counts.
	HTTP int

	// Code is the status of an answer that is nothing but a status. An answer with headers of its own is a success,
	// whatever may follow.
	Code codes.Code

	// Reply is the metadata that an answer begins with, and Limited what its status says of a limit: see
	// [grpcwire.LimitedBy].
	Reply   metadata.MD
	Limited string

	// Committed says that the try cannot be followed by another.
	Committed bool
}

// Tries makes the tries of a call, one after the other.
type Tries interface {
	// Try makes the n-th try, up to its answer. A limit of 0 is none.
	Try(ctx context.Context, limit time.Duration, n int) Outcome

	// Drop gives up the latest try, for another to follow. It reports false if none can follow any more.
	Drop() bool
}

// Do makes tries of a call for as long as the loop has it. It returns how many there were and why there are no more; gone says
// that ctx ended before the next one.
func Do(ctx context.Context, l *retry.Loop, tries Tries) (n int, reason retry.Reason, gone bool) {
	held := false // a slot of the limiter, from the decision to the answer
	defer func() {
		if held {
			l.Limiter.Release()
		}
	}()
	l.Budget.Deposit()
	for n = 1; ; n++ {
		outcome := tries.Try(ctx, deadline.Within(ctx, l.Policy.Config().PerTryTimeout), n)
		if held {
			held = false
			l.Limiter.Release()
		}
		var wait time.Duration
		if wait, reason, held = Next(ctx, l, n, &outcome); !held {
			return n, reason, false
		}
		if !tries.Drop() {
			return n, retry.BodyCommitted, false
		}
		if pause.For(ctx, wait) != nil {
			return n, Ended(ctx), true
		}
	}
}

// Next decides, after the n-th try of a call, whether there is another one: see [retry.Loop.Next]. If again, a slot of the
// limiter is held.
func Next(ctx context.Context, l *retry.Loop, n int, o *Outcome) (wait time.Duration, reason retry.Reason, again bool) {
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

// retriable reports whether config asks for another try.
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

// idempotent reports whether a call says that being sent twice does no harm.
func idempotent(ctx context.Context) bool {
	return len(metadata.ValueFromOutgoingContext(ctx, "idempotency-key")) > 0
}

// nested reports whether a call is itself a retry, says so, or is made by the handler of one.
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

// Ended says why a context that is over is.
func Ended(ctx context.Context) retry.Reason {
	if ctx.Err() != nil && failure.Of(ctx, nil, ctx.Err()) == failure.Canceled {
		return retry.CallerGone
	}
	return retry.OutOfTime
}
