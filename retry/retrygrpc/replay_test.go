package retrygrpc_test

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

// refuseTwice lets every third try pass.
func refuseTwice() func() error {
	var tries atomic.Int64
	return func() error {
		if tries.Add(1)%3 != 0 {
			return status.Error(codes.Unavailable, "not now")
		}
		return nil
	}
}

func large(first byte) *grpc_testing.Payload {
	return &grpc_testing.Payload{Body: bytes.Repeat([]byte{first}, 5000)}
}

// framed returns a connection to s whose calls are tried three times, and whose messages are frames.
func framed(t *testing.T, s *grpctest.Service) *grpc.ClientConn {
	t.Helper()
	retries := &retrygrpc.Client{
		Config: retry.Config{Retries: 2, Backoff: -1, On: retry.On{Conditions: retry.Unavailable}},
		Budget: retry.BudgetConfig{Off: true},
	}
	frames := grpc.WithDefaultCallOptions(grpc.ForceCodecV2(grpctest.FrameCodec{}))
	return grpctest.Dial(t, grpctest.Serve(t, s), append(retries.DialOptions(), frames)...)
}

// gRPC frees the buffers that a codec hands over. So a retry must not encode the message again.
func TestUnaryRetryOfMessageWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	pass := refuseTwice()
	conn := framed(t, &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
		if err := pass(); err != nil {
			return nil, err
		}
		return grpctest.Echo(ctx, in)
	}})
	for i := range byte(10) {
		var frame grpctest.Frame
		request := grpctest.NewFrame(t, &grpctest.Request{Payload: large(i)})
		if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, request, &frame); err != nil {
			t.Fatal(err)
		}
		var reply grpctest.Response
		if err := proto.Unmarshal(frame.Data.Materialize(), &reply); err != nil || !proto.Equal(reply.Payload, large(i)) {
			t.Errorf("call %d got another message back (%v)", i, err)
		}
	}
}

// Messages that are no protocol buffers are kept for a retry, too: how large they are is known once they are encoded.
func TestStreamRetryOfMessagesWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	pass := refuseTwice()
	const messages = 5
	conn := framed(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
		for range messages { // so that all must be sent again
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
		if err := pass(); err != nil {
			return err
		}
		for i := range byte(messages) {
			if err := s.Send(&grpctest.Out{Payload: large(i)}); err != nil {
				return err
			}
		}
		return grpctest.EchoStream(s)
	}})
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	for range 3 {
		stream, err := conn.NewStream(t.Context(), desc, "/grpc.testing.TestService/FullDuplexCall")
		if err != nil {
			t.Fatal(err)
		}
		for i := range byte(messages) {
			if err := stream.SendMsg(grpctest.NewFrame(t, &grpctest.In{Payload: large(i)})); err != nil {
				t.Fatal(err)
			}
		}
		var frame grpctest.Frame
		for i := range messages {
			if err := stream.RecvMsg(&frame); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		if err := stream.SendMsg(grpctest.NewFrame(t, &grpctest.In{Payload: large('z')})); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&frame); err != nil {
			t.Fatal(err)
		}
		var out grpctest.Out
		if err := proto.Unmarshal(frame.Data.Materialize(), &out); err != nil || !proto.Equal(out.Payload, large('z')) {
			t.Errorf("the message after the retry came back as another (%v)", err)
		}
		if err := stream.RecvMsg(&frame); err != io.EOF {
			t.Fatal(err)
		}
	}
}
