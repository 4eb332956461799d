// Package spans has what the packages of tracing share: the headers that carry traces, and the spans of calls, attempts and inbound
// requests. It does not depend on any transport.
package spans

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/field"
)

// Config has the fields of tracing.Config, which documents them.
type Config struct {
	Provider      trace.TracerProvider
	Propagator    propagation.TextMapPropagator
	Formats       string
	Forward       []string
	NoRequestID   bool
	EchoRequestID bool
	NoClientSpans bool
	NoServerSpans bool
	CallSpans     bool
}

// scope is the name of the instrumentation.
const scope = "github.com/nosidecar/mesh/tracing"

// Tracer creates spans and sets headers, as a Config specifies. It is safe for concurrent use.
type Tracer struct {
	config  Config
	tracer  trace.Tracer // nil without a Provider
	formats format
	sets    int      // see Sets
	trusted []string // see Trusted
	forward []string // Config.Forward, canonical
}

type format uint8

const (
	w3c format = 1 << iota
	b3Single
	b3Multi
)

const defaultFormats = w3c | b3Multi

// New returns the Tracer of a Config.
func New(c Config) (*Tracer, error) {
	t := &Tracer{config: c, formats: defaultFormats}
	if c.Formats != "" {
		if c.Propagator != nil {
			return nil, fmt.Errorf("tracing: Formats is %q, but there is a Propagator, which knows no formats: set one of them", c.Formats)
		}
		var err error
		if t.formats, err = parseFormats(c.Formats); err != nil {
			return nil, err
		}
	}
	t.sets = 1 + len(c.Forward) // 1 for x-request-id
	for _, f := range [...]format{w3c, b3Single, b3Multi, b3Multi, b3Multi} {
		if t.formats&f != 0 {
			t.sets++
		}
	}
	t.trusted = headers[:]
	if c.Propagator != nil {
		t.trusted = slices.Clone(t.trusted)
		for _, name := range c.Propagator.Fields() {
			t.trusted = append(t.trusted, http.CanonicalHeaderKey(name))
		}
	}
	for _, name := range c.Forward {
		name = http.CanonicalHeaderKey(name)
		if field.CarriesTrace(name) {
			return nil, fmt.Errorf("tracing: Forward names %s, which tracing sets itself: remove it there", name)
		}
		t.forward = append(t.forward, name)
	}
	if c.Provider != nil {
		t.tracer = c.Provider.Tracer(scope)
	}
	return t, nil
}

func parseFormats(text string) (all format, err error) {
	for name := range strings.SplitSeq(text, ",") {
		switch strings.TrimSpace(name) {
		case "tracecontext":
			all |= w3c
		case "b3":
			all |= b3Single
		case "b3multi":
			all |= b3Multi
		default:
			return 0, fmt.Errorf("tracing: Formats has %q, want tracecontext, b3 or b3multi, separated by commas", name)
		}
	}
	return all, nil
}

// The headers that carry traces, as keys of an http.Header.
const (
	traceparent    = "Traceparent"
	tracestate     = "Tracestate"
	baggageHeader  = "Baggage"
	b3Header       = "B3"
	b3TraceID      = "X-B3-Traceid"
	b3SpanID       = "X-B3-Spanid"
	b3ParentSpanID = "X-B3-Parentspanid"
	b3Sampled      = "X-B3-Sampled"
	b3Flags        = "X-B3-Flags"
	requestID      = "X-Request-Id"
)

var headers = [...]string{
	traceparent, tracestate, baggageHeader, b3Header, b3TraceID, b3SpanID, b3ParentSpanID, b3Sampled, b3Flags, requestID,
}

// Names returns the headers of an inbound request that are read, as keys of an http.Header.
func (t *Tracer) Names() []string { return slices.Concat(t.trusted, t.forward) }

// Trusted returns the headers that carry traces and ids, which must be removed from requests that come from outside.
func (t *Tracer) Trusted() []string { return t.trusted }

// Sets returns roughly how many headers are set on an attempt.
func (t *Tracer) Sets() int { return t.sets }

// Setter sets a header of an attempt. The name is a key of an http.Header. An empty value removes the header.
type Setter interface {
	SetHeader(name, value string)
}
