package grpctest

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
)

// RetriedFrames tests that messages survive retries if a codec hands over their buffers, which gRPC frees: a retry must not encode them
// again. dial returns a connection to a service whose calls are tried three times, with [FrameCodec]. each, if not nil, is called after each
// unary call with the first byte of its message.
func RetriedFrames(t *testing.T, dial func(t *testing.T, s *Service) *grpc.ClientConn, each func(t *testing.T, first byte)) {
	t.Helper()
	pass := refuseTwice()
	conn := dial(t, &Service{Unary: func(ctx context.Context, in *Request) (*Response, error) {
		if err := pass(); err != nil {
			return nil, err
		}
		return Echo(ctx, in)
	}})
	for i := range byte(10) {
		var frame Frame
		if err := conn.Invoke(t.Context(), UnaryMethod, NewFrame(t, &Request{Payload: Large(i)}), &frame); err != nil {
			t.Fatal(err)
		}
		var reply Response
		if err := proto.Unmarshal(frame.Data.Materialize(), &reply); err != nil || !proto.Equal(reply.Payload, Large(i)) {
			t.Errorf("call %d got another message back (%v)", i, err)
		}
		if each != nil {
			each(t, i)
		}
	}
}

// RetriedFramesOfStreams is [RetriedFrames] for streams. It also tests that messages that are not protocol buffers are kept for a retry:
// their size is known once they are encoded.
func RetriedFramesOfStreams(t *testing.T, dial func(t *testing.T, s *Service) *grpc.ClientConn) {
	t.Helper()
	pass := refuseTwice()
	const messages = 5
	conn := dial(t, &Service{Bidi: func(s BidiServer) error {
		for range messages { // so that all of them must be sent again
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
		if err := pass(); err != nil {
			return err
		}
		for i := range byte(messages) {
			if err := s.Send(&Out{Payload: Large(i)}); err != nil {
				return err
			}
		}
		return EchoStream(s)
	}})
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	for range 3 {
		stream, err := conn.NewStream(t.Context(), desc, "/grpc.testing.TestService/FullDuplexCall")
		if err != nil {
			t.Fatal(err)
		}
		for i := range byte(messages) {
			if err := stream.SendMsg(NewFrame(t, &In{Payload: Large(i)})); err != nil {
				t.Fatal(err)
			}
		}
		var frame Frame
		for i := range messages {
			if err := stream.RecvMsg(&frame); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		if err := stream.SendMsg(NewFrame(t, &In{Payload: Large('z')})); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&frame); err != nil {
			t.Fatal(err)
		}
		var out Out
		if err := proto.Unmarshal(frame.Data.Materialize(), &out); err != nil || !proto.Equal(out.Payload, Large('z')) {
			t.Errorf("the message after the retry came back as another (%v)", err)
		}
		if err := stream.RecvMsg(&frame); err != io.EOF {
			t.Fatal(err)
		}
	}
}

// refuseTwice returns a function that fails, except at every third call.
func refuseTwice() func() error {
	var tries atomic.Int64
	return func() error {
		if tries.Add(1)%3 != 0 {
			return status.Error(codes.Unavailable, "not now")
		}
		return nil
	}
}

// Large returns a payload of several thousand bytes, all first.
func Large(first byte) *grpc_testing.Payload {
	return &grpc_testing.Payload{Body: bytes.Repeat([]byte{first}, 5000)}
}
