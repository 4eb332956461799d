package breakergrpc_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/breaker/breakergrpc"
	"github.com/nosidecar/mesh/internal/grpctest"
)

// switchable is a service that fails with a code that can be changed.
func switchable(code *atomic.Uint32, calls *atomic.Int32) *grpctest.Service {
	fail := func() error {
		calls.Add(1)
		return status.Error(codes.Code(code.Load()), "as told")
	}
	return &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if err := fail(); err != nil {
				return nil, err
			}
			return grpctest.Echo(ctx, in)
		},
		Bidi: func(grpctest.BidiServer) error { return fail() },
	}
}

func unary(ctx context.Context, client grpctest.Client) error {
	_, err := client.UnaryCall(ctx, &grpctest.Request{})
	return err
}

func streaming(ctx context.Context, client grpctest.Client) error {
	stream, err := client.FullDuplexCall(ctx)
	for err == nil {
		_, err = stream.Recv()
	}
	if err == io.EOF {
		return nil
	}
	return err
}

var kinds = map[string]func(context.Context, grpctest.Client) error{"unary": unary, "stream": streaming}

// TestCodesThatOpenTheCircuit: by default five failures in a row open the circuit, and which codes are failures is Envoy's word.
func TestCodesThatOpenTheCircuit(t *testing.T) {
	failures := map[codes.Code]bool{codes.Unknown: true, codes.DeadlineExceeded: true, codes.Unimplemented: true,
		codes.Internal: true, codes.Unavailable: true, codes.DataLoss: true}
	for kind, call := range kinds {
		for code := codes.OK; code <= codes.Unauthenticated; code++ {
			var says atomic.Uint32
			var calls atomic.Int32
			says.Store(uint32(code))
			address := grpctest.Serve(t, switchable(&says, &calls))
			client := grpctest.NewClient(grpctest.Dial(t, address, (&breakergrpc.Client{}).DialOptions()...))
			var err error
			for range 6 {
				err = call(t.Context(), client)
			}
			if failures[code] != errors.Is(err, breaker.ErrOpen) {
				t.Errorf("%s: after 5 times %v: %v", kind, code, err)
			}
			if failures[code] && (status.Code(err) != codes.Unavailable || calls.Load() != 5) {
				t.Errorf("%s: refused with %v after %d calls, want Unavailable after 5", kind, status.Code(err), calls.Load())
			}
		}
	}
}

// TestCallerCancelsDoNotCount: callers that leave say nothing about the destination.
func TestCallerCancelsDoNotCount(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				circuits := &breakergrpc.Client{Config: breaker.Config{ConsecutiveFailures: 3}}
				client, stop := grpctest.Connect(t, &grpctest.Service{
					Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
						<-ctx.Done()
						return nil, ctx.Err()
					},
					Bidi: func(s grpctest.BidiServer) error { <-s.Context().Done(); return s.Context().Err() },
				}, circuits.DialOptions()...)
				defer stop()
				for range 5 {
					ctx, cancel := context.WithCancel(t.Context())
					time.AfterFunc(time.Second, cancel)
					if err := call(ctx, client); status.Code(err) != codes.Canceled {
						t.Errorf("error %v, want Canceled", err)
					}
				}
				synctest.Wait()
				for key, state := range circuits.States() {
					if state != breaker.Closed {
						t.Errorf("%s is %v after callers left", key, state)
					}
				}
				for range 3 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					call(ctx, client)
					cancel()
				}
				synctest.Wait() // gRPC may say that a stream has ended a moment after its caller knows
				for key, state := range circuits.States() {
					if state != breaker.Open {
						t.Errorf("%s is %v after three deadlines passed", key, state)
					}
				}
			})
		})
	}
}

// TestCancelledProbeIsReplaced: a stream that is the probe and is cancelled gives the place to the next.
func TestCancelledProbeIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var code atomic.Uint32
		var calls atomic.Int32
		service := switchable(&code, &calls)
		service.Bidi = func(s grpctest.BidiServer) error { <-s.Context().Done(); return nil }
		circuits := &breakergrpc.Client{Config: breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Minute}}
		client, stop := grpctest.Connect(t, service, circuits.DialOptions()...)
		defer stop()
		code.Store(uint32(codes.Internal))
		unary(t.Context(), client)
		code.Store(0)
		time.Sleep(time.Minute)

		ctx, cancel := context.WithCancel(t.Context())
		if _, err := client.FullDuplexCall(ctx); err != nil {
			t.Fatalf("the probe: %v", err)
		}
		if err := unary(t.Context(), client); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("beside the probe: %v, want ErrOpen", err)
		}
		cancel() // and leave
		synctest.Wait()
		if err := unary(t.Context(), client); err != nil {
			t.Errorf("after the probe was left: %v", err)
		}
	})
}

