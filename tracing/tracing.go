package tracing

import (
	"context"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/spans"
)

// Config says how traces are made and carried. Its zero value makes no spans: it carries traces, baggage and request ids on.
type Config struct {
	// Provider makes the spans, such as the SDK's, or otel.GetTracerProvider() for the global one. nil makes none.
	Provider trace.TracerProvider

	// Propagator, if set, reads and writes the headers of traces and baggage instead of Formats. What this package does beyond
	// the propagators of OpenTelemetry is not done then: two traceparent headers do not restart a trace, B3 decisions without
	// ids are lost, and baggage is parsed for each request.
	Propagator propagation.TextMapPropagator

	// Formats are the headers in which a trace is sent: "tracecontext", "b3" (the single header) and "b3multi", separated by
	// commas as in OTEL_PROPAGATORS. All name the same span. "" means "tracecontext,b3multi". All three are read: W3C first, then
	// the single header of B3, then the many.
	Formats string

	// Forward are further headers that are passed on from a request to the calls that are made for it, unless these have them.
	// Of several values the first is passed on.
	Forward []string

	// NoRequestID leaves x-request-id alone. Otherwise it is passed on from a request to the calls that are made for it, and
	// made where there is none; what a call has already stays.
	NoRequestID bool

	// EchoRequestID answers requests with the x-request-id that they came with, or that was made for them.
	EchoRequestID bool

	// NoClientSpans and NoServerSpans leave the spans of one side to another library, such as otelhttp around or inside this one.
	// The headers are still read and set, with the span of the context.
	NoClientSpans, NoServerSpans bool

	// CallSpans makes an INTERNAL span for every call that is recorded, with the attempts as its children, and not only for
	// those that have more than one attempt.
	CallSpans bool
}

// RequestID returns the x-request-id of the inbound request that ctx belongs to, or that was made for it, and "" outside one.
func RequestID(ctx context.Context) string { return spans.RequestID(ctx) }

// Baggage returns the baggage that ctx carries: what the application has put there with baggage.ContextWithBaggage, or else what
// came with the inbound request that ctx belongs to, which is parsed now. Malformed baggage is empty.
func Baggage(ctx context.Context) baggage.Baggage { return spans.Baggage(ctx) }
