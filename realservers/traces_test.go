package realservers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/zipkin"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/realservers/servers"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// documents are those of the whole chain: order answers its first request with 503, and nothing listens where audit is.
const documents = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order-service}
spec:
  hosts: [order-service]
  http:
  - name: orders
    route: [{destination: {host: order-service}}]
    retries: {attempts: 3, perTryTimeout: 30s, retryOn: "5xx,reset,connect-failure,refused-stream", backoff: 1ms}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment-service}
spec:
  hosts: [payment-service]
  http:
  - route: [{destination: {host: payment-service}}]
    timeout: 60s
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: audit-service}
spec:
  hosts: [audit-service]
  http:
  - route: [{destination: {host: audit-service}}]
    retries: {attempts: 0}
`

// service is one of the chain: a mesh with a provider of its own, as in a process of its own.
type service struct {
	*mesh.Mesh
	provider *sdk.TracerProvider
}

func newService(t *testing.T, name string, exporter sdk.SpanExporter, registry *discovery.Memory) *service {
	t.Helper()
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(resource.NewSchemaless(semconv.ServiceNameKey.String(name))))
	observer, err := tracingmesh.Observer(tracing.Config{Provider: provider})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{meshtest.New(t, documents, mesh.WithObserver(observer), mesh.WithDiscovery(registry)), provider}
	t.Cleanup(func() { s.flush(t) })
	return s
}

// flush has the spans that have ended sent, and ends the provider.
func (s *service) flush(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.provider.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// call makes a call as applications do: with the context of the request it is made for, and no header.
func (s *service) call(ctx context.Context, method, url string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return errors.New(resp.Status)
	}
	return nil
}

// chain starts user, order, payment and database, each of which calls the next: over HTTP, HTTP, gRPC and HTTP. It returns a
// function that has web call user, and returns the id of the trace when all spans are sent.
func chain(t *testing.T, exporter func() sdk.SpanExporter) func() string {
	t.Helper()
	var registry discovery.Memory
	var services []*service
	start := func(name string) *service {
		s := newService(t, name, exporter(), &registry)
		services = append(services, s)
		return s
	}
	serve := func(s *service, name, pattern string, h http.HandlerFunc) {
		mux := http.NewServeMux()
		mux.HandleFunc(pattern, h)
		registry.Set(name, meshtest.Serve(t, s.Handler(mux).ServeHTTP))
	}
	fail := func(w http.ResponseWriter, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}

	database := start("database")
	serve(database, "database", "POST /charges", func(http.ResponseWriter, *http.Request) {})
	registry.Set("audit-service", meshtest.Refusing(t))

	payment := start("payment-service")
	registry.Set("payment-service", meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if err := payment.call(ctx, http.MethodGet, "http://audit-service/log"); err == nil {
				return nil, errors.New("audit-service answers")
			}
			return &grpctest.Response{}, payment.call(ctx, http.MethodPost, "http://database/charges")
		},
	}, meshgrpc.ServerOptions(payment.Mesh)...)))

	order := start("order-service")
	conn, err := grpc.NewClient("mesh:///payment-service", meshgrpc.DialOptions(order.Mesh)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var requests atomic.Int32
	serve(order, "order-service", "GET /orders", func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		_, err := grpctest.NewClient(conn).UnaryCall(r.Context(), &grpctest.Request{})
		fail(w, err)
	})

	user := start("user-service")
	serve(user, "user-service", "GET /users/{id}", func(w http.ResponseWriter, r *http.Request) {
		fail(w, user.call(r.Context(), http.MethodGet, "http://order-service/orders?userId="+r.PathValue("id")))
	})

	web := start("web")
	return func() string {
		ctx, span := web.provider.Tracer("web").Start(t.Context(), "checkout")
		if err := web.call(ctx, http.MethodGet, "http://user-service/users/42"); err != nil {
			t.Error(err)
		}
		span.End()
		for _, s := range services {
			s.Close() // every request has ended then, and so have the spans
			s.flush(t)
		}
		return span.SpanContext().TraceID().String()
	}
}

// tree returns the spans as lines, each below the one it is a child of, and in the order of their names.
func tree(spans []servers.Span, kind func(servers.Span) string) string {
	slices.SortStableFunc(spans, func(a, b servers.Span) int {
		return cmp.Or(strings.Compare(kind(a), kind(b)), strings.Compare(a.Name, b.Name))
	})
	var b strings.Builder
	var write func(parent, indent string)
	write = func(parent, indent string) {
		for _, s := range spans {
			if s.Parent != parent {
				continue
			}
			fmt.Fprintf(&b, "%s%s: %s %s", indent, s.Service, kind(s), s.Name)
			for _, tag := range []string{"http.response.status_code", "rpc.response.status_code", "http.request.resend_count", "mesh.response_flags", "mesh.route", "error.type"} {
				if v := s.Tags[tag]; v != "" {
					fmt.Fprintf(&b, " %s=%s", strings.TrimPrefix(strings.TrimPrefix(tag[strings.IndexByte(tag, '.')+1:], "response."), "request."), v)
				}
			}
			b.WriteByte('\n')
			write(s.ID, indent+"  ")
		}
	}
	write("", "")
	return b.String()
}

// wantTree is the trace: the retried attempts of the call to order are one trace, with each attempt's own request below it.
const wantTree = `web: internal checkout
  web: client GET status_code=200
    user-service: server GET /users/{id} status_code=200
      user-service: client GET status_code=503 type=503
        order-service: server GET /orders status_code=503 type=503
      user-service: internal GET status_code=200 route=orders
        user-service: client GET status_code=200 resend_count=1 route=orders
          order-service: server GET /orders status_code=200
            order-service: client grpc.testing.TestService/UnaryCall status_code=OK
              payment-service: server grpc.testing.TestService/UnaryCall status_code=OK
                payment-service: client GET response_flags=UF type=*net.OpError
                payment-service: client POST status_code=200
                  database: server POST /charges status_code=200
