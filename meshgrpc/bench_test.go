package meshgrpc

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/grpctest"
)

// loopback returns a server and n endpoints at which it can be reached.
func loopback(t testing.TB, n int) (address string, endpoints []discovery.Endpoint) {
	t.Helper()
	address = grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo, Bidi: grpctest.EchoStream})
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	var number int
	fmt.Sscan(port, &number)
	for range n {
		endpoints = append(endpoints, discovery.Endpoint{Address: "127.0.0.1", Port: number})
	}
	return address, endpoints
}

func through(t testing.TB, endpoints []discovery.Endpoint, observer mesh.Observer, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	var registry discovery.Memory
	registry.Set("echo", endpoints...)
	m, err := mesh.New(context.Background(), mesh.WithDiscovery(&registry), mesh.WithObserver(observer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	conn, err := grpc.NewClient("mesh:///echo", append(DialOptions(m), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestAllocations compares a call with one over a bare ClientConn. Both include what the server and the connection allocate.
func TestAllocations(t *testing.T) {
	address, endpoints := loopback(t, 1)
	measure := func(conn *grpc.ClientConn) float64 {
		request, reply := &grpctest.Request{}, &grpctest.Response{}
		return testing.AllocsPerRun(500, func() {
			if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, request, reply); err != nil {
				t.Error(err)
			}
		})
	}
	bare, meshed := measure(grpctest.Dial(t, address)), measure(through(t, endpoints, mesh.Observer{}))
	t.Logf("%v allocations, %v of a bare ClientConn", meshed, bare)
	if meshed > bare+8 {
		t.Errorf("%v allocations, want at most 8 more than the %v of a bare ClientConn", meshed, bare)
	}
}

// TestAllocationsOfObservers compares an observed call with an unobserved one.
func TestAllocationsOfObservers(t *testing.T) {
	inbound := mesh.Observer{
		InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx },
		InboundEnd:   func(context.Context, *mesh.Inbound) {},
	}
	calls := mesh.Observer{
		CallStart: func(ctx context.Context, _ *mesh.Call) context.Context { return ctx },
		CallEnd:   func(context.Context, *mesh.Call) {},
	}
	messages := calls
	messages.CallMessage = func(context.Context, *mesh.Call, bool) {}
	tries := calls
	tries.AttemptStart = func(ctx context.Context, a *mesh.Attempt) context.Context {
		a.Sent.SetHeader("Traceparent", "00")
		return ctx
	}
	var bare func() float64
	for _, test := range []struct {
		name           string
		most           float64 // more than the unobserved call
		server, client mesh.Observer
	}{
		{"not observed", 0, mesh.Observer{}, mesh.Observer{}},
		{"at the server", 7, inbound, mesh.Observer{}},
		{"calls", 0, mesh.Observer{}, calls},
		{"messages", 0, mesh.Observer{}, messages},
		{"attempts, with a header set", 12, mesh.Observer{}, tries},
	} {
		server, err := mesh.New(context.Background(), mesh.WithObserver(test.server))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		address := grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, ServerOptions(server)...)
		host, port, _ := net.SplitHostPort(address)
		endpoint := discovery.Endpoint{Address: host}
		fmt.Sscan(port, &endpoint.Port)
		conn := through(t, []discovery.Endpoint{endpoint}, test.client)
		request, reply := &grpctest.Request{}, &grpctest.Response{}
		allocations := func() float64 {
			return testing.AllocsPerRun(200, func() {
				if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, request, reply); err != nil {
					t.Error(err)
				}
			})
		}
		if bare == nil {
			bare = allocations
		}
		// The figures include the client, the server and the pools of gRPC, so they vary, above all under the race detector.
		var more float64
		for range 10 {
			if more = allocations() - bare(); more <= test.most {
				break
			}
		}
		if more > test.most {
			t.Errorf("%s: %v allocations more than those of a call that is not observed, want at most %v", test.name, more, test.most)
		}
	}
}

func BenchmarkUnary(b *testing.B) {
	address, endpoints := loopback(b, 1)
	for _, test := range []struct {
		name string
		conn *grpc.ClientConn
	}{{"bare", grpctest.Dial(b, address)}, {"mesh", through(b, endpoints, mesh.Observer{})}} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			request, reply := &grpctest.Request{}, &grpctest.Response{}
			for b.Loop() {
				if err := test.conn.Invoke(b.Context(), grpctest.UnaryMethod, request, reply); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkStream(b *testing.B) {
	address := grpctest.Serve(b, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		return stream.Send(&grpctest.Out{Payload: in.Payload})
	}})
	host, port, _ := net.SplitHostPort(address)
	endpoint := discovery.Endpoint{Address: host}
	fmt.Sscan(port, &endpoint.Port)
	for _, test := range []struct {
		name string
		conn *grpc.ClientConn
	}{{"bare", grpctest.Dial(b, address)}, {"mesh", through(b, []discovery.Endpoint{endpoint}, mesh.Observer{})}} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			client := grpctest.NewClient(test.conn)
			for b.Loop() {
				stream, err := client.FullDuplexCall(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if err := stream.Send(&grpctest.In{}); err != nil {
					b.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					b.Fatal(err)
				}
				if _, err := stream.Recv(); err != io.EOF {
					b.Fatal(err)
				}
			}
		})
	}
}

// picks returns tries of a call that are about to get connections to n endpoints, which are ready, and the picker that gives them.
func picks(t testing.TB, n int) (tries []*try, picker *connections) {
	t.Helper()
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "none", HandlerType: (*any)(nil)}, nil)
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	var endpoints []discovery.Endpoint
	for i := range n {
		endpoints = append(endpoints, discovery.Endpoint{
			Address: fmt.Sprintf("127.1.%d.%d", i/250, 1+i%250), Port: ln.Addr().(*net.TCPAddr).Port,
		})
	}
	seen := make(map[*sockets.Connections]*try)
	conn := through(t, endpoints, mesh.Observer{}, grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, in, out any,
		cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		used := ctx.Value(tryKey{}).(*try)
		err := invoker(ctx, method, in, out, cc, opts...)
		if used.conn != nil {
			picker = used.conn.group.owner
		}
		seen[used.link] = &try{Context: context.Background(), call: used.call, link: used.link}
		return err
	}))
	for i := 0; len(seen) < n; i++ {
		if i > 100*n {
			t.Fatalf("%d of %d endpoints were called", len(seen), n)
		}
		_ = conn.Invoke(t.Context(), "/none/None", &grpctest.Request{}, &grpctest.Response{})
	}
	for _, t := range seen {
		tries = append(tries, t)
	}
	return tries, picker
}

func TestPickAllocations(t *testing.T) {
	tries, picker := picks(t, 3)
	if n := testing.AllocsPerRun(100, func() { pickOne(t, picker, tries[0]) }); n > 0 {
		t.Errorf("%v allocations of a pick, want none", n)
	}
}

func pickOne(t testing.TB, picker balancer.Picker, tr *try) {
	result, err := picker.Pick(balancer.PickInfo{Ctx: tr})
	if err != nil {
		t.Fatal(err)
	}
	result.Done(balancer.DoneInfo{})
	tr.given = false
}

// BenchmarkPick measures how gRPC asks for a connection and reports the end of a call. The endpoint has already been chosen.
func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tries, picker := picks(b, n)
			// A try is new, so it and its link are in the cache of the processor. What they lead to may not be.
			tr, links := tries[0], make([]*sockets.Connections, n)
			for i, t := range tries {
				links[i] = t.link
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				tr.link = links[i]
				pickOne(b, picker, tr)
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}
