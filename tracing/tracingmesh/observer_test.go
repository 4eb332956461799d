package tracingmesh_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/internal/w3c"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

const remote = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"

// traces is a provider whose spans are kept, and the observer that makes them.
type traces struct {
	*tracetest.SpanRecorder
	provider *sdk.TracerProvider
	option   mesh.Option
}

func newTraces(t *testing.T, c tracing.Config) *traces {
	t.Helper()
	s := tracetest.NewSpanRecorder()
	c.Provider = sdk.NewTracerProvider(sdk.WithSpanProcessor(s))
	observer, err := tracingmesh.Observer(c)
	if err != nil {
		t.Fatal(err)
	}
	return &traces{s, c.Provider.(*sdk.TracerProvider), mesh.WithObserver(observer)}
}

// ended waits until n spans have ended, and returns them.
func (tr *traces) ended(t *testing.T, n int) []sdk.ReadOnlySpan {
	t.Helper()
	if !await.Done(func() bool { return len(tr.Ended()) >= n }) || len(tr.Ended()) != n {
		t.Fatalf("%d spans have ended, want %d: %v", len(tr.Ended()), n, names(tr.Ended()))
	}
	return tr.Ended()
}

func names(all []sdk.ReadOnlySpan) (out []string) {
	for _, s := range all {
		out = append(out, s.SpanKind().String()+" "+s.Name())
	}
	return out
}

// chain returns the spans from one down, each the child of the one before.
func chain(all []sdk.ReadOnlySpan, from trace.SpanID) (out []string) {
	for i := 0; i < len(all); i++ {
		if all[i].Parent().SpanID() == from {
			out, from, i = append(out, all[i].SpanKind().String()+" "+all[i].Name()), all[i].SpanContext().SpanID(), -1
		}
	}
	return out
}

