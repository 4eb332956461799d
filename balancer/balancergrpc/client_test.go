package balancergrpc_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/balancer/balancergrpc"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/orca"
	"github.com/nosidecar/mesh/internal/rawtest"
)

const target = "discovery:///orders.example.com:50051"

// endpoint returns the endpoint at an address.
func endpoint(t testing.TB, address string) discovery.Endpoint {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return discovery.Endpoint{Address: host, Port: number}
}

// fleet is a service of several servers over loopback that count their calls.
type fleet struct {
	memory    discovery.Memory
	endpoints []discovery.Endpoint
	calls     []*atomic.Int32
	fail      []*atomic.Bool
}

func newFleet(t testing.TB, n int) *fleet {
	t.Helper()
	f := &fleet{}
	for range n {
		calls, fail := new(atomic.Int32), new(atomic.Bool)
		address := grpctest.Serve(t, &grpctest.Service{
			Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
				calls.Add(1)
				if fail.Load() {
					return nil, status.Error(codes.Internal, "broken")
				}
				return grpctest.Echo(ctx, in)
			},
			Bidi: func(s grpctest.BidiServer) error {
				calls.Add(1)
				if err := s.SendHeader(nil); err != nil {
					return err
				}
				<-s.Context().Done()
				return nil
			},
		})
		f.endpoints = append(f.endpoints, endpoint(t, address))
		f.calls, f.fail = append(f.calls, calls), append(f.fail, fail)
	}
	f.memory.Set("orders.example.com", f.endpoints...)
	return f
}

func (f *fleet) counts() []int32 {
	var counts []int32
	for _, calls := range f.calls {
		counts = append(counts, calls.Swap(0))
	}
	return counts
}

func dial(t testing.TB, c *balancergrpc.Client, opts ...grpc.DialOption) grpctest.Client {
	t.Helper()
	return grpctest.NewClient(grpctest.Dial(t, target, append(c.DialOptions(), opts...)...))
}

func call(ctx context.Context, client grpctest.Client, opts ...grpc.CallOption) error {
	_, err := client.UnaryCall(ctx, &grpctest.Request{}, opts...)
	return err
}

