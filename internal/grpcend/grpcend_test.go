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
	unary := grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
		invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		direct = append(direct, grpcend.DirectUnary(invoker))
		return invoker(ctx, method, req, reply, cc, opts...)
	})
	for n := range 3 {
		client, stop := grpctest.Connect(t, &grpctest.Service{Unary: grpctest.Echo}, append([]grpc.DialOption{interceptor, interceptor, interceptor}[:n+1],
			[]grpc.DialOption{unary, unary, unary}[:n+1]...)...)
		for range 2 { // the second time, it is remembered
			direct = nil
			if _, err := client.FullDuplexCall(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
				t.Error(err)
			}
			for i, is := range direct {
				if is != (i%(n+1) == n) {
					t.Errorf("of %d interceptors, number %d has gRPC's own function: %v", n+1, i%(n+1)+1, is)
				}
			}
			if len(direct) != 2*(n+1) {
				t.Errorf("%d interceptors have run, want %d", len(direct), 2*(n+1))
			}
		}
		stop()
	}
}
