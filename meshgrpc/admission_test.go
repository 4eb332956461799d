package meshgrpc_test

import (
	"context"
	"encoding/base64"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

const denyAll = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: default}
spec: {}
`

// decoding counts the messages that a server decodes.
type decoding struct {
	encoding.CodecV2
	messages atomic.Int64
}

func (d *decoding) Unmarshal(data mem.BufferSlice, v any) error {
	d.messages.Add(1)
	return d.CodecV2.Unmarshal(data, v)
}

// bounded returns a context that ends if the test hangs.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// inbounds counts the inbound calls of an observer: those that are still open, and those that have ended.
type inbounds struct{ open, ended atomic.Int64 }

func (n *inbounds) observer() mesh.Option {
	return mesh.WithObserver(mesh.Observer{
		InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { n.open.Add(1); return ctx },
		InboundEnd:   func(context.Context, *mesh.Inbound) { n.open.Add(-1); n.ended.Add(1) },
	})
}

// silent makes a call of a unary method that sends its headers and nothing else, and returns how it ended.
func silent(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, grpctest.UnaryMethod)
	if err != nil {
		return err
	}
	return stream.RecvMsg(&grpctest.Response{})
}

// A denied call is answered as soon as its headers arrive: no message is awaited or decoded, and no interceptor sees the call.
func TestDeniedCallIsAnsweredBeforeItsMessageIsReceived(t *testing.T) {
	leak.Check(t)
	var observed inbounds
	m := meshtest.New(t, denyAll, observed.observer())
	codec := &decoding{CodecV2: encoding.GetCodecV2("proto")}
	var intercepted atomic.Int64
	address := grpctest.Serve(t, whoCalls, append(meshgrpc.ServerOptions(m),
		grpc.ForceServerCodecV2(codec),
		grpc.UnaryInterceptor(func(ctx context.Context, message any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			intercepted.Add(1)
			return handler(ctx, message)
		}),
	)...)
	conn := grpctest.Dial(t, address)
	for name, call := range map[string]func(context.Context) error{
		"a call without a message": func(ctx context.Context) error { return silent(ctx, conn) },
		"garbage": func(ctx context.Context) error {
			garbage := &grpctest.Frame{Data: mem.BufferSlice{mem.SliceBuffer("\xff\xff\xff")}}
			return conn.Invoke(ctx, grpctest.UnaryMethod, garbage, &grpctest.Frame{}, grpc.ForceCodecV2(grpctest.FrameCodec{}))
		},
		"a call": func(ctx context.Context) error {
			_, err := grpctest.NewClient(conn).UnaryCall(ctx, &grpctest.Request{Payload: grpctest.Large('a')})
			return err
		},
		"a stream": func(ctx context.Context) error {
			stream, err := grpctest.NewClient(conn).FullDuplexCall(ctx)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	} {
		if s := status.Convert(call(bounded(t))); s.Code() != codes.PermissionDenied || s.Message() != "RBAC: access denied" {
			t.Errorf("%s: %v, want PermissionDenied and RBAC: access denied", name, s)
		}
	}
	if n := codec.messages.Load(); n > 0 {
		t.Errorf("%d messages of calls that were denied were decoded", n)
	}
	if n := intercepted.Load(); n > 0 {
		t.Errorf("an interceptor saw %d calls that were denied", n)
	}
	if open, ended := observed.open.Load(), observed.ended.Load(); open != 0 || ended != 4 {
		t.Errorf("observers saw %d calls without an end, and the end of %d, want 0 and 4", open, ended)
	}
}

// A call beyond a limit is answered at its headers too, and clients do not retry it.
func TestCallBeyondALimitIsAnsweredBeforeItsMessageIsReceived(t *testing.T) {
	leak.Check(t)
	rate := limit.RateConfig{PerSecond: 0.001, Burst: 1}
	m := meshtest.New(t, "", mesh.WithServer(mesh.ServerConfig{RateLimit: rate}))
	address := grpctest.Serve(t, whoCalls, meshgrpc.ServerOptions(m)...)
	tries := 0
	retries := &retrygrpc.Client{
		Config:  retry.Config{Retries: 2, Backoff: -1, On: retry.On{Conditions: retry.Unavailable}},
		Observe: func(_ context.Context, _ string, s retry.Summary) { tries = s.Attempts },
	}
	conn := grpctest.Dial(t, address, retries.DialOptions()...)
	if _, err := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	if err := silent(bounded(t), conn); status.Code(err) != codes.Unavailable || tries != 1 {
		t.Errorf("%v after %d tries, want Unavailable after one", err, tries)
	}
}

// An admitted call that never reaches a handler gives back what it holds.
func TestCallWithoutAMessageHoldsNothingOnceItIsOver(t *testing.T) {
	leak.Check(t)
	var observed inbounds
	m := meshtest.New(t, "", mesh.WithServer(mesh.ServerConfig{MaxRequests: 1}), observed.observer())
	conn := grpctest.Dial(t, grpctest.Serve(t, whoCalls, meshgrpc.ServerOptions(m)...))
	for range 5 {
		ctx, cancel := context.WithCancel(bounded(t))
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, grpctest.UnaryMethod)
		if err != nil {
			t.Fatal(err)
		}
		if !await.Done(func() bool { return observed.open.Load() == 1 }) {
			t.Fatal("the call was not let through")
		}
		cancel()
		if err := stream.RecvMsg(&grpctest.Response{}); status.Code(err) != codes.Canceled {
			t.Errorf("the call ended with %v", err)
		}
		if !await.Done(func() bool { return observed.open.Load() == 0 }) {
			t.Fatal("the call has no end")
		}
		if _, err := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
			t.Fatalf("the next call: %v", err)
		}
		if !await.Done(func() bool { return observed.open.Load() == 0 }) {
			t.Fatal("the next call has no end")
		}
	}
}

// A gRPC server that is the handler of an http.Server has no transport of gRPC, so calls cannot be refused at their headers.
func TestDeniedCallOverServeHTTP(t *testing.T) {
	leak.Check(t)
	var observed inbounds
	m := meshtest.New(t, strings.Replace(denyAll, "spec: {}", `spec: {rules: [{to: [{operation: {paths: ["/grpc.testing.TestService/UnaryCall"]}}]}]}`, 1),
		observed.observer())
	client := grpctest.NewClient(grpctest.Dial(t, overServeHTTP(t, m, &grpctest.Service{Unary: grpctest.Echo})))
	if _, err := client.UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
		t.Errorf("allowed call: %v", err)
	}
	stream, err := client.FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("denied call: %v, want PermissionDenied", err)
	}
	if !await.Done(func() bool { return observed.open.Load() == 0 && observed.ended.Load() == 2 }) {
		t.Errorf("observers saw %d calls without an end, and the end of %d, want 0 and 2", observed.open.Load(), observed.ended.Load())
	}
}

// Policies see the headers of a call as they are in HTTP, in each of their spellings: binary metadata is encoded, and te is present.
func TestAuthorizationSeesMetadataAsHeaders(t *testing.T) {
	leak.Check(t)
	encoded := base64.StdEncoding.EncodeToString([]byte("admin")) // with padding
	for _, test := range []struct {
		name, key, value string
		code             codes.Code
	}{
		{"decoded", "x-role-bin", "admin", codes.PermissionDenied},
		{"encoded", "x-role-bin", encoded, codes.PermissionDenied},
		{"encoded without padding", "x-role-bin", strings.TrimRight(encoded, "="), codes.PermissionDenied},
		{"another value", "x-role-bin", "user", codes.OK},
		{"te", "te", "trailers", codes.PermissionDenied},
		{"space around it", "x-space", "admin", codes.PermissionDenied},
		{"one of a list", "x-list", "admin", codes.PermissionDenied},
		{"not that of the list", "x-list", "root", codes.OK},
		{"authority with a dot at its end", ":authority", "secret.example", codes.PermissionDenied},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := meshtest.New(t, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec: {action: DENY, rules: [{when: [{key: "request.headers[`+test.key+`]", values: ["`+test.value+`"]}]}]}
`, mesh.WithWorkload(policy.Workload{}))
			address := grpctest.Serve(t, whoCalls, meshgrpc.ServerOptions(m)...)
			client := grpctest.NewClient(grpctest.Dial(t, address, grpc.WithAuthority("secret.example.")))
			ctx := metadata.AppendToOutgoingContext(bounded(t), "x-role-bin", "admin", "x-space", " admin", "x-list", "user, admin")
			if _, err := client.UnaryCall(ctx, &grpctest.Request{}); status.Code(err) != test.code {
				t.Errorf("%v, want %v", err, test.code)
			}
		})
	}
}

