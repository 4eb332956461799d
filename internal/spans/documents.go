package spans

import (
	"context"
	"math/rand/v2"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/policy/telemetry"
)

// disabled says that documents want no spans.
func disabled(d *telemetry.Tracing) bool { return d != nil && d.Disabled }

// passedOver says, by chance, that documents want a trace that begins here not to be sampled. A Provider that samples less has its
// say where they do not.
func passedOver(d *telemetry.Tracing) bool {
	return d != nil && d.LimitsSampling && rand.Float64()*100 >= d.Sampling
}

// unsampled begins a trace that is not sampled, whatever the Provider thinks of it.
func unsampled(ctx context.Context) context.Context {
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{TraceID: newTraceID(), SpanID: newSpanID()}))
}

// Peer is who is at the other end. It is asked only for a span that is recorded.
type Peer interface {
	// Append appends the attributes that say who it is.
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
