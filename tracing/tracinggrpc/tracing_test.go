package tracinggrpc_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/internal/w3c"
	"github.com/nosidecar/mesh/tracing/tracinggrpc"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

const remote = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"

func recorder() (tracing.Config, *tracetest.SpanRecorder) {
	s := tracetest.NewSpanRecorder()
	return tracing.Config{Provider: sdk.NewTracerProvider(sdk.WithSpanProcessor(s)), Forward: []string{"x-tenant"}}, s
}

func dial(t *testing.T, c tracing.Config, target string, opts ...grpc.DialOption) grpctest.Client {
	t.Helper()
	return grpctest.NewClient(grpctest.Dial(t, target, append((&tracinggrpc.Client{Config: c}).DialOptions(), opts...)...))
}

func ended(t *testing.T, s *tracetest.SpanRecorder, n int) []sdk.ReadOnlySpan {
	t.Helper()
	if !await.Done(func() bool { return len(s.Ended()) >= n }) || len(s.Ended()) != n {
		t.Fatalf("%d spans have ended, want %d", len(s.Ended()), n)
	}
	return s.Ended()
}

func attribute(s sdk.ReadOnlySpan, key string) string {
	for _, kv := range s.Attributes() {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

// Two servers in a row, called with unary calls and with streams. Nobody copies metadata.
func TestTraceAcrossServices(t *testing.T) {
	leak.Check(t)
	config, spans := recorder()
	var last atomic.Pointer[metadata.MD]
	see := func(ctx context.Context) {
		md, _ := metadata.FromIncomingContext(ctx)
		last.Store(&md)
	}
	bank := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			see(ctx)
			return &grpctest.Response{}, nil
		},
		Bidi: func(stream grpctest.BidiServer) error {
			see(stream.Context())
			for {
				if _, err := stream.Recv(); err != nil {
					return nil
				}
				if err := stream.Send(&grpctest.Out{}); err != nil {
					return err
				}
			}
		},
	}, (&tracinggrpc.Server{Config: config}).ServerOptions()...)
	toBank := dial(t, config, bank)
	payment := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if in.ResponseSize == 0 {
				return toBank.UnaryCall(ctx, in)
			}
			stream, err := toBank.FullDuplexCall(ctx)
			if err != nil {
				return nil, err
			}
			if err := stream.Send(&grpctest.In{}); err != nil {
				return nil, err
			}
			if _, err := stream.Recv(); err != nil {
				return nil, err
			}
			_ = stream.CloseSend()
			if _, err := stream.Recv(); err != io.EOF {
				return nil, err
			}
			return &grpctest.Response{}, nil
		},
	}, (&tracinggrpc.Server{Config: config}).ServerOptions()...)
	client := grpctest.NewClient(grpctest.Dial(t, payment))
	for i, method := range []string{"UnaryCall", "FullDuplexCall"} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", remote, "tracestate", "a=1", "x-tenant", "blue",
			"baggage", "user=7", "x-request-id", "id-1")
		if _, err := client.UnaryCall(ctx, &grpctest.Request{ResponseSize: int32(i)}); err != nil {
			t.Fatal(err)
		}
		all := ended(t, spans, 3*(i+1))[3*i:]
		var got []string
		from, _ := trace.SpanIDFromHex(remote[36:52])
		for j := 0; j < len(all); j++ {
			if all[j].Parent().SpanID() == from {
				got, from, j = append(got, all[j].SpanKind().String()+" "+all[j].Name()), all[j].SpanContext().SpanID(), -1
			}
		}
		const service = "grpc.testing.TestService/"
		want := []string{"server " + service + "UnaryCall", "client " + service + method, "server " + service + method}
		if !slices.Equal(got, want) {
			t.Errorf("the chain is %q, want %q", got, want)
		}
		for _, s := range all {
			if attribute(s, "rpc.system.name") != "grpc" || attribute(s, "rpc.response.status_code") != "OK" || attribute(s, "rpc.method") != s.Name() ||
				s.SpanContext().TraceState().String() != "a=1" {
				t.Errorf("%s %s: %v", s.SpanKind(), s.Name(), s.Attributes())
			}
		}
		for key, want := range map[string]string{"x-tenant": "blue", "baggage": "user=7", "x-request-id": "id-1"} {
			if values := last.Load().Get(key); len(values) != 1 || values[0] != want {
				t.Errorf("%s: the last service got %s %q, want %q", method, key, values, want)
			}
		}
	}
}

