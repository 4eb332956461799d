package breakergrpc_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/breaker/breakergrpc"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
)

// Waiting for headers, to tell whether a call is slow, does not keep gRPC from sending a stream again whose connection was lost before the
// stream was sent.
func TestOrphanedStreamIsSentAgain(t *testing.T) {
	for _, config := range []breaker.Config{{}, {SlowCallFraction: 1, SlowCall: time.Hour}} {
		leak.Check(t)
		grpctest.OrphanedStream(t, (&breakergrpc.Client{Config: config}).DialOptions()...)
	}
}

// unsent is a stream whose connection was lost before the stream was sent, as gRPC has it.
type unsent struct{ grpc.ClientStream }

func (unsent) Header() (metadata.MD, error) { return nil, nil }
func (unsent) Trailer() metadata.MD         { return nil }
func (unsent) RecvMsg(any) error            { return status.Error(codes.Unavailable, "transport is closing") }

// A stream that cannot be sent counts as a failure, although gRPC says that it has ended well when its headers are asked for.
func TestStreamThatCannotBeSentIsAFailure(t *testing.T) {
	circuits := &breakergrpc.Client{Config: breaker.Config{ConsecutiveFailures: 1, SlowCallFraction: 1, SlowCall: time.Hour}}
	tries := 0
	conn := grpctest.Dial(t, grpctest.Serve(t, &grpctest.Service{}), append(circuits.DialOptions(), grpc.WithChainStreamInterceptor(
		func(_ context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ grpc.Streamer, opts ...grpc.CallOption) (
			grpc.ClientStream, error) {
			tries++
			for _, opt := range opts {
				if finish, ok := opt.(grpc.OnFinishCallOption); ok {
					finish.OnFinish(nil)
				}
			}
			return unsent{}, nil
		}))...)
	if err := streaming(t.Context(), grpctest.NewClient(conn)); status.Code(err) != codes.Unavailable || tries != 2 {
		t.Errorf("%v after %d tries, want Unavailable after 2", err, tries)
	}
	if state := circuits.States()[conn.Target()]; state != breaker.Open {
		t.Errorf("the circuit is %v, want open", state)
	}
}
