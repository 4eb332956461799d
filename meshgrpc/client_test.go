package meshgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// one registers the endpoints of the service "echo" and returns a connection through a mesh with the documents.
func one(t testing.TB, documents string, endpoints []discovery.Endpoint, opts ...grpc.DialOption) (*mesh.Mesh, *grpc.ClientConn) {
	t.Helper()
	var registry discovery.Memory
	registry.Set("echo", endpoints...)
	m := meshtest.New(t, documents, mesh.WithDiscovery(&registry))
	return m, connect(t, m, "mesh:///echo", opts...)
}

func route(settings string) string {
	return `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - route: [{destination: {host: echo}}]
` + settings
}

// Calls do not use a proxy that the environment names: the identity of the endpoint could not be verified through it.
func TestProxyIsNotUsed(t *testing.T) {
	leak.Check(t)
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	w := newTown(t)
	w.serve(t, w.member(t, "payment", strict), "payment", whoCalls)
	client := grpctest.NewClient(connect(t, w.member(t, "order", strict), "mesh:///payment"))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Error(err)
	}
}

// refusing is an HTTP/2 server that refuses every stream.
func refusing(t testing.TB, seen *atomic.Int64) discovery.Endpoint {
	t.Helper()
	ln := rawtest.Listen(t)
	var serving sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	serving.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, nc)
			mu.Unlock()
			serving.Go(func() {
				if _, err := io.ReadFull(nc, make([]byte, len(http2.ClientPreface))); err != nil {
					return
				}
				f := http2.NewFramer(nc, nc)
				f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
				_ = f.WriteSettings()
				for {
					frame, err := f.ReadFrame()
					if err != nil {
						return
					}
					switch frame := frame.(type) {
					case *http2.SettingsFrame:
						if !frame.IsAck() {
							_ = f.WriteSettingsAck()
						}
					case *http2.MetaHeadersFrame:
						seen.Add(1)
						_ = f.WriteRSTStream(frame.StreamID, http2.ErrCodeRefusedStream)
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, nc := range conns {
			nc.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return meshtest.EndpointOf(t, ln.Addr().String())
}

// When a stream is refused, gRPC starts again by itself and asks for another connection. It gets one to another endpoint.
func TestTransparentRetryGoesElsewhere(t *testing.T) {
	leak.Check(t)
	var refused atomic.Int64
	good := serve(t, echoStreams)
	var sent atomic.Int64
	var registry discovery.Memory
	registry.Set("echo", refusing(t, &refused), good)
	m := meshtest.New(t, route("    retries: {attempts: 0}\n"), mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
		AttemptEnd: func(_ context.Context, a *mesh.Attempt) {
			sent.Add(1)
			if want := net.JoinHostPort(good.Address, strconv.Itoa(good.Port)); a.Endpoint != want {
				t.Errorf("the try ended at %s, want %s", a.Endpoint, want)
			}
		},
	}))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	const calls = 40
	for i := range calls {
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
			t.Fatal(err)
		}
		if i%4 > 0 {
			continue
		}
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&grpctest.In{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Fatal(err)
		}
	}
	if refused.Load() == 0 {
		t.Error("no stream was refused")
	}
	if sent.Load() != calls*5/4 {
		t.Errorf("%d tries of %d calls", sent.Load(), calls*5/4)
	}
}

// If the server ends a call just before our own limit does, the call counts as our timeout, and not as an answer.
func TestServerMayEndTheTryFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, bad, transport := inMemory(t, &grpctest.Service{Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			at, ok := ctx.Deadline()
			if !ok {
				return nil, status.Error(codes.Internal, "no deadline was told")
			}
			time.Sleep(time.Until(at) - 10*time.Millisecond)
			return nil, status.Error(codes.DeadlineExceeded, "too slow")
		}})
		m := meshtest.New(t, route("    timeout: 100ms\n    retries: {attempts: 3, retryOn: deadline-exceeded}\n"), transport, echoAt(bad))
		_, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).UnaryCall(t.Context(), &grpctest.Request{})
		var failed *mesh.Error
		if status.Code(err) != codes.DeadlineExceeded || !errors.As(err, &failed) || failed.Layer != "timeout" || failed.Attempts != 1 {
			t.Errorf("error %v, want the timeout of the route after one try", err)
		}
	})
}

