package meshgrpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy/limit"
	meshroute "github.com/nosidecar/mesh/policy/route"
)

// Documents change headers, path and authority, both on the wire and for the caller.
func TestRewrites(t *testing.T) {
	leak.Check(t)
	var seen metadata.MD
	var method string
	_, conn := one(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - match: [{headers: {x-mode: {exact: rewritten}}, uri: {exact: /old.Service/OldMethod}}]
    rewrite: {uri: /grpc.testing.TestService/UnaryCall, authority: other.example.com}
    headers:
      request: {set: {x-added: "1"}, remove: [x-removed]}
      response: {set: {x-answer: changed}, remove: [x-secret]}
    route: [{destination: {host: echo}}]
  - route: [{destination: {host: echo}}]
`, []discovery.Endpoint{serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			seen, _ = metadata.FromIncomingContext(ctx)
			method, _ = grpc.Method(ctx)
			return &grpctest.Response{}, grpc.SetHeader(ctx, metadata.Pairs("x-answer", "server's", "x-secret", "1", "x-kept", "2"))
		},
	})})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-mode", "rewritten", "x-removed", "1", "x-data-bin", "\x00\xff")
	var header metadata.MD
	if err := conn.Invoke(ctx, "/old.Service/OldMethod", &grpctest.Request{}, &grpctest.Response{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	if method != grpctest.UnaryMethod {
		t.Errorf("method %q, want %q", method, grpctest.UnaryMethod)
	}
	for key, want := range map[string][]string{":authority": {"other.example.com"}, "x-added": {"1"}, "x-removed": nil,
		"x-mode": {"rewritten"}, "x-data-bin": {"\x00\xff"}, "content-type": {"application/grpc"}} {
		if !slices.Equal(seen[key], want) {
			t.Errorf("the server saw %s: %q, want %q", key, seen[key], want)
		}
	}
	for key, want := range map[string][]string{"x-answer": {"changed"}, "x-secret": nil, "x-kept": {"2"}} {
		if !slices.Equal(header[key], want) {
			t.Errorf("the caller saw %s: %q, want %q", key, header[key], want)
		}
	}
}

// Unary calls are mirrored: the copy has the message as it was sent, even if the caller changes it later. Streams are not mirrored.
func TestMirror(t *testing.T) {
	leak.Check(t)
	copies := make(chan string, 100)
	var registry discovery.Memory
	registry.Set("echo", serve(t, echoStreams))
	registry.Set("shadow", serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			copies <- md[":authority"][0] + " " + string(in.Payload.Body)
			return nil, status.Error(codes.Internal, "nobody is to see this")
		},
	}))
	dropped := make(chan error, 1)
	m := meshtest.New(t, route("    mirror: {host: shadow}\n"), mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
		MirrorDropped: func(_ meshroute.Target, err error) {
			select {
			case dropped <- err:
			default: // the first one is enough
			}
		},
	}))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	message := &grpctest.Request{Payload: &grpc_testing.Payload{}}
	for i := range 20 {
		want := bytes.Repeat([]byte{byte('a' + i)}, 10)
		message.Payload.Body = want
		reply, err := client.UnaryCall(t.Context(), message)
		if err != nil {
			t.Fatal(err)
		}
		message.Payload.Body = []byte("changed")
		if got := reply.GetPayload().GetBody(); !bytes.Equal(got, want) {
			t.Errorf("reply %q, want %q", got, want)
		}
		if got := <-copies; got != "echo-shadow "+string(want) {
			t.Errorf("the mirror saw %q, want %q", got, want)
		}
	}
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stream.CloseSend()
	if _, err := stream.Recv(); err != io.EOF {
		t.Error(err)
	}
	if err := <-dropped; !strings.Contains(err.Error(), "streams are not mirrored") {
		t.Errorf("dropped: %v", err)
	}
}

// A copy is sent concurrently with the call. It does not use the options that the caller gave for its own call.
func TestMirrorOptions(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	seen := make(chan string, 1)
	for _, name := range []string{"echo", "shadow"} {
		registry.Set(name, serve(t, &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if name == "shadow" {
				md, _ := metadata.FromIncomingContext(ctx)
				seen <- md[":authority"][0]
			}
			return &grpctest.Response{}, grpc.SetHeader(ctx, metadata.Pairs("x-from", name))
		}}))
	}
	m := meshtest.New(t, route("    mirror: {host: shadow}\n"), mesh.WithDiscovery(&registry))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	for range 50 {
		var header metadata.MD
		var from peer.Peer
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.Header(&header), grpc.Peer(&from)); err != nil {
			t.Fatal(err)
		}
		if got := header["x-from"]; !slices.Equal(got, []string{"echo"}) || from.Addr == nil {
			t.Errorf("header x-from = %q, peer %v; want those of echo", got, from)
		}
		if got := <-seen; got != "echo-shadow" {
			t.Errorf("the mirror was called by the authority %q, want echo-shadow", got)
		}
	}
}

// A call that waits for an endpoint is mirrored once, however often it is started again.
func TestMirrorOfWaitingCall(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo")
	copies := make(chan struct{}, 100)
	registry.Set("shadow", serve(t, &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
		copies <- struct{}{}
		return grpctest.Echo(ctx, in)
	}}))
	var dropped atomic.Int64
	m := meshtest.New(t, route("    mirror: {host: shadow}\n"), mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
		MirrorDropped: func(meshroute.Target, error) { dropped.Add(1) },
	}))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := client.UnaryCall(ctx, &grpctest.Request{}, grpc.WaitForReady(true))
		ended <- err
	}()
	if !await.Done(func() bool { return len(copies)+int(dropped.Load()) >= 3 }) {
		t.Error("the call was not made anew")
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("error %v, want Canceled", err)
	}
	if n := len(copies); n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
}

// The server says when to retry, or not to (gRFC A6). A retry says that it is one.
func TestPushback(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	var pushback, previous atomic.Value
	answer := func(ctx context.Context) error {
		md, _ := metadata.FromIncomingContext(ctx)
		previous.Store(strings.Join(md["grpc-previous-rpc-attempts"], ","))
		if tries.Add(1) == 1 {
			if p := pushback.Load().(string); p != "" {
				_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", p))
			}
			return status.Error(codes.Unavailable, "come back")
		}
		return nil
	}
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			return &grpctest.Response{}, answer(ctx)
		},
		Bidi: func(stream grpctest.BidiServer) error { return answer(stream.Context()) },
	})})
	client := grpctest.NewClient(conn)
	calls := map[string]func() error{
		"unary": func() error { _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); return err },
		"stream": func() error {
			stream, err := client.FullDuplexCall(t.Context())
			if err == nil {
				if _, err = stream.Recv(); err == io.EOF {
					err = nil
				}
			}
			return err
		},
	}
	for kind, call := range calls {
		for _, test := range []struct {
			pushback string
			tries    int64
			wait     time.Duration
		}{{"", 2, 0}, {"300", 2, 300 * time.Millisecond}, {"-1", 1, 0}, {"soon", 1, 0}} {
			t.Run(kind+" "+test.pushback, func(t *testing.T) {
				tries.Store(0)
				pushback.Store(test.pushback)
				start := time.Now()
				err := call()
				if tries.Load() != test.tries || (err == nil) != (test.tries == 2) {
					t.Errorf("%v after %d tries, want %d", err, tries.Load(), test.tries)
				}
				if took := time.Since(start); took < test.wait {
					t.Errorf("it took %v, want at least %v", took, test.wait)
				}
				if test.tries == 2 && previous.Load() != "1" {
					t.Errorf("grpc-previous-rpc-attempts: %q, want 1", previous.Load())
				}
			})
		}
	}
}

// Errors are status errors, and errors.Is and errors.As find their causes.
func TestErrors(t *testing.T) {
	leak.Check(t)
	refuses, block := meshtest.Refusing(t), make(chan struct{})
	var registry discovery.Memory
	registry.Set("dead", refuses)
	registry.Set("empty")
	gate := serve(t, &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
		<-block
		return grpctest.Echo(ctx, in)
	}})
	t.Cleanup(func() { close(block) })
	registry.Set("slow", gate)
	registry.Set("echo", serve(t, echoStreams))
	registry.Set("other", serve(t, echoStreams))
	m := meshtest.New(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: slow}
spec: {hosts: [slow], http: [{timeout: 30ms, route: [{destination: {host: slow}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: unrouted}
spec: {hosts: [unrouted], http: [{match: [{uri: {exact: /no}}], route: [{destination: {host: echo}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: subset}
spec: {hosts: [subset], http: [{route: [{destination: {host: echo, subset: none}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: aborted}
spec: {hosts: [aborted], http: [{fault: {abort: {grpcStatus: DATA_LOSS, percentage: {value: 100}}}, route: [{destination: {host: other}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ended}
spec: {hosts: [ended], http: [{fault: {abort: {grpcStatus: OK, percentage: {value: 100}}}, route: [{destination: {host: other}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: moved}
spec: {hosts: [moved], http: [{redirect: {uri: /elsewhere}}]}
`, mesh.WithDiscovery(&registry), mesh.WithProtection(mesh.Protection{RateLimit: limit.RateConfig{PerSecond: 0.001, Burst: 1}}, "echo"))
	for _, test := range []struct {
		target string
		code   codes.Code
		layer  string // "" for an answer
		is     error
	}{
		{"dead", codes.Unavailable, "endpoint", nil},
		{"empty", codes.Unavailable, "balancer", balancer.ErrNoEndpoints},
		{"slow", codes.DeadlineExceeded, "timeout", context.DeadlineExceeded},
		{"unrouted", codes.Unimplemented, "", nil},
		{"subset", codes.Unavailable, "route", engine.ErrUnknownSubset},
		{"unknown", codes.Unavailable, "route", mesh.ErrNotInMesh},
		{"aborted", codes.DataLoss, "", nil},
		{"ended", codes.Internal, "", nil},
		{"moved", codes.Unknown, "", nil},
		{"echo", codes.OK, "", nil},
		{"echo", codes.Unavailable, "", limit.ErrRateLimited},
	} {
		conn := connect(t, m, "mesh:///"+test.target)
		client := grpctest.NewClient(conn)
		check := func(what string, err error) {
			t.Helper()
			var failed *mesh.Error
			if status.Code(err) != test.code || errors.As(err, &failed) != (test.layer != "") {
				t.Errorf("%s: %s: %v (%v), want %v of layer %q", test.target, what, err, status.Code(err), test.code, test.layer)
			} else if failed != nil && failed.Layer != test.layer || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%s: %s: %v, want layer %q and %v", test.target, what, err, test.layer, test.is)
			}
		}
		_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
		check("unary", err)
		if test.code == codes.OK || test.target == "slow" {
			continue
		}
		stream, err := client.FullDuplexCall(t.Context())
		if err == nil {
			_, err = stream.Recv()
		}
		check("stream", err)
	}
}