// TestSlowCalls: a stream is as slow as its response headers.
func TestSlowCalls(t *testing.T) {
	for _, test := range []struct {
		name  string
		delay time.Duration
		want  breaker.State
	}{{"slow", time.Second, breaker.Open}, {"long, but not slow", 0, breaker.Closed}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				circuits := &breakergrpc.Client{Config: breaker.Config{
					SlowCallFraction: 0.5, SlowCall: time.Second, MinRequests: 2, Window: time.Hour,
				}}
				client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
					time.Sleep(test.delay)
					s.SendHeader(nil)
					time.Sleep(time.Minute)
					return nil
				}}, circuits.DialOptions()...)
				defer stop()
				for range 2 {
					streaming(t.Context(), client)
				}
				for key, state := range circuits.States() {
					if state != test.want {
						t.Errorf("%s is %v, want %v", key, state, test.want)
					}
				}
			})
		})
	}
}

func TestKeyAndHooks(t *testing.T) {
	var code atomic.Uint32
	var calls atomic.Int32
	code.Store(uint32(codes.NotFound))
	address := grpctest.Serve(t, switchable(&code, &calls))
	var changed []string
	circuits := &breakergrpc.Client{
		Config:    breaker.Config{ConsecutiveFailures: 1},
		Key:       func(_ context.Context, method string, _ *grpc.ClientConn) string { return method },
		IsFailure: func(err error) bool { return status.Code(err) == codes.NotFound },
		OnChange:  func(key string, c breaker.Change) { changed = append(changed, key+" "+c.To.String()) },
	}
	client := grpctest.NewClient(grpctest.Dial(t, address, circuits.DialOptions()...))
	unary(t.Context(), client)
	if err := streaming(t.Context(), client); status.Code(err) != codes.NotFound {
		t.Errorf("another method: %v", err)
	}
	const stream = "/grpc.testing.TestService/FullDuplexCall"
	want := map[string]breaker.State{grpctest.UnaryMethod: breaker.Open, stream: breaker.Open}
	if !maps.Equal(circuits.States(), want) || len(changed) != 2 || changed[0] != grpctest.UnaryMethod+" open" {
		t.Errorf("states %v, changes %v", circuits.States(), changed)
	}
}

// TestIsFailureThatPanics: the call counts as a failure, and its probe does not keep the circuit half-open.
func TestIsFailureThatPanics(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var code atomic.Uint32
				var calls atomic.Int32
				code.Store(uint32(codes.Internal))
				panics := false
				circuits := &breakergrpc.Client{
					Config: breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Minute, ProbeTimeout: time.Hour},
					IsFailure: func(error) bool {
						if panics {
							panic("boom")
						}
						return true
					},
				}
				client, stop := grpctest.Connect(t, switchable(&code, &calls), circuits.DialOptions()...)
				defer stop()
				call(t.Context(), client)
				time.Sleep(time.Minute)
				panics = true
				func() {
					defer func() {
						if got := recover(); got != "boom" {
							t.Errorf("recovered %v, want the panic of IsFailure", got)
						}
					}()
					call(t.Context(), client)
				}()
				for key, state := range circuits.States() {
					if state != breaker.Open {
						t.Errorf("%s is %v, want open", key, state)
					}
				}
			})
		})
	}
}

func TestInvalidConfig(t *testing.T) {
	config := breaker.Config{MinRequests: -1}
	circuits, server := &breakergrpc.Client{Config: config}, &breakergrpc.Server{Config: config}
	address := grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, server.ServerOptions()...)
	for _, client := range []grpctest.Client{
		grpctest.NewClient(grpctest.Dial(t, address, circuits.DialOptions()...)),
		grpctest.NewClient(grpctest.Dial(t, address)),
	} {
		for kind, call := range kinds {
			if err := call(t.Context(), client); status.Code(err) != codes.Internal {
				t.Errorf("%s: error %v, want Internal", kind, err)
			}
		}
	}
}

