package meshgrpc_test

import (
	"net/http"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// TestMain fails the run if anything is left running at its end.
func TestMain(m *testing.M) {
	os.Exit(leak.Run(m))
}

// connect returns a connection to a service of m, closed with the test, before m.
func connect(t testing.TB, m *mesh.Mesh, target string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append(meshgrpc.DialOptions(m), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// serve serves s on the loopback until the test ends.
func serve(t testing.TB, s *grpctest.Service, opts ...grpc.ServerOption) discovery.Endpoint {
	t.Helper()
	return meshtest.EndpointOf(t, grpctest.Serve(t, s, opts...))
}

// inMemory serves s as "echo" until the test ends, and returns what a mesh needs to find it. It is for tests in bubbles.
func inMemory(t testing.TB, s *grpctest.Service) (mesh.Option, mesh.Option) {
	t.Helper()
	var network memnet.Network
	server := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(server, s)
	listener := network.Listen("10.0.0.1:80")
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return mesh.WithTransport(&http.Transport{DialContext: network.DialContext}),
		mesh.WithDiscovery(discovery.Static{"echo": {{Address: "10.0.0.1", Port: 80}}})
}
