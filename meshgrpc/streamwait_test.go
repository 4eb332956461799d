package meshgrpc_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
)

// oneRequest allows one request at a time, so that a stream that the mesh does not see the end of blocks all others.
const oneRequest = threeTries + `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}}
`

// A stream needs no goroutine of the mesh while it waits for its response, nor afterwards.
func TestStreamWithoutAGoroutine(t *testing.T) {
	leak.Check(t)
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, echoStreams)})
	grpctest.CheckNoGoroutine(bounded(t), t, grpctest.NewClient(conn))
}

// A sender who does not receive finds out that its try was refused, and goes on with the next.
func TestSenderMakesTheNextTry(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		if tries.Add(1) < 3 {
			return status.Error(codes.Unavailable, "not yet")
		}
		return grpctest.EchoStream(stream)
	}})})
	stream, err := grpctest.NewClient(conn).FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for ; tries.Load() < 3; sent++ {
		if err := stream.Send(&grpctest.In{}); err != nil {
			t.Fatalf("message %d: %v", sent, err)
		}
	}
	_ = stream.CloseSend()
	received := 0
	for ; err == nil; received++ {
		_, err = stream.Recv()
	}
	if received--; err != io.EOF || received != sent {
		t.Errorf("%d messages and %v, want %d and io.EOF", received, err, sent)
	}
}

// A stream whose caller has not waited for a response ends for the mesh, too, when it is cancelled, its server refuses it, or its ClientConn
// is closed.
func TestStreamThatIsLeft(t *testing.T) {
	for _, way := range []string{"cancel", "invalid message", "close"} {
		t.Run(way, func(t *testing.T) {
			leak.Check(t)
			m, conn := one(t, oneRequest, []discovery.Endpoint{serve(t, echoStreams)})
			ctx, cancel := context.WithCancel(bounded(t))
			defer cancel()
			stream, err := grpctest.NewClient(conn).FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := grpctest.NewClient(conn).FullDuplexCall(ctx); status.Code(err) != codes.Unavailable {
				t.Fatalf("a second stream: %v, want Unavailable", err)
			}
			other := connect(t, m, "mesh:///echo")
			switch way {
			case "cancel":
				cancel()
			case "invalid message":
				if err := stream.SendMsg("no message"); status.Code(err) != codes.Internal {
					t.Errorf("an invalid message: %v, want Internal", err)
				}
			case "close":
				conn.Close()
			}
			await.True(t, "the stream has ended", func() bool {
				stream, err := grpctest.NewClient(other).FullDuplexCall(bounded(t))
				if err != nil {
					return false
				}
				_ = stream.CloseSend()
				_, err = stream.Recv()
				return err == io.EOF
			})
		})
	}
}

// Whoever asks for the header of a stream gets it, before or after the first message.
func TestHeaderOfAStream(t *testing.T) {
	leak.Check(t)
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		if err := stream.SendHeader(metadata.Pairs("answer", "42")); err != nil {
			return err
		}
		return grpctest.EchoStream(stream)
	}})})
	for _, test := range []struct {
		name     string
		messages int
		option   bool
	}{{"before a message", 0, false}, {"after one", 1, false}, {"after two", 2, false}, {"by an option", 1, true}} {
		t.Run(test.name, func(t *testing.T) {
			var header metadata.MD
			var opts []grpc.CallOption
			if test.option {
				opts = append(opts, grpc.Header(&header))
			}
			stream, err := grpctest.NewClient(conn).FullDuplexCall(bounded(t), opts...)
			if err != nil {
				t.Fatal(err)
			}
			for range test.messages {
				if err := stream.Send(&grpctest.In{}); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			got, err := stream.Header()
			if len(got["answer"]) != 1 || err != nil {
				t.Errorf("Header: %v, %v", got, err)
			}
			_ = stream.CloseSend()
			if _, err := stream.Recv(); err != io.EOF {
				t.Errorf("end of stream: %v, want io.EOF", err)
			}
			if test.option && len(header["answer"]) != 1 {
				t.Errorf("the option has %v", header)
			}
		})
	}
}
