package retrygrpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
	"github.com/nosidecar/mesh/timeout"
)

// fast retries without a wait, and without a budget in the way.
func fast(on string, retries int) *retrygrpc.Client {
	parsed, err := retry.ParseOn(on)
	if err != nil {
		panic(err)
	}
	return &retrygrpc.Client{
		Config: retry.Config{Retries: retries, On: parsed, Backoff: -1},
		Budget: retry.BudgetConfig{Off: true},
	}
}

// failing is a unary handler that fails the first times.
func failing(times int, code codes.Code, calls *atomic.Int32, before ...func(context.Context)) func(
	context.Context, *grpctest.Request) (*grpctest.Response, error) {
	return func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
		if n := int(calls.Add(1)); n <= times {
			for _, f := range before {
				f(ctx)
			}
			return nil, status.Errorf(code, "failure %d", n)
		}
		return grpctest.Echo(ctx, in)
	}
}

// TestConditions pins that each of retryOn's gRPC conditions retries its status and no other.
func TestConditions(t *testing.T) {
	names := map[string]codes.Code{
		"cancelled": codes.Canceled, "deadline-exceeded": codes.DeadlineExceeded, "internal": codes.Internal,
		"resource-exhausted": codes.ResourceExhausted, "unavailable": codes.Unavailable,
	}
	for name := range names {
		for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
			t.Run(fmt.Sprint(name, "/", code), func(t *testing.T) {
				var calls atomic.Int32
				address := grpctest.Serve(t, &grpctest.Service{Unary: failing(1, code, &calls)})
				client := grpctest.NewClient(grpctest.Dial(t, address, fast(name, 1).DialOptions()...))
				_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
				want := int32(1)
				if names[name] == code {
					want = 2
				}
				if calls.Load() != want || (err == nil) != (want == 2) {
					t.Errorf("%d calls and error %v, want %d calls", calls.Load(), err, want)
				}
			})
		}
	}
}

// TestHeadersCommit: a status that comes after response headers is the caller's, as Envoy has it.
func TestHeadersCommit(t *testing.T) {
	for _, test := range []struct {
		name  string
		set   func(context.Context)
		calls int32
	}{
		{"trailers only", func(context.Context) {}, 2},
		{"trailers only, with a trailer", func(ctx context.Context) { _ = grpc.SetTrailer(ctx, metadata.Pairs("x", "y")) }, 2},
		{"headers set", func(ctx context.Context) { _ = grpc.SetHeader(ctx, metadata.Pairs("x", "y")) }, 1},
		{"headers sent", func(ctx context.Context) { _ = grpc.SendHeader(ctx, nil) }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int32
			address := grpctest.Serve(t, &grpctest.Service{Unary: failing(1, codes.Unavailable, &calls, test.set)})
			retries := fast("unavailable,5xx,reset,refused-stream", 3)
			retries.Config.AnyMethod = true
			client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
			_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
			if calls.Load() != test.calls || (err == nil) != (test.calls > 1) {
				t.Errorf("%d calls and error %v, want %d calls", calls.Load(), err, test.calls)
			}
		})
	}
}

// TestExhausted pins the error of a call that was given up: the status of the last try, and the number of tries.
func TestExhausted(t *testing.T) {
	var calls atomic.Int32
	var summary retry.Summary
	address := grpctest.Serve(t, &grpctest.Service{Unary: failing(9, codes.Unavailable, &calls)})
	retries := fast("unavailable", 2)
	retries.Observe = func(_ context.Context, method string, s retry.Summary) {
		if method != grpctest.UnaryMethod {
			t.Errorf("Observe got method %q", method)
		}
		summary = s
	}
	client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
	_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
	var given *retry.Error
	if !errors.As(err, &given) || given.Attempts != 3 || calls.Load() != 3 {
		t.Errorf("error %v after %d calls, want a retry.Error after 3", err, calls.Load())
	}
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), "failure 3") {
		t.Errorf("status %v, want that of the third try", s)
	}
	if want := (retry.Summary{Attempts: 3, Stopped: retry.LimitReached}); summary != want {
		t.Errorf("summary %+v, want %+v", summary, want)
	}
}

// TestDefaultOn: without On, what is not there is tried again, and statuses with a meaning are not.
func TestDefaultOn(t *testing.T) {
	for code, want := range map[codes.Code]int32{codes.Unavailable: 2, codes.Internal: 1, codes.NotFound: 1} {
		var calls atomic.Int32
		address := grpctest.Serve(t, &grpctest.Service{Unary: failing(1, code, &calls)})
		retries := &retrygrpc.Client{Config: retry.Config{Retries: 2, Backoff: -1}}
		client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
		client.UnaryCall(t.Context(), &grpctest.Request{})
		if calls.Load() != want {
			t.Errorf("%v: %d calls, want %d", code, calls.Load(), want)
		}
	}
}