// What cannot be sent is the fault of the caller alone, who gets the error of gRPC.
func TestLocalErrors(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	echo := serve(t, &grpctest.Service{Unary: grpctest.Echo, Bidi: func(stream grpctest.BidiServer) error {
		<-stream.Context().Done() // an answer would race with the error
		return nil
	}})
	registry.Set("echo", echo)
	m := meshtest.New(t, threeTries+strings.Replace(ejecting, "maxEjectionPercent: 50", "maxEjectionPercent: 100", 1),
		mesh.WithDiscovery(&registry), mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 2}}))
	conn, bare := connect(t, m, "mesh:///echo"), grpctest.Dial(t, echo.ID())
	open := func(conn *grpc.ClientConn) grpc.ClientStream {
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/grpc.testing.TestService/FullDuplexCall")
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	large := &grpctest.Request{Payload: &grpc_testing.Payload{Body: make([]byte, 100)}}
	for name, fail := range map[string]func(*grpc.ClientConn) error{
		"message": func(conn *grpc.ClientConn) error {
			return conn.Invoke(t.Context(), grpctest.UnaryMethod, "no message", &grpctest.Response{})
		},
		"size": func(conn *grpc.ClientConn) error {
			return conn.Invoke(t.Context(), grpctest.UnaryMethod, large, &grpctest.Response{}, grpc.MaxCallSendMsgSize(10))
		},
		"metadata": func(conn *grpc.ClientConn) error {
			ctx := metadata.NewOutgoingContext(t.Context(), metadata.MD{"no key": {""}})
			return conn.Invoke(ctx, grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{})
		},
		"credentials": func(conn *grpc.ClientConn) error {
			return conn.Invoke(t.Context(), grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{}, grpc.PerRPCCredentials(secret{true}))
		},
		"message of a stream": func(conn *grpc.ClientConn) error {
			stream := open(conn)
			return errors.Join(stream.SendMsg("no message"), stream.RecvMsg(&grpctest.Out{}))
		},
		"message after CloseSend": func(conn *grpc.ClientConn) error {
			stream := open(conn)
			return errors.Join(stream.CloseSend(), stream.SendMsg(&grpctest.In{}), stream.RecvMsg(&grpctest.Out{}))
		},
	} {
		for range 3 {
			got, want := fail(conn), fail(bare)
			if want == nil || got == nil || got.Error() != want.Error() {
				t.Fatalf("%s: %v, want %v", name, got, want)
			}
		}
	}
	if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Error(err)
	}
}