// warm calls until every server was called, so that all are connected to.
func (f *fleet) warm(t testing.TB, client grpctest.Client) {
	t.Helper()
	for i := 0; ; i++ {
		if err := call(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		missing := false
		for _, calls := range f.calls {
			missing = missing || calls.Load() == 0
		}
		if !missing {
			f.counts()
			return
		}
	}
}

func TestAlgorithms(t *testing.T) {
	const n, calls = 3, 300
	for _, algorithm := range []balancer.Algorithm{balancer.LeastRequest, balancer.RoundRobin, balancer.Random,
		balancer.PeakEWMA, balancer.RingHash, balancer.Maglev} {
		t.Run(algorithm.String(), func(t *testing.T) {
			leak.Check(t)
			f := newFleet(t, n)
			client := dial(t, &balancergrpc.Client{Resolver: &f.memory, Config: balancer.Config{Algorithm: algorithm}})
			f.warm(t, client)
			for range calls {
				if err := call(t.Context(), client); err != nil {
					t.Fatal(err)
				}
			}
			counts := f.counts()
			for i, count := range counts {
				if algorithm == balancer.RoundRobin && count != calls/n {
					t.Errorf("endpoint %d got %d calls of %v, want %d", i, count, counts, calls/n)
				}
				if count == 0 && algorithm != balancer.PeakEWMA { // which may find two that are faster
					t.Errorf("endpoint %d got none of %v calls", i, counts)
				}
			}
		})
	}
}

func TestHashKey(t *testing.T) {
	f := newFleet(t, 4)
	client := dial(t, &balancergrpc.Client{Resolver: &f.memory, Config: balancer.Config{
		Algorithm: balancer.Maglev, HashKey: balancer.HashKey{Source: balancer.HeaderKey, Name: "X-User"},
	}})
	used := 0
	for user := range 80 { // so many that each server has some, wherever its port puts it
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-user", fmt.Sprint(user))
		for range 5 {
			if err := call(ctx, client); err != nil {
				t.Fatal(err)
			}
		}
		servers := 0
		for i, count := range f.counts() {
			if count > 0 {
				servers++
				used |= 1 << i
			}
		}
		if servers != 1 {
			t.Errorf("the calls of user %d went to %d servers, want 1", user, servers)
		}
	}
	if used != 0b1111 {
		t.Errorf("servers used: %b, want all", used)
	}
}

func TestUpdates(t *testing.T) {
	leak.Check(t)
	f := newFleet(t, 3)
	f.memory.Set("orders.example.com", f.endpoints[0])
	c := &balancergrpc.Client{Resolver: &f.memory, Config: balancer.Config{Algorithm: balancer.RoundRobin}}
	client := dial(t, c)
	if err := call(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	f.memory.Set("orders.example.com", f.endpoints[1], f.endpoints[2])
	for f.calls[1].Load() == 0 || f.calls[2].Load() == 0 {
		if err := call(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	f.counts()
	for range 100 {
		if err := call(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	if counts := f.counts(); counts[0] != 0 || counts[1] != 50 || counts[2] != 50 {
		t.Errorf("calls %v, want none to the endpoint that was removed", counts)
	}
	f.memory.Set("orders.example.com")
	for {
		err := call(t.Context(), client)
		if err == nil {
			continue
		}
		if !errors.Is(err, balancer.ErrNoEndpoints) || status.Code(err) != codes.Unavailable {
			t.Errorf("error %v of an empty set, want ErrNoEndpoints with status Unavailable", err)
		}
		break
	}
}

// TestRemovedEndpointDrains: a call in flight on an endpoint that is removed goes on to its end.
func TestRemovedEndpointDrains(t *testing.T) {
	leak.Check(t)
	f := newFleet(t, 2)
	f.memory.Set("orders.example.com", f.endpoints[0])
	client := dial(t, &balancergrpc.Client{Resolver: &f.memory})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	f.memory.Set("orders.example.com", f.endpoints[1])
	for f.calls[1].Load() == 0 {
		if err := call(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Send(&grpctest.In{}); err != nil {
		t.Errorf("the stream broke with the removal: %v", err)
	}
}

// slowToken is credentials that a call waits for after it was given a connection.
type slowToken struct {
	asked, given chan struct{}
	once         sync.Once
}

func (s *slowToken) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	s.once.Do(func() { close(s.asked) })
	select {
	case <-s.given:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (*slowToken) RequireTransportSecurity() bool { return false }

// TestCallOnARemovedEndpointDoesNotHang: gRPC has a call wait for ever that begins on a connection which was shut down and still
// has another call. Between its pick and its beginning, a call counts as one.
func TestCallOnARemovedEndpointDoesNotHang(t *testing.T) {
	leak.Check(t)
	f := newFleet(t, 2)
	f.memory.Set("orders.example.com", f.endpoints[0])
	client := dial(t, &balancergrpc.Client{Resolver: &f.memory})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	token := &slowToken{asked: make(chan struct{}), given: make(chan struct{})}
	late := make(chan error, 1)
	go func() {
		_, err := client.UnaryCall(ctx, &grpctest.Request{}, grpc.PerRPCCredentials(token))
		late <- err
	}()
	<-token.asked
	f.memory.Set("orders.example.com", f.endpoints[1])
	for f.calls[1].Load() == 0 {
		if err := call(ctx, client); err != nil {
			t.Fatal(err)
		}
	}
	close(token.given)
	if err := <-late; err != nil {
		t.Errorf("the call that had been given the connection: %v", err)
	}
}

// TestChurnFailsNoCall: endpoints come and go under load. As long as there is one, no call fails.
func TestChurnFailsNoCall(t *testing.T) {
	leak.Check(t)
	f := newFleet(t, 4)
	client := dial(t, &balancergrpc.Client{Resolver: &f.memory,
		Outlier: newOutlier(t, breaker.OutlierConfig{Consecutive5xx: 2, MaxEjectedFraction: 0.5})})
	f.warm(t, client)
	var running sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := call(t.Context(), client); err != nil {
					t.Errorf("call: %v", err)
				}
			}
		})
	}
	for i := range 300 {
		// The first always stays; of the others one is away.
		set := []discovery.Endpoint{f.endpoints[0]}
		for k := 1; k < len(f.endpoints); k++ {
			if k != 1+i%3 {
				set = append(set, f.endpoints[k])
			}
		}
		f.memory.Set("orders.example.com", set...)
	}
	close(stop)
	running.Wait()
	f.memory.Set("orders.example.com", f.endpoints...)
	f.warm(t, client) // all are reachable
}

// flaky is a resolver that fails at first.
type flaky struct {
	endpoints chan []discovery.Endpoint
	failed    error
}

func (f *flaky) Watch(ctx context.Context, _ discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		if !yield(nil, f.failed) {
			return
		}
		for {
			select {
			case endpoints := <-f.endpoints:
				if !yield(endpoints, nil) || !yield(nil, f.failed) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// TestResolverErrors: until there is a set, calls fail with what the resolver says, and those that wait do wait. After
// that the last good set stays.
func TestResolverErrors(t *testing.T) {
	leak.Check(t)
	f := newFleet(t, 1)
	r := &flaky{endpoints: make(chan []discovery.Endpoint), failed: errors.New("no name server")}
	client := dial(t, &balancergrpc.Client{Resolver: r})
	if err := call(t.Context(), client); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no name server") {
		t.Errorf("error %v, want Unavailable with the resolver's words", err)
	}
	waited := make(chan error)
	go func() { waited <- call(t.Context(), client, grpc.WaitForReady(true)) }()
	r.endpoints <- f.endpoints
	if err := <-waited; err != nil {
		t.Errorf("a call that waited: %v", err)
	}
	if err := call(t.Context(), client); err != nil {
		t.Errorf("after an error of the resolver: %v", err)
	}
}

// A target with another scheme names no service of a Client, and nor does one whose service is where an authority would be.
func TestTargetOfAClient(t *testing.T) {
	c := &balancergrpc.Client{Resolver: discovery.Static{"user-service": {{Address: "127.0.0.1", Port: 1}}}}
	for _, target := range []string{"user-service:80", "dns:///127.0.0.1:80", "passthrough:///user-service", "discovery://user-service"} {
		if err := call(t.Context(), grpctest.NewClient(grpctest.Dial(t, target, c.DialOptions()...))); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), `"discovery:///host:port"`) {
			t.Errorf("%s: %v, want the form of a target", target, err)
		}
	}
}

func TestInvalidClient(t *testing.T) {
	for name, c := range map[string]*balancergrpc.Client{
		"no resolver": {},
		"connections": {Resolver: discovery.Static{}, Connections: -1},
		"config":      {Resolver: discovery.Static{}, Config: balancer.Config{Choices: 99}},
		"query key": {Resolver: discovery.Static{}, Config: balancer.Config{Algorithm: balancer.Maglev,
			HashKey: balancer.HashKey{Source: balancer.QueryKey, Name: "user"}}},
		"cookie": {Resolver: discovery.Static{}, Config: balancer.Config{Algorithm: balancer.Maglev,
			HashKey: balancer.HashKey{Source: balancer.CookieKey, Name: "user", Generate: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := call(t.Context(), dial(t, c)); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "balancer") {
				t.Errorf("error %v, want one that says what is wrong", err)
			}
		})
	}
}

// TestConnectFailure: a call for which no connection can be made fails with the reason; one endpoint that is down is no
// reason.
func TestConnectFailure(t *testing.T) {
	f := newFleet(t, 1)
	dead := endpoint(t, rawtest.Refusing(t))
	f.memory.Set("orders.example.com", dead)
	client := dial(t, &balancergrpc.Client{Resolver: &f.memory})
	if err := call(t.Context(), client); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, want Unavailable with the reason", err)
	}
	f.memory.Set("orders.example.com", dead, f.endpoints[0])
	for range 20 {
		if err := call(t.Context(), client, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
	if counts := f.counts(); counts[0] != 20 {
		t.Errorf("%d calls, want 20", counts[0])
	}
}

func newOutlier(t testing.TB, config breaker.OutlierConfig) *breaker.Outlier {
	t.Helper()
	o, err := breaker.NewOutlier(config, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOutlier(t *testing.T) {
	f := newFleet(t, 3)
	outlier := newOutlier(t, breaker.OutlierConfig{Consecutive5xx: 3, MaxEjectedFraction: 0.5})
	client := dial(t, &balancergrpc.Client{Resolver: &f.memory, Outlier: outlier,
		Config: balancer.Config{Algorithm: balancer.RoundRobin}})
	f.warm(t, client)
	f.fail[1].Store(true)
	failures := 0
	for range 100 {
		if call(t.Context(), client) != nil {
			failures++
		}
	}
	if counts := f.counts(); failures != 3 || counts[1] != 3 {
		t.Errorf("%d failures, calls %v; want 3 to the endpoint that fails, then none", failures, counts)
	}
}

// TestMessagesThatCannotBeSentEjectNothing: gRPC gives them the status of a server that is broken.
func TestMessagesThatCannotBeSentEjectNothing(t *testing.T) {
	f := newFleet(t, 3)
	client := dial(t, &balancergrpc.Client{Resolver: &f.memory, Config: balancer.Config{Algorithm: balancer.RoundRobin},
		Outlier: newOutlier(t, breaker.OutlierConfig{Consecutive5xx: 1, MaxEjectedFraction: 1})})
	f.warm(t, client)
	for range 6 {
		bad := &grpc_testing.SimpleRequest{ResponseStatus: &grpc_testing.EchoStatus{Message: "no UTF-8: \xff"}}
		if _, err := client.UnaryCall(t.Context(), bad); status.Code(err) != codes.Internal {
			t.Fatalf("%v, want Internal", err)
		}
	}
	f.counts()
	for range 3 {
		if err := call(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range f.counts() {
		if n != 1 {
			t.Errorf("endpoint %d got %d calls of 3, want 1: it is ejected, or another is", i, n)
		}
	}
}

// TestProxyIsNotUsed: the environment of this package names a proxy that is not there. Endpoints are dialled directly.
func TestProxyIsNotUsed(t *testing.T) {
	req, err := http.NewRequest("GET", "https://orders.example.com:50051", nil)
	if err != nil {
		t.Fatal(err)
	}
	if proxy, err := http.ProxyFromEnvironment(req); proxy == nil || err != nil {
		t.Fatalf("no proxy in the environment: %v, %v", proxy, err)
	}
	f := newFleet(t, 1)
	if err := call(t.Context(), dial(t, &balancergrpc.Client{Resolver: &f.memory})); err != nil {
		t.Error(err)
	}
}

// TestTransparentRetryGoesElsewhere: what gRPC tries again by itself, below the interceptors, goes to another endpoint.
func TestTransparentRetryGoesElsewhere(t *testing.T) {
	var mu sync.Mutex
	var served []int // the servers that got the streams of a call
	var memory discovery.Memory
	var endpoints []discovery.Endpoint
	for i := range 3 {
		address := grpctest.ServeFrames(t, func(_ int, f *grpctest.Frames, stream uint32) bool {
			mu.Lock()
			defer mu.Unlock()
			served = append(served, i)
			if len(served) == 1 {
				f.Reset(stream, http2.ErrCodeRefusedStream)
			} else {
				f.Reply(stream)
			}
			return true
		})
		endpoints = append(endpoints, endpoint(t, address))
	}
	memory.Set("orders.example.com", endpoints...)
	client := dial(t, &balancergrpc.Client{Resolver: &memory, Config: balancer.Config{Algorithm: balancer.Random}})
	seen := map[int]bool{}
	for i := 0; i < 40 || len(seen) < 3; i++ {
		mu.Lock()
		served = nil
		mu.Unlock()
		if err := call(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		for _, server := range served {
			seen[server] = true
		}
		if len(seen) > 1 && (len(served) != 2 || served[0] == served[1]) && i > 5 {
			t.Fatalf("the streams of a call went to servers %v, want two different ones", served)
		}
	}
}

// memoryNet is a service of several servers in memory, for bubbles.
type memoryNet struct {
	endpoints []discovery.Endpoint
	listeners map[string]*bufconn.Listener // by the ID of the endpoint
	dials     atomic.Int32
}

// newMemoryNet serves each of the services on a server of its own, until the end of the test.
func newMemoryNet(t testing.TB, services ...*grpctest.Service) *memoryNet {
	t.Helper()
	n := &memoryNet{listeners: map[string]*bufconn.Listener{}}
	for i, s := range services {
		e := discovery.Endpoint{Address: fmt.Sprintf("10.0.0.%d", i+1), Port: 80}
		listener := bufconn.Listen(1 << 20)
		grpctest.ServeOn(t, listener, s)
		n.endpoints, n.listeners[e.ID()] = append(n.endpoints, e), listener
	}
	return n
}

// dial returns a ClientConn of c, whose calls go to the servers.
func (n *memoryNet) dial(t testing.TB, c *balancergrpc.Client) *grpc.ClientConn {
	t.Helper()
	if c.Resolver == nil {
		c.Resolver = discovery.Static{"orders.example.com": n.endpoints}
	}
	dialer := grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		n.dials.Add(1)
		return n.listeners[address].DialContext(ctx)
	})
	return grpctest.Dial(t, target, append(c.DialOptions(), dialer)...)
}

// counted returns a service that counts its calls.
func counted(calls *atomic.Int32, answer func(context.Context) error) *grpctest.Service {
	return &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
		calls.Add(1)
		if err := answer(ctx); err != nil {
			return nil, err
		}
		return grpctest.Echo(ctx, in)
	}}
}

func well(context.Context) error { return nil }

// TestIdleKeepsEndpointState: an idle ClientConn forgets its balancer, but not what is known of the endpoints.
func TestIdleKeepsEndpointState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var good, bad atomic.Int32
		network := newMemoryNet(t, counted(&good, well),
			counted(&bad, func(context.Context) error { return status.Error(codes.Internal, "broken") }))
		client := grpctest.NewClient(network.dial(t, &balancergrpc.Client{Config: balancer.Config{Algorithm: balancer.RoundRobin},
			Outlier: newOutlier(t, breaker.OutlierConfig{Consecutive5xx: 2, BaseEjection: 24 * time.Hour, MaxEjectedFraction: 0.5})}))
		for range 10 {
			call(t.Context(), client)
			synctest.Wait()
		}
		if bad.Load() != 2 || network.dials.Load() != 2 {
			t.Fatalf("%d calls to the endpoint that fails, %d dials; want 2 and 2", bad.Load(), network.dials.Load())
		}
		time.Sleep(time.Hour)
		good.Store(0)
		for range 10 {
			if err := call(t.Context(), client); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if good.Load() != 10 || network.dials.Load() != 4 {
			t.Errorf("%d calls to the good endpoint, %d dials; want 10, and 4 because the ClientConn was idle",
				good.Load(), network.dials.Load())
		}
	})
}

// TestIdleKeepsLatencies: how fast endpoints are is known to the service alone, and does not end with gRPC's balancer.
func TestIdleKeepsLatencies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answersAfter := func(d time.Duration) func(context.Context) error {
			return func(context.Context) error { time.Sleep(d); return nil }
		}
		var fast, slow atomic.Int32
		network := newMemoryNet(t, counted(&fast, answersAfter(time.Millisecond)), counted(&slow, answersAfter(time.Second)))
		conn := network.dial(t, &balancergrpc.Client{Config: balancer.Config{Algorithm: balancer.PeakEWMA, Decay: 10_000 * time.Hour}})
		client := grpctest.NewClient(conn)
		rounds := func() {
			for range 20 {
				if err := call(t.Context(), client); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
		}
		for slow.Load() == 0 {
			rounds()
		}
		slow.Store(0)
		dials := network.dials.Load()
		time.Sleep(time.Hour)
		conn.Connect()
		synctest.Wait() // while only one endpoint is connected to, it is picked
		rounds()
		if slow.Load() > 0 || network.dials.Load() == dials {
			t.Errorf("%d calls to the slow endpoint, %d dials; want none, and more than %d because the ClientConn was idle",
				slow.Load(), network.dials.Load(), dials)
		}
	})
}

// TestReplacedBalancerFailsCalls: options that silently remove the balancer make calls fail.
func TestReplacedBalancerFailsCalls(t *testing.T) {
	const roundRobin = `{"loadBalancingConfig":[{"round_robin":{}}]}`
	for _, test := range []struct {
		name string
		opts []grpc.DialOption
		ok   bool
	}{
		{"service config", []grpc.DialOption{grpc.WithDefaultServiceConfig(roundRobin)}, true},
		{"disabled", []grpc.DialOption{grpc.WithDisableServiceConfig()}, true},
		{"both", []grpc.DialOption{grpc.WithDisableServiceConfig(), grpc.WithDefaultServiceConfig(roundRobin)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFleet(t, 2)
			err := call(t.Context(), dial(t, &balancergrpc.Client{Resolver: &f.memory}, test.opts...))
			if test.ok && err != nil {
				t.Error(err)
			}
			if !test.ok && (status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "balancer of the ClientConn was replaced")) {
				t.Errorf("error %v, want one that says that the balancer was replaced", err)
			}
		})
	}
}

// ejector ejects what it is told to.
type ejector struct{ all atomic.Bool }

func (e *ejector) Report(string, *http.Response, error) {}
func (e *ejector) Ejected(string) bool                  { return e.all.Load() }

// TestAllEjected: while all endpoints are ejected, calls fail at once. Those that wait go on when one comes back, though gRPC is not told
// of that.
func TestAllEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		outlier := &ejector{}
		client := grpctest.NewClient(newMemoryNet(t, counted(&calls, well), counted(&calls, well)).dial(t, &balancergrpc.Client{Outlier: outlier}))
		if err := call(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // both are connected to
		outlier.all.Store(true)
		if err := call(t.Context(), client); !errors.Is(err, balancer.ErrNoHealthy) || status.Code(err) != codes.Unavailable {
			t.Errorf("error %v, want ErrNoHealthy with status Unavailable", err)
		}
		waited := make(chan error, 1)
		go func() { waited <- call(t.Context(), client, grpc.WaitForReady(true)) }()
		time.Sleep(time.Second) // so that the picker looks several times
		select {
		case err := <-waited:
			t.Fatalf("the call did not wait: %v", err)
		default:
		}
		outlier.all.Store(false)
		if err := <-waited; err != nil {
			t.Errorf("a call that waited: %v", err)
		}
	})
}

