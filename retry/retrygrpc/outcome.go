package retrygrpc

import (
	"context"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/retry"
)

// outcome is how a try ended.
type outcome struct {
	err      error       // nil or io.EOF if well
	begun    bool        // there was a stream, so that the server may have seen something
	answered bool        // response headers came
	late     bool        // the try took longer than it may
	trailer  metadata.MD // the whole reply, if it consists of trailers only
}

// next decides, after the n-th try, whether there is another one, and how long to wait before. If again, a slot of the
// limiter is held.
func next(ctx context.Context, l *retry.Loop, n int, o *outcome) (wait time.Duration, reason retry.Reason, again bool) {
	if o.err == nil || o.err == io.EOF || o.answered && !o.late {
		return 0, retry.Succeeded, false
	}
	config := l.Policy.Config()
	switch {
	case over(ctx):
		return 0, ended(ctx), false
	case o.answered || config.Retries == 0:
		return 0, retry.NotRetriable, false
	}
	if reason, ok := retriable(ctx, &config, o); !ok {
		return 0, reason, false
	}
	if !config.NestedRetries && nested(ctx) {
		return 0, retry.Nested, false
	}
	// gRFC A6: one value, milliseconds. A negative one, and nonsense, means not to retry.
	switch pushback := o.trailer["grpc-retry-pushback-ms"]; {
	case len(pushback) == 0:
		return l.Next(ctx, n, 0)
	case len(pushback) == 1:
		if ms, err := strconv.ParseInt(pushback[0], 10, 32); err == nil && ms >= 0 {
			return l.NextAfter(ctx, n, time.Duration(ms)*time.Millisecond)
		}
	}
	return 0, retry.NotRetriable, false
}

// retriable reports whether a try that failed without response headers is to be retried, and if not, why.
func retriable(ctx context.Context, config *retry.Config, o *outcome) (retry.Reason, bool) {
	if grpcstatus.TrailersOnly(o.trailer) && !o.late {
		on := config.On
		limited := grpcwire.LimitedBy(o.err)
		switch {
		case limited == grpcwire.Overloaded || len(o.trailer[grpcwire.Overloaded]) > 0:
			return retry.Succeeded, false
		case limited == grpcwire.RateLimited || len(o.trailer[grpcwire.RateLimited]) > 0:
			return retry.Succeeded, on.Conditions&retry.RateLimited != 0
		}
		for _, name := range config.RetriableHeaders {
			if len(o.trailer.Get(name)) > 0 {
				return retry.Succeeded, true
			}
		}
		return retry.Succeeded, on.GRPC(uint32(status.Code(o.err)))
	}
	kind := o.kind()
	if code, ok := grpcwire.HTTPStatus(o.err); ok {
		if !config.On.HTTP(code) {
			return retry.Succeeded, false
		}
	} else if !config.On.Failure(kind) {
		return retry.NotRetriable, false
	}
	return retry.NotRetriable, config.AnyMethod || kind.Unprocessed() || idempotent(ctx)
}

// kind is the way a try failed that got no reply from the server.
func (o *outcome) kind() failure.Kind {
	if refusal.Is(o.err) {
		return failure.Refused
	}
	if o.late {
		return failure.TryTimeout
	}
	s := status.Convert(o.err)
	_, reset := grpcwire.ResetCode(o.err)
	switch {
	case s.Code() == codes.Unavailable && !o.begun:
		return failure.Connect // no connection to be picked, or none that took the stream
	case o.begun && grpcwire.Unprocessed(o.err):
		return failure.RefusedStream
	case reset && o.begun:
		return failure.StreamReset
	case s.Code() == codes.Unavailable:
		return failure.Reset
	}
	// What is wrong is on our side: a message that cannot be encoded, credentials, the caller's own cancel.
	return failure.Refused
}

// idle reports whether there is nothing to do but to make calls.
func idle(l *retry.Loop) bool {
	config := l.Policy.Config()
	return config.Retries == 0 && config.PerTryTimeout == 0
}

// once returns the summary of a call that was made without further ado.
func once(ctx context.Context, err error) retry.Summary {
	reason := retry.Succeeded
	if err != nil {
		reason = retry.NotRetriable
		if over(ctx) {
			reason = ended(ctx)
		}
	}
	return retry.Summary{Attempts: 1, Stopped: reason}
}

// over reports whether ctx has ended, or is due to.
func over(ctx context.Context) bool {
	if ctx.Err() != nil {
		return true
	}
	at, bounded := ctx.Deadline()
	return bounded && !time.Now().Before(at)
}

// ended says why a context that is over is.
func ended(ctx context.Context) retry.Reason {
	if ctx.Err() != nil && failure.Of(ctx, nil, ctx.Err()) == failure.Canceled {
		return retry.CallerGone
	}
	return retry.OutOfTime
}

// gone returns the error of a call whose context ended before its next try.
func gone(ctx context.Context) error {
	code := codes.DeadlineExceeded
	if ended(ctx) == retry.CallerGone {
		code = codes.Canceled
	}
	return grpcstatus.Wrap(code, context.Cause(ctx))
}

// wrap tells the caller of the tries that ended in err, if there were several and we gave up. What the server answered
// to the last one is passed on as it is.
func wrap(n int, reason retry.Reason, err error) error {
	if n <= 1 || err == nil || err == io.EOF || reason == retry.Succeeded {
		return err
	}
	return &retry.Error{Attempts: n, Last: err}
}

func tooLate(limit time.Duration) error {
	return grpcstatus.Wrap(codes.DeadlineExceeded, &deadline.Error{Kind: deadline.PerTry, Limit: limit})
}

// perTry returns the limit of a try, 0 if there is none or the call's deadline comes first.
func perTry(ctx context.Context, l *retry.Loop) time.Duration {
	limit := l.Policy.Config().PerTryTimeout
	if limit > 0 {
		if at, ok := ctx.Deadline(); ok && time.Until(at) <= limit {
			return 0
		}
	}
	return limit
}

// mark returns the context of the n-th try.
func mark(ctx context.Context, n int) context.Context {
	if n == 1 {
		return ctx
	}
	ctx = attempt.Mark(ctx, n)
	value := strconv.Itoa(n - 1)
	if len(metadata.ValueFromOutgoingContext(ctx, grpcwire.PreviousAttempts)) == 0 {
		return metadata.AppendToOutgoingContext(ctx, grpcwire.PreviousAttempts, value)
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	md.Set(grpcwire.PreviousAttempts, value)
	return metadata.NewOutgoingContext(ctx, md)
}

// nested reports whether a call is itself a retry, says so, or is made by the handler of one.
func nested(ctx context.Context) bool {
	return attempt.Within(ctx) || isRetry(metadata.ValueFromOutgoingContext(ctx, grpcwire.PreviousAttempts)) ||
		isRetry(metadata.ValueFromIncomingContext(ctx, grpcwire.PreviousAttempts))
}

func isRetry(values []string) bool {
	if len(values) == 0 {
		return false
	}
	n, err := strconv.Atoi(values[0])
	return err == nil && n > 0
}

func idempotent(ctx context.Context) bool {
	return len(metadata.ValueFromOutgoingContext(ctx, "idempotency-key")) > 0
}

// sleep waits, and reports whether it did so before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