// TestServer: what is refused says that it is not to be retried, and the circuit closes again.
func TestServer(t *testing.T) {
	for kind, call := range kinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var code atomic.Uint32
				var calls atomic.Int32
				server := &breakergrpc.Server{Config: breaker.Config{ConsecutiveFailures: 2, OpenDuration: time.Minute}}
				service := switchable(&code, &calls)
				service.Options = server.ServerOptions()
				var trailer metadata.MD
				client, stop := grpctest.Connect(t, service, grpc.WithDefaultCallOptions(grpc.Trailer(&trailer)))
				defer stop()
				code.Store(uint32(codes.Internal))
				for range 2 {
					call(t.Context(), client)
				}
				err := call(t.Context(), client)
				if status.Code(err) != codes.Unavailable || calls.Load() != 2 || server.State() != breaker.Open {
					t.Errorf("error %v after %d calls, and the circuit is %v", err, calls.Load(), server.State())
				}
				if got := trailer.Get("grpc-retry-pushback-ms"); len(got) != 1 || got[0] != "-1" {
					t.Errorf("trailer %v does not say that a retry is no use", trailer)
				}
				code.Store(0)
				time.Sleep(time.Minute)
				if err := call(t.Context(), client); err != nil || server.State() != breaker.Closed {
					t.Errorf("the probe: %v, and the circuit is %v", err, server.State())
				}
			})
		})
	}
}

// TestServer_Outcomes of handlers that do not return a status.
func TestServer_Outcomes(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	overdue, expire := context.WithCancelCause(t.Context())
	expire(context.DeadlineExceeded)
	for _, test := range []struct {
		name    string
		ctx     context.Context
		handler func() error
		want    breaker.State
	}{
		{"well", t.Context(), func() error { return nil }, breaker.Closed},
		{"no status", t.Context(), func() error { return errors.New("oops") }, breaker.Open},
		{"deadline", t.Context(), func() error { return context.DeadlineExceeded }, breaker.Open},
		{"canceled below", t.Context(), func() error { return context.Canceled }, breaker.Closed},
		{"time is up", overdue, func() error { return errors.New("oops") }, breaker.Open},
		{"client left", canceled, func() error { return errors.New("oops") }, breaker.Closed},
		{"panic", t.Context(), func() error { panic("oops") }, breaker.Open},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := &breakergrpc.Server{Config: breaker.Config{ConsecutiveFailures: 1}}
			func() {
				defer func() { _ = recover() }()
				breakergrpc.ServerUnary(server, test.ctx, nil, nil, func(context.Context, any) (any, error) { return nil, test.handler() })
			}()
			if server.State() != test.want {
				t.Errorf("the circuit is %v, want %v", server.State(), test.want)
			}
		})
	}
}

// A probe whose stream is over for the caller makes room for the next one, even if gRPC goes on with it.
func TestStreamEndedByAnInterceptor(t *testing.T) {
	for _, config := range []breaker.Config{{}, {SlowCall: time.Hour, SlowCallFraction: 1}} {
		config.ConsecutiveFailures, config.OpenDuration = 1, time.Minute
		grpctest.EndedStreams(t, func(t *testing.T, stream func(...grpc.DialOption)) {
			circuits := &breakergrpc.Client{Config: config, Key: func(context.Context, string, *grpc.ClientConn) string { return "x" }}
			var code atomic.Uint32
			var calls atomic.Int32
			client, stop := grpctest.Connect(t, switchable(&code, &calls), circuits.DialOptions()...)
			defer stop()
			code.Store(uint32(codes.Internal))
			_ = unary(t.Context(), client)
			if err := unary(t.Context(), client); !errors.Is(err, breaker.ErrOpen) {
				t.Fatalf("error %v, want ErrOpen", err)
			}
			time.Sleep(time.Minute)
			stream(circuits.DialOptions()...)
			code.Store(0)
			if err := unary(t.Context(), client); err != nil {
				t.Errorf("the next probe: %v", err)
			}
		})
	}
}

