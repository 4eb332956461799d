package meshgrpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/pause"
	"github.com/nosidecar/mesh/internal/rawtest"
)

// connectsIn is about an endpoint that gets one connection, if gRPC can share it, and has that long to make it.
func connectsIn(connectTimeout string) string {
	return `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1, connectTimeout: ` + connectTimeout + `}}}}
`
}

// gRPC cannot share connections between ClientConns, so each gets one, whatever the limit.
func TestSecondClientConnIsNotStarvedByMaxConnections(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, &grpctest.Service{Unary: grpctest.Echo}))
	m := meshtest.New(t, connectsIn("30s"), mesh.WithDiscovery(&registry))
	for n := range 3 {
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		if _, err := client.UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
			t.Fatalf("ClientConn %d: %v", n+1, err)
		}
	}
}

// Calls for which a server allows no stream wait until there is one. Another connection is tried for them, but if it cannot be made, not again
// for 10 seconds, and if documents allow none, not at all.
func TestCallsThatWaitForAStream(t *testing.T) {
	for _, test := range []struct {
		name, documents string
		dials, later    int32
	}{
		{"a server that takes no second connection", "", 2, 3},
		{"maxConnections: 1", connectsIn("30s"), 1, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := make(chan struct{})
				network, endpoint, _ := inMemory(t, &grpctest.Service{
					Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
						<-answer
						return &grpctest.Response{}, nil
					},
					Options: []grpc.ServerOption{grpc.MaxConcurrentStreams(1)},
				})
				var dials atomic.Int32
				transport := mesh.WithTransport(&http.Transport{DialContext: func(ctx context.Context, to, address string) (net.Conn, error) {
					if dials.Add(1) > 1 {
						return nil, syscall.ECONNREFUSED
					}
					return network.DialContext(ctx, to, address)
				}})
				client := grpctest.NewClient(connect(t, meshtest.New(t, test.documents, transport, echoAt(endpoint)), "mesh:///echo"))
				var calls sync.WaitGroup
				call := func(want int32) {
					calls.Go(func() {
						if _, err := client.UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
							t.Error(err)
						}
					})
					synctest.Wait()
					if n := dials.Load(); n != want {
						t.Errorf("%d connections were tried, want %d", n, want)
					}
				}
				call(1)
				call(test.dials)
				call(test.dials)
				time.Sleep(10 * time.Second)
				call(test.later)
				call(test.later)
				start := time.Now()
				close(answer)
				if calls.Wait(); time.Since(start) > 0 {
					t.Errorf("the calls waited for %v although streams had ended", time.Since(start))
				}
			})
		})
	}
}

// connectTimeout bounds everything up to the first frame of the server, and nothing else does.
func TestConnectTimeout(t *testing.T) {
	for _, test := range []struct {
		name, documents string
		dial            time.Duration // how long that takes
		waits           time.Duration // how long a call waits for a server that is silent; 0 for a server that answers
	}{
		{"no connection", connectsIn("3s"), time.Minute, 3 * time.Second},
		{"no frame", connectsIn("3s"), 0, 3 * time.Second},
		{"no frame, after a slow dial", connectsIn("3s"), 2 * time.Second, 3 * time.Second},
		{"no handshake", connectsIn("3s") + "---" + strict, 0, 3 * time.Second},
		{"no handshake, after a slow dial", connectsIn("3s") + "---" + strict, 2 * time.Second, 3 * time.Second},
		{"no handshake, by default", strict, 0, 10 * time.Second},
		{"longer than gRPC's own limit", connectsIn("30s"), 25 * time.Second, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, at, _ := inMemory(t, &grpctest.Service{Unary: grpctest.Echo})
				if test.waits > 0 {
					at.Address = "10.0.0.2"
					rawtest.Serve(t, network.Listen(at.ID()), func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
				}
				w := newTown(t)
				at.ServiceAccount = "echo"
				w.registry.Set("echo", at)
				m := w.member(t, "web", test.documents+"---\n"+route("    retries: {attempts: 0}\n"),
					mesh.WithTransport(&http.Transport{DialContext: func(ctx context.Context, to, address string) (net.Conn, error) {
						if err := pause.For(ctx, test.dial); err != nil {
							return nil, err
						}
						return network.DialContext(ctx, to, address)
					}}))
				want, code := test.waits, codes.Unavailable
				if want == 0 {
					want, code = test.dial, codes.OK
				}
				client, begun := grpctest.NewClient(connect(t, m, "mesh:///echo")), time.Now()
				_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
				if waited := time.Since(begun); waited != want || status.Code(err) != code {
					t.Errorf("%v after %v, want %v after %v", err, waited, code, want)
				}
				if code != codes.OK {
					return
				}
				time.Sleep(time.Minute)
				if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil || network.Dials() != 1 {
					t.Errorf("a later call: %v, after %d dials; want none, and 1", err, network.Dials())
				}
			})
		})
	}
}

// hangingUp accepts connections, counts them, and closes them.
func hangingUp(t *testing.T, accepted *atomic.Int64) discovery.Endpoint {
	t.Helper()
	listener := rawtest.Listen(t)
	rawtest.Serve(t, listener, func(net.Conn) { accepted.Add(1) })
	return meshtest.EndpointOf(t, listener.Addr().String())
}