// TestZeroClient retries nothing, and costs next to nothing.
func TestZeroClient(t *testing.T) {
	var calls atomic.Int32
	var summaries []retry.Summary
	address := grpctest.Serve(t, &grpctest.Service{Unary: failing(9, codes.Unavailable, &calls), Bidi: unavailable})
	retries := &retrygrpc.Client{Observe: func(_ context.Context, _ string, s retry.Summary) { summaries = append(summaries, s) }}
	client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != codes.Unavailable || calls.Load() != 1 {
		t.Errorf("%d calls, error %v; want one call", calls.Load(), err)
	}
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream: %v", err)
	}
	want := []retry.Summary{{Attempts: 1, Stopped: retry.NotRetriable}, {Attempts: 1, Stopped: retry.Succeeded}}
	if !slices.Equal(summaries, want) {
		t.Errorf("summaries %+v, want %+v", summaries, want)
	}

	bare := &retrygrpc.Client{Budget: retry.BudgetConfig{Off: true}}
	invoker := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	ctx := t.Context()
	if allocs := testing.AllocsPerRun(100, func() { retrygrpc.Unary(bare, ctx, "/m", nil, nil, nil, invoker) }); allocs > 0 {
		t.Errorf("%v allocations a call, want none", allocs)
	}
}

func TestInvalidConfig(t *testing.T) {
	retries := &retrygrpc.Client{Config: retry.Config{Retries: -1}}
	client := grpctest.NewClient(grpctest.Dial(t, "127.0.0.1:1", retries.DialOptions()...))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != codes.Internal {
		t.Errorf("unary error %v, want Internal", err)
	}
	if _, err := client.FullDuplexCall(t.Context()); status.Code(err) != codes.Internal {
		t.Errorf("stream error %v, want Internal", err)
	}
}

// TestPreviousAttempts: a retry says which it is, and only a retry.
func TestPreviousAttempts(t *testing.T) {
	var calls atomic.Int32
	var said []string
	address := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			said = append(said, strings.Join(metadata.ValueFromIncomingContext(ctx, "grpc-previous-rpc-attempts"), ","))
			return failing(2, codes.Unavailable, &calls)(ctx, in)
		},
	})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 2).DialOptions()...))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"", "1", "2"}; !slices.Equal(said, want) {
		t.Errorf("grpc-previous-rpc-attempts %q, want %q", said, want)
	}
}

// TestNestedRetriesDoNotMultiply: a server that calls on behalf of a retry does not multiply it.
func TestNestedRetriesDoNotMultiply(t *testing.T) {
	for _, test := range []struct {
		nested bool
		calls  int32 // at the back: 1+2 for the first call and 1 for each of the others, or 3 for each
	}{{false, 5}, {true, 9}} {
		var calls atomic.Int32
		back := grpctest.Serve(t, &grpctest.Service{Unary: failing(99, codes.Unavailable, &calls)})
		inner := fast("unavailable", 2)
		inner.Config.NestedRetries = test.nested
		next := grpctest.NewClient(grpctest.Dial(t, back, inner.DialOptions()...))
		front := grpctest.Serve(t, &grpctest.Service{
			Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
				return next.UnaryCall(ctx, in)
			},
		})
		client := grpctest.NewClient(grpctest.Dial(t, front, fast("unavailable", 2).DialOptions()...))
		client.UnaryCall(t.Context(), &grpctest.Request{})
		if calls.Load() != test.calls {
			t.Errorf("NestedRetries %v: %d calls, want %d", test.nested, calls.Load(), test.calls)
		}
	}
}

// TestPushback: the server has the last word on when, and whether, to come back.
func TestPushback(t *testing.T) {
	for _, test := range []struct {
		name     string
		pushback []string
		calls    int32
		wait     time.Duration
	}{
		{"none", nil, 2, 0},
		{"later", []string{"1500"}, 2, 1500 * time.Millisecond},
		{"at once", []string{"0"}, 2, 0},
		{"never", []string{"-1"}, 1, 0},
		{"nonsense", []string{"soon"}, 1, 0},
		{"overflow", []string{"99999999999"}, 1, 0},
		{"two", []string{"1", "2"}, 1, 0},
		{"too long", []string{"60000"}, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int32
				client, stop := grpctest.Connect(t, &grpctest.Service{
					Unary: failing(1, codes.Unavailable, &calls, func(ctx context.Context) {
						for _, p := range test.pushback {
							_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", p))
						}
					}),
				}, fast("unavailable", 1).DialOptions()...)
				defer stop()
				began := time.Now()
				_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
				if calls.Load() != test.calls || time.Since(began) != test.wait {
					t.Errorf("%d calls in %v (%v), want %d in %v", calls.Load(), time.Since(began), err, test.calls, test.wait)
				}
			})
		})
	}
}

