package meshgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
)

// deny denies every peer a method of the test service.
func deny(method string) string {
	return strings.Replace(denyAll, "spec: {}", `spec: {action: DENY, rules: [{to: [{operation: {paths: ["/grpc.testing.TestService/`+method+`"]}}]}]}`, 1)
}

func apply(t *testing.T, m *mesh.Mesh, documents string) {
	t.Helper()
	if err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(documents)}); err != nil {
		t.Fatal(err)
	}
}

// overServeHTTP serves a gRPC server of m as the handler of an http.Server, and returns its address. The interceptors in outer run
// before those of m.
func overServeHTTP(t *testing.T, m *mesh.Mesh, s *grpctest.Service, outer ...grpc.ServerOption) string {
	t.Helper()
	server := grpc.NewServer(append(outer, meshgrpc.ServerOptions(m)...)...)
	grpctest.Register(server, s)
	listener := rawtest.Listen(t)
	front := &http.Server{Handler: server, Protocols: new(http.Protocols)}
	front.Protocols.SetUnencryptedHTTP2(true)
	var serving sync.WaitGroup
	serving.Go(func() { _ = front.Serve(listener) }) // ends with Close
	t.Cleanup(func() {
		front.Close()
		server.Stop()
		serving.Wait()
	})
	return listener.Addr().String()
}

// A DENY ends exactly the streams that it matches, in whichever direction their messages go and whatever they wait for.
func TestDenialsEndRunningCalls(t *testing.T) {
	payload := &grpc_testing.Payload{Body: make([]byte, 64<<10)}
	for name, call := range map[string]struct {
		method string
		handle func(grpctest.BidiServer) error // until it fails
		run    func(context.Context, *grpc.ClientConn) error
	}{
		"server sends": {"FullDuplexCall", func(s grpctest.BidiServer) error {
			for {
				if err := s.Send(&grpctest.Out{}); err != nil {
					return err
				}
			}
		}, receive},
		"server sends more than is received": {"FullDuplexCall", func(s grpctest.BidiServer) error {
			for {
				if err := s.Send(&grpctest.Out{Payload: payload}); err != nil {
					return err
				}
			}
		}, receive},
		"client sends": {"FullDuplexCall", func(s grpctest.BidiServer) error {
			for {
				if _, err := s.Recv(); err != nil {
					return err
				}
			}
		}, func(ctx context.Context, conn *grpc.ClientConn) error {
			stream, err := grpctest.NewClient(conn).FullDuplexCall(ctx)
			for err == nil {
				err = stream.Send(&grpctest.In{})
			}
			if err == io.EOF {
				_, err = stream.Recv()
			}
			return err
		}},
		"nobody sends": {"FullDuplexCall", func(s grpctest.BidiServer) error {
			_, err := s.Recv()
			return err
		}, receive},
		"handler waits": {"FullDuplexCall", func(s grpctest.BidiServer) error {
			<-s.Context().Done()
			return nil
		}, receive},
		"handler waits, and sends": {"FullDuplexCall", func(s grpctest.BidiServer) error {
			<-s.Context().Done()
			_ = s.Send(&grpctest.Out{})
			return nil
		}, receive},
		"unary": {"UnaryCall", nil, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := grpctest.NewClient(conn).UnaryCall(ctx, &grpctest.Request{})
			return err
		}},
	} {
		for _, over := range []string{"mTLS", "plaintext", "ServeHTTP"} {
			t.Run(name+"/"+over, func(t *testing.T) {
				leak.Check(t)
				w := newTown(t)
				ends := make(chan mesh.Inbound, 10)
				server := w.member(t, "payment", "", mesh.WithObserver(mesh.Observer{
					InboundEnd: func(_ context.Context, in *mesh.Inbound) { ends <- *in },
				}))
				begun, ended := make(chan bool, 1), make(chan error, 1)
				service := &grpctest.Service{
					Bidi: func(s grpctest.BidiServer) error {
						begun <- true
						err := call.handle(s)
						ended <- context.Cause(s.Context())
						return err
					},
					Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
						begun <- true
						<-ctx.Done()
						ended <- context.Cause(ctx)
						return &grpctest.Response{}, nil
					},
					Output: func(in *grpctest.In, s grpctest.OutServer) error { // which is not denied
						for s.Context().Err() == nil {
							if err := s.Send(&grpctest.Out{}); err != nil {
								return err
							}
						}
						return nil
					},
				}
				var conn *grpc.ClientConn
				switch over {
				case "mTLS":
					w.serve(t, server, "payment", service)
					conn = connect(t, w.member(t, "order", strict), "mesh:///payment")
				case "plaintext":
					conn = grpctest.Dial(t, grpctest.Serve(t, service, meshgrpc.ServerOptions(server)...))
				default:
					conn = grpctest.Dial(t, overServeHTTP(t, server, service))
				}
				ctx, cancel := context.WithCancel(bounded(t))
				defer cancel()
				other, err := grpctest.NewClient(conn).StreamingOutputCall(ctx, &grpctest.In{})
				if err != nil {
					t.Fatal(err)
				}
				result := make(chan error, 1)
				go func() { result <- call.run(bounded(t), conn) }()
				await.Receive(t, "the request to begin", begun)
				apply(t, server, deny(call.method))
				if err := await.Receive(t, "the handler to end", ended); err == nil || !strings.Contains(err.Error(), "access was withdrawn") {
					t.Errorf("the handler's context ended because of %v", err)
				}
				if s := status.Convert(await.Receive(t, "the client to see the end", result)); s.Code() != codes.PermissionDenied || s.Message() != "RBAC: access denied" {
					t.Errorf("the client saw %v, want PermissionDenied and RBAC: access denied", s)
				}
				if in := await.Receive(t, "observers to be told", ends); in.Decision.Allowed || in.GRPCStatus != int(codes.PermissionDenied) {
					t.Errorf("observers saw %+v and status %d, want a denial and %d", in.Decision, in.GRPCStatus, codes.PermissionDenied)
				}
				for range 3 {
					if _, err := other.Recv(); err != nil {
						t.Fatalf("a stream that is allowed: %v", err)
					}
				}
				cancel()
				await.Receive(t, "observers to be told", ends)
			})
		}
	}
}

