package grpcreplay_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/retry"
)

// twoTries is the tries of a call of which the first ends with an outcome, and any other with success.
type twoTries grpcreplay.Outcome

func (o *twoTries) Try(_ context.Context, _ time.Duration, n int) grpcreplay.Outcome {
	if n > 1 {
		return grpcreplay.Outcome{HTTP: 200}
	}
	return grpcreplay.Outcome(*o)
}

func (o *twoTries) Drop() bool { return true }

// TestDo covers the decision about each kind of outcome, after the first of two tries.
func TestDo(t *testing.T) {
	reply := func(pairs ...string) metadata.MD {
		return metadata.Join(metadata.Pairs("content-type", "application/grpc"), metadata.Pairs(pairs...))
	}
	type of = func(context.Context) context.Context
	ctx := func(ctx context.Context) context.Context { return ctx }
	within := func(ctx context.Context) context.Context { return attempt.Mark(ctx, 2) }
	marked := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "x-envoy-attempt-count", "2")
	}
	gone := func(ctx context.Context) context.Context {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx
	}
	for _, test := range []struct {
		name    string
		of      of
		on      string
		outcome grpcreplay.Outcome
		again   bool
		reason  retry.Reason
		wait    time.Duration
	}{
		{"success", ctx, "5xx,unavailable", grpcreplay.Outcome{HTTP: 200}, false, retry.Succeeded, 0},
		{"status", ctx, "unavailable", grpcreplay.Outcome{HTTP: 200, Code: codes.Unavailable, Reply: reply()}, true, 0, 0},
		{"another status", ctx, "unavailable", grpcreplay.Outcome{HTTP: 200, Code: codes.Internal, Reply: reply()}, false, retry.Succeeded, 0},
		{"proxy", ctx, "5xx", grpcreplay.Outcome{HTTP: 503}, true, 0, 0},
		{"overload", ctx, "unavailable", grpcreplay.Outcome{Code: codes.Unavailable, Reply: reply(grpcwire.Overloaded, "true")}, false, retry.Succeeded, 0},
		{"overload in the details", ctx, "unavailable", grpcreplay.Outcome{Code: codes.Unavailable, Reply: reply(), Limited: grpcwire.Overloaded}, false, retry.Succeeded, 0},
		{"rate limit", ctx, "envoy-ratelimited", grpcreplay.Outcome{Code: codes.Unavailable, Reply: reply(grpcwire.RateLimited, "true")}, true, 0, 0},
		{"rate limit without the condition", ctx, "unavailable", grpcreplay.Outcome{Code: codes.Unavailable, Reply: reply(), Limited: grpcwire.RateLimited}, false, retry.Succeeded, 0},
		{"reset", ctx, "reset", grpcreplay.Outcome{Kind: failure.StreamReset}, true, 0, 0},
		{"reset of what was sent", ctx, "reset-before-request", grpcreplay.Outcome{Kind: failure.StreamReset}, false, retry.NotRetriable, 0},
		{"not sent", ctx, "reset-before-request", grpcreplay.Outcome{Kind: failure.RefusedStream, Unsent: true}, true, 0, 0},
		{"refused", ctx, "reset-before-request", grpcreplay.Outcome{Kind: failure.RefusedStream}, false, retry.NotRetriable, 0},
		{"refusal of ours", ctx, "5xx", grpcreplay.Outcome{Kind: failure.Refused}, false, retry.NotRetriable, 0},
		{"caller gone", gone, "5xx", grpcreplay.Outcome{Kind: failure.StreamReset}, false, retry.CallerGone, 0},
		{"committed", ctx, "5xx", grpcreplay.Outcome{Kind: failure.StreamReset, Committed: true}, false, retry.BodyCommitted, 0},
		{"within a retry", within, "5xx", grpcreplay.Outcome{Kind: failure.StreamReset}, false, retry.Nested, 0},
		{"of a retry", marked, "5xx", grpcreplay.Outcome{Kind: failure.StreamReset}, false, retry.Nested, 0},
		{"pushback", ctx, "unavailable", grpcreplay.Outcome{Code: codes.Unavailable, Reply: reply("grpc-retry-pushback-ms", "70")}, true, 0, 70 * time.Millisecond},
		{"pushback for ever", ctx, "unavailable", grpcreplay.Outcome{Code: codes.Unavailable, Reply: reply("grpc-retry-pushback-ms", "-1")}, false, retry.NotRetriable, 0},
		{"Retry-After", ctx, "unavailable", grpcreplay.Outcome{Code: codes.Unavailable, Reply: reply("retry-after", "2")}, true, 0, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				on, err := retry.ParseOn(test.on)
				if err != nil {
					t.Fatal(err)
				}
				policy, err := retry.NewPolicy(retry.Config{Retries: 1, On: on, Backoff: -1, AnyMethod: true})
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				n, reason, left := grpcreplay.Do(test.of(t.Context()), &retry.Loop{Policy: policy}, (*twoTries)(&test.outcome))
				wait := time.Since(start)
				if left || (n == 2) != test.again || reason != test.reason || wait != test.wait {
					t.Errorf("%d tries within %v (%v, %t), want another one %t after %v (%v)", n, wait, reason, left, test.again, test.wait, test.reason)
				}
			})
		})
	}
}

// someTries makes tries of which each but the last fails, by what try and drop do.
type someTries struct {
	try  func(n int) grpcreplay.Outcome
	drop func() bool
}

func (s *someTries) Try(_ context.Context, _ time.Duration, n int) grpcreplay.Outcome {
	return s.try(n)
}
func (s *someTries) Drop() bool { return s.drop() }

// TestDo_SlotsComeBack: a retry gives its slot of the limiter back once, however it ends. Otherwise retries would end for good, or have no limit.
func TestDo_SlotsComeBack(t *testing.T) {
	failing := grpcreplay.Outcome{Kind: failure.StreamReset}
	first := func(then func() grpcreplay.Outcome) func(int) grpcreplay.Outcome {
		return func(n int) grpcreplay.Outcome {
			if n == 1 {
				return failing
			}
			return then()
		}
	}
	succeeds := first(func() grpcreplay.Outcome { return grpcreplay.Outcome{HTTP: 200} })
	drops := func() bool { return true }
	for _, test := range []struct {
		name  string
		tries someTries
		limit time.Duration // of the call
	}{
		{"success", someTries{succeeds, drops}, 0},
		{"failure", someTries{func(int) grpcreplay.Outcome { return failing }, drops}, 0},
		{"a try that panics", someTries{first(func() grpcreplay.Outcome { panic("boom") }), drops}, 0},
		{"a try that cannot be dropped", someTries{succeeds, func() bool { return false }}, 0},
		{"a drop that panics", someTries{succeeds, func() bool { panic("boom") }}, 0},
		{"a caller that gives up meanwhile", someTries{succeeds, drops}, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				policy, err := retry.NewPolicy(retry.Config{Retries: 2, On: retry.On{Conditions: retry.Reset}, Backoff: time.Minute, AnyMethod: true})
				if err != nil {
					t.Fatal(err)
				}
				limiter, err := retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.limit > 0 {
					time.AfterFunc(test.limit, cancel)
				}
				func() {
					defer func() { _ = recover() }()
					grpcreplay.Do(ctx, &retry.Loop{Policy: policy, Limiter: limiter, Rand: func() float64 { return 0.5 }}, &test.tries)
				}()
				if active, _ := limiter.Retries(); active != 0 {
					t.Errorf("%d retries are in flight afterwards, want 0", active)
				}
			})
		})
	}
}