const ejecting = `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, interval: 600s, baseEjectionTime: 600s, maxEjectionPercent: 50}
`

// A ClientConn that was idle has lost its balancer, but what is known about endpoints is kept.
func TestIdleAndBack(t *testing.T) {
	leak.Check(t)
	var seen atomic.Int64
	bad := serve(t, &grpctest.Service{Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
		seen.Add(1)
		return nil, status.Error(codes.Internal, "broken")
	}})
	_, conn := one(t, route("    retries: {attempts: 0}\n")+ejecting, []discovery.Endpoint{serve(t, echoStreams), bad},
		grpc.WithIdleTimeout(30*time.Millisecond))
	client := grpctest.NewClient(conn)
	call := func() {
		_, _ = client.UnaryCall(t.Context(), &grpctest.Request{})
	}
	for range 20 {
		call()
	}
	if seen.Load() != 3 {
		t.Fatalf("the bad endpoint got %d calls before it was ejected, want 3", seen.Load())
	}
	for range 3 {
		if !await.Done(func() bool { return conn.GetState() == connectivity.Idle }) {
			t.Fatal("the connection did not go idle")
		}
		for range 10 {
			if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if seen.Load() != 3 {
		t.Errorf("the bad endpoint got %d calls, want no more than 3: it is ejected", seen.Load())
	}
}

func TestServiceConfigReplaced(t *testing.T) {
	other := grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`)
	for _, test := range []struct {
		name string
		opts []grpc.DialOption
		want string // "" for calls that work
	}{
		{"another default", []grpc.DialOption{other}, "load balancer of the mesh is not in use"},
		{"disabled, and another default", []grpc.DialOption{grpc.WithDisableServiceConfig(), other}, "load balancer of the mesh is not in use"},
		{"disabled", []grpc.DialOption{grpc.WithDisableServiceConfig()}, ""},
		{"another default that names us", []grpc.DialOption{grpc.WithDefaultServiceConfig(
			`{"loadBalancingConfig":[{"` + meshgrpc.BalancerName + `":{}}],"methodConfig":[{"name":[{}],"waitForReady":true}]}`)}, ""},
		{"other credentials", []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, "credentials of the mesh are not in use"},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			_, conn := one(t, "", []discovery.Endpoint{serve(t, echoStreams)}, test.opts...)
			client := grpctest.NewClient(conn)
			for _, opts := range [][]grpc.CallOption{nil, {grpc.WaitForReady(true)}} {
				_, err := client.UnaryCall(t.Context(), &grpctest.Request{}, opts...)
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("error %v, want %q", err, test.want)
				}
			}
		})
	}
}

// If an interceptor ends a call before it reaches the load balancer, the caller gets the error of the interceptor.
func TestInterceptorThatRefusesCalls(t *testing.T) {
	leak.Check(t)
	for _, reason := range []error{status.Error(codes.Unavailable, "not today"), status.Error(codes.InvalidArgument, "not so"), errors.New("no")} {
		_, conn := one(t, "", []discovery.Endpoint{serve(t, echoStreams)},
			grpc.WithChainUnaryInterceptor(func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
				return reason
			}),
			grpc.WithChainStreamInterceptor(func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, grpc.Streamer, ...grpc.CallOption) (grpc.ClientStream, error) {
				return nil, reason
			}))
		client := grpctest.NewClient(conn)
		_, unary := client.UnaryCall(t.Context(), &grpctest.Request{})
		_, stream := client.FullDuplexCall(t.Context())
		for _, err := range []error{unary, stream} {
			said := err == reason
			if status.Code(reason) == codes.Unavailable { // which gRPC says, too, if the balancer of the mesh is not in use
				said = errors.Is(err, reason) && strings.Contains(err.Error(), "not today")
			}
			if status.Code(err) != status.Code(reason) || !said {
				t.Errorf("error %v, want that of the interceptor", err)
			}
		}
	}
}

// The retry policy of a service config is ignored: that of the mesh applies.
func TestRetryPolicyOfServiceConfigIsNotUsed(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	_, conn := one(t, route("    retries: {attempts: 1, retryOn: unavailable, backoff: 1ms}\n"), []discovery.Endpoint{serve(t, &grpctest.Service{
		Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
			tries.Add(1)
			return nil, status.Error(codes.Unavailable, "no")
		},
	})}, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"`+meshgrpc.BalancerName+`":{}}],"methodConfig":[{"name":[{}],
		"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}]}`))
	_, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{})
	if status.Code(err) != codes.Unavailable || tries.Load() != 2 {
		t.Errorf("%v after %d tries, want Unavailable after 2", err, tries.Load())
	}
}