// receive opens a stream, takes one message, and waits for the end.
func receive(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := grpctest.NewClient(conn).FullDuplexCall(ctx)
	for err == nil {
		_, err = stream.Recv()
	}
	return err
}

// A call is admitted, and then documents change before its message comes. It is decided by the new documents.
func TestCallIsDecidedAboutAgainWhenItsHandlerBegins(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	let := make(chan bool, 10)
	m := w.member(t, "payment", "", mesh.WithServer(mesh.ServerConfig{MaxRequests: 1}), mesh.WithObserver(mesh.Observer{
		InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { let <- true; return ctx },
	}))
	conn := grpctest.Dial(t, grpctest.Serve(t, whoCalls, meshgrpc.ServerOptions(m)...))
	stream, err := conn.NewStream(bounded(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, grpctest.UnaryMethod)
	if err != nil {
		t.Fatal(err)
	}
	await.Receive(t, "the call to be let through", let)
	// A second call, for which there is no room, shows that the connection has dealt with the first.
	if _, err := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{}); status.Code(err) != codes.Unavailable {
		t.Fatalf("a call beyond the limit: %v", err)
	}
	apply(t, m, deny("UnaryCall"))
	if err := stream.SendMsg(&grpctest.Request{}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	stream.CloseSend()
	if err := stream.RecvMsg(&grpctest.Response{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v, want PermissionDenied", err)
	}
	apply(t, m, deny("EmptyCall"))
	if _, err := grpctest.NewClient(conn).UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
		t.Errorf("after the denied call: %v, want its room", err)
	}
}

// The HTTP status of a gRPC call is 200, however it ends. Observers of inbound calls are told the gRPC status too.
func TestObserversSeeTheStatusOfInboundCalls(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	ends := make(chan mesh.Inbound, 1)
	observer := mesh.WithObserver(mesh.Observer{InboundEnd: func(_ context.Context, in *mesh.Inbound) { ends <- *in }})
	service := &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if in.ResponseSize == 100 {
				return nil, context.DeadlineExceeded
			}
			return &grpctest.Response{}, status.Error(codes.Code(in.ResponseSize), "as asked for")
		},
		Bidi:  func(s grpctest.BidiServer) error { return status.Error(codes.Aborted, "as ever") },
		Input: echoStreams.Input,
	}
	m := w.member(t, "payment", deny("EmptyCall"), observer)
	// Calls of a plain server behind Mesh.Handler are observed too.
	plain := grpc.NewServer()
	grpctest.Register(plain, service)
	inner := rawtest.Listen(t)
	front := &http.Server{Handler: m.Handler(plain), Protocols: new(http.Protocols)}
	front.Protocols.SetUnencryptedHTTP2(true)
	var serving sync.WaitGroup
	serving.Go(func() { _ = front.Serve(m.Listen(inner)) }) // ends with Close
	t.Cleanup(func() { front.Close(); plain.Stop(); serving.Wait() })
	for name, address := range map[string]string{
		"ServerOptions": grpctest.Serve(t, service, meshgrpc.ServerOptions(m)...),
		"ServeHTTP":     overServeHTTP(t, m, service),
		"Handler":       inner.Addr().String(),
	} {
		t.Run(name, func(t *testing.T) {
			client := grpctest.NewClient(grpctest.Dial(t, address))
			for size, code := range map[int32]codes.Code{0: codes.OK, 5: codes.NotFound, 14: codes.Unavailable, 100: codes.DeadlineExceeded} {
				_, err := client.UnaryCall(bounded(t), &grpctest.Request{ResponseSize: size})
				if in := await.Receive(t, "observers to be told", ends); status.Code(err) != code || in.Status != 200 || in.GRPCStatus != int(code) {
					t.Errorf("unary, %v: observers saw %d and %d (%v)", code, in.Status, in.GRPCStatus, err)
				}
			}
			stream, err := client.FullDuplexCall(bounded(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); status.Code(err) != codes.Aborted {
				t.Error(err)
			}
			if in := await.Receive(t, "observers to be told", ends); in.Status != 200 || in.GRPCStatus != int(codes.Aborted) {
				t.Errorf("stream: observers saw %d and %d", in.Status, in.GRPCStatus)
			}
			if _, err := uploadedCall(bounded(t), client); err != nil {
				t.Error(err)
			}
			if in := await.Receive(t, "observers to be told", ends); in.Status != 200 || in.GRPCStatus != int(codes.OK) {
				t.Errorf("upload: observers saw %d and %d", in.Status, in.GRPCStatus)
			}
			if _, err := client.EmptyCall(bounded(t), &grpc_testing.Empty{}); status.Code(err) != codes.PermissionDenied {
				t.Error(err)
			}
			if in := await.Receive(t, "observers to be told", ends); in.GRPCStatus != int(codes.PermissionDenied) {
				t.Errorf("denied: observers saw %d and %d", in.Status, in.GRPCStatus)
			}
		})
	}
	if !await.Done(func() bool { return len(ends) == 0 }) {
		t.Error("observers are told more than once")
	}
}

