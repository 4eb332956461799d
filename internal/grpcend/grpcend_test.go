package grpcend_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/internal/grpctest"
)

// The last interceptor knows that it is the last.
func TestDirect(t *testing.T) {
	var direct []bool
	interceptor := grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		direct = append(direct, grpcend.Direct(streamer))
		return streamer(ctx, desc, cc, method, opts...)
	})
	for n := range 3 {
		client, stop := grpctest.Connect(t, &grpctest.Service{}, []grpc.DialOption{interceptor, interceptor, interceptor}[:n+1]...)
		direct = nil
		if _, err := client.FullDuplexCall(t.Context()); err != nil {
			t.Error(err)
		}
		for i, is := range direct {
			if is != (i == n) {
				t.Errorf("of %d interceptors, number %d has gRPC's own streamer: %v", n+1, i+1, is)
			}
		}
		stop()
	}
}
