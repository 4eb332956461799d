package tracingmesh_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// Attempts that nobody records have span ids of their own, which all headers name, and the request id of their call.
func TestRetriedAttemptsThatNobodyRecords(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	var registry discovery.Memory
	var mu sync.Mutex
	var seen []http.Header
	registry.Set("orders", meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if seen = append(seen, r.Header); len(seen)%3 != 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	m := meshtest.New(t, service("orders", "    retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}\n"), tr.option, mesh.WithDiscovery(&registry))
	above := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{7: 1}})
	for range 2 {
		if code := get(t, trace.ContextWithSpanContext(context.Background(), above), m, "http://orders/"); code != 200 {
			t.Fatal(code)
		}
	}
	tr.ended(t, 0)
	ids := map[string]bool{above.SpanID().String(): true}
	for i, h := range seen {
		parent, id := h.Get("Traceparent"), h.Get("X-B3-Spanid")
		if len(parent) != 55 || parent[3:35] != above.TraceID().String() || parent[36:52] != id || parent[53:] != "00" ||
			h.Get("X-B3-Traceid") != parent[3:35] || h.Get("X-B3-Sampled") != "0" {
			t.Errorf("attempt %d sent %v", i+1, h)
		}
		if ids[id] {
			t.Errorf("attempt %d has the span id %s of another one", i+1, id)
		}
		ids[id] = true
		if first := seen[i-i%3].Get("X-Request-Id"); len(first) != 36 || h.Get("X-Request-Id") != first {
			t.Errorf("attempt %d has the request id %q, want %q", i+1, h.Get("X-Request-Id"), first)
		}
	}
	if len(seen) != 6 || seen[0].Get("X-Request-Id") == seen[3].Get("X-Request-Id") {
		t.Errorf("%d attempts, want 6; the calls have the request ids %s and %s", len(seen), seen[0].Get("X-Request-Id"), seen[3].Get("X-Request-Id"))
	}
}

// An observer that records nothing does not keep another one from recording, whichever comes first.
func TestAnObserverThatRecordsBesideOneThatDoesNot(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	unsampled := trace.SpanContextConfig{TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{7: 1}, Remote: true}
	kept, above := sdk.NewTracerProvider(sdk.WithSampler(recordOnly{})).Tracer("").Start(context.Background(), "recorded, but not sampled")
	defer above.End()
	for _, first := range []bool{true, false} {
		recorder := tracetest.NewSpanRecorder()
		provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder), sdk.WithSampler(sdk.AlwaysSample()))
		records, err := tracingmesh.Observer(tracing.Config{Provider: provider})
		if err != nil {
			t.Fatal(err)
		}
		carries, err := tracingmesh.Observer(tracing.Config{})
		if err != nil {
			t.Fatal(err)
		}
		options := []mesh.Option{mesh.WithDiscovery(&registry), mesh.WithObserver(records), mesh.WithObserver(carries)}
		if !first {
			options[1], options[2] = options[2], options[1]
		}
		m := meshtest.New(t, "", options...)
		for _, test := range []struct {
			ctx   context.Context
			spans int
		}{
			{context.Background(), 2},
			{trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(unsampled)), 2},
			{kept, 1},
		} {
			recorder.Reset()
			if code := get(t, test.ctx, m, "http://orders/"); code != http.StatusTeapot {
				t.Fatal(code)
			}
			ended := recorder.Ended()
			if len(ended) != test.spans || attribute(ended[0], "http.response.status_code") != "418" {
				t.Errorf("the observer that records is the first: %t: the spans %v have ended, want %d", first, names(ended), test.spans)
			}
		}
	}
}

// A span that is sampled, but that this process does not make, still becomes an exemplar.
func TestExemplarsOfSpansOfOthers(t *testing.T) {
	leak.Check(t)
	carries, err := tracingmesh.Observer(tracing.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	for _, flags := range []trace.TraceFlags{0, trace.FlagsSampled} {
		gathered := prometheus.NewRegistry()
		counted, err := metrics.New(metrics.Config{Registerer: gathered})
		if err != nil {
			t.Fatal(err)
		}
		m := meshtest.New(t, "", mesh.WithDiscovery(&registry), mesh.WithObserver(counted.Observer()), mesh.WithObserver(carries))
		span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{7: 1}, TraceFlags: flags})
		if code := get(t, trace.ContextWithSpanContext(context.Background(), span), m, "http://orders/"); code != 200 {
			t.Fatal(code)
		}
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept", "application/openmetrics-text")
		promhttp.HandlerFor(gathered, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(w, r)
		if got := strings.Contains(w.Body.String(), span.TraceID().String()); got != flags.IsSampled() {
			t.Errorf("a call in a span with the flags %s: the trace is an exemplar: %t", flags, got)
		}
		if err := counted.Close(); err != nil {
			t.Error(err)
		}
	}
}

// recordOnly is a sampler whose spans are recorded, but not sampled.
type recordOnly struct{}

func (recordOnly) ShouldSample(sdk.SamplingParameters) sdk.SamplingResult {
	return sdk.SamplingResult{Decision: sdk.RecordOnly}
}

func (recordOnly) Description() string { return "record only" }