func attribute(s sdk.ReadOnlySpan, key string) string {
	for _, kv := range s.Attributes() {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

func service(host string, rule string) string {
	return `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ` + host + `}
spec:
  hosts: [` + host + `]
  http:
  - name: all
    route: [{destination: {host: ` + host + `}}]
` + rule
}

func get(t *testing.T, ctx context.Context, m *mesh.Mesh, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.Client().Do(req)
	if err != nil {
		t.Error(err)
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

// A request comes in over HTTP, its handler calls over gRPC, and that one's over HTTP, with one mesh at each hop. Nobody copies
// a header.
func TestTraceAcrossProtocols(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{Forward: []string{"x-tenant"}})
	var registry discovery.Memory
	found := mesh.WithDiscovery(&registry)

	var mu sync.Mutex
	var last http.Header
	bank := meshtest.New(t, "", tr.option)
	registry.Set("bank", meshtest.Serve(t, bank.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		last = r.Header
	})).ServeHTTP))

	payment := meshtest.New(t, service("bank", ""), tr.option, found)
	registry.Set("payment", meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			get(t, ctx, payment, "http://bank/transfer")
			return &grpctest.Response{}, nil
		},
	}, meshgrpc.ServerOptions(payment)...)))

	order := meshtest.New(t, service("payment", ""), tr.option, found)
	conn, err := grpc.NewClient("mesh:///payment", meshgrpc.DialOptions(order)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	handler := order.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := grpctest.NewClient(conn).UnaryCall(r.Context(), &grpctest.Request{}); err != nil {
			t.Error(err)
		}
	}))
	r := httptest.NewRequest(http.MethodGet, "/orders", nil)
	r.Header = http.Header{"Traceparent": {remote}, "Tracestate": {"a=1"}, "Baggage": {"user=7"}, "X-Tenant": {"blue"}, "X-Request-Id": {"forged"}}
	handler.ServeHTTP(httptest.NewRecorder(), r)

	ended := tr.ended(t, 5)
	from, _ := trace.SpanIDFromHex(remote[36:52])
	const method = "grpc.testing.TestService/UnaryCall"
	want := []string{"server GET", "client " + method, "server " + method, "client GET", "server GET"}
	if got := chain(ended, from); !slices.Equal(got, want) {
		t.Errorf("the chain is %q, want %q", got, want)
	}
	for _, s := range ended {
		if s.SpanContext().TraceID().String() != remote[3:35] || s.SpanContext().TraceState().String() != "a=1" {
			t.Errorf("%s is of the trace %s with %q", s.Name(), s.SpanContext().TraceID(), s.SpanContext().TraceState())
		}
		if s.Name() == method && (attribute(s, "rpc.system.name") != "grpc" || attribute(s, "rpc.method") != method || attribute(s, "rpc.response.status_code") != "OK") {
			t.Errorf("%s %s has %v", s.SpanKind(), s.Name(), s.Attributes())
		}
		if s.SpanKind() == trace.SpanKindClient && attribute(s, "server.address") == "127.0.0.1" {
			t.Errorf("server.address of %s is an endpoint's", s.Name())
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if last.Get("Baggage") != "user=7" || last.Get("X-Tenant") != "blue" {
		t.Errorf("the last service got %v", last)
	}
}

// Metadata of gRPC is printable ASCII. What a caller over HTTP writes into its headers makes no call fail.
func TestHeadersThatGRPCCannotCarry(t *testing.T) {
	leak.Check(t)
	for _, sampled := range []string{"00", "01"} {
		tr := newTraces(t, tracing.Config{Forward: []string{"x-tenant"}})
		var registry discovery.Memory
		registry.Set("payment", meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{
			Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
				md, _ := metadata.FromIncomingContext(ctx)
				if md["traceparent"] == nil || md["baggage"] != nil || md["x-tenant"] != nil {
					t.Errorf("the service got %v", md)
				}
				return &grpctest.Response{}, nil
			},
		})))
		order := meshtest.New(t, service("payment", ""), tr.option, mesh.WithDiscovery(&registry))
		conn, err := grpc.NewClient("mesh:///payment", meshgrpc.DialOptions(order)...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		handler := order.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := grpctest.NewClient(conn).UnaryCall(r.Context(), &grpctest.Request{}); err != nil {
				t.Error(err)
			}
		}))
		r := httptest.NewRequest(http.MethodGet, "/orders", nil)
		r.Header = http.Header{"Traceparent": {remote[:53] + sampled}, "Baggage": {"user=caf\xe9"}, "X-Tenant": {"café"}, "X-Request-Id": {"\xff"}}
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
}

