package tracingmesh_test

import (
	"context"
	"net/http"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

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

// recordOnly is a sampler whose spans are recorded, but not sampled.
type recordOnly struct{}

func (recordOnly) ShouldSample(sdk.SamplingParameters) sdk.SamplingResult {
	return sdk.SamplingResult{Decision: sdk.RecordOnly}
}

func (recordOnly) Description() string { return "record only" }