// TestOverloaded: servers of this library that refuse for overload say so, and are left alone.
func TestOverloaded(t *testing.T) {
	var calls atomic.Int32
	address := grpctest.Serve(t, &grpctest.Service{
		Unary: failing(1, codes.Unavailable, &calls, func(ctx context.Context) {
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-envoy-overloaded", "true"))
		}),
	})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 1).DialOptions()...))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != codes.Unavailable || calls.Load() != 1 {
		t.Errorf("%d calls and error %v, want one call", calls.Load(), err)
	}
}

// TestTransportFailures: what is not a reply of the server is told apart as for HTTP.
func TestTransportFailures(t *testing.T) {
	reset := func(code http2.ErrCode) func(*grpctest.Frames, uint32) bool {
		return func(f *grpctest.Frames, stream uint32) bool { f.Reset(stream, code); return true }
	}
	http := func(status string) func(*grpctest.Frames, uint32) bool {
		return func(f *grpctest.Frames, stream uint32) bool {
			f.Headers(stream, true, ":status", status, "content-type", "text/html")
			return true
		}
	}
	for _, test := range []struct {
		name   string
		on     string
		any    bool // AnyMethod
		answer func(*grpctest.Frames, uint32) bool
		calls  int32
	}{
		// gRPC itself sends a refused stream once more: each try is two.
		{"refused", "refused-stream", false, reset(http2.ErrCodeRefusedStream), 6},
		{"refused, not retried", "unavailable", true, reset(http2.ErrCodeRefusedStream), 2},
		{"reset", "reset", true, reset(http2.ErrCodeInternal), 3},
		{"reset, may have been processed", "reset", false, reset(http2.ErrCodeInternal), 1},
		{"reset is no status", "internal", true, reset(http2.ErrCodeInternal), 1},
		{"connection lost", "reset", true, func(*grpctest.Frames, uint32) bool { return false }, 3},
		{"connection lost is no status", "unavailable", true, func(*grpctest.Frames, uint32) bool { return false }, 1},
		{"503 of a proxy", "gateway-error", true, http("503"), 3},
		{"503 by its code", "503", true, http("503"), 3},
		{"403 of a proxy", "5xx,reset", true, http("403"), 1},
		{"headers, then reset", "5xx", true, func(f *grpctest.Frames, stream uint32) bool {
			f.Headers(stream, false, ":status", "200", "content-type", "application/grpc")
			f.Reset(stream, http2.ErrCodeInternal)
			return true
		}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			var calls atomic.Int32
			address := grpctest.ServeFrames(t, func(_ int, f *grpctest.Frames, stream uint32) bool {
				calls.Add(1)
				return test.answer(f, stream)
			})
			retries := fast(test.on, 2)
			retries.Config.AnyMethod = test.any
			client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
			_, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.WaitForReady(true))
			if err == nil || calls.Load() != test.calls {
				t.Errorf("%d calls, want %d (%v)", calls.Load(), test.calls, err)
			}
		})
	}
}

// TestConnectFailure: a call for which there is no connection was not sent, and is retried whatever it does.
func TestConnectFailure(t *testing.T) {
	address := rawtest.Refusing(t)
	for on, want := range map[string]int{"connect-failure": 3, "unavailable": 1} {
		tries := 0
		retries := fast(on, 2)
		retries.Observe = func(_ context.Context, _ string, s retry.Summary) { tries = s.Attempts }
		client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: error %v, want Unavailable", on, err)
		}
		if tries != want {
			t.Errorf("%s: %d tries, want %d", on, tries, want)
		}
	}
}

// TestIdempotencyKey: the caller's word makes a call safe to repeat.
func TestIdempotencyKey(t *testing.T) {
	var calls atomic.Int32
	address := grpctest.ServeFrames(t, func(n int, f *grpctest.Frames, stream uint32) bool {
		calls.Add(1)
		if n == 1 {
			f.Reset(stream, http2.ErrCodeInternal)
		} else {
			f.Reply(stream)
		}
		return true
	})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("reset", 1).DialOptions()...))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", "1")
	if _, err := client.UnaryCall(ctx, &grpctest.Request{}); err != nil || calls.Load() != 2 {
		t.Errorf("%d calls and error %v, want 2 calls", calls.Load(), err)
	}
}