// TestMessagesThatCannotBeSentDoNotCount: gRPC gives them the status of a server that cannot send its reply.
func TestMessagesThatCannotBeSentDoNotCount(t *testing.T) {
	for _, test := range []struct {
		name string
		code codes.Code
		bad  *grpctest.Request
	}{
		{"not to be encoded", codes.Internal, &grpctest.Request{ResponseStatus: &grpc_testing.EchoStatus{Message: "no UTF-8: \xff"}}},
		{"too large", codes.ResourceExhausted, &grpctest.Request{Payload: &grpc_testing.Payload{Body: make([]byte, 100)}}},
	} {
		for _, all := range []bool{false, true} { // whether all errors are failures
			var code atomic.Uint32
			var calls atomic.Int32
			circuits := &breakergrpc.Client{Config: breaker.Config{ConsecutiveFailures: 2}}
			if all {
				circuits.IsFailure = func(err error) bool { return status.Code(err) != codes.OK }
			}
			client, stop := grpctest.Connect(t, switchable(&code, &calls),
				append(circuits.DialOptions(), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(16)))...)
			code.Store(uint32(codes.Internal))
			_ = unary(t.Context(), client)
			for range 3 {
				if _, err := client.UnaryCall(t.Context(), test.bad); status.Code(err) != test.code {
					t.Fatalf("%s: %v, want %v", test.name, err, test.code)
				}
			}
			if err := unary(t.Context(), client); errors.Is(err, breaker.ErrOpen) {
				t.Errorf("%s: the circuit is open after one failure of the server", test.name)
			}
			if err := unary(t.Context(), client); !errors.Is(err, breaker.ErrOpen) {
				t.Errorf("%s: %v, want a circuit that is open after two failures of the server and no success", test.name, err)
			}
			stop()
		}
	}
}

type (
	bidi    = grpc_testing.TestService_FullDuplexCallClient
	message = grpc_testing.StreamingOutputCallRequest
)

// TestStreamsWithMessagesThatCannotBeSent: gRPC ends such a stream with a status that a server that is broken may send too.
func TestStreamsWithMessagesThatCannotBeSent(t *testing.T) {
	encoding := status.Error(codes.Internal, "grpc: error while marshaling: string field contains invalid UTF-8")
	broken := &message{ResponseStatus: &grpc_testing.EchoStatus{Message: "no UTF-8: \xff"}}
	for name, send := range map[string]func(bidi) error{
		"not to be encoded": func(s bidi) error { return s.Send(broken) },
		"not to be encoded, later": func(s bidi) error {
			return errors.Join(s.Send(&message{}), s.Send(broken))
		},
		"too large": func(s bidi) error {
			return s.Send(&message{Payload: &grpc_testing.Payload{Body: make([]byte, 100)}})
		},
		"after close": func(s bidi) error { return errors.Join(s.CloseSend(), s.Send(&message{})) },
	} {
		for _, config := range []breaker.Config{{ConsecutiveFailures: 2}, {ConsecutiveFailures: 2, SlowCall: time.Minute, SlowCallFraction: 1}} {
			circuits := &breakergrpc.Client{Config: config, IsFailure: func(err error) bool { return status.Code(err) != codes.OK }}
			client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
				if md, _ := metadata.FromIncomingContext(s.Context()); md["fail"] != nil {
					return encoding
				}
				<-s.Context().Done()
				return s.Context().Err()
			}}, append(circuits.DialOptions(), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(8)))...)
			begin := func(ctx context.Context) bidi {
				stream, err := client.FullDuplexCall(ctx)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				return stream
			}
			fail := metadata.AppendToOutgoingContext(t.Context(), "fail", "")
			if _, err := begin(fail).Recv(); status.Code(err) != codes.Internal {
				t.Errorf("%s: %v, want what the server sent", name, err)
			}
			for range 3 {
				stream := begin(t.Context())
				if err := send(stream); err == nil {
					t.Errorf("%s: no error", name)
				}
				if _, err := stream.Recv(); err == nil {
					t.Errorf("%s: no error from Recv", name)
				}
			}
			_, _ = begin(fail).Recv()
			if _, err := client.FullDuplexCall(t.Context()); !errors.Is(err, breaker.ErrOpen) {
				t.Errorf("%s: %v, want a circuit that is open after two failures of the server and no success", name, err)
			}
			stop()
		}
	}
}