func TestRetriedAttempts(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	var registry discovery.Memory
	var mu sync.Mutex
	var seen []http.Header
	registry.Set("orders", meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if seen = append(seen, r.Header); len(seen) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	m := meshtest.New(t, service("orders", "    retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}\n"), tr.option, mesh.WithDiscovery(&registry))
	ctx, above := tr.provider.Tracer("").Start(context.Background(), "above")
	if code := get(t, ctx, m, "http://orders/"); code != 200 {
		t.Fatal(code)
	}
	ended := tr.ended(t, 4)
	whole := ended[3]
	if whole.SpanKind() != trace.SpanKindInternal || whole.Parent().SpanID() != above.SpanContext().SpanID() {
		t.Fatalf("spans %v", names(ended))
	}
	for i, s := range ended[:3] {
		parent := whole.SpanContext()
		if i == 0 {
			parent = above.SpanContext() // nobody knew then
		}
		if s.Parent().SpanID() != parent.SpanID() || s.SpanContext().TraceID() != above.SpanContext().TraceID() {
			t.Errorf("attempt %d has the parent %s", i+1, s.Parent().SpanID())
		}
		if got, want := attribute(s, "http.request.resend_count"), []string{"", "1", "2"}[i]; got != want {
			t.Errorf("attempt %d: resend_count %q, want %q", i+1, got, want)
		}
		if attribute(s, "network.peer.address") != "127.0.0.1" || attribute(s, "server.address") != "orders" {
			t.Errorf("attempt %d has %v", i+1, s.Attributes())
		}
		if got := seen[i].Get("Traceparent"); got[36:52] != s.SpanContext().SpanID().String() {
			t.Errorf("attempt %d, which is %s, sent %s", i+1, s.SpanContext().SpanID(), got)
		}
		if id := seen[i].Get("X-Request-Id"); len(id) != 36 || id != seen[0].Get("X-Request-Id") {
			t.Errorf("attempt %d has the request id %q", i+1, id)
		}
	}
	if attribute(ended[2], "mesh.route") != "all" || attribute(whole, "mesh.route") != "all" {
		t.Errorf("no route: %v", ended[2].Attributes())
	}
}

func TestAttemptsOfGRPCAreEvents(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	var registry discovery.Memory
	var n int
	registry.Set("echo", meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{
		Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
			if n++; n < 3 {
				return nil, status.Error(grpccodes.Unavailable, "not yet")
			}
			return nil, status.Error(grpccodes.NotFound, "none")
		},
	})))
	m := meshtest.New(t, service("echo", `    retries: {attempts: 2, retryOn: "unavailable", backoff: 1ms}`+"\n"), tr.option, mesh.WithDiscovery(&registry))
	conn, err := grpc.NewClient("mesh:///echo", meshgrpc.DialOptions(m)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != grpccodes.NotFound {
		t.Fatal(err)
	}
	s := tr.ended(t, 1)[0]
	if len(s.Events()) != 3 || s.SpanKind() != trace.SpanKindClient || s.Status().Code != codes.Error ||
		attribute(s, "rpc.response.status_code") != "NOT_FOUND" || attribute(s, "error.type") != "NOT_FOUND" {
		t.Errorf("%v: %v, %v, events %v", names(tr.Ended()), s.Status(), s.Attributes(), s.Events())
	}
}

// Whatever is answered here has a span too, which says why.
func TestCallsWithoutAnAttempt(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	registry := discovery.Static{"orders": {{Address: "127.0.0.1", Port: 1}}}
	m := meshtest.New(t, service("orders", "    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}\n"), tr.option, mesh.WithDiscovery(registry))
	ctx, above := tr.provider.Tracer("").Start(context.Background(), "above")
	if code := get(t, ctx, m, "http://orders/"); code != 418 {
		t.Fatal(code)
	}
	s := tr.ended(t, 1)[0]
	if s.SpanKind() != trace.SpanKindClient || s.Parent().SpanID() != above.SpanContext().SpanID() ||
		attribute(s, "mesh.response_flags") != "FI" || attribute(s, "http.response.status_code") != "418" {
		t.Errorf("%v has %v", names(tr.Ended()), s.Attributes())
	}
}

// What comes from outside begins a trace, if it is to, though observers see the request before its headers are removed.
func TestRestartTraces(t *testing.T) {
	leak.Check(t)
	for _, restart := range []bool{false, true} {
		tr := newTraces(t, tracing.Config{})
		m := meshtest.New(t, "", tr.option, mesh.WithServer(mesh.ServerConfig{RestartTraces: restart}))
		h := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if got := tracing.RequestID(r.Context()); len(got) != 36 {
				t.Errorf("the request id is %q, want one of ours", got)
			}
			if got := tracing.Baggage(r.Context()).Len() == 0; got != restart {
				t.Errorf("restart %t: baggage is empty: %t", restart, got)
			}
		}))
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = http.Header{"Traceparent": {remote}, "X-Request-Id": {"forged"}, "Baggage": {"a=b"}}
		h.ServeHTTP(httptest.NewRecorder(), r)
		s := tr.ended(t, 1)[0]
		if got := s.SpanContext().TraceID().String() != remote[3:35]; got != restart {
			t.Errorf("restart %t: a new trace began: %t", restart, got)
		}
	}
}