func TestRetriesAreOneCall(t *testing.T) {
	leak.Check(t)
	config, spans := recorder()
	var n atomic.Int32
	var sent [3]string
	target := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			i := n.Add(1)
			if sent[i-1] = md.Get("traceparent")[0]; i < 3 {
				return nil, status.Error(codes.Unavailable, "not yet")
			}
			return &grpctest.Response{}, nil
		},
	})
	retries := &retrygrpc.Client{Config: retry.Config{Retries: 2, Backoff: -1, AnyMethod: true, On: mustParse(t, "unavailable")}}
	client := dial(t, config, target, retries.DialOptions()...)
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	s := ended(t, spans, 1)[0]
	for _, parent := range sent {
		if len(parent) != 55 || parent[36:52] != s.SpanContext().SpanID().String() {
			t.Errorf("sent %q, want all of one span", sent)
		}
	}
}

func mustParse(t *testing.T, list string) retry.On {
	t.Helper()
	on, err := retry.ParseOn(list)
	if err != nil {
		t.Fatal(err)
	}
	return on
}

func TestStatusOfSpans(t *testing.T) {
	leak.Check(t)
	for _, test := range []struct {
		err            error
		name           string
		client, server otelcodes.Code
	}{
		{status.Error(codes.NotFound, ""), "NOT_FOUND", otelcodes.Error, otelcodes.Unset},
		{status.Error(codes.Internal, ""), "INTERNAL", otelcodes.Error, otelcodes.Error},
		{errors.New("plain"), "UNKNOWN", otelcodes.Error, otelcodes.Error},
		{context.DeadlineExceeded, "DEADLINE_EXCEEDED", otelcodes.Error, otelcodes.Error},
		{status.Error(99, ""), "CODE(99)", otelcodes.Error, otelcodes.Unset},
	} {
		config, spans := recorder()
		target := grpctest.Serve(t, &grpctest.Service{
			Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) { return nil, test.err },
			Output: func(in *grpctest.In, s grpctest.OutServer) error {
				return test.err
			},
		}, (&tracinggrpc.Server{Config: config}).ServerOptions()...)
		client := dial(t, config, target)
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err == nil {
			t.Fatal("no error")
		}
		ended(t, spans, 2)
		stream, err := client.StreamingOutputCall(t.Context(), &grpctest.In{})
		for err == nil {
			_, err = stream.Recv()
		}
		for _, s := range ended(t, spans, 4) {
			want := test.client
			if s.SpanKind() == trace.SpanKindServer {
				want = test.server
			}
			if s.Status().Code != want || attribute(s, "rpc.response.status_code") != test.name {
				t.Errorf("%v: %s %s: %v, %v", test.err, s.SpanKind(), s.Name(), s.Status(), s.Attributes())
			}
		}
	}
}

// A stream that its caller leaves ends its span, and is no error.
func TestCallerGivesUp(t *testing.T) {
	leak.Check(t)
	config, spans := recorder()
	target := grpctest.Serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
		if err := s.Send(&grpctest.Out{}); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}})
	client := dial(t, config, target)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if len(spans.Ended()) != 0 {
		t.Error("the span of an open stream has ended")
	}
	cancel()
	if s := ended(t, spans, 1)[0]; s.Status().Code != otelcodes.Unset || attribute(s, "rpc.response.status_code") != "CANCELLED" {
		t.Errorf("%v, %v", s.Status(), s.Attributes())
	}
}

func TestUntrusted(t *testing.T) {
	leak.Check(t)
	config, spans := recorder()
	target := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			if md["traceparent"] != nil || md["x-request-id"] != nil || md["x-tenant"] == nil || len(tracing.RequestID(ctx)) != 36 {
				t.Errorf("the handler sees %v and the id %q", md, tracing.RequestID(ctx))
			}
			return &grpctest.Response{}, nil
		},
	}, (&tracinggrpc.Server{Config: config, Untrusted: func(context.Context) bool { return true }}).ServerOptions()...)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", remote, "x-request-id", "theirs", "x-tenant", "blue")
	if _, err := grpctest.NewClient(grpctest.Dial(t, target)).UnaryCall(ctx, &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	if s := ended(t, spans, 1)[0]; s.Parent().IsValid() {
		t.Error("the trace from outside goes on")
	}
}

// jaeger is a propagator of a format that is not one of ours.
type jaeger struct{}

func (jaeger) Inject(context.Context, propagation.TextMapCarrier) {}
func (jaeger) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	return ctx
}
func (jaeger) Fields() []string { return []string{"uber-trace-id"} }