// TestOptionsFireOnceACall: what a caller wants back comes from the last try, and OnFinish is told once.
func TestOptionsFireOnceACall(t *testing.T) {
	var calls atomic.Int32
	note := func(ctx context.Context) {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("try", fmt.Sprint(calls.Load())))
	}
	handler := failing(2, codes.Unavailable, &calls, note)
	address := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			out, err := handler(ctx, in)
			if err == nil {
				note(ctx)
				_ = grpc.SetHeader(ctx, metadata.Pairs("try", fmt.Sprint(calls.Load())))
			}
			return out, err
		},
	})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 2).DialOptions()...))
	var header, trailer metadata.MD
	var from peer.Peer
	var finished []error
	_, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.Header(&header), grpc.Trailer(&trailer),
		grpc.Peer(&from), grpc.OnFinish(func(err error) { finished = append(finished, err) }))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(finished, []error{nil}) {
		t.Errorf("OnFinish got %v, want one nil", finished)
	}
	if !slices.Equal(header["try"], []string{"3"}) || !slices.Equal(trailer["try"], []string{"3"}) {
		t.Errorf("header %v and trailer %v are not those of the third try", header, trailer)
	}
	if from.Addr == nil || from.Addr.String() != address {
		t.Errorf("peer %v, want %s", from.Addr, address)
	}
}

// TestOptionsOfTheLastTry: what an earlier try left behind is not the caller's, even if the last one left nothing.
func TestOptionsOfTheLastTry(t *testing.T) {
	address := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			_ = grpc.SetTrailer(ctx, metadata.Pairs("try", "1"))
			return nil, status.Error(codes.Unavailable, "failure")
		},
	})
	tries := 0
	gone := func(ctx context.Context, method string, in, out any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker,
		opts ...grpc.CallOption) error {
		if tries++; tries == 1 {
			return invoker(ctx, method, in, out, cc, opts...)
		}
		return status.Error(codes.Unavailable, "no connection")
	}
	client := grpctest.NewClient(grpctest.Dial(t, address,
		append(fast("unavailable", 1).DialOptions(), grpc.WithChainUnaryInterceptor(gone))...))
	var header, trailer metadata.MD
	var from peer.Peer
	_, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from))
	if err == nil || tries != 2 {
		t.Fatalf("%v after %d tries, want an error after 2", err, tries)
	}
	if len(header) > 0 || len(trailer) > 0 || from.Addr != nil {
		t.Errorf("header %v, trailer %v and peer %v are those of the first try", header, trailer, from.Addr)
	}
}

// TestPerTryTimeout: a try that takes too long is retried, the next one has its own time.
func TestPerTryTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		client, stop := grpctest.Connect(t, &grpctest.Service{
			Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
				at, ok := ctx.Deadline()
				if !ok || time.Until(at) > time.Second {
					t.Errorf("the server was not told of the limit: %v, %v", at, ok)
				}
				if calls.Add(1) < 3 {
					<-ctx.Done() // the server knows the limit, and might answer before the client's timer
					return nil, ctx.Err()
				}
				return grpctest.Echo(ctx, in)
			},
		}, perTry(2).DialOptions()...)
		defer stop()
		began := time.Now()
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil || time.Since(began) != 2*time.Second {
			t.Errorf("error %v after %v, want none after 2s", err, time.Since(began))
		}
	})
}

func perTry(retries int) *retrygrpc.Client {
	c := fast("reset", retries)
	c.Config.PerTryTimeout, c.Config.AnyMethod = time.Second, true
	return c
}

func TestPerTryTimeout_Error(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, stop := grpctest.Connect(t, &grpctest.Service{
			Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
		}, perTry(1).DialOptions()...)
		defer stop()
		_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
		if status.Code(err) != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) ||
			kindOf(err) != timeout.PerTry {
			t.Errorf("error %v, want a per-try timeout with status DeadlineExceeded", err)
		}
	})
}

