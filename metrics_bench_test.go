package mesh_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// meteredSides are a mesh with an observer that does nothing, and with metrics and traces in its place.
func meteredSides(tb testing.TB) []tracedSide {
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
	traced := func(c tracing.Config) mesh.Option {
		c.Provider = never
		observer, err := tracingmesh.Observer(c)
		if err != nil {
			tb.Fatal(err)
		}
		return mesh.WithObserver(observer)
	}
	return []tracedSide{
		{"observed", 0, noopMesh(tb, plan, mesh.WithObserver(mesh.Observer{
			CallStart: func(ctx context.Context, _ *mesh.Call) context.Context { return ctx }, CallEnd: func(context.Context, *mesh.Call) {},
			AttemptStart: func(ctx context.Context, _ *mesh.Attempt) context.Context { return ctx },
			InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx }, InboundEnd: func(context.Context, *mesh.Inbound) {},
		})), unsampled},
		{"metrics", 3, noopMesh(tb, plan, metered()), unsampled},
		{"metrics, unsampled W3C", 6, noopMesh(tb, plan, metered(), traced(tracing.Config{Formats: "tracecontext"})), unsampled},
		{"metrics, unsampled, default headers", 9, noopMesh(tb, plan, metered(), traced(tracing.Config{})), unsampled},
	}
}

// BenchmarkMetrics shows what metrics add to a call, with traces and without.
func BenchmarkMetrics(b *testing.B) {
	for _, side := range meteredSides(b) {
		b.Run(side.name, func(b *testing.B) {
			req, buf := noopRequest(b).WithContext(side.ctx), make([]byte, 512)
			b.ReportAllocs()
			for b.Loop() {
				noopCall(b, side.rt, req, buf)
			}
		})
	}
}

func TestAllocationsOfMetrics(t *testing.T) {
	noLeaks(t)
	var bare float64
	for _, side := range meteredSides(t) {
		req, buf := noopRequest(t).WithContext(side.ctx), make([]byte, 512)
		got := testing.AllocsPerRun(1000, func() { noopCall(t, side.rt, req, buf) })
		if bare == 0 {
			bare = got
		}
		if got -= bare; got > side.allocs {
			t.Errorf("%s: %v allocations a call beyond the mesh with an observer, want at most %v", side.name, got, side.allocs)
		}
	}
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