// If there are no endpoints, or all are ejected, a call fails at once, unless it is wait-for-ready.
func TestNothingToPick(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo")
	m := meshtest.New(t, "", mesh.WithDiscovery(&registry))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != codes.Unavailable {
		t.Errorf("error %v, want Unavailable", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.UnaryCall(short, &grpctest.Request{}, grpc.WaitForReady(true)); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("error %v, want DeadlineExceeded", err)
	}
	waiting := make(chan error, 2)
	go func() {
		_, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.WaitForReady(true))
		waiting <- err
	}()
	go func() {
		stream, err := client.FullDuplexCall(t.Context(), grpc.WaitForReady(true))
		if err == nil {
			stream.CloseSend()
			if _, err = stream.Recv(); err == io.EOF {
				err = nil
			}
		}
		waiting <- err
	}()
	registry.Set("echo", meshtest.Refusing(t))
	registry.Set("echo", serve(t, echoStreams))
	for range 2 {
		if err := <-waiting; err != nil {
			t.Error(err)
		}
	}
}

// A server that has read a stream may have processed it, so reset-before-request does not retry it.
func TestResetBeforeRequestDoesNotRepeatWhatWasSent(t *testing.T) {
	leak.Check(t)
	var calls atomic.Int64
	address := grpctest.ServeFrames(t, func(n int, f *grpctest.Frames, stream uint32) bool {
		calls.Store(int64(n))
		f.Reset(stream, http2.ErrCodeInternal)
		return true
	})
	_, conn := one(t, route("    retries: {attempts: 2, retryOn: reset-before-request, backoff: 1ms}\n"),
		[]discovery.Endpoint{meshtest.EndpointOf(t, address)})
	if _, err := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{}); err == nil {
		t.Error("a call that was reset ended well")
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls, want 1", n)
	}
}

// A wait-for-ready call goes on even if no connection to its first endpoint could be made.
func TestWaitingCallOutlivesAnEndpointThatIsDown(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", meshtest.Refusing(t))
	failed := make(chan struct{}, 100)
	m := meshtest.New(t, route("    retries: {attempts: 0}\n"), mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
		AttemptEnd: func(_ context.Context, a *mesh.Attempt) {
			select {
			case failed <- struct{}{}:
			default:
			}
		},
	}))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	ended := make(chan error, 1)
	go func() {
		_, err := client.UnaryCall(bounded(t), &grpctest.Request{}, grpc.WaitForReady(true))
		ended <- err
	}()
	await.Receive(t, "an attempt that fails", failed)
	registry.Set("echo", serve(t, echoStreams))
	if err := await.Receive(t, "the end of the call", ended); err != nil {
		t.Error(err)
	}
}