// The message of the caller is never changed, and the reply has only what the last try received.
func TestMessages(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if tries.Add(1) < 3 {
				return nil, status.Error(codes.Unavailable, "not yet")
			}
			return &grpctest.Response{Payload: in.Payload}, nil
		},
	})})
	message := &grpctest.Request{Payload: &grpc_testing.Payload{Body: []byte("text")}}
	before := proto.Clone(message)
	reply := &grpctest.Response{Username: "of an earlier call"}
	if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, message, reply); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(message, before) {
		t.Errorf("the message was changed: %v", message)
	}
	if reply.Username != "" || string(reply.Payload.Body) != "text" {
		t.Errorf("reply %v", reply)
	}
}

// A panic of an interceptor reaches the caller, and all slots are released.
func TestPanic(t *testing.T) {
	leak.Check(t)
	var w watched
	var registry discovery.Memory
	registry.Set("echo", serve(t, echoStreams))
	m := meshtest.New(t, "", mesh.WithDiscovery(&registry), w.observer())
	client := grpctest.NewClient(connect(t, m, "mesh:///echo",
		grpc.WithChainUnaryInterceptor(func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
			panic("unary")
		}),
		grpc.WithChainStreamInterceptor(func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, grpc.Streamer, ...grpc.CallOption) (grpc.ClientStream, error) {
			panic("stream")
		})))
	caught := func(call func()) (p any) {
		defer func() { p = recover() }()
		call()
		return nil
	}
	if p := caught(func() { _, _ = client.UnaryCall(t.Context(), &grpctest.Request{}) }); p != "unary" {
		t.Errorf("panic %v", p)
	}
	if p := caught(func() { _, _ = client.FullDuplexCall(t.Context()) }); p != "stream" {
		t.Errorf("panic %v", p)
	}
	w.settled(t)
}