`

func TestJaegerByOTLP(t *testing.T) {
	leak.Check(t)
	jaeger := servers.StartJaeger(t)
	run := chain(t, func() sdk.SpanExporter {
		e, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithInsecure(), otlptracegrpc.WithEndpoint(jaeger.OTLPGRPC))
		if err != nil {
			t.Fatal(err)
		}
		return e
	})
	checkTrace(t, jaeger, run(), func(s servers.Span) string { return s.Tags["span.kind"] })
}

func TestJaegerByZipkin(t *testing.T) {
	leak.Check(t)
	jaeger := servers.StartJaeger(t)
	var transports []*http.Transport
	run := chain(t, func() sdk.SpanExporter {
		transport := &http.Transport{}
		transports = append(transports, transport)
		e, err := zipkin.New(jaeger.Zipkin, zipkin.WithClient(&http.Client{Transport: transport}))
		if err != nil {
			t.Fatal(err)
		}
		return e
	})
	checkTrace(t, jaeger, run(), func(s servers.Span) string {
		if kind := s.Tags["span.kind"]; kind != "" {
			return kind
		}
		return "internal" // Zipkin has no kind for it
	})
	for _, transport := range transports {
		transport.CloseIdleConnections()
	}
}

func checkTrace(t *testing.T, jaeger *servers.Jaeger, id string, kind func(servers.Span) string) {
	t.Helper()
	spans := jaeger.Trace(t, id, strings.Count(wantTree, "\n"))
	if got := tree(spans, kind); !strings.EqualFold(got, wantTree) { // Zipkin has names in lower case
		t.Errorf("the trace is\n%s\nwant\n%s", got, wantTree)
	}
	for _, s := range spans {
		if s.Tags["span.kind"] == "client" && slices.Contains([]string{"127.0.0.1", ""}, s.Tags["server.address"]) {
			t.Errorf("%s %s has the server.address %q, want the service", s.Service, s.Name, s.Tags["server.address"])
		}
	}
}