// An interceptor that runs the handler of a call a second time gets an error, since the call has given back what it held.
func TestHandlerThatIsRunAgain(t *testing.T) {
	leak.Check(t)
	var observed inbounds
	m := meshtest.New(t, "", observed.observer())
	options := append([]grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if _, err := handler(ctx, in); err != nil {
				return nil, err
			}
			return handler(ctx, in)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := handler(srv, stream); err != nil {
				return err
			}
			return handler(srv, stream)
		}),
	}, meshgrpc.ServerOptions(m)...)
	client := grpctest.NewClient(grpctest.Dial(t, grpctest.Serve(t, echoStreams, options...)))
	if _, err := client.UnaryCall(bounded(t), &grpctest.Request{}); status.Code(err) != codes.Internal {
		t.Errorf("unary: %v, want Internal", err)
	}
	stream, err := client.FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("stream: %v, want Internal", err)
	}
	if !await.Done(func() bool { return observed.open.Load() == 0 && observed.ended.Load() == 2 }) {
		t.Errorf("observers saw %d calls without an end, and the end of %d, want 0 and 2", observed.open.Load(), observed.ended.Load())
	}
}

// brokenStream is a stream that panics or exits the goroutine when a message is sent.
type brokenStream struct {
	grpc.ServerStream
	end func()
}

func (s brokenStream) SendMsg(any) error { s.end(); return nil }

// A panic in a stream reaches the goroutine of its handler, where an interceptor can recover it.
func TestPanicInAStreamOverServeHTTP(t *testing.T) {
	leak.Check(t)
	for name, end := range map[string]func(){"panic": func() { panic("codec") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			var observed inbounds
			m := meshtest.New(t, "", observed.observer())
			recovering := func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
				defer func() {
					if p := recover(); p != nil {
						err = status.Error(codes.DataLoss, "recovered")
					}
				}()
				return handler(srv, brokenStream{stream, end})
			}
			client := grpctest.NewClient(grpctest.Dial(t, overServeHTTP(t, m, echoStreams, grpc.ChainStreamInterceptor(recovering))))
			stream, err := client.FullDuplexCall(bounded(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&grpctest.In{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); status.Code(err) != codes.DataLoss {
				t.Errorf("%v, want DataLoss", err)
			}
			if !await.Done(func() bool { return observed.open.Load() == 0 && observed.ended.Load() == 1 }) {
				t.Errorf("observers saw %d calls without an end, and the end of %d, want 0 and 1", observed.open.Load(), observed.ended.Load())
			}
		})
	}
}
