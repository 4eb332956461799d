package mesh_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

type tracedSide struct {
	name   string
	allocs float64 // of a call, at most, beyond the same mesh without traces
	rt     http.RoundTripper
	ctx    context.Context
}

// tracedSides are a mesh without traces, and with more and more of them.
func tracedSides(tb testing.TB) []tracedSide {
	ctx := context.Background()
	never := sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample()))
	always := sdk.NewTracerProvider(sdk.WithSampler(sdk.AlwaysSample()))
	unsampled, _ := never.Tracer("").Start(ctx, "server")
	remote := trace.ContextWithRemoteSpanContext(ctx, trace.SpanContextFromContext(unsampled))
	sampled, _ := always.Tracer("").Start(ctx, "server")
	plan := fmt.Sprintf(benchDocuments, "", "")
	traced := func(c tracing.Config) http.RoundTripper {
		observer, err := tracingmesh.Observer(c)
		if err != nil {
			tb.Fatal(err)
		}
		return noopMesh(tb, plan, mesh.WithObserver(observer))
	}
	return []tracedSide{
		{"no traces", 0, noopMesh(tb, plan), unsampled},
		{"unsampled W3C", 3, traced(tracing.Config{Provider: never, Formats: "tracecontext"}), unsampled},
		{"unsampled W3C, without a provider", 3, traced(tracing.Config{Formats: "tracecontext"}), remote},
		{"unsampled W3C, new traces", 6, traced(tracing.Config{Provider: never, Formats: "tracecontext"}), ctx},
		{"unsampled, default headers", 3, traced(tracing.Config{Provider: never}), unsampled},
		{"sampled", 30, traced(tracing.Config{Provider: always}), sampled},
	}
}

// BenchmarkTraces shows what traces add to a call.
func BenchmarkTraces(b *testing.B) {
	for _, side := range tracedSides(b) {
		b.Run(side.name, func(b *testing.B) {
			req, buf := noopRequest(b).WithContext(side.ctx), make([]byte, 512)
			b.ReportAllocs()
			for b.Loop() {
				noopCall(b, side.rt, req, buf)
			}
		})
	}
}

func TestAllocationsOfTraces(t *testing.T) {
	noLeaks(t)
	var bare float64
	for _, side := range tracedSides(t) {
		req, buf := noopRequest(t).WithContext(side.ctx), make([]byte, 512)
		got := testing.AllocsPerRun(1000, func() { noopCall(t, side.rt, req, buf) })
		if bare == 0 {
			bare = got
		}
		if got -= bare; got > side.allocs {
			t.Errorf("%s: %v allocations a call beyond the mesh without traces, want at most %v", side.name, got, side.allocs)
		}
	}
}
