package interop

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracinggrpc"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

const remote = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"

type traces struct {
	*tracetest.SpanRecorder
	provider *sdk.TracerProvider
	config   tracing.Config
}

func newTraces() *traces {
	s := tracetest.NewSpanRecorder()
	p := sdk.NewTracerProvider(sdk.WithSpanProcessor(s))
	return &traces{s, p, tracing.Config{Provider: p, Formats: "tracecontext"}}
}

func (tr *traces) http() []otelhttp.Option {
	return []otelhttp.Option{otelhttp.WithTracerProvider(tr.provider), otelhttp.WithPropagators(propagation.TraceContext{})}
}

func (tr *traces) grpc() []otelgrpc.Option {
	return []otelgrpc.Option{otelgrpc.WithTracerProvider(tr.provider), otelgrpc.WithPropagators(propagation.TraceContext{})}
}

// shape returns each span with the number of the span above it, in the order in which they began.
func (tr *traces) shape(t *testing.T) (out []string, all []sdk.ReadOnlySpan) {
	t.Helper()
	all = tr.Ended()
	slices.SortStableFunc(all, func(a, b sdk.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	for _, s := range all {
		by := "ours"
		if strings.Contains(s.InstrumentationScope().Name, "otelhttp") || strings.Contains(s.InstrumentationScope().Name, "otelgrpc") {
			by = "theirs"
		}
		above := "none"
		if s.Parent().IsValid() {
			above = "remote"
		}
		for _, p := range all {
			if p.SpanContext().SpanID() == s.Parent().SpanID() {
				above = "theirs"
				if strings.HasSuffix(p.InstrumentationScope().Name, "mesh/tracing") {
					above = "ours"
				}
				above += " " + p.SpanKind().String()
			}
		}
		if s.SpanContext().TraceID() != all[0].SpanContext().TraceID() {
			t.Errorf("%s is of another trace", s.Name())
		}
		out = append(out, by+" "+s.SpanKind().String()+" below "+above)
	}
	return out, all
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("spans:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

type server struct {
	mu      sync.Mutex
	parents []string // of the requests
}

// sent returns the parents of the requests, of which there must be n, each with one.
func (s *server) sent(t *testing.T, n int) []string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.parents) != n || slices.ContainsFunc(s.parents, func(parent string) bool { return len(parent) != len(remote) }) {
		t.Fatalf("the server got %q, want %d requests with a parent", s.parents, n)
	}
	return slices.Clone(s.parents)
}

// serve returns a server that fails the first n requests.
func serve(t *testing.T, n int) (*server, *httptest.Server) {
	s := new(server)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.parents = append(s.parents, r.Header.Get("Traceparent")); len(s.parents) <= n {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(srv.Close)
	return s, srv
}

func get(t *testing.T, ctx context.Context, rt http.RoundTripper, url string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func newMesh(t *testing.T, c tracing.Config, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	observer, err := tracingmesh.Observer(c)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.New(context.Background(), append(opts, mesh.WithObserver(observer))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

const orders = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
  - route: [{destination: {host: orders}}]
    retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}
`

func meshTo(t *testing.T, c tracing.Config, srv *httptest.Server) *mesh.Mesh {
	addr := srv.Listener.Addr().(*net.TCPAddr)
	return newMesh(t, c, mesh.WithPolicy(policy.Source{Name: "orders.yaml", Data: []byte(orders)}),
		mesh.WithDiscovery(discovery.Static{"orders": {{Address: addr.IP.String(), Port: addr.Port}}}))
}

// otelhttp around a mesh is the parent of the attempts. Retries stay one trace, also where otelhttp begins it.
func TestOtelhttpAroundAMesh(t *testing.T) {
	tr := newTraces()
	s, srv := serve(t, 1)
	m := meshTo(t, tr.config, srv)
	get(t, context.Background(), otelhttp.NewTransport(m.Transport(), tr.http()...), "http://orders/")
	got, all := tr.shape(t)
	want(t, got, "theirs client below none", "ours client below theirs client", "ours internal below theirs client", "ours client below ours internal")
	for _, parent := range s.sent(t, 2) {
		if !slices.ContainsFunc(all, func(s sdk.ReadOnlySpan) bool {
			return s.InstrumentationScope().Name == "github.com/nosidecar/mesh/tracing" && s.SpanContext().SpanID().String() == parent[36:52]
		}) {
			t.Errorf("%s was sent, which is no attempt", parent)
		}
	}
}

// With NoClientSpans the spans are otelhttp's alone, and its header is sent.
func TestOtelhttpInPlaceOfOurs(t *testing.T) {
	tr := newTraces()
	tr.config.NoClientSpans = true
	s, srv := serve(t, 1)
	m := meshTo(t, tr.config, srv)
	get(t, context.Background(), otelhttp.NewTransport(m.Transport(), tr.http()...), "http://orders/")
	got, all := tr.shape(t)
	want(t, got, "theirs client below none")
	for _, parent := range s.sent(t, 2) {
		if parent[36:52] != all[0].SpanContext().SpanID().String() {
			t.Errorf("%s was sent, want the span of otelhttp", parent)
		}
	}
}

// otelhttp inside is the child of the attempt, and the header is that of the innermost span.
func TestOtelhttpInsideATransport(t *testing.T) {
	tr := newTraces()
	s, srv := serve(t, 1)
	rt := &tracing.Calls{Config: tr.config, Base: &retry.Transport{
		Config: retry.Config{Retries: 1, Backoff: -1},
		Base:   &tracing.Transport{Config: tr.config, Base: otelhttp.NewTransport(http.DefaultTransport, tr.http()...)},
	}}
	get(t, context.Background(), rt, srv.URL)
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	got, all := tr.shape(t)
	want(t, got, "ours internal below none", "ours client below ours internal", "ours client below ours internal",
		"theirs client below ours client", "theirs client below ours client")
	for _, parent := range s.sent(t, 2) {
		if !slices.ContainsFunc(all, func(s sdk.ReadOnlySpan) bool {
			return strings.Contains(s.InstrumentationScope().Name, "otelhttp") && s.SpanContext().SpanID().String() == parent[36:52]
		}) {
			t.Errorf("%s was sent, which is not the innermost span", parent)
		}
	}
}

func TestOtelhttpAroundAHandler(t *testing.T) {
	tr := newTraces()
	h := otelhttp.NewHandler(&tracing.Handler{Config: tr.config, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tracing.RequestID(r.Context()) != "id-1" {
			t.Errorf("request id %q", tracing.RequestID(r.Context()))
		}
	})}, "", tr.http()...)
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header = http.Header{"Traceparent": {remote}, "X-Request-Id": {"id-1"}}
	h.ServeHTTP(httptest.NewRecorder(), r)
	got, _ := tr.shape(t)
	want(t, got, "theirs server below remote")
}

// otelhttp inside a mesh makes the only SERVER span, and cannot undo that traces restart.
func TestOtelhttpInsideAMesh(t *testing.T) {
	for restart, above := range map[bool]string{false: "remote", true: "none"} {
		tr := newTraces()
		tr.config.NoServerSpans = true
		m := newMesh(t, tr.config, mesh.WithServer(mesh.ServerConfig{RestartTraces: restart}))
		_, srv := serve(t, 0)
		h := m.Handler(otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			get(t, r.Context(), &tracing.Transport{Config: tr.config}, srv.URL)
		}), "", tr.http()...))
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = http.Header{"Traceparent": {remote}}
		h.ServeHTTP(httptest.NewRecorder(), r)
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		got, _ := tr.shape(t)
		want(t, got, "theirs server below "+above, "ours client below theirs server")
	}
}

// otelgrpc inside is the child of the call, on the other side it is the only SERVER span.
func TestOtelgrpc(t *testing.T) {
	tr := newTraces()
	srv := grpc.NewServer(append((&tracinggrpc.Server{Config: tr.config}).ServerOptions(), grpc.StatsHandler(otelgrpc.NewServerHandler(tr.grpc()...)))...)
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) })
	conn, err := grpc.NewClient(ln.Addr().String(), append((&tracinggrpc.Client{Config: tr.config}).DialOptions(),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(tr.grpc()...)), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	srv.GracefulStop()
	serving.Wait()
	got, _ := tr.shape(t)
	want(t, got, "ours client below none", "theirs client below ours client", "theirs server below theirs client")
}

// serveHealth serves gRPC, and fails the first calls with UNAVAILABLE. It returns what to call, and what its calls came with.
func serveHealth(t *testing.T, failing int, opts ...grpc.ServerOption) (addr *net.TCPAddr, parents func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	count := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		mu.Lock()
		defer mu.Unlock()
		if seen = append(seen, strings.Join(md["traceparent"], "|")); len(seen) <= failing {
			return nil, status.Error(codes.Unavailable, "not yet")
		}
		return handler(ctx, req)
	}
	srv := grpc.NewServer(append(opts, grpc.ChainUnaryInterceptor(count))...)
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	return ln.Addr().(*net.TCPAddr), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

func check(t *testing.T, ctx context.Context, target string, opts ...grpc.DialOption) {
	t.Helper()
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
}

// ends waits until all spans that were started have ended, which a server's do after its answer has arrived.
func (tr *traces) ends(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(tr.Ended()) < len(tr.Started()); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d spans have ended", len(tr.Ended()), len(tr.Started()))
		}
	}
}

const retriedHealth = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: health}
spec:
  hosts: [health]
  http:
  - route: [{destination: {host: health}}]
    retries: {attempts: 2, retryOn: unavailable, backoff: 1ms}
`

// otelgrpc below a mesh has a span for each try, all of them children of the call's, so that retries stay one trace. With
// NoClientSpans they would be alone: where there is no span above, in a trace each.
func TestOtelgrpcBelowAMesh(t *testing.T) {
	for name, noClientSpans := range map[string]bool{"with our spans": false, "in place of ours": true} {
		t.Run(name, func(t *testing.T) {
			tr := newTraces()
			tr.config.NoClientSpans = noClientSpans
			addr, parents := serveHealth(t, 1)
			m := newMesh(t, tr.config, mesh.WithPolicy(policy.Source{Name: "health.yaml", Data: []byte(retriedHealth)}),
				mesh.WithDiscovery(discovery.Static{"health": {{Address: addr.IP.String(), Port: addr.Port}}}))
			ctx, above := tr.provider.Tracer("otelgrpc of the test").Start(context.Background(), "above")
			check(t, ctx, "mesh:///health", append(meshgrpc.DialOptions(m), grpc.WithStatsHandler(otelgrpc.NewClientHandler(tr.grpc()...)))...)
			above.End()
			tr.ends(t)
			got, all := tr.shape(t)
			if noClientSpans {
				want(t, got, "theirs internal below none", "theirs client below theirs internal", "theirs client below theirs internal")
			} else {
				want(t, got, "theirs internal below none", "ours client below theirs internal", "theirs client below ours client", "theirs client below ours client")
			}
			if n := len(parents()); n != 2 {
				t.Errorf("the server got %d requests", n)
			}
			for _, parent := range parents() {
				if !slices.ContainsFunc(all, func(s sdk.ReadOnlySpan) bool {
					return s.SpanKind() == trace.SpanKindClient && strings.Contains(s.InstrumentationScope().Name, "otelgrpc") &&
						len(parent) == 55 && s.SpanContext().SpanID().String() == parent[36:52]
				}) {
					t.Errorf("%q was sent, which is not the innermost span", parent)
				}
			}
		})
	}
}

// otelgrpc inside a mesh makes the only SERVER span, and cannot undo that traces restart.
func TestOtelgrpcInsideAMesh(t *testing.T) {
	for restart, above := range map[bool]string{false: "remote", true: "none"} {
		tr := newTraces()
		tr.config.NoServerSpans = true
		m := newMesh(t, tr.config, mesh.WithServer(mesh.ServerConfig{RestartTraces: restart}))
		addr, parents := serveHealth(t, 0, append(meshgrpc.ServerOptions(m), grpc.StatsHandler(otelgrpc.NewServerHandler(tr.grpc()...)))...)
		ctx := metadata.AppendToOutgoingContext(context.Background(), "traceparent", remote)
		check(t, ctx, addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		tr.ends(t)
		got, _ := tr.shape(t)
		want(t, got, "theirs server below "+above)
		if seen := parents(); len(seen) != 1 || (seen[0] == "") != restart {
			t.Errorf("restart %t: the handler sees %q", restart, seen)
		}
	}
}

// The same where the whole chain has both: one span for each hop and library, and the traces of both ends are one.
func TestOtelgrpcOnBothEndsOfAMesh(t *testing.T) {
	tr := newTraces()
	tr.config.NoServerSpans = true
	server := newMesh(t, tr.config)
	addr, _ := serveHealth(t, 0, append(meshgrpc.ServerOptions(server), grpc.StatsHandler(otelgrpc.NewServerHandler(tr.grpc()...)))...)
	client := newMesh(t, tr.config, mesh.WithPolicy(policy.Source{Name: "health.yaml", Data: []byte(retriedHealth)}),
		mesh.WithDiscovery(discovery.Static{"health": {{Address: addr.IP.String(), Port: addr.Port}}}))
	check(t, context.Background(), "mesh:///health", append(meshgrpc.DialOptions(client), grpc.WithStatsHandler(otelgrpc.NewClientHandler(tr.grpc()...)))...)
	tr.ends(t)
	got, _ := tr.shape(t)
	want(t, got, "ours client below none", "theirs client below ours client", "theirs server below theirs client")
}