// An endpoint that hangs up, or refuses to be connected to, is not dialled for every call, and the state of the ClientConn is TRANSIENT_FAILURE.
func TestEndpointThatHangsUpIsNotDialledWithEveryCall(t *testing.T) {
	for name, refuses := range map[string]bool{"hangs up": false, "refuses": true} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			var accepted atomic.Int64
			var registry discovery.Memory
			registry.Set("echo", hangingUp(t, &accepted))
			transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if refuses {
					accepted.Add(1)
					return nil, syscall.ECONNREFUSED
				}
				return new(net.Dialer).DialContext(ctx, network, address)
			}}
			m := meshtest.New(t, route("    retries: {attempts: 0}\n"), mesh.WithDiscovery(&registry), mesh.WithTransport(transport))
			conn := connect(t, m, "mesh:///echo")
			const calls = 300
			for range calls {
				if _, err := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{}); status.Code(err) != codes.Unavailable {
					t.Fatalf("%v, want Unavailable", err)
				}
			}
			if n := accepted.Load(); n > calls/10 {
				t.Errorf("%d calls made %d connections", calls, n)
			}
			// A call fails before gRPC has noticed.
			await.True(t, "TRANSIENT_FAILURE", func() bool { return conn.GetState() == connectivity.TransientFailure })
		})
	}
}

// An endpoint that could not be connected to a moment ago is skipped if there is another.
func TestEndpointThatHangsUpIsPassedOver(t *testing.T) {
	leak.Check(t)
	var accepted atomic.Int64
	var registry discovery.Memory
	registry.Set("echo", hangingUp(t, &accepted), serve(t, &grpctest.Service{Unary: grpctest.Echo}))
	m := meshtest.New(t, route("    retries: {attempts: 0}\n"), mesh.WithDiscovery(&registry))
	conn := connect(t, m, "mesh:///echo")
	const calls = 300
	failed := 0
	for range calls {
		if _, err := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
			failed++
		}
	}
	if int64(failed) > accepted.Load() || failed > calls/10 {
		t.Errorf("%d of %d calls failed, with %d connections to the endpoint that hangs up", failed, calls, accepted.Load())
	}
	if state := conn.GetState(); state != connectivity.Ready {
		t.Errorf("state %v, want READY", state)
	}
}

// dyingConn is a connection that has ended. Close returns once closed is closed.
type dyingConn struct {
	net.Conn
	closed <-chan struct{}
}

func (dyingConn) Read([]byte) (int, error)    { return 0, io.EOF }
func (dyingConn) Write(p []byte) (int, error) { return len(p), nil }
func (c dyingConn) Close() error              { <-c.closed; return c.Conn.Close() }

// When a connection has failed, but gRPC has not reported it yet, only one call fails. The calls after it go to another endpoint.
func TestConnectionThatHasFailedIsNotWaitedFor(t *testing.T) {
	leak.Check(t)
	synctest.Test(t, func(t *testing.T) {
		var network memnet.Network
		grpctest.ServeOn(t, network.Listen("10.0.0.1:80"), &grpctest.Service{Unary: grpctest.Echo})
		closed := make(chan struct{})
		dial := func(ctx context.Context, kind, address string) (net.Conn, error) {
			if address == "10.0.0.1:80" {
				return network.DialContext(ctx, kind, address)
			}
			near, far := net.Pipe()
			far.Close()
			return dyingConn{near, closed}, nil
		}
		m := meshtest.New(t, route("    retries: {attempts: 0}\n"), mesh.WithTransport(&http.Transport{DialContext: dial}),
			mesh.WithDiscovery(discovery.Static{"echo": {{Address: "10.0.0.1", Port: 80}, {Address: "10.0.0.2", Port: 80}}}))
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		const calls = 10
		var succeeded, failed atomic.Int64
		var calling sync.WaitGroup
		for range calls {
			calling.Go(func() {
				if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
					failed.Add(1)
				} else {
					succeeded.Add(1)
				}
			})
			synctest.Wait()
		}
		if n := succeeded.Load(); n != calls-1 {
			t.Errorf("%d of %d calls succeeded while one connection was failing, want all but one", n, calls)
		}
		close(closed)
		calling.Wait()
		if n := failed.Load(); n != 1 {
			t.Errorf("%d calls failed with one connection, want 1", n)
		}
	})
}

// cutConn is a connection that its peer has cut off: writes fail, and reads block until it is closed.
type cutConn struct {
	net.Conn
	closed chan struct{}
	once   *sync.Once
}

func (c cutConn) Read([]byte) (int, error) {
	<-c.closed
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed}
}

func (c cutConn) Write([]byte) (int, error) {
	return 0, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
}

func (c cutConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		synctest.Wait() // the reader gets its error first
	})
	return c.Conn.Close()
}