// A server allows 100 streams per connection, and 250 run at once.
func TestMaxConcurrentStreamsHoldsUpNobody(t *testing.T) {
	leak.Check(t)
	var conns sync.Map
	var open atomic.Int64
	gate := make(chan struct{})
	_, conn := one(t, "", []discovery.Endpoint{serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			p, _ := peer.FromContext(ctx)
			conns.Store(p.Addr.String(), true)
			open.Add(1)
			<-gate
			return grpctest.Echo(ctx, in)
		},
	}, grpc.MaxConcurrentStreams(100))})
	client := grpctest.NewClient(conn)
	var callers sync.WaitGroup
	const calls = 250
	begin := func() {
		callers.Go(func() {
			if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
				t.Error(err)
			}
		})
	}
	for range calls {
		begin()
	}
	if !await.Done(func() bool { return open.Load() == calls }) {
		t.Errorf("%d of %d calls reached the server", open.Load(), calls)
	}
	close(gate)
	callers.Wait()
	n := 0
	conns.Range(func(_, _ any) bool { n++; return true })
	if n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

// The call options that return something to the caller are set once per call, from the last try.
func TestOptionsOnce(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	fails := func(ctx context.Context) error {
		n := tries.Add(1)
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-try", strconv.FormatInt(n, 10)))
		if n%3 != 0 {
			return status.Error(codes.Unavailable, "not yet")
		}
		return grpc.SetHeader(ctx, metadata.Pairs("x-answer", strconv.FormatInt(n, 10)))
	}
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if err := fails(ctx); err != nil {
				return nil, err
			}
			return grpctest.Echo(ctx, in)
		},
		Output: func(in *grpctest.In, stream grpctest.OutServer) error {
			if err := fails(stream.Context()); err != nil {
				return err
			}
			return stream.Send(&grpctest.Out{})
		},
	})})
	client := grpctest.NewClient(conn)
	for _, kind := range []string{"unary", "stream"} {
		t.Run(kind, func(t *testing.T) {
			tries.Store(0)
			var header, trailer metadata.MD
			var from peer.Peer
			var ends []error
			opts := []grpc.CallOption{grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from),
				grpc.OnFinish(func(err error) { ends = append(ends, err) })}
			var err error
			if kind == "unary" {
				_, err = client.UnaryCall(t.Context(), &grpctest.Request{}, opts...)
			} else {
				var stream grpc.ServerStreamingClient[grpctest.Out]
				if stream, err = client.StreamingOutputCall(t.Context(), &grpctest.In{}, opts...); err != nil {
					t.Fatal(err)
				}
				if _, err = stream.Recv(); err == nil {
					if _, err = stream.Recv(); err == io.EOF {
						err = nil
					}
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if tries.Load() != 3 || len(ends) != 1 || ends[0] != nil {
				t.Errorf("%d tries; OnFinish was called with %v, want once, with nil", tries.Load(), ends)
			}
			if got := header["x-answer"]; !slices.Equal(got, []string{"3"}) {
				t.Errorf("header x-answer = %v, want [3]", got)
			}
			if got := trailer["x-try"]; !slices.Equal(got, []string{"3"}) {
				t.Errorf("trailer x-try = %v, want [3]", got)
			}
			if from.Addr == nil {
				t.Error("no peer")
			}
		})
	}
}

// The caller gets nothing that an earlier try received, even if the last try received nothing.
func TestOptionsOfTheLastTry(t *testing.T) {
	leak.Check(t)
	fails := func(ctx context.Context) error {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-try", "1"))
		return status.Error(codes.Unavailable, "not here")
	}
	answers := serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) { return nil, fails(ctx) },
		Bidi:  func(stream grpctest.BidiServer) error { return fails(stream.Context()) },
	})
	_, conn := one(t, route("    retries: {attempts: 1, retryOn: \"unavailable,connect-failure\", backoff: 1ms}\n"),
		[]discovery.Endpoint{answers, meshtest.Refusing(t)})
	client := grpctest.NewClient(conn)
	for _, kind := range []string{"unary", "stream"} {
		answered, unconnected := 0, 0
		for n := 0; answered == 0 || unconnected == 0; n++ {
			if n > 200 {
				t.Fatalf("%s: of %d calls, %d ended with an answer and %d without a connection", kind, n, answered, unconnected)
			}
			var trailer metadata.MD
			var from peer.Peer
			var err error
			if opts := []grpc.CallOption{grpc.Trailer(&trailer), grpc.Peer(&from)}; kind == "unary" {
				_, err = client.UnaryCall(t.Context(), &grpctest.Request{}, opts...)
			} else {
				var stream grpc.BidiStreamingClient[grpctest.In, grpctest.Out]
				if stream, err = client.FullDuplexCall(t.Context(), opts...); err == nil {
					_, err = stream.Recv()
				}
			}
			if status.Convert(err).Message() == "not here" {
				answered++
				if !slices.Equal(trailer["x-try"], []string{"1"}) || from.Addr == nil {
					t.Errorf("%s: trailer %v and peer %v, want those of the answer", kind, trailer, from.Addr)
				}
			} else {
				unconnected++
				if len(trailer) > 0 || from.Addr != nil {
					t.Errorf("%s: trailer %v and peer %v are those of the first try", kind, trailer, from.Addr)
				}
			}
		}
	}
}

