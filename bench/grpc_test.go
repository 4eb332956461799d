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

// Two retries and ejection, as in the documents of a user.
const grpcDocuments = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - route: [{destination: {host: echo}}]
    retries: {attempts: 2, retryOn: "unavailable,connect-failure,refused-stream"}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 5}}}
`

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
