package retrygrpc_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

func benchmarks() []struct {
	name    string
	options []grpc.DialOption
} {
	return []struct {
		name    string
		options []grpc.DialOption
	}{
		{"bare", nil},
		{"retry", (&retrygrpc.Client{Config: retry.Config{Retries: 2}}).DialOptions()},
		{"retry_per_try_timeout",
			(&retrygrpc.Client{Config: retry.Config{Retries: 2, PerTryTimeout: time.Minute}}).DialOptions()},
	}
}

// BenchmarkUnary is a call over loopback, whose server is in the same process and counts in the figures.
func BenchmarkUnary(b *testing.B) {
	address := grpctest.Serve(b, &grpctest.Service{Unary: grpctest.Echo})
	for _, bench := range benchmarks() {
		b.Run(bench.name, func(b *testing.B) {
			client := grpctest.NewClient(grpctest.Dial(b, address, bench.options...))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.UnaryCall(b.Context(), &grpctest.Request{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStream is a whole stream of one message each way.
func BenchmarkStream(b *testing.B) {
	address := grpctest.Serve(b, &grpctest.Service{Bidi: echo})
	for _, bench := range benchmarks() {
		b.Run(bench.name, func(b *testing.B) {
			client := grpctest.NewClient(grpctest.Dial(b, address, bench.options...))
			b.ReportAllocs()
			for b.Loop() {
				stream, err := client.FullDuplexCall(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				stream.Send(&grpctest.In{})
				stream.CloseSend()
				for err == nil {
					_, err = stream.Recv()
				}
			}
		})
	}
}
