package retrygrpc_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

// TestStream_SlotOfAStreamWithoutAReceiver: a retry is over for the limiter when it is answered, although the caller does not receive yet.
func TestStream_SlotOfAStreamWithoutAReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		loop := limited(t)
		client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: onCall(1, &calls, unavailable)}, through(loop))
		defer stop()
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for calls.Load() < 2 {
			synctest.Wait()
			if err := stream.Send(&grpctest.In{Payload: payload("a")}); err != nil {
				t.Fatal(err)
			}
		}
		if synctest.Wait(); !loop.Limiter.Acquire() {
			t.Error("the slot of the retry was not given back")
		}
		stream.CloseSend()
		receiveAll(t, stream)
	})
}

// headless is a stream that panics when its header is awaited.
type headless struct{ grpc.ClientStream }

func (headless) Header() (metadata.MD, error) { panic("header") }

// TestStream_SlotOfAPanic: a panic while the response to a retry is awaited reaches the caller, and gives back the slot.
func TestStream_SlotOfAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int32
		loop := limited(t)
		broken := grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
			streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := streamer(ctx, desc, cc, method, opts...)
			if tries.Add(1) > 1 && err == nil {
				stream = headless{stream}
			}
			return stream, err
		})
		client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: unavailable}, through(loop), broken)
		defer stop()
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if p := recover(); p != "header" || !loop.Limiter.Acquire() {
				t.Errorf("panic %v, want that of Header, and the slot given back", p)
			}
		}()
		_, err = stream.Recv()
		t.Errorf("Recv: %v, want a panic", err)
	})
}

// limited returns a loop that retries once, with a limiter that has one slot.
func limited(t *testing.T) *retry.Loop {
	t.Helper()
	var loop retry.Loop
	var err error
	if loop.Policy, err = retry.NewPolicy(retry.Config{Retries: 1, On: retry.On{Conditions: retry.Unavailable}}); err != nil {
		t.Fatal(err)
	}
	if loop.Limiter, err = retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil); err != nil {
		t.Fatal(err)
	}
	return &loop
}

// through returns the option that makes the tries of streams by loop.
func through(loop *retry.Loop) grpc.DialOption {
	return grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		return retrygrpc.NewStream(ctx, loop, desc, cc, method, streamer, nil, opts...)
	})
}

// TestStream_WithoutAGoroutine: a stream needs none while it waits for its response, nor afterwards.
func TestStream_WithoutAGoroutine(t *testing.T) {
	leak.Check(t)
	conn := grpctest.Dial(t, grpctest.Serve(t, &grpctest.Service{Bidi: echo}), fast("unavailable", 2).DialOptions()...)
	grpctest.CheckNoGoroutine(t.Context(), t, grpctest.NewClient(conn))
}