// TestServerEndsTheTryFirst: a server that knows the limit of the try may be a moment faster than our timer. That
// is a per-try timeout; a server that gives up much earlier, or when the caller's time is up, is not.
func TestServerEndsTheTryFirst(t *testing.T) {
	for _, test := range []struct {
		name    string
		after   time.Duration
		timeout time.Duration // of the caller
		calls   int32
		attempt int
	}{
		{"a moment before", time.Second - time.Millisecond, 0, 3, 3},
		{"of its own accord", 300 * time.Millisecond, 0, 1, 1},
		{"when the caller's time is up", 500 * time.Millisecond, 500 * time.Millisecond, 1, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int32
				var summary retry.Summary
				retries := perTry(2)
				retries.Observe = func(_ context.Context, _ string, s retry.Summary) { summary = s }
				client, stop := grpctest.Connect(t, &grpctest.Service{
					Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
						calls.Add(1)
						time.Sleep(test.after)
						return nil, status.Error(codes.DeadlineExceeded, "out of time")
					},
				}, retries.DialOptions()...)
				defer stop()
				ctx := t.Context()
				if test.timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.timeout)
					defer cancel()
				}
				_, err := client.UnaryCall(ctx, &grpctest.Request{})
				if status.Code(err) != codes.DeadlineExceeded || calls.Load() != test.calls || summary.Attempts != test.attempt {
					t.Errorf("%d calls, %+v, error %v; want %d calls", calls.Load(), summary, err, test.calls)
				}
				time.Sleep(time.Second) // the handler of a call that the client gave up
			})
		})
	}
}

// TestCallerGone: a caller who leaves during the backoff ends the call at once.
func TestCallerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		retries := fast("unavailable", 5)
		retries.Config.Backoff, retries.Config.MaxBackoff = time.Hour, time.Hour
		retries.Rand = func() float64 { return 0.5 }
		var summary retry.Summary
		retries.Observe = func(_ context.Context, _ string, s retry.Summary) { summary = s }
		client, stop := grpctest.Connect(t, &grpctest.Service{Unary: failing(9, codes.Unavailable, &calls)},
			retries.DialOptions()...)
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		began := time.Now()
		_, err := client.UnaryCall(ctx, &grpctest.Request{})
		if status.Code(err) != codes.Canceled || time.Since(began) != time.Minute || calls.Load() != 1 {
			t.Errorf("%d calls, %v after %v; want Canceled after 1m", calls.Load(), err, time.Since(began))
		}
		if want := (retry.Summary{Attempts: 1, Stopped: retry.CallerGone}); summary != want {
			t.Errorf("summary %+v, want %+v", summary, want)
		}
	})
}

// TestBudgetBoundsRetries: of 100 calls that all fail, 20% and 10 a second may be retried.
func TestBudgetBoundsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		retries := fast("unavailable", 3)
		retries.Budget = retry.BudgetConfig{}
		client, stop := grpctest.Connect(t, &grpctest.Service{Unary: failing(999, codes.Unavailable, &calls)},
			retries.DialOptions()...)
		defer stop()
		for range 100 {
			client.UnaryCall(t.Context(), &grpctest.Request{})
		}
		if n := calls.Load(); n < 101 || n > 130 {
			t.Errorf("%d calls, want at most 130", n)
		}
	})
}

// TestReplyIsOneTrysOwn: what a try that failed has decoded is not in the reply.
func TestReplyIsOneTrysOwn(t *testing.T) {
	var calls atomic.Int32
	var replies []any
	address := grpctest.Serve(t, &grpctest.Service{Unary: failing(1, codes.Unavailable, &calls)})
	options := append(fast("unavailable", 1).DialOptions(), grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker,
			opts ...grpc.CallOption) error {
			err := invoker(ctx, method, req, reply, cc, opts...)
			if out := reply.(*grpctest.Response); err != nil && out.Payload != nil {
				t.Error("a try that failed left something in the reply")
			}
			replies = append(replies, reply)
			return err
		}))
	client := grpctest.NewClient(grpctest.Dial(t, address, options...))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil || len(replies) != 2 {
		t.Errorf("%d tries and error %v, want 2 tries", len(replies), err)
	}
}

// TestWaitForReady passes through: such a call waits for a connection instead of failing over and over.
func TestWaitForReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		retries := fast("connect-failure", 5)
		retries.Observe = func(_ context.Context, _ string, s retry.Summary) { tries = s.Attempts }
		refuse := grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return nil, errors.New("nobody there")
		})
		client, stop := grpctest.Connect(t, &grpctest.Service{}, append(retries.DialOptions(), refuse)...)
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := client.UnaryCall(ctx, &grpctest.Request{}, grpc.WaitForReady(true))
		if status.Code(err) != codes.DeadlineExceeded || tries != 1 {
			t.Errorf("%d tries, error %v; want one that waited", tries, err)
		}
	})
}

// kindOf returns which of our limits caused err.
func kindOf(err error) timeout.Kind {
	kind, _ := timeout.Exceeded(err)
	return kind
}
