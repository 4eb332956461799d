package meshgrpc_test

import (
	"net/http"
	"os"
	"testing"

	"google.golang.org/grpc"

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

// inMemory serves s at an endpoint of an in-memory network until the test ends. It is for tests in bubbles. A mesh reaches the network
// through the transport.
func inMemory(t testing.TB, s *grpctest.Service) (network *memnet.Network, at discovery.Endpoint, transport mesh.Option) {
	t.Helper()
	network, at = new(memnet.Network), discovery.Endpoint{Address: "10.0.0.1", Port: 80}
	grpctest.ServeOn(t, network.Listen(at.ID()), s)
	return network, at, mesh.WithTransport(&http.Transport{DialContext: network.DialContext})
}

// echoAt finds the service "echo" at one endpoint.
func echoAt(e discovery.Endpoint) mesh.Option {
	return mesh.WithDiscovery(discovery.Static{"echo": {e}})
}
