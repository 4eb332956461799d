package meshgrpc_test

import (
	"context"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
)

// TestMain fails the run if anything is left running at its end.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := leftRunning(); left != "" && code == 0 {
		os.Stderr.WriteString("left running after the tests:\n" + left)
		code = 1
	}
	os.Exit(code)
}

// leftRunning returns the stacks of goroutines that should be gone, after giving them time to end.
func leftRunning() (left string) {
	poll(5*time.Second, func() bool {
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		left = ""
		for stack := range strings.SplitSeq(string(stacks), "\n\n") {
			ours := strings.Contains(stack, "nosidecar/mesh") || strings.Contains(stack, "google.golang.org/grpc")
			if ours && !strings.Contains(stack, "leftRunning") && !strings.Contains(stack, "testing.tRunner") {
				left += stack + "\n\n"
			}
		}
		return left == ""
	})
	return left
}

// poll waits until done reports true, and reports whether it did in time.
func poll(limit time.Duration, done func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); ; <-tick.C {
		if done() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// noLeaks checks, when everything the test started was closed, that nothing is left running. It is called first.
func noLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if left := leftRunning(); left != "" {
			t.Errorf("left running:\n%s", left)
		}
	})
}

// newMesh makes a mesh of the documents, closed with the test.
func newMesh(t testing.TB, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	if documents != "" {
		opts = append(opts, mesh.WithPolicy(policy.Source{Name: "test.yaml", Data: []byte(documents)}))
	}
	m, err := mesh.New(context.Background(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
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

// endpointOf returns the endpoint at an address.
func endpointOf(t testing.TB, address string) discovery.Endpoint {
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

// serve serves s on the loopback until the test ends.
func serve(t testing.TB, s *grpctest.Service, opts ...grpc.ServerOption) discovery.Endpoint {
	t.Helper()
	return endpointOf(t, grpctest.Serve(t, s, opts...))
}

// dead returns an endpoint that refuses connections.
func dead(t testing.TB) discovery.Endpoint {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return endpointOf(t, l.Addr().String())
}