// The metadata of a propagator is removed of calls from outside as that of the formats is.
func TestUntrustedHeadersOfAPropagatorAreRemoved(t *testing.T) {
	leak.Check(t)
	for _, untrusted := range []bool{false, true} {
		var seen atomic.Pointer[metadata.MD]
		server := &tracinggrpc.Server{Config: tracing.Config{Propagator: jaeger{}}, Untrusted: func(context.Context) bool { return untrusted }}
		target := grpctest.Serve(t, &grpctest.Service{Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			seen.Store(&md)
			return &grpctest.Response{}, nil
		}}, server.ServerOptions()...)
		ctx := metadata.AppendToOutgoingContext(t.Context(), "Uber-Trace-Id", "1:2:3:1", "x-kept", "yes")
		if _, err := grpctest.NewClient(grpctest.Dial(t, target)).UnaryCall(ctx, &grpctest.Request{}); err != nil {
			t.Fatal(err)
		}
		if md := *seen.Load(); (md["uber-trace-id"] == nil) != untrusted || md["x-kept"] == nil {
			t.Errorf("untrusted %t: the handler sees %v", untrusted, md)
		}
	}
}

func TestEchoRequestID(t *testing.T) {
	leak.Check(t)
	for _, echo := range []bool{false, true} {
		server := &tracinggrpc.Server{Config: tracing.Config{EchoRequestID: echo}}
		target := grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo, Bidi: func(s grpctest.BidiServer) error {
			return status.Error(codes.NotFound, "none")
		}, Output: func(_ *grpctest.In, s grpctest.OutServer) error {
			return s.Send(&grpctest.Out{})
		}}, server.ServerOptions()...)
		client := grpctest.NewClient(grpctest.Dial(t, target))
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "id-1")
		var header metadata.MD
		if _, err := client.UnaryCall(ctx, &grpctest.Request{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
		if md, _ := stream.Header(); md != nil { // no client would retry the call
			t.Errorf("echo %t: the error comes after a header, %v", echo, md)
		}
		output, err := client.StreamingOutputCall(ctx, &grpctest.In{})
		if err != nil {
			t.Fatal(err)
		}
		ofStream, err := output.Header()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := output.Recv(); err != nil {
			t.Fatal(err)
		}
		if _, err := output.Recv(); err != io.EOF {
			t.Fatal(err)
		}
		for _, md := range []metadata.MD{header, stream.Trailer(), ofStream} {
			if got := md.Get("x-request-id"); slices.Equal(got, []string{"id-1"}) != echo {
				t.Errorf("echo %t: the answer has the request ids %q", echo, got)
			}
		}
	}
}

func TestNoRequestIDToEcho(t *testing.T) {
	leak.Check(t)
	server := &tracinggrpc.Server{Config: tracing.Config{EchoRequestID: true, NoRequestID: true}}
	target := grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, server.ServerOptions()...)
	var header metadata.MD
	if _, err := grpctest.NewClient(grpctest.Dial(t, target)).UnaryCall(t.Context(), &grpctest.Request{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	if got := header.Get("x-request-id"); got != nil {
		t.Errorf("the answer has the request ids %q, want none", got)
	}
}

// A gRPC server may also be an http.Handler. Its calls have the same spans then, with their own code.
func TestServersOfGRPCAsHandlers(t *testing.T) {
	leak.Check(t)
	config, spans := recorder()
	server := grpc.NewServer()
	grpctest.Register(server, &grpctest.Service{
		Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
			return nil, status.Error(codes.Unavailable, "not now")
		},
		Bidi: func(s grpctest.BidiServer) error { return s.Send(&grpctest.Out{}) },
	})
	srv := httptest.NewUnstartedServer(&tracing.Handler{Config: config, Next: server})
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	defer srv.Close()
	client := grpctest.NewClient(grpctest.Dial(t, srv.Listener.Addr().String()))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", remote)
	if _, err := client.UnaryCall(ctx, &grpctest.Request{}); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	for i, want := range []struct{ method, code string }{{"UnaryCall", "UNAVAILABLE"}, {"FullDuplexCall", "OK"}} {
		s := ended(t, spans, 2)[i]
		if s.Name() != "grpc.testing.TestService/"+want.method || attribute(s, "rpc.response.status_code") != want.code ||
			s.SpanKind() != trace.SpanKindServer || s.Parent().SpanID().String() != remote[36:52] {
			t.Errorf("%s %s has %v", s.SpanKind(), s.Name(), s.Attributes())
		}
	}
}

