package metrics

import (
	"context"

	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var traceIDName, spanIDName = "trace_id", "span_id"

// exemplify makes the trace of a call the exemplar of the bucket of its duration in microseconds, if the trace is sampled. It does so
// at most once per second, since an exemplar costs more than everything else.
func (h *histograms) exemplify(ctx context.Context, took, now int64) {
	place := &h.exemplars[bucketOf(&limitsMicro, took)]
	before := place.Load()
	if before != nil && before.Timestamp.Seconds >= now {
		return
	}
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() && span.IsValid() {
		place.CompareAndSwap(before, newExemplar(&span, took, now))
	}
}

func newExemplar(span *trace.SpanContext, took, now int64) *dto.Exemplar {
	traceID, spanID, v := span.TraceID().String(), span.SpanID().String(), float64(took)/1000
	return &dto.Exemplar{
		Label:     []*dto.LabelPair{{Name: &traceIDName, Value: &traceID}, {Name: &spanIDName, Value: &spanID}},
		Value:     &v,
		Timestamp: &timestamppb.Timestamp{Seconds: now},
	}
}
