package meshgrpc_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/orca"
	"github.com/nosidecar/mesh/meshgrpc"
)

// behind serves a gRPC server as the handler of an http.Server, behind the inbound side of m.
func behind(t *testing.T, m *mesh.Mesh, ln net.Listener, s *grpctest.Service, opts ...grpc.ServerOption) {
	server := grpc.NewServer(opts...)
	grpctest.Register(server, s)
	front := &http.Server{Handler: m.Handler(server)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = front.Serve(m.Listen(ln)) })
	t.Cleanup(func() {
		front.Close()
		server.Stop()
		serving.Wait()
	})
}

// TestLoadReportsInTrailers: a gRPC server reports its load to callers with an identity, in the trailer, however it is served.
func TestLoadReportsInTrailers(t *testing.T) {
	for name, serve := range map[string]func(*testing.T, *mesh.Mesh, net.Listener, *grpctest.Service){
		"ServerOptions": func(t *testing.T, m *mesh.Mesh, ln net.Listener, s *grpctest.Service) {
			grpctest.ServeOn(t, m.Listen(ln), s, meshgrpc.ServerOptions(m)...)
		},
		"Handler": func(t *testing.T, m *mesh.Mesh, ln net.Listener, s *grpctest.Service) { behind(t, m, ln, s) },
		"both": func(t *testing.T, m *mesh.Mesh, ln net.Listener, s *grpctest.Service) {
			behind(t, m, ln, s, meshgrpc.ServerOptions(m)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var network memnet.Network
				w := newTown(t)
				e := discovery.Endpoint{Address: "10.0.0.1", Port: 80, ServiceAccount: "echo"}
				w.registry.Set("echo", e)
				serve(t, w.member(t, "echo", strict, mesh.WithServer(mesh.ServerConfig{ReportLoad: true})), network.Listen(e.ID()), &grpctest.Service{
					Unary: func(_ context.Context, in *grpctest.Request) (*grpctest.Response, error) {
						time.Sleep(100 * time.Millisecond)
						if in.FillUsername {
							return nil, status.Error(codes.Unavailable, "")
						}
						return &grpctest.Response{}, nil
					},
				})
				caller := w.member(t, "web", strict, mesh.WithTransport(&http.Transport{DialContext: network.DialContext}))
				client := grpctest.NewClient(connect(t, caller, "mesh:///echo"))
				var trailer metadata.MD
				for i := range 3 { // the third answer reports the others
					trailer = nil
					_, err := client.UnaryCall(t.Context(), &grpctest.Request{FillUsername: i == 0}, grpc.Trailer(&trailer))
					if err != nil && i > 0 {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				load, ok := orca.FromMetadata(trailer)
				if !ok || load.Requests <= load.Errors || load.Errors <= 0 || load.Utilization <= 0 {
					t.Errorf("the report is %+v, %v", load, ok)
				}
			})
		})
	}
}

// TestPanicOfUtilization: the handler of the call has returned, so its slot is free, and observers see its end.
func TestPanicOfUtilization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memnet.Network
		var observed inbounds
		m := meshtest.New(t, "", observed.observer(), mesh.WithServer(mesh.ServerConfig{
			MaxRequests: 1, ReportLoad: true, Utilization: func() float64 { panic("utilization") },
		}))
		recovering := func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
			defer func() {
				if p := recover(); p != nil {
					err = status.Error(codes.DataLoss, "recovered")
				}
			}()
			return handler(ctx, in)
		}
		grpctest.ServeOn(t, network.Listen("10.0.0.1:80"), &grpctest.Service{Unary: grpctest.Echo},
			append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(recovering)}, meshgrpc.ServerOptions(m)...)...)
		client := grpctest.NewClient(grpctest.Dial(t, "passthrough:///10.0.0.1:80", grpc.WithContextDialer(
			func(ctx context.Context, address string) (net.Conn, error) {
				return network.DialContext(ctx, "tcp", address)
			})))
		time.Sleep(2 * time.Second)
		for _, want := range []codes.Code{codes.DataLoss, codes.OK} {
			if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != want {
				t.Errorf("%v, want %v", err, want)
			}
		}
		synctest.Wait()
		if open := observed.open.Load(); open != 0 {
			t.Errorf("observers see no end of %d calls", open)
		}
	})
}

// TestReportsWeighServers: of two servers that are as fast, the one that says that a call takes three times as much of it gets a third of the
// calls of the other, once reports count.
func TestReportsWeighServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		var network memnet.Network
		var calls meshtest.Weighed
		var endpoints []discovery.Endpoint
		for i := range calls {
			server := w.member(t, "echo", strict, calls.Server(i))
			e := discovery.Endpoint{Address: fmt.Sprintf("10.0.0.%d", i+1), Port: 80, ServiceAccount: "echo"}
			grpctest.ServeOn(t, server.Listen(network.Listen(e.ID())), &grpctest.Service{
				Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
					calls[i].Add(1)
					return grpctest.Echo(ctx, in)
				},
			}, meshgrpc.ServerOptions(server)...)
			endpoints = append(endpoints, e)
		}
		w.registry.Set("echo", endpoints...)
		m := w.member(t, "web", strict, mesh.WithTransport(&http.Transport{DialContext: network.DialContext}),
			mesh.WithProtection(mesh.Protection{Balancing: &balancer.Config{Algorithm: balancer.WeightedRoundRobin}}))
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		calls.Check(t, func() error {
			_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
			return err
		})
	})
}