// TestOutlierForgets: an endpoint that is gone, or drains, no longer counts among those that may be ejected, even if a call to it ends later.
func TestOutlierForgets(t *testing.T) {
	for _, drains := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int32
			end := make(chan struct{})
			network := newMemoryNet(t, counted(&calls, well), counted(&calls, func(context.Context) error { <-end; return nil }))
			var memory discovery.Memory
			memory.Set("orders.example.com", network.endpoints...)
			outlier := newOutlier(t, breaker.OutlierConfig{})
			conn := network.dial(t, &balancergrpc.Client{Resolver: &memory, Outlier: outlier, Config: balancer.Config{Algorithm: balancer.RoundRobin}})
			client := grpctest.NewClient(conn)
			conn.Connect()
			synctest.Wait() // both are connected to
			if n := len(outlier.Endpoints()); n != 2 {
				t.Fatalf("%d endpoints are known, want 2", n)
			}
			var inFlight sync.WaitGroup
			for range 2 {
				inFlight.Go(func() {
					if err := call(t.Context(), client); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait() // one has ended, and the other waits
			left := network.endpoints[:1]
			if drains {
				gone := network.endpoints[1]
				gone.Draining = true
				left = []discovery.Endpoint{left[0], gone}
			}
			memory.Set("orders.example.com", left...)
			synctest.Wait()
			close(end)
			inFlight.Wait()
			synctest.Wait()
			if known := outlier.Endpoints(); calls.Load() != 2 || len(known) != 1 || known[0].ID != left[0].ID() {
				t.Errorf("drains %v, %d calls: %+v are known, want the endpoint that is left", drains, calls.Load(), known)
			}
		})
	}
}

