package breakergrpc_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh/breaker/breakergrpc"
	"github.com/nosidecar/mesh/internal/grpctest"
)

func BenchmarkUnary(b *testing.B) {
	address := grpctest.Serve(b, &grpctest.Service{Unary: grpctest.Echo})
	for _, bench := range []struct {
		name    string
		options []grpc.DialOption
	}{{"bare", nil}, {"breaker", (&breakergrpc.Client{}).DialOptions()}} {
		b.Run(bench.name, func(b *testing.B) {
			client := grpctest.NewClient(grpctest.Dial(b, address, bench.options...))
			b.ReportAllocs()
			for b.Loop() {
				if err := unary(b.Context(), client); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestUnaryDoesNotAllocate(t *testing.T) {
	conn := grpctest.Dial(t, "passthrough:///nowhere")
	circuits := &breakergrpc.Client{Key: func(context.Context, string, *grpc.ClientConn) string { return "x" }}
	invoker := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	ctx := t.Context()
	if allocs := testing.AllocsPerRun(100, func() { breakergrpc.Unary(circuits, ctx, "/m", nil, nil, conn, invoker) }); allocs > 0 {
		t.Errorf("%v allocations a call, want none", allocs)
	}
}