// gRPC finds the balancer by its name, from the start of the program.
func TestMeshSchemeIsRegistered(t *testing.T) {
	if b := balancer.Get(meshgrpc.BalancerName); b == nil || b.Name() != meshgrpc.BalancerName {
		t.Errorf("balancer.Get(%q) = %v", meshgrpc.BalancerName, b)
	}
}

// A stream is retried until it is answered, with the messages that were sent. The limit of a try does not end a stream that was answered.
func TestStreamsAreRetriedBeforeTheFirstMessage(t *testing.T) {
	const limit = 100 * time.Millisecond
	var tries atomic.Int64
	open := func(t *testing.T, how string) grpc.BidiStreamingClient[grpctest.In, grpctest.Out] {
		tries.Store(0)
		_, endpoint, transport := inMemory(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
			n := tries.Add(1)
			switch how {
			case "retried":
				if _, err := stream.Recv(); err != nil {
					return err
				}
				if n < 3 {
					return status.Error(codes.Unavailable, "not yet")
				}
				return stream.Send(&grpctest.Out{Payload: nil})
			case "answered":
				if err := stream.Send(&grpctest.Out{}); err != nil {
					return err
				}
				return status.Error(codes.Unavailable, "after a message")
			case "hangs first":
				if n == 1 {
					<-stream.Context().Done()
					return nil
				}
			}
			return echoStreams.Bidi(stream)
		}})
		m := meshtest.New(t, route(fmt.Sprintf("    retries: {attempts: 2, perTryTimeout: %v, retryOn: \"5xx,unavailable\"}\n", limit)),
			transport, echoAt(endpoint))
		stream, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	for name, test := range map[string]func(t *testing.T){
		"retried with its messages": func(t *testing.T) {
			stream := open(t, "retried")
			if err := stream.Send(&grpctest.In{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != io.EOF || tries.Load() != 3 {
				t.Errorf("end %v after %d tries, want EOF after 3", err, tries.Load())
			}
		},
		"not retried after a message": func(t *testing.T) {
			stream := open(t, "answered")
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || tries.Load() != 1 {
				t.Errorf("end %v after %d tries, want Unavailable after 1", err, tries.Load())
			}
		},
		"a try that hangs is made anew": func(t *testing.T) {
			stream := open(t, "hangs first")
			if err := stream.Send(&grpctest.In{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil || tries.Load() != 2 {
				t.Errorf("answer %v after %d tries, want one after 2", err, tries.Load())
			}
			stream.CloseSend()
			if _, err := stream.Recv(); err != io.EOF {
				t.Error(err)
			}
		},
		"a healthy stream is not cut": func(t *testing.T) {
			stream := open(t, "echo")
			for range 4 {
				if err := stream.Send(&grpctest.In{}); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(limit)
			}
			stream.CloseSend()
			if _, err := stream.Recv(); err != io.EOF || tries.Load() != 1 {
				t.Errorf("end %v after %d tries, want EOF after 1", err, tries.Load())
			}
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
}
