package grpctest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/balancer/balancergrpc"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/breaker/breakergrpc"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/fault/faultgrpc"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/limit/limitgrpc"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
	"github.com/nosidecar/mesh/timeout"
	"github.com/nosidecar/mesh/timeout/timeoutgrpc"
)

func TestMain(m *testing.M) {
	balancergrpc.Register()
	os.Exit(m.Run())
}

// chain is all layers, each a plain dial option, in the order in which a call meets them.
type chain struct {
	balancer balancergrpc.Client
	timeout  timeoutgrpc.Client
	fault    faultgrpc.Client
	retry    retrygrpc.Client
	limit    limitgrpc.Client
	breaker  breakergrpc.Client
}

func (c *chain) options() []grpc.DialOption {
	return slices.Concat(c.balancer.DialOptions(), c.timeout.DialOptions(), c.fault.DialOptions(), c.retry.DialOptions(),
		c.limit.DialOptions(), c.breaker.DialOptions())
}

func newChain(endpoints ...discovery.Endpoint) *chain {
	c := &chain{}
	c.balancer.Resolver = discovery.Static{"orders": endpoints}
	c.retry.Config = retry.Config{Retries: 2, Backoff: -1}
	c.retry.Budget = retry.BudgetConfig{Off: true}
	c.limit.Pool = limit.PoolConfig{MaxRequests: 1000}
	return c
}

func serve(t testing.TB, s *grpctest.Service) discovery.Endpoint {
	t.Helper()
	host, port, err := net.SplitHostPort(grpctest.Serve(t, s))
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return discovery.Endpoint{Address: host, Port: number}
}

// TestChain: one of three servers refuses everything. No caller notices, because retries go elsewhere.
func TestChain(t *testing.T) {
	leak.Check(t)
	var refused atomic.Int32
	refuse := func() error {
		refused.Add(1)
		return status.Error(codes.Unavailable, "not here")
	}
	echo := func(s grpctest.BidiServer) error {
		for {
			in, err := s.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := s.Send(&grpctest.Out{Payload: in.Payload}); err != nil {
				return err
			}
		}
	}
	var connected [2]atomic.Bool
	well := func(i int) *grpctest.Service {
		return &grpctest.Service{Bidi: echo, Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			connected[i].Store(true)
			return grpctest.Echo(ctx, in)
		}}
	}
	c := newChain(serve(t, well(0)), serve(t, well(1)), serve(t, &grpctest.Service{
		Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) { return nil, refuse() },
		Bidi:  func(grpctest.BidiServer) error { return refuse() },
	}))
	c.retry.Config.Retries = 1 // one is enough if it goes elsewhere
	c.retry.Config.PerTryTimeout = time.Minute
	c.timeout.Config = timeout.Config{Request: time.Minute, BodyIdle: time.Minute}
	c.breaker.Config = breaker.Config{ConsecutiveFailures: 1000}
	client := grpctest.NewClient(grpctest.Dial(t, "discovery:///orders", c.options()...))
	for !connected[0].Load() || !connected[1].Load() {
		client.UnaryCall(t.Context(), &grpctest.Request{}) // there is no other endpoint to try
	}
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 25 {
				if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
					t.Errorf("unary: %v", err)
				}
				stream, err := client.FullDuplexCall(t.Context())
				if err != nil {
					t.Errorf("stream: %v", err)
					return
				}
				stream.Send(&grpctest.In{})
				stream.CloseSend()
				for err == nil {
					_, err = stream.Recv()
				}
				if err != io.EOF {
					t.Errorf("stream: %v", err)
				}
			}
		})
	}
	running.Wait()
	if refused.Load() == 0 {
		t.Error("the server that refuses was never asked: nothing was tested")
	}
	if stats := c.limit.Stats(); stats.Active != 0 {
		t.Errorf("%d calls are still in flight", stats.Active)
	}
	for target, state := range c.breaker.States() {
		if state != breaker.Closed {
			t.Errorf("the circuit of %s is %v", target, state)
		}
	}
}

type ejectAll struct{}

func (ejectAll) Report(string, *http.Response, error) {}
func (ejectAll) Ejected(string) bool                  { return true }

// TestRefusalsAreNotRetried: a layer that refuses would refuse again.
func TestRefusalsAreNotRetried(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*chain)
		want   error
	}{
		{"circuit", func(c *chain) { c.breaker.Config.ConsecutiveFailures = 1 }, breaker.ErrOpen},
		{"rate", func(c *chain) { c.limit.Rate = limit.RateConfig{PerSecond: 0.001, Burst: 1} }, limit.ErrRateLimited},
		{"balancer", func(c *chain) { c.balancer.Outlier = ejectAll{} }, balancer.ErrNoHealthy},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newChain(serve(t, &grpctest.Service{
				Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
					return nil, status.Error(codes.DataLoss, "broken")
				},
			}))
			test.change(c)
			c.retry.Config.On.Conditions = retry.Unavailable | retry.ResourceExhausted | retry.ServerError
			c.retry.Config.AnyMethod = true
			tries := 0
			c.retry.Observe = func(_ context.Context, _ string, s retry.Summary) { tries = s.Attempts }
			client := grpctest.NewClient(grpctest.Dial(t, "discovery:///orders", c.options()...))
			var err error
			for range 2 {
				_, err = client.UnaryCall(t.Context(), &grpctest.Request{})
			}
			if !errors.Is(err, test.want) || tries != 1 {
				t.Errorf("%d tries, %v; want one, %v", tries, err, test.want)
			}
		})
	}
}

// BenchmarkChain is all layers beside a bare ClientConn, over loopback, without deadlines.
func BenchmarkChain(b *testing.B) {
	endpoint := serve(b, &grpctest.Service{Unary: grpctest.Echo})
	for _, bench := range []struct {
		name, target string
		options      []grpc.DialOption
	}{
		{"bare", endpoint.ID(), nil},
		{"all", "discovery:///orders", newChain(endpoint).options()},
	} {
		b.Run(bench.name, func(b *testing.B) {
			client := grpctest.NewClient(grpctest.Dial(b, bench.target, bench.options...))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.UnaryCall(b.Context(), &grpctest.Request{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