// Many calls are authorized, and authorized again, at the same time. None gets the metadata of another.
func TestCallsAreNotMixedUp(t *testing.T) {
	leak.Check(t)
	documents := func(n int) string {
		return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: default}
spec: {rules: [{when: [{key: "request.headers[x-user]", values: ["good-*"]}]}, {when: [{key: "request.headers[x-user]", values: ["other-%d"]}]}]}
`, n)
	}
	m := meshtest.New(t, documents(0))
	running := make(chan struct{}, 1)
	user := func(ctx context.Context) string {
		select {
		case running <- struct{}{}:
		default:
		}
		md, _ := metadata.FromIncomingContext(ctx)
		return strings.Join(md["x-user"], ",")
	}
	target := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			return &grpctest.Response{Username: user(ctx)}, nil
		},
		Bidi: func(s grpctest.BidiServer) error {
			name := user(s.Context())
			for {
				if _, err := s.Recv(); err != nil {
					return err
				}
				if again := user(s.Context()); again != name {
					return status.Errorf(codes.Internal, "%s became %s", name, again)
				}
				if err := s.Send(&grpctest.Out{}); err != nil {
					return err
				}
			}
		},
	}, meshgrpc.ServerOptions(m)...)
	client := grpctest.NewClient(grpctest.Dial(t, target))
	as := func(name string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "x-user", name, "x-many", strings.Repeat("x", len(name)))
	}
	var callers, changes sync.WaitGroup
	for i := range 4 {
		callers.Go(func() {
			good, bad := fmt.Sprint("good-", i), fmt.Sprint("bad-", i)
			stream, err := client.FullDuplexCall(as(good))
			if err != nil {
				t.Error(err)
				return
			}
			for range 100 {
				if reply, err := client.UnaryCall(as(good), &grpctest.Request{}); err != nil || reply.Username != good {
					t.Errorf("%s: the handler saw %q, %v", good, reply.GetUsername(), err)
				}
				if reply, err := client.UnaryCall(as(bad), &grpctest.Request{}); status.Code(err) != codes.PermissionDenied {
					t.Errorf("%s: the handler saw %q, %v", bad, reply.GetUsername(), err)
				}
				if err := stream.Send(&grpctest.In{}); err != nil {
					t.Error(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Errorf("%s: %v", good, err)
					return
				}
			}
			_ = stream.CloseSend()
			_, _ = stream.Recv()
		})
	}
	ended := make(chan struct{})
	changes.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-ended:
				return
			case <-running: // a call was made since the last change
				apply(t, m, documents(n))
			}
		}
	})
	callers.Wait()
	close(ended)
	changes.Wait()
}
