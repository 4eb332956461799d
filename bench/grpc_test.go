package bench

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
)

// The same as far as grpc-go has it.
const grpcConfig = `{"loadBalancingConfig":[{"round_robin":{}}],"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":3,
	"initialBackoff":"0.025s","maxBackoff":"0.25s","backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}]}`

// BenchmarkGRPC makes unary calls over the loopback, with the server in this process.
func BenchmarkGRPC(b *testing.B) {
	address := grpctest.Serve(b, &grpctest.Service{Unary: grpctest.Echo})
	host, text, _ := net.SplitHostPort(address)
	port, _ := strconv.Atoi(text)
	var registry discovery.Memory
	registry.Set("echo", discovery.Endpoint{Address: host, Port: port})
	through := func(documents string) *grpc.ClientConn {
		m, err := mesh.New(context.Background(), mesh.WithDiscovery(&registry), mesh.WithEmptyPolicy(),
			mesh.WithPolicy(policy.Source{Name: "bench.yaml", Data: []byte(documents)}))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Close() })
		conn, err := grpc.NewClient("mesh:///echo", meshgrpc.DialOptions(m)...)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		return conn
	}
	for _, caller := range []struct {
		name string
		conn *grpc.ClientConn
	}{
		{"bare", grpctest.Dial(b, address)},
		{"service config", grpctest.Dial(b, address, grpc.WithDefaultServiceConfig(grpcConfig))},
		{"mesh", through("")},
		{"mesh with documents", through(grpcDocuments)},
	} {
		for _, inFlight := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", caller.name, inFlight), func(b *testing.B) {
				b.ReportAllocs()
				var begun atomic.Int64
				var callers sync.WaitGroup
				for range inFlight {
					callers.Go(func() {
						request, reply := &grpctest.Request{}, &grpctest.Response{}
						for begun.Add(1) <= int64(b.N) {
							if err := caller.conn.Invoke(b.Context(), grpctest.UnaryMethod, request, reply); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				callers.Wait()
			})
		}
	}
}

// BenchmarkMutualGRPC is what the mesh costs on both ends with mTLS and authorization.
func BenchmarkMutualGRPC(b *testing.B) {
	benchmarkMutualGRPC(b, (*GRPCCaller).Unary)
}

// BenchmarkMutualGRPCStream is what it costs a stream with one message in each direction.
func BenchmarkMutualGRPCStream(b *testing.B) {
	benchmarkMutualGRPC(b, (*GRPCCaller).Streams)
}

// BenchmarkMutualGRPCMessages is what it costs a message in each direction of an open stream.
func BenchmarkMutualGRPCMessages(b *testing.B) {
	benchmarkMutualGRPC(b, (*GRPCCaller).Messages)
}

func benchmarkMutualGRPC(b *testing.B, worker func(*GRPCCaller, context.Context) (func() error, error)) {
	callers, closeAll, err := MutualGRPCCallers()
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	for _, inFlight := range []int{8, 64} {
		for _, caller := range callers {
			b.Run(fmt.Sprintf("%d/%s", inFlight, caller.Name), func(b *testing.B) {
				benchmarkWorker(b, func(ctx context.Context) (func() error, error) { return worker(&caller, ctx) }, inFlight)
			})
		}
	}
}

// TestMutualGRPCCallers checks that what is measured works.
func TestMutualGRPCCallers(t *testing.T) {
	callers, closeAll, err := MutualGRPCCallers()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	for _, c := range callers {
		for name, worker := range map[string]Worker{"unary": c.Unary, "stream": c.Streams, "message": c.Messages} {
			ctx, cancel := context.WithCancel(t.Context())
			call, err := worker(ctx)
			for range 3 {
				if err == nil {
					err = call()
				}
			}
			cancel()
			if err != nil {
				t.Errorf("%s, %s: %v", c.Name, name, err)
			}
		}
	}
}
