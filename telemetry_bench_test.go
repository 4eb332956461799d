package mesh_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// observedSide is one way to call the noopTransport through a mesh that is observed.
type observedSide struct {
	name   string
	allocs float64 // of a call, at most, beyond the first side
	rt     http.RoundTripper
	ctx    context.Context
}

// tracedSides are a mesh without traces, and with more and more of them.
func tracedSides(tb testing.TB) []observedSide {
	ctx := context.Background()
	never := sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample()))
	always := sdk.NewTracerProvider(sdk.WithSampler(sdk.AlwaysSample()))
	unsampled, _ := never.Tracer("").Start(ctx, "server")
	remote := trace.ContextWithRemoteSpanContext(ctx, trace.SpanContextFromContext(unsampled))
	sampled, _ := always.Tracer("").Start(ctx, "server")
	plan := fmt.Sprintf(benchDocuments, "", "")
	traced := func(c tracing.Config) http.RoundTripper { return noopMesh(tb, plan, withTraces(tb, c)) }
	return []observedSide{
		{"no traces", 0, noopMesh(tb, plan), unsampled},
		{"unsampled W3C", 3, traced(tracing.Config{Provider: never, Formats: "tracecontext"}), unsampled},
		{"unsampled W3C, without a provider", 3, traced(tracing.Config{Formats: "tracecontext"}), remote},
		{"unsampled W3C, new traces", 6, traced(tracing.Config{Provider: never, Formats: "tracecontext"}), ctx},
		{"unsampled, default headers", 3, traced(tracing.Config{Provider: never}), unsampled},
		{"sampled", 30, traced(tracing.Config{Provider: always}), sampled},
	}
}

// meteredSides are a mesh with an observer that does nothing, and with metrics and traces in its place.
func meteredSides(tb testing.TB) []observedSide {
	never := sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample()))
	unsampled, _ := never.Tracer("").Start(context.Background(), "server")
	plan := fmt.Sprintf(benchDocuments, "", "")
	metered := func() mesh.Option {
		m, err := metrics.New(metrics.Config{Registerer: prometheus.NewRegistry()})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { m.Close() })
		return mesh.WithObserver(m.Observer())
	}
	traced := func(formats string) mesh.Option {
		return withTraces(tb, tracing.Config{Provider: never, Formats: formats})
	}
	return []observedSide{
		{"observed", 0, noopMesh(tb, plan, mesh.WithObserver(mesh.Observer{
			CallStart: func(ctx context.Context, _ *mesh.Call) context.Context { return ctx }, CallEnd: func(context.Context, *mesh.Call) {},
			AttemptStart: func(ctx context.Context, _ *mesh.Attempt) context.Context { return ctx },
			InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx }, InboundEnd: func(context.Context, *mesh.Inbound) {},
		})), unsampled},
		{"metrics", 3, noopMesh(tb, plan, metered()), unsampled},
		{"metrics, unsampled W3C", 6, noopMesh(tb, plan, metered(), traced("tracecontext")), unsampled},
		{"metrics, unsampled, default headers", 9, noopMesh(tb, plan, metered(), traced("")), unsampled},
	}
}

func withTraces(tb testing.TB, c tracing.Config) mesh.Option {
	observer, err := tracingmesh.Observer(c)
	if err != nil {
		tb.Fatal(err)
	}
	return mesh.WithObserver(observer)
}

func benchmarkObserved(b *testing.B, sides []observedSide) {
	for _, side := range sides {
		b.Run(side.name, func(b *testing.B) {
			req, buf := noopRequest(b).WithContext(side.ctx), make([]byte, 512)
			b.ReportAllocs()
			for b.Loop() {
				noopCall(b, side.rt, req, buf)
			}
		})
	}
}

// BenchmarkTraces shows what traces add to a call.
func BenchmarkTraces(b *testing.B) { benchmarkObserved(b, tracedSides(b)) }

// BenchmarkMetrics shows what metrics add to a call, with traces and without.
func BenchmarkMetrics(b *testing.B) { benchmarkObserved(b, meteredSides(b)) }

func checkAllocations(t *testing.T, sides []observedSide) {
	var first float64
	for i, side := range sides {
		req, buf := noopRequest(t).WithContext(side.ctx), make([]byte, 512)
		got := testing.AllocsPerRun(1000, func() { noopCall(t, side.rt, req, buf) })
		if i == 0 {
			first = got
		}
		if got -= first; got > side.allocs {
			t.Errorf("%s: %v allocations a call beyond %s, want at most %v", side.name, got, sides[0].name, side.allocs)
		}
	}
}

func TestAllocationsOfTraces(t *testing.T) {
	noLeaks(t)
	checkAllocations(t, tracedSides(t))
}

func TestAllocationsOfMetrics(t *testing.T) {
	noLeaks(t)
	checkAllocations(t, meteredSides(t))
}

// BenchmarkMetricsInbound shows what metrics add to a request.
func BenchmarkMetricsInbound(b *testing.B) {
	w := newTown(b)
	id, err := w.Identity("default", "order-service")
	if err != nil {
		b.Fatal(err)
	}
	m, err := metrics.New(metrics.Config{Registerer: prometheus.NewRegistry()})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, bm := range []struct {
		name     string
		observer mesh.Observer
	}{
		{"observed", mesh.Observer{InboundEnd: func(context.Context, *mesh.Inbound) {}}},
		{"metrics", m.Observer()},
	} {
		h := w.member(b, "payment-service", strict, mesh.WithObserver(bm.observer)).Handler(next)
		b.Run(bm.name, func(b *testing.B) {
			r := inboundRequest(id.Certificate().Leaf)
			r.Header["X-Envoy-Peer-Metadata"], r.Header["X-Envoy-Peer-Metadata-Id"] = []string{"AAAA"}, []string{"sidecar~"}
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(discard{make(http.Header)}, r)
			}
		})
	}
}