// The limits of a DestinationRule on connections hold.
func TestConnectionLimits(t *testing.T) {
	rule := func(pool string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: echo}\n" +
			"spec: {host: echo, trafficPolicy: {connectionPool: " + pool + "}}\n"
	}
	for _, test := range []struct {
		name, pool string
		pause      time.Duration // after every 4 calls
		want       int           // connections for 12 calls
	}{
		{"none", "{tcp: {connectTimeout: 5s}}", 0, 1},
		{"calls", "{http: {maxRequestsPerConnection: 4}}", 0, 3},
		{"one call", "{http: {maxRequestsPerConnection: 1}}", 0, 12},
		{"age", "{tcp: {maxConnectionDuration: 100ms}}", 120 * time.Millisecond, 3},
		{"idle", "{http: {idleTimeout: 50ms}}", 250 * time.Millisecond, 3},
		{"not idle", "{http: {idleTimeout: 50ms}}", 40 * time.Millisecond, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, endpoint, transport := inMemory(t, echoStreams)
				m := meshtest.New(t, rule(test.pool), transport, echoAt(endpoint))
				client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
				for i := range 12 {
					if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
						t.Fatal(err)
					}
					if i%4 == 3 {
						time.Sleep(test.pause)
					}
				}
				// The last call over a connection that is too old still succeeds.
				if n := network.Dials(); n != test.want {
					t.Errorf("%d connections, want %d", n, test.want)
				}
			})
		})
	}
}

