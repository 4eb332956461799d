package meshgrpc_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// secret is a credential of a call.
type secret struct{ secure bool }

func (secret) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "secret"}, nil
}

func (s secret) RequireTransportSecurity() bool { return s.secure }

// If other options of a ClientConn keep it from connecting as the mesh does, calls say so. That is not the fault of the endpoint.
func TestOptionsThatKeepTheMeshFromConnecting(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	plain := serve(t, &grpctest.Service{Unary: grpctest.Echo})
	_, mutual := w.serve(t, w.member(t, "echo", strict), "echo", &grpctest.Service{Unary: grpctest.Echo})
	for _, test := range []struct {
		name   string
		option grpc.DialOption
		code   codes.Code
		plain  string // of the error, "" for none
		mutual string
	}{
		{"credentials for TLS", grpc.WithTransportCredentials(credentials.NewTLS(nil)), codes.Unavailable, "credentials of the mesh are not in use",
			"credentials of the mesh are not in use"},
		{"insecure credentials", grpc.WithTransportCredentials(insecure.NewCredentials()), codes.Unavailable, "credentials of the mesh are not in use",
			"credentials of the mesh are not in use"},
		{"dialer", grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}), codes.Unavailable, "dialer of the mesh is not in use", "dialer of the mesh is not in use"},
		{"dialer that fails", grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return nil, errors.New("no network")
		}), codes.Unavailable, "dialer of the mesh is not in use", "dialer of the mesh is not in use"},
		{"dialer to a silent server", grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			near, _ := net.Pipe()
			return near, nil
		}), codes.Unavailable, "dialer of the mesh is not in use", "dialer of the mesh is not in use"},
		{"per-RPC credentials", grpc.WithPerRPCCredentials(secret{true}), codes.Unauthenticated, "require transport security", ""},
		{"per-RPC credentials for plaintext", grpc.WithPerRPCCredentials(secret{false}), codes.OK, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, to := range []struct {
				endpoint        discovery.Endpoint
				documents, want string
			}{{plain, "", test.plain}, {mutual, strict, test.mutual}} {
				want := to.want
				w.registry.Set("echo", to.endpoint)
				client := grpctest.NewClient(connect(t, w.member(t, "web", to.documents), "mesh:///echo", test.option))
				for range 2 {
					_, err := client.UnaryCall(bounded(t), &grpctest.Request{})
					if want == "" {
						if err != nil {
							t.Error(err)
						}
						continue
					}
					var failed *mesh.Error
					if status.Code(err) != test.code || !strings.Contains(err.Error(), want) || !errors.As(err, &failed) || failed.Flags != 0 {
						t.Errorf("%v (%v), want %v and %q, without a flag", err, status.Code(err), test.code, want)
					}
				}
			}
		})
	}
}

// With another load balancer, another dialer may reach an endpoint, which the mesh cannot secure.
func TestOtherLoadBalancerAndDialer(t *testing.T) {
	leak.Check(t)
	at := serve(t, &grpctest.Service{Unary: grpctest.Echo})
	conn := connect(t, meshtest.New(t, "", echoAt(at)), "passthrough:///echo", grpc.WithDefaultServiceConfig("{}"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", at.ID())
		}))
	_, err := unaryCall(bounded(t), grpctest.NewClient(conn))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "load balancer of the mesh is not in use") {
		t.Errorf("%v, want Unavailable, and why", err)
	}
}

// gRPC takes a scheme that it does not know for a part of a host.
func TestTargetWithAnUnknownScheme(t *testing.T) {
	leak.Check(t)
	m := meshtest.New(t, "", echoAt(serve(t, &grpctest.Service{Unary: grpctest.Echo})))
	_, err := unaryCall(bounded(t), grpctest.NewClient(connect(t, m, "unknown:///echo")))
	if err == nil || !strings.Contains(err.Error(), `a target of the mesh is "mesh:///host:port"`) {
		t.Errorf("%v, want the form of a target", err)
	}
}

// A service config can say that calls wait until an endpoint is ready, and for how long.
func TestServiceConfigThatWaits(t *testing.T) {
	configured := func(waits string) grpc.DialOption {
		return grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"` + meshgrpc.BalancerName + `":{}}],
			"methodConfig":[{"name":[{}],"timeout":"3s","waitForReady":` + waits + `}]}`)
	}
	for _, test := range []struct {
		name   string
		config grpc.DialOption
		opts   []grpc.CallOption
		want   time.Duration // how long a call waits
	}{
		{"config waits", configured("true"), nil, 3 * time.Second},
		{"call does not", configured("true"), []grpc.CallOption{grpc.WaitForReady(false)}, 0},
		{"config does not", configured("false"), nil, 0},
		{"only the call waits", configured("false"), []grpc.CallOption{grpc.WaitForReady(true)}, 3 * time.Second},
		{"no config", grpc.EmptyDialOption{}, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, err := mesh.New(t.Context(), mesh.WithEmptyPolicy(), mesh.WithDiscovery(discovery.Static{"echo": nil}))
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				conn, err := grpc.NewClient("mesh:///echo", append(meshgrpc.DialOptions(m), test.config)...)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				client := grpctest.NewClient(conn)
				code := codes.Unavailable
				if test.want > 0 {
					code = codes.DeadlineExceeded
				}
				begun := time.Now()
				_, err = client.UnaryCall(t.Context(), &grpctest.Request{}, test.opts...)
				if waited := time.Since(begun); waited != test.want || status.Code(err) != code {
					t.Errorf("%v after %v, want %v after %v", err, waited, code, test.want)
				}
				begun = time.Now()
				stream, err := client.FullDuplexCall(t.Context(), test.opts...)
				if err == nil {
					_, err = stream.Recv()
				}
				if waited := time.Since(begun); waited != test.want || status.Code(err) != code {
					t.Errorf("a stream: %v after %v, want %v after %v", err, waited, code, test.want)
				}
			})
		})
	}
}

// A call of a method that a service does not have ends as without the mesh.
func TestUnknownMethod(t *testing.T) {
	leak.Check(t)
	service := &grpctest.Service{Unary: grpctest.Echo}
	bare := grpctest.Dial(t, grpctest.Serve(t, service))
	ours := grpctest.Dial(t, grpctest.Serve(t, service, meshgrpc.ServerOptions(meshtest.New(t, ""))...))
	const method = "/grpc.testing.TestService/None"
	want := status.Convert(bare.Invoke(bounded(t), method, &grpctest.Request{}, &grpctest.Response{}))
	if got := status.Convert(ours.Invoke(bounded(t), method, &grpctest.Request{}, &grpctest.Response{})); got.Code() != want.Code() || got.Message() != want.Message() {
		t.Errorf("%v, want %v", got, want)
	}
	if err := ours.Invoke(bounded(t), "/none", &grpctest.Request{}, &grpctest.Response{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method without a service: %v, want Unimplemented", err)
	}
}