// The rules of the specification, over gRPC.
func TestTraceContextOfW3C(t *testing.T) {
	leak.Check(t)
	config, _ := recorder()
	var calls int
	var mu sync.Mutex
	var seen []http.Header
	payment := grpctest.Serve(t, &grpctest.Service{Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, http.Header{"Traceparent": md["traceparent"], "Tracestate": md["tracestate"]})
		return &grpctest.Response{}, nil
	}})
	toPayment := dial(t, config, payment)
	orders := grpctest.Serve(t, &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
		for range calls {
			if _, err := toPayment.UnaryCall(ctx, in); err != nil {
				return nil, err
			}
		}
		return &grpctest.Response{}, nil
	}}, (&tracinggrpc.Server{Config: config}).ServerOptions()...)
	client := grpctest.NewClient(grpctest.Dial(t, orders))
	w3c.Check(t, func(t *testing.T, header []w3c.Field, n int) []http.Header {
		md := metadata.MD{}
		for _, f := range header {
			if strings.Contains(f.Value, "\t") {
				f.Value = strings.ReplaceAll(f.Value, "\t", " ") // gRPC sends no others
			}
			md.Append(f.Name, f.Value)
		}
		calls, seen = n, nil
		if _, err := client.UnaryCall(metadata.NewOutgoingContext(t.Context(), md), &grpctest.Request{}); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return seen
	})
}

func TestInvalidConfig(t *testing.T) {
	leak.Check(t)
	config := tracing.Config{Formats: "jaeger"}
	target := grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, (&tracinggrpc.Server{Config: config}).ServerOptions()...)
	for name, client := range map[string]grpctest.Client{
		"client": dial(t, config, target), "server": grpctest.NewClient(grpctest.Dial(t, target)),
	} {
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "jaeger") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The span of a stream ends when the stream is over for the caller, even if gRPC goes on with it.
func TestStreamEndedByAnInterceptor(t *testing.T) {
	grpctest.EndedStreams(t, func(t *testing.T, stream func(...grpc.DialOption)) {
		config, spans := recorder()
		stream((&tracinggrpc.Client{Config: config}).DialOptions()...)
		if n := len(spans.Ended()); n != 1 {
			t.Errorf("%d spans have ended, want 1", n)
		}
	})
}

// The server is the host of the target, in any spelling that gRPC knows.
func TestServerOfATarget(t *testing.T) {
	for target, want := range map[string]string{
		"orders:80": "orders 80", "dns:///orders:80": "orders 80", "dns://10.0.0.1/orders:80": "orders 80", "dns:orders:80": "orders 80",
		"passthrough:orders": "orders ", "dns:[::1]:80": "::1 80",
	} {
		config, spans := recorder()
		done := func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
			return nil
		}
		client := dial(t, config, target, grpc.WithChainUnaryInterceptor(done))
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
			t.Fatal(err)
		}
		s := ended(t, spans, 1)[0]
		if got := attribute(s, "server.address") + " " + attribute(s, "server.port"); got != want {
			t.Errorf("the server of %q is %q, want %q", target, got, want)
		}
	}
}

// What a caller over HTTP writes into its headers makes no call fail, although gRPC sends printable ASCII only.
func TestHeadersThatGRPCCannotCarry(t *testing.T) {
	leak.Check(t)
	var seen metadata.MD
	target := grpctest.Serve(t, &grpctest.Service{Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
		seen, _ = metadata.FromIncomingContext(ctx)
		return &grpctest.Response{}, nil
	}})
	config := tracing.Config{Forward: []string{"x-tenant"}}
	client := dial(t, config, target)
	call := func(header http.Header) {
		t.Helper()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = header
		h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := client.UnaryCall(r.Context(), &grpctest.Request{}); err != nil {
				t.Errorf("with %q: %v", header, err)
			}
		})}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	call(http.Header{"Baggage": {"a=b,\tc=d"}, "X-Request-Id": {"id"}, "X-Tenant": {"blue"}})
	if got := append(append(seen["baggage"], seen["x-request-id"]...), seen["x-tenant"]...); !slices.Equal(got, []string{"a=b, c=d", "id", "blue"}) {
		t.Errorf("%q was passed on", got)
	}
	for _, text := range []string{"caf\xe9", "café", "\xff", "a\tb"} {
		call(http.Header{"Baggage": {"a=" + text}, "X-Request-Id": {text}, "X-Tenant": {text}})
		if id := seen["x-request-id"]; len(id) != 1 || len(id[0]) != 36 {
			t.Errorf("with %q the request id is %q, want a new one", text, id)
		}
	}
}
