// Package meshtest makes meshes in tests, and servers that they can call. It imports the root, so tests of layers use only
// internal/memnet, internal/leak and internal/await.
package meshtest

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
)

// New returns a mesh with YAML documents, which may be empty. It is closed at the end of the test.
func New(t testing.TB, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	if documents != "" {
		opts = append(opts, mesh.WithPolicy(policy.Source{Name: "test.yaml", Data: []byte(documents)}))
	}
	// A machine may stand still for longer than the default.
	opts = append([]mesh.Option{mesh.WithServer(mesh.ServerConfig{HandshakeTimeout: time.Hour})}, opts...)
	m, err := mesh.New(context.Background(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// EndpointOf returns the endpoint at an address such as "127.0.0.1:80".
func EndpointOf(t testing.TB, address string) discovery.Endpoint {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return discovery.Endpoint{Address: host, Port: n}
}

// Serve starts an HTTP server on the loopback interface and returns its endpoint. The server is closed at the end of the test.
func Serve(t testing.TB, h http.HandlerFunc) discovery.Endpoint {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return EndpointOf(t, srv.Listener.Addr().String())
}

// Refusing returns an endpoint on the loopback interface that refuses connections until the end of the test.
func Refusing(t testing.TB) discovery.Endpoint {
	t.Helper()
	return EndpointOf(t, rawtest.Refusing(t))
}

// Fleet has HTTP servers on a network in memory, for tests in a bubble of testing/synctest, and a registry for them. Its zero value is
// empty. A fleet that is used in a bubble belongs to that bubble.
type Fleet struct {
	Network  memnet.Network
	Registry discovery.Memory

	mu      sync.Mutex
	servers int
}

// Add starts a server and returns its endpoint, which is not yet in the Registry. The server is closed at the end of the test.
func (f *Fleet) Add(t testing.TB, h http.HandlerFunc) discovery.Endpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers++
	e := discovery.Endpoint{Address: "10.0.0." + strconv.Itoa(f.servers), Port: 80}
	f.Network.Serve(t, net.JoinHostPort(e.Address, "80"), h)
	return e
}

// Mesh returns a mesh that calls the servers of the fleet. It is closed at the end of the test.
func (f *Fleet) Mesh(t testing.TB, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	return New(t, documents, append([]mesh.Option{
		mesh.WithDiscovery(&f.Registry),
		mesh.WithTransport(&http.Transport{DialContext: f.Network.DialContext}),
	}, opts...)...)
}