// TestFullConnectionHoldsUpNobody: a call waits for a connection that is full only if the endpoint has no other.
func TestFullConnectionHoldsUpNobody(t *testing.T) {
	for connections, want := range map[int]codes.Code{1: codes.DeadlineExceeded, 2: codes.OK} {
		synctest.Test(t, func(t *testing.T) {
			network := newMemoryNet(t, &grpctest.Service{
				Unary:   grpctest.Echo,
				Bidi:    func(s grpctest.BidiServer) error { <-s.Context().Done(); return nil },
				Options: []grpc.ServerOption{grpc.MaxConcurrentStreams(1)},
			})
			client := grpctest.NewClient(network.dial(t, &balancergrpc.Client{Connections: connections}))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, err := client.FullDuplexCall(ctx); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the stream is open, and all connections are
			limited, stop := context.WithTimeout(t.Context(), time.Second)
			defer stop()
			if got := status.Code(call(limited, client)); got != want {
				t.Errorf("connections: %d: %v, want %v", connections, got, want)
			}
		})
	}
}

// TestClientsAreApart: all clients share a name in gRPC's table, and nothing else.
func TestClientsAreApart(t *testing.T) {
	one, other := newFleet(t, 1), newFleet(t, 1)
	first := dial(t, &balancergrpc.Client{Resolver: &one.memory})
	second := dial(t, &balancergrpc.Client{Resolver: &other.memory, Config: balancer.Config{Algorithm: balancer.Random}})
	for range 3 {
		if err := errors.Join(call(t.Context(), first), call(t.Context(), second), call(t.Context(), second)); err != nil {
			t.Fatal(err)
		}
	}
	if one.counts()[0] != 3 || other.counts()[0] != 6 {
		t.Error("calls went to the endpoints of another client")
	}
}

// TestReportsInTrailers: weighted round robin goes by the load that servers report.
func TestReportsInTrailers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls [2]atomic.Int32
		reporting := func(i int, utilization float64) *grpctest.Service {
			report := metadata.Pairs(orca.MetadataKey, orca.Report{Utilization: utilization, Requests: 100}.Message())
			return counted(&calls[i], func(ctx context.Context) error { return grpc.SetTrailer(ctx, report) })
		}
		network := newMemoryNet(t, reporting(0, 0.2), reporting(1, 0.6))
		client := grpctest.NewClient(network.dial(t, &balancergrpc.Client{Config: balancer.Config{Algorithm: balancer.WeightedRoundRobin}}))
		for i := range 600 {
			if i == 200 {
				calls[0].Store(0)
				calls[1].Store(0)
			}
			if err := call(t.Context(), client); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if a, b := calls[0].Load(), calls[1].Load(); a < 290 || a > 310 || a+b != 400 {
			t.Errorf("%d and %d calls, want three times as many at a third of the utilization", a, b)
		}
	})
}
