package balancergrpc

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/attributes"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
)

// fakeConn is gRPC's side without connections: all that are asked for are ready.
type fakeConn struct {
	grpcbalancer.ClientConn
	listeners []func(grpcbalancer.SubConnState)
	picker    grpcbalancer.Picker
}

type fakeSubConn struct{ grpcbalancer.SubConn }

func (fakeSubConn) Connect()  {}
func (fakeSubConn) Shutdown() {}

func (f *fakeConn) NewSubConn(_ []resolver.Address, opts grpcbalancer.NewSubConnOptions) (grpcbalancer.SubConn, error) {
	f.listeners = append(f.listeners, opts.StateListener)
	return &fakeSubConn{}, nil
}

func (f *fakeConn) UpdateState(state grpcbalancer.State) { f.picker = state.Picker }

// newPicker returns the picker of a service with n endpoints that are all connected to.
func newPicker(t testing.TB, c *Client, n int) grpcbalancer.Picker {
	t.Helper()
	c.Resolver = discovery.Static{}
	s, err := newService(c, "discovery:///orders:80", "orders:80")
	if err != nil {
		t.Fatal(err)
	}
	endpoints := make([]discovery.Endpoint, n)
	for i := range endpoints {
		endpoints[i] = discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i/256, i%256), Port: 80}
	}
	s.balancer.Update(endpoints)
	cc := &fakeConn{}
	b := builder{}.Build(cc, grpcbalancer.BuildOptions{})
	t.Cleanup(b.Close)
	state := resolver.State{Attributes: attributes.New(serviceKey{}, s)}
	if err := b.UpdateClientConnState(grpcbalancer.ClientConnState{ResolverState: state}); err != nil {
		t.Fatal(err)
	}
	for _, listener := range cc.listeners {
		listener(grpcbalancer.SubConnState{ConnectivityState: connectivity.Ready})
	}
	return cc.picker
}

var ended = grpcbalancer.DoneInfo{BytesSent: true, BytesReceived: true}

// BenchmarkPick is a pick, alone and with the end of its call, as gRPC makes them.
func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		for _, done := range []bool{false, true} {
			name := fmt.Sprint(n)
			if done {
				name += "/done"
			}
			b.Run(name, func(b *testing.B) {
				p := newPicker(b, &Client{}, n)
				info := grpcbalancer.PickInfo{Ctx: context.Background()}
				b.ReportAllocs()
				for b.Loop() {
					result, err := p.Pick(info)
					if err != nil {
						b.Fatal(err)
					}
					if done {
						result.Done(ended)
					}
				}
			})
		}
	}
}

// BenchmarkPickOfCall is the same for a call that the interceptors know.
func BenchmarkPickOfCall(b *testing.B) {
	c := &Client{}
	p := newPicker(b, c, 1000)
	info := grpcbalancer.PickInfo{Ctx: c.newCall(context.Background(), true, nil)}
	b.ReportAllocs()
	for b.Loop() {
		reuse(info.Ctx)
		result, err := p.Pick(info)
		if err != nil {
			b.Fatal(err)
		}
		result.Done(ended)
	}
}

// reuse makes the call in ctx one that was not picked for.
func reuse(ctx context.Context) {
	c := callOf(ctx)
	c.tried = c.tried[:0]
	c.picked.Store(false)
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, algorithm := range []balancer.Algorithm{balancer.LeastRequest, balancer.RoundRobin, balancer.Random} {
		c := &Client{Config: balancer.Config{Algorithm: algorithm}}
		p := newPicker(t, c, 100)
		info := grpcbalancer.PickInfo{Ctx: c.newCall(context.Background(), true, nil)}
		if allocs := testing.AllocsPerRun(100, func() {
			reuse(info.Ctx)
			result, err := p.Pick(info)
			if err != nil {
				t.Fatal(err)
			}
			result.Done(ended)
		}); allocs > 0 {
			t.Errorf("%v: %v allocations a pick, want none", algorithm, allocs)
		}
	}
}

// BenchmarkUnary is a call over loopback beside a bare ClientConn; the server is in the same process.
func BenchmarkUnary(b *testing.B) {
	Register()
	address := grpctest.Serve(b, &grpctest.Service{Unary: grpctest.Echo})
	var port int
	var host string
	if _, err := fmt.Sscanf(address, "%9s:%d", &host, &port); err != nil {
		b.Fatal(err)
	}
	c := &Client{Resolver: discovery.Static{"orders": {{Address: host, Port: port}}}}
	for name, client := range map[string]grpctest.Client{
		"bare":     grpctest.NewClient(grpctest.Dial(b, address)),
		"balancer": grpctest.NewClient(grpctest.Dial(b, "discovery:///orders", c.DialOptions()...)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.UnaryCall(b.Context(), &grpctest.Request{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
