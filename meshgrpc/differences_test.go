package meshgrpc_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// A server says by the health protocol that it does not serve. Clients with a healthCheckConfig keep away from it, but not those of a mesh:
// discovery and the outcomes of calls say whether an endpoint is healthy.
func TestHealthCheckConfigHasNoEffect(t *testing.T) {
	leak.Check(t)
	ln := rawtest.Listen(t)
	server := grpc.NewServer()
	grpctest.Register(server, &grpctest.Service{Unary: grpctest.Echo})
	state := health.NewServer()
	state.SetServingStatus("echo", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, state)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	config := func(name string) grpc.DialOption {
		return grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"` + name + `":{}}],"healthCheckConfig":{"serviceName":"echo"}}`)
	}
	bare := grpctest.Dial(t, ln.Addr().String(), config("round_robin"))
	_, ours := one(t, "", []discovery.Endpoint{meshtest.EndpointOf(t, ln.Addr().String())}, config(meshgrpc.BalancerName))
	for conn, want := range map[*grpc.ClientConn]codes.Code{bare: codes.Unavailable, ours: codes.OK} {
		if _, err := unaryCall(bounded(t), grpctest.NewClient(conn)); status.Code(err) != want {
			t.Errorf("%s: %v, want %v", conn.Target(), err, want)
		}
	}
}

// Connect makes a bare ClientConn connect. That of a mesh does not know where to before there is a call.
func TestConnectMakesNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := new(memnet.Network)
		at := discovery.Endpoint{Address: "10.0.0.1", Port: 80}
		server := grpc.NewServer()
		grpctest.Register(server, &grpctest.Service{Unary: grpctest.Echo})
		served := make(chan struct{})
		ln := network.Listen(at.ID())
		go func() {
			defer close(served)
			_ = server.Serve(ln)
		}()
		m, err := mesh.New(t.Context(), mesh.WithEmptyPolicy(), echoAt(at), mesh.WithTransport(&http.Transport{DialContext: network.DialContext}))
		if err != nil {
			t.Fatal(err)
		}
		ours, err := grpc.NewClient("mesh:///echo", meshgrpc.DialOptions(m)...)
		if err != nil {
			t.Fatal(err)
		}
		bare, err := grpc.NewClient("passthrough:///"+at.ID(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return network.DialContext(ctx, "tcp", address)
			}))
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			conn  *grpc.ClientConn
			dials int
			state connectivity.State
		}{{ours, 0, connectivity.Idle}, {bare, 1, connectivity.Ready}} {
			before := network.Dials()
			test.conn.Connect()
			synctest.Wait()
			if dials := network.Dials() - before; dials != test.dials || test.conn.GetState() != test.state {
				t.Errorf("%s: %d connections, and the state is %v; want %d, %v", test.conn.Target(), dials, test.conn.GetState(), test.dials, test.state)
			}
		}
		if _, err := unaryCall(t.Context(), grpctest.NewClient(ours)); err != nil {
			t.Errorf("a call after Connect: %v", err)
		}
		ours.Close()
		bare.Close()
		server.Stop()
		<-served
		m.Close()
	})
}
