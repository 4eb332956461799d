package retrygrpc_test

import (
	"context"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

// A connection may be cut before a stream on it was sent. Such a stream did not end well, and may be sent again by any policy
// that retries what was refused.
func TestStreamCutBeforeItWasAnsweredDoesNotEndWell(t *testing.T) {
	leak.Check(t)
	address := grpctest.ServeCut(t, &grpctest.Service{Bidi: grpctest.EchoStream})
	const streams = 4000
	bare := grpctest.Streams(t, grpctest.Dial(t, address), streams)
	retries := &retrygrpc.Client{
		Config: retry.Config{Retries: 2, Backoff: -1, On: retry.On{Conditions: retry.RefusedStream}},
		Budget: retry.BudgetConfig{Off: true},
	}
	ours := grpctest.Streams(t, grpctest.Dial(t, address, retries.DialOptions()...), streams)
	if ours.False > 0 {
		t.Errorf("%d of %d streams ended with io.EOF before the first message", ours.False, streams)
	}
	if ours.Unprocessed > 0 {
		t.Errorf("%d streams that were not sent were not retried", ours.Unprocessed)
	}
	t.Logf("bare: %v, with retries: %v", bare.Codes(), ours.Codes())
	for code, n := range ours.Codes() {
		if code != codes.OK && bare.Codes()[code] == 0 {
			t.Errorf("%d streams ended with %v, which no bare one does", n, code)
		}
	}
}

// unsent is a stream whose connection was closed before the stream was sent, as gRPC has it.
type unsent struct{ grpc.ClientStream }

func (unsent) Header() (metadata.MD, error) { return nil, nil }
func (unsent) Trailer() metadata.MD         { return nil }
func (unsent) SendMsg(any) error            { return io.EOF }
func (unsent) CloseSend() error             { return nil }
func (unsent) RecvMsg(any) error            { return status.Error(codes.Unavailable, "transport is closing") }

func TestStreamThatWasNotSentIsRetriedAsRefused(t *testing.T) {
	leak.Check(t)
	address := grpctest.Serve(t, &grpctest.Service{Bidi: grpctest.EchoStream})
	retries := &retrygrpc.Client{
		Config: retry.Config{Retries: 2, Backoff: -1, On: retry.On{Conditions: retry.RefusedStream}},
		Budget: retry.BudgetConfig{Off: true},
	}
	tries := 0
	first := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer,
		opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if tries++; tries == 1 {
			return unsent{}, nil
		}
		return streamer(ctx, desc, cc, method, opts...)
	}
	conn := grpctest.Dial(t, address, append(retries.DialOptions(), grpc.WithChainStreamInterceptor(first))...)
	if ends := grpctest.Streams(t, conn, 1); ends.Codes()[codes.OK] != 1 || ends.False != 0 || tries != 2 {
		t.Errorf("after %d tries: %v, %d without a message; want OK after 2", tries, ends.Codes(), ends.False)
	}
}

// OnFinish hears what RecvMsg says, also of a stream that gRPC takes for well when it is asked for headers.
func TestOnFinishHearsHowAStreamEnded(t *testing.T) {
	leak.Check(t)
	address := grpctest.Serve(t, &grpctest.Service{Bidi: grpctest.EchoStream})
	retries := &retrygrpc.Client{
		Config: retry.Config{Retries: 1, Backoff: -1, On: retry.On{Conditions: retry.RefusedStream}},
		Budget: retry.BudgetConfig{Off: true},
	}
	well := func(_ context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ grpc.Streamer,
		opts ...grpc.CallOption) (grpc.ClientStream, error) {
		for _, opt := range opts {
			if finish, ok := opt.(grpc.OnFinishCallOption); ok {
				finish.OnFinish(nil)
			}
		}
		return unsent{}, nil
	}
	conn := grpctest.Dial(t, address, append(retries.DialOptions(), grpc.WithChainStreamInterceptor(well))...)
	heard := make(chan error, 1)
	stream, err := grpctest.NewClient(conn).FullDuplexCall(t.Context(), grpc.OnFinish(func(err error) { heard <- err }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("Recv: %v, want Unavailable", err)
	}
	if err := <-heard; status.Code(err) != codes.Unavailable {
		t.Errorf("OnFinish: %v, want Unavailable", err)
	}
}