// If the peer has cut off a connection, the error says so. It does not say that gRPC has closed the connection after that.
func TestErrorOfAConnectionThatIsCutOffWhileItIsWrittenTo(t *testing.T) {
	leak.Check(t)
	synctest.Test(t, func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			far.Close()
			return cutConn{near, make(chan struct{}), new(sync.Once)}, nil
		}
		const documents = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: payment}\nspec:\n" +
			"  hosts: [payment.default.svc.cluster.local]\n  resolution: STATIC\n  ports: [{number: 80, name: grpc, protocol: GRPC}]\n" +
			"  endpoints: [{address: 10.0.0.1}]\n"
		m := meshtest.New(t, documents, mesh.WithTransport(&http.Transport{DialContext: dial}))
		_, err := grpctest.NewClient(connect(t, m, "mesh:///payment:80")).UnaryCall(t.Context(), &grpctest.Request{})
		for _, want := range []string{"broken pipe", "it was sent plaintext, as ServiceEntry default/payment has no location"} {
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
				t.Errorf("the error is %v, want %q in it", err, want)
			}
		}
	})
}

// A target that cannot name a host of the mesh gets an error that says so.
func TestTargetThatNamesNoHost(t *testing.T) {
	leak.Check(t)
	m := meshtest.New(t, "")
	for _, target := range []string{"mesh://x/echo", "dns:echo", "http://echo", "mesh:", "mesh:///:80", "mesh:///echo/", "mesh:///echo?a", ""} {
		conn := connect(t, m, target)
		_, unary := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{})
		_, stream := grpctest.NewClient(conn).FullDuplexCall(bounded(t))
		for _, err := range []error{unary, stream} {
			if err == nil || !strings.Contains(err.Error(), `a target of the mesh is "mesh:///host:port"`) ||
				!strings.Contains(err.Error(), target) {
				t.Errorf("%s: %v, want the form of a target", target, err)
			}
		}
	}
}

// gRPC calls to a host that nothing knows are refused. The error says what would make the host known.
func TestHostThatNothingKnows(t *testing.T) {
	leak.Check(t)
	m := meshtest.New(t, "", mesh.WithDiscovery(discovery.Static{}))
	for _, target := range []string{"mesh:///nowhere", "mesh:///127.0.0.1:1", "[::1]:1"} {
		client := grpctest.NewClient(connect(t, m, target))
		_, unary := client.UnaryCall(bounded(t), &grpctest.Request{})
		_, stream := client.FullDuplexCall(bounded(t))
		for _, err := range []error{unary, stream} {
			if !errors.Is(err, mesh.ErrNotInMesh) || status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "a ServiceEntry") {
				t.Errorf("%s: %v, want Unavailable, ErrNotInMesh, and the kind of document that names a host", target, err)
			}
		}
	}
}

// Documents decide by the authority that is a default call option, and the server gets it. They would not see that of WithAuthority,
// so no call is made.
func TestAuthorityOfAClientConn(t *testing.T) {
	leak.Check(t)
	var seen atomic.Value
	echo := serve(t, &grpctest.Service{Unary: func(ctx context.Context, r *grpctest.Request) (*grpctest.Response, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		seen.Store(md.Get(":authority")[0])
		return grpctest.Echo(ctx, r)
	}})
	m := meshtest.New(t, "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: closed}\nspec:\n"+
		"  hosts: [closed.example.com]\n  http: [{directResponse: {status: 403}}]\n", echoAt(echo))
	tests := []struct {
		name   string
		option grpc.DialOption
		code   codes.Code
		text   string
		server string
	}{
		{"none", grpc.EmptyDialOption{}, codes.OK, "", "echo"},
		{"of a call", grpc.WithDefaultCallOptions(grpc.CallAuthority("open.example.com")), codes.OK, "", "open.example.com"},
		{"of a call, with a route", grpc.WithDefaultCallOptions(grpc.CallAuthority("closed.example.com")), codes.PermissionDenied, "", ""},
		{"that of the target", grpc.WithAuthority("echo"), codes.OK, "", "echo"},
		{"of the connection", grpc.WithAuthority("closed.example.com"), codes.Unavailable,
			`grpc.WithDefaultCallOptions(grpc.CallAuthority("closed.example.com"))`, ""},
		{"of the connection, malformed", grpc.WithAuthority("echo%zz"), codes.Unavailable,
			`grpc.WithDefaultCallOptions(grpc.CallAuthority("echo%zz"))`, ""},
		{"of the connection, escaped", grpc.WithAuthority("ec%68o"), codes.Unavailable,
			`grpc.WithDefaultCallOptions(grpc.CallAuthority("ec%68o"))`, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			seen.Store("")
			client := grpctest.NewClient(connect(t, m, "mesh:///echo", test.option))
			_, err := client.UnaryCall(bounded(t), &grpctest.Request{})
			if status.Code(err) != test.code || err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("the call ended with %v, want %v and %q", err, test.code, test.text)
			}
			if got := seen.Load(); got != test.server {
				t.Errorf("the server got the authority %q, want %q", got, test.server)
			}
			stream, err := client.FullDuplexCall(bounded(t))
			if err == nil {
				_, err = stream.Recv()
			}
			if test.code != codes.OK && status.Code(err) != test.code {
				t.Errorf("the stream ended with %v, want %v", err, test.code)
			}
		})
	}
}
