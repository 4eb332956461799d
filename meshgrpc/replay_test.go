package meshgrpc_test

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

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
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

// gRPC frees the buffers that a codec hands over. So a retry must not encode the message again.
func TestUnaryRetryOfMessageWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	pass := refuseTwice()
	for _, test := range []struct{ name, documents string }{
		{"retries", threeTries},
		{"retries and a mirror", threeTries + "    mirror: {host: shadow}\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var registry discovery.Memory
			registry.Set("echo", serve(t, &grpctest.Service{
				Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
					if err := pass(); err != nil {
						return nil, err
					}
					return grpctest.Echo(ctx, in)
				},
			}))
			shadow := make(chan byte, 20)
			registry.Set("shadow", serve(t, &grpctest.Service{
				Unary: func(_ context.Context, in *grpctest.Request) (*grpctest.Response, error) {
					shadow <- in.Payload.Body[0]
					return &grpctest.Response{}, nil
				},
			}))
			m := meshtest.New(t, test.documents, mesh.WithDiscovery(&registry))
			conn := connect(t, m, "mesh:///echo", grpc.WithDefaultCallOptions(grpc.ForceCodecV2(grpctest.FrameCodec{})))
			for i := range byte(10) {
				request := grpctest.NewFrame(t, &grpctest.Request{Payload: large(i)})
				var frame grpctest.Frame
				if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, request, &frame); err != nil {
					t.Fatal(err)
				}
				var reply grpctest.Response
				if err := proto.Unmarshal(frame.Data.Materialize(), &reply); err != nil {
					t.Fatal(err)
				}
				if !proto.Equal(reply.Payload, large(i)) {
					t.Errorf("call %d got another message back", i)
				}
				if test.documents != threeTries {
					if got := <-shadow; got != i {
						t.Errorf("the mirror got the message of call %d, want %d", got, i)
					}
				}
			}
		})
	}
}

// Messages that are no protocol buffers are kept for a retry, too: how large they are is known once they are encoded.
func TestStreamRetryOfMessagesWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	pass := refuseTwice()
	const messages = 5
	var registry discovery.Memory
	registry.Set("echo", serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
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
	}}))
	m := meshtest.New(t, threeTries, mesh.WithDiscovery(&registry))
	conn := connect(t, m, "mesh:///echo", grpc.WithDefaultCallOptions(grpc.ForceCodecV2(grpctest.FrameCodec{})))
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