// A connection on which a stream is silent is not idle: other calls share it.
func TestConnectionWithAStreamIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, endpoint, transport := inMemory(t, echoStreams)
		m := meshtest.New(t, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: echo}\n"+
			"spec: {host: echo, trafficPolicy: {connectionPool: {http: {idleTimeout: 1s}}}}\n", transport, echoAt(endpoint))
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		stream, err := client.FullDuplexCall(t.Context())
		if err == nil {
			err = stream.Send(&grpctest.In{})
		}
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil || network.Dials() != 1 {
			t.Errorf("%v over connection %d, want the first", err, network.Dials())
		}
		_ = stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("end of stream: %v, want io.EOF", err)
		}
	})
}

// A call that waits for an endpoint is delayed by the fault of its route once, however often it is started again, and counts once.
func TestWaitingCallIsDelayedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, endpoint, transport := inMemory(t, echoStreams)
		var registry discovery.Memory
		registry.Set("echo")
		m := meshtest.New(t, route("    fault: {delay: {fixedDelay: 10s, percentage: {value: 100}}}\n"), mesh.WithDiscovery(&registry),
			transport, mesh.WithProtection(mesh.Protection{RateLimit: limit.RateConfig{PerSecond: 0.001, Burst: 1}}))
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		time.AfterFunc(15*time.Second, func() {
			registry.Set("echo", endpoint)
		})
		began := time.Now()
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 17*time.Second {
			t.Errorf("the call took %v, though there was an endpoint after 15s", took)
		}
	})
}

// maxConnections does not delay calls that share a connection, and no more connections are made than it allows.
func TestMaxRequests(t *testing.T) {
	leak.Check(t)
	gate, begun := make(chan struct{}), make(chan struct{}, 10)
	_, conn := one(t, `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http2MaxRequests: 3}}}}
`, []discovery.Endpoint{serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			begun <- struct{}{}
			<-gate
			return grpctest.Echo(ctx, in)
		},
	})})
	client := grpctest.NewClient(conn)
	results := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
			results <- err
		}()
	}
	for range 3 {
		<-begun // all at once, over one connection
	}
	_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
	if status.Code(err) != codes.Unavailable || !errors.Is(err, limit.ErrOverflow) {
		t.Errorf("the fourth call: %v, want Unavailable and ErrOverflow", err)
	}
	close(gate)
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// overdue is a context that does not end at its deadline.
type overdue struct{ context.Context }

func (overdue) Deadline() (time.Time, bool) { return time.Unix(1, 0), true }

// A call ends even if its context does not end at its deadline.
func TestContextThatOutlivesItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, endpoint, transport := inMemory(t, echoStreams)
		m := meshtest.New(t, "", transport, echoAt(endpoint))
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() {
			_, err := client.UnaryCall(overdue{ctx}, &grpctest.Request{})
			done <- err
		}()
		select {
		case err := <-done:
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%v, want DeadlineExceeded", err)
			}
		case <-time.After(time.Minute):
			t.Error("the call has not ended after a minute")
			cancel()
			<-done
		}
	})
}