func TestRefusedRequestsHaveSpans(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	m := meshtest.New(t, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none}
spec: {}
`, tr.option)
	served := false
	h := m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served = true }))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	s := tr.ended(t, 1)[0]
	if served || w.Code != 403 || attribute(s, "http.response.status_code") != "403" || s.Status().Code != codes.Unset {
		t.Errorf("%d, %v, %v", w.Code, s.Status(), s.Attributes())
	}
	conn := grpctest.Dial(t, grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, meshgrpc.ServerOptions(m)...))
	if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != grpccodes.PermissionDenied {
		t.Fatal(err)
	}
	if s := tr.ended(t, 2)[1]; attribute(s, "rpc.response.status_code") != "PERMISSION_DENIED" || s.Name() != "grpc" ||
		attribute(s, "rpc.method_original") != "grpc.testing.TestService/UnaryCall" {
		t.Errorf("%s has %v", s.Name(), s.Attributes())
	}
}

func TestMethodsOfGRPCThatDoNotExist(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	m := meshtest.New(t, "", tr.option)
	conn := grpctest.Dial(t, grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, meshgrpc.ServerOptions(m)...))
	if err := conn.Invoke(t.Context(), "/made.Up/Method", &grpctest.Request{}, &grpctest.Response{}); status.Code(err) != grpccodes.Unimplemented {
		t.Fatal(err)
	}
	if s := tr.ended(t, 1)[0]; s.Name() != "grpc" || attribute(s, "rpc.method") != "_OTHER" || attribute(s, "rpc.method_original") != "made.Up/Method" {
		t.Errorf("%s has %v", s.Name(), s.Attributes())
	}
}

// The copy of a call belongs to the same trace, and to no attempt.
func TestMirrors(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	registry.Set("shadow", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	m := meshtest.New(t, service("orders", "    mirror: {host: shadow}\n"), tr.option, mesh.WithDiscovery(&registry))
	ctx, above := tr.provider.Tracer("").Start(context.Background(), "above")
	get(t, ctx, m, "http://orders/")
	for _, s := range tr.ended(t, 2) {
		if s.Parent().SpanID() != above.SpanContext().SpanID() || s.SpanKind() != trace.SpanKindClient {
			t.Errorf("%s %s is no child of the caller's span", s.SpanKind(), s.Name())
		}
	}
}

func TestCloseWhileSpansAreOpen(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	var registry discovery.Memory
	arrived, leave := make(chan struct{}, 1), make(chan struct{})
	registry.Set("orders", meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-leave:
		case <-r.Context().Done():
		}
	}))
	m := meshtest.New(t, "", tr.option, mesh.WithDiscovery(&registry))
	ctx, above := tr.provider.Tracer("").Start(context.Background(), "above")
	defer above.End()
	var calls sync.WaitGroup
	calls.Go(func() { get(t, ctx, m, "http://orders/") })
	<-arrived
	m.Close()
	close(leave)
	calls.Wait()
	tr.ended(t, 1)
}

// The rules of the specification, through a mesh on both sides of a service.
func TestTraceContextOfW3C(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	var registry discovery.Memory
	var mu sync.Mutex
	var calls int
	var seen []http.Header
	registry.Set("payment", meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header)
	}))
	orders := meshtest.New(t, service("payment", ""), tr.option, mesh.WithDiscovery(&registry))
	at := meshtest.Serve(t, orders.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range calls {
			get(t, r.Context(), orders, "http://payment/")
		}
	})).ServeHTTP)
	w3c.Check(t, func(t *testing.T, header []w3c.Field, n int) []http.Header {
		calls, seen = n, nil
		w3c.Get(t, net.JoinHostPort(at.Address, strconv.Itoa(at.Port)), header)
		return seen
	})
}

// A gRPC server may be an http.Handler behind the mesh. Its calls are told apart by their own code.
func TestServersOfGRPCAsHandlers(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	server := grpc.NewServer()
	grpctest.Register(server, &grpctest.Service{
		Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
			return nil, status.Error(grpccodes.ResourceExhausted, "enough")
		},
		Bidi: func(s grpctest.BidiServer) error { return s.Send(&grpctest.Out{}) },
	})
	m := meshtest.New(t, "", tr.option)
	srv := httptest.NewUnstartedServer(m.Handler(server))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	defer srv.Close()
	client := grpctest.NewClient(grpctest.Dial(t, srv.Listener.Addr().String()))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != grpccodes.ResourceExhausted {
		t.Fatal(err)
	}
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	for i, want := range []string{"grpc.testing.TestService/UnaryCall RESOURCE_EXHAUSTED", "grpc.testing.TestService/FullDuplexCall OK"} {
		s := tr.ended(t, 2)[i]
		if got := s.Name() + " " + attribute(s, "rpc.response.status_code"); got != want || s.SpanKind() != trace.SpanKindServer {
			t.Errorf("%s span %q, want %q", s.SpanKind(), got, want)
		}
	}
}

// Spans know the version of HTTP that was spoken, and the pattern of the handler, also of one that panics.
func TestVersionsAndPatterns(t *testing.T) {
	leak.Check(t)
	for _, http2 := range []bool{false, true} {
		tr := newTraces(t, tracing.Config{})
		mux := http.NewServeMux()
		mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {})
		mux.HandleFunc("GET /broken/{id}", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
		srv := httptest.NewUnstartedServer(meshtest.New(t, "", tr.option).Handler(mux))
		srv.EnableHTTP2 = http2
		srv.StartTLS()
		defer srv.Close()
		registry := discovery.Static{"example.com": {meshtest.EndpointOf(t, srv.Listener.Addr().String())}}
		m := meshtest.New(t, service("example.com", ""), tr.option, mesh.WithDiscovery(registry), mesh.WithTransport(srv.Client().Transport.(*http.Transport)))
		for _, path := range []string{"/orders/42", "/broken/42"} {
			if resp, err := m.Client().Get("https://example.com" + path); err == nil {
				resp.Body.Close()
			}
		}
		version := map[bool]string{false: "1.1", true: "2"}[http2]
		names := map[string]int{}
		for _, s := range tr.ended(t, len(tr.Started())) {
			if s.SpanKind() == trace.SpanKindInternal {
				continue
			}
			names[s.SpanKind().String()+" "+s.Name()+" "+attribute(s, "http.route")]++
			if got := attribute(s, "network.protocol.version"); got != version && (s.SpanKind() == trace.SpanKindServer || s.Status().Code == codes.Unset) {
				t.Errorf("HTTP/2 %t: %s %s has the version %q", http2, s.SpanKind(), s.Name(), got)
			}
		}
		if names["server GET /orders/{id} /orders/{id}"] != 1 || names["server GET /broken/{id} /broken/{id}"] < 1 {
			t.Errorf("HTTP/2 %t: the spans are %v", http2, names)
		}
	}
}

func TestEchoRequestID(t *testing.T) {
	leak.Check(t)
	for _, echo := range []bool{false, true} {
		tr := newTraces(t, tracing.Config{EchoRequestID: echo})
		m := meshtest.New(t, "", tr.option)
		var id string
		w := httptest.NewRecorder()
		m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { id = tracing.RequestID(r.Context()) })).
			ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if got := w.Header().Get("X-Request-Id"); (got == id) != echo || len(id) != 36 {
			t.Errorf("echo %t: the answer has the id %q, the request %q", echo, got, id)
		}
		client := grpctest.NewClient(grpctest.Dial(t, grpctest.Serve(t, &grpctest.Service{
			Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
				id = tracing.RequestID(ctx)
				return &grpctest.Response{}, nil
			},
		}, meshgrpc.ServerOptions(m)...)))
		var header metadata.MD
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(header["x-request-id"], "|"); (got == id) != echo || len(id) != 36 {
			t.Errorf("echo %t: the answer of gRPC has the id %q, the request %q", echo, got, id)
		}
	}
}

func TestInvalidConfig(t *testing.T) {
	if _, err := tracingmesh.Observer(tracing.Config{Formats: "jaeger"}); err == nil || !strings.Contains(err.Error(), "jaeger") {
		t.Errorf("error %v", err)
	}
}
