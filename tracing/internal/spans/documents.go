package spans

import (
	"context"
	"math/rand/v2"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/policy/telemetry"
)

// disabled reports whether documents turn spans off.
func disabled(d *telemetry.Tracing) bool { return d != nil && d.Disabled }

// passedOver draws whether documents exclude a trace that begins here from sampling. If not, the Provider may still exclude it.
func passedOver(d *telemetry.Tracing) bool {
	return d != nil && d.LimitsSampling && rand.Float64()*100 >= d.Sampling
}

// unsampled begins a trace that is not sampled, regardless of what the Provider would decide.
func unsampled(ctx context.Context) context.Context {
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{TraceID: newTraceID(), SpanID: newSpanID()}))
}

// Peer describes the other end. It is asked only for a span that is recorded.
type Peer interface {
	// Append appends the attributes that identify it.
	Append(all []attribute.KeyValue) []attribute.KeyValue
}

// appendTags appends the attributes that documents add to the spans of a request.
func appendTags(all []attribute.KeyValue, d *telemetry.Tracing, h http.Header) []attribute.KeyValue {
	if d == nil {
		return all
	}
	for i := range d.Tags {
		if value := d.Tags[i].Value(h); value != "" {
			all = append(all, attribute.String(d.Tags[i].Name, bounded(value, longest)))
		}
	}
	return all
}
