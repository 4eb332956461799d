package tracing

import (
	"context"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/tracing/internal/spans"
)

// Config says which spans are created and what is propagated. Its zero value creates no spans, and propagates traces, baggage and
// request ids.
type Config struct {
	// Provider creates the spans. It may be that of the SDK, or otel.GetTracerProvider() for the global one. nil means no spans.
	Provider trace.TracerProvider

	// Propagator, if set, reads and writes the headers of traces and baggage in place of Formats. Then three things that this
	// package does beyond OpenTelemetry's propagators are missing: two traceparent headers do not restart a trace, B3 sampling
	// decisions without ids are lost, and baggage is parsed for each request.
	Propagator propagation.TextMapPropagator

	// Formats are the formats in which a trace is sent: "tracecontext", "b3" (the single header) and "b3multi", separated by
	// commas as in OTEL_PROPAGATORS. All name the same span. "" means "tracecontext,b3multi". All three are read: first W3C, then
	// the single B3 header, then the B3 multi headers.
	Formats string

	// Forward are further headers that are copied from a request to the calls made on its behalf, unless these already have them.
	// If a header has several values, only the first one is copied. Calls of gRPC get only values in printable ASCII, as gRPC sends
	// no others.
	Forward []string

	// NoRequestID leaves x-request-id alone. Otherwise it is copied from a request to the calls made on its behalf, and generated
	// if there is none, or one with more than 256 bytes or other than printable ASCII. A call that already has one keeps it.
	NoRequestID bool

	// EchoRequestID sets x-request-id in responses: that of the request, or the one generated for it.
	EchoRequestID bool

	// NoClientSpans and NoServerSpans leave the spans of one side to another library, such as otelhttp around or inside this one.
	// The headers are still read and set, with the span in the context.
	NoClientSpans, NoServerSpans bool

	// CallSpans creates an INTERNAL span for every recorded call, with the attempts as its children, rather than only for calls
	// with more than one attempt.
	CallSpans bool
}

// RequestID returns the x-request-id of the inbound request that ctx belongs to, or the one generated for it. Outside of an inbound
// request it returns "".
func RequestID(ctx context.Context) string { return spans.RequestID(ctx) }

// Baggage returns the baggage in ctx: the one that the application set with baggage.ContextWithBaggage, otherwise that of the inbound
// request that ctx belongs to, which is parsed now. Malformed members are left out.
func Baggage(ctx context.Context) baggage.Baggage { return spans.Baggage(ctx) }
