package meshgrpc_test

import (
	"context"
	"net"
	"net/http"
	"syscall"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// gRPC sets TCP_USER_TIMEOUT on connections with keepalive, but only if the dialer returns a *net.TCPConn.
func TestConnectionHasTCPUserTimeout(t *testing.T) {
	leak.Check(t)
	dialled := make(chan net.Conn, 1)
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			dialled <- conn
		}
		return conn, err
	}}
	var registry discovery.Memory
	registry.Set("echo", serve(t, &grpctest.Service{Unary: grpctest.Echo}))
	m := meshtest.New(t, "", mesh.WithDiscovery(&registry), mesh.WithTransport(transport))
	if _, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	raw, err := (<-dialled).(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const tcpUserTimeout = 0x12
	if err := raw.Control(func(fd uintptr) {
		if ms, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout); err != nil || ms != 20_000 {
			t.Errorf("TCP_USER_TIMEOUT = %d ms, %v; want 20 s", ms, err)
		}
	}); err != nil {
		t.Error(err)
	}
}
