//go:build !race

// The race detector makes frames larger.

package retrygrpc_test

import (
	"context"
	"io"
	"testing"
	"unsafe"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh/internal/grpctest"
)

// The goroutine of a stream grows its stack once, at its beginning: while gRPC begins the stream, all that lies on it would be copied.
func TestStackOfStreams(t *testing.T) {
	address := grpctest.Serve(t, &grpctest.Service{Bidi: echo})
	moved := 0
	watch := grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		var here byte
		before := uintptr(unsafe.Pointer(&here))
		stream, err := streamer(ctx, desc, cc, method, opts...)
		if uintptr(unsafe.Pointer(&here)) != before {
			moved++
		}
		return stream, err
	})
	conn := grpctest.Dial(t, address, append(fast("unavailable", 1).DialOptions(), watch)...)
	const streams = 100
	for range streams {
		stream, err := grpctest.NewClient(conn).FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Fatal(err)
		}
	}
	if moved > streams/10 { // the first ones make the connection
		t.Errorf("the stacks of %d of %d streams grew while gRPC began them", moved, streams)
	}
}
