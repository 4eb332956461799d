package spans

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/field"
)

// extract returns the span context that a header carries; it is invalid if it carries none.
func (t *Tracer) extract(h http.Header) trace.SpanContext {
	if t.config.Propagator != nil {
		ctx := t.config.Propagator.Extract(context.Background(), propagation.HeaderCarrier(h))
		return trace.SpanContextFromContext(ctx)
	}
	return Extract(h)
}

// Extract returns the span context that a header carries: in the format of W3C Trace Context, otherwise in B3's single header, otherwise in
// B3's multiple headers. It is invalid if there is none, or if it is malformed; then a new trace begins.
func Extract(h http.Header) trace.SpanContext {
	if parents := h[traceparent]; len(parents) > 0 {
		if len(parents) != 1 { // any of them could be the right one
			return trace.SpanContext{}
		}
		c, ok := parseTraceparent(parents[0])
		if !ok {
			return trace.SpanContext{}
		}
		if states := h[tracestate]; len(states) > 0 {
			// An invalid state is dropped as a whole, and the trace goes on.
			if text, ok := joined(states); ok {
				c.TraceState, _ = trace.ParseTraceState(text)
			}
		}
		return trace.NewSpanContext(c)
	}
	if values := h[b3Header]; len(values) > 0 {
		return b3Context(parseB3(values[0]))
	}
	if !hasB3(h) {
		return trace.SpanContext{}
	}
	return b3Context(b3{field.First(h, b3TraceID), field.First(h, b3SpanID), decide(field.First(h, b3Sampled), field.First(h, b3Flags))}, true)
}

// hasB3 reports whether there are multiple headers of B3. The span ID and its parent mean nothing without one of these.
func hasB3(h http.Header) bool {
	return h[b3TraceID] != nil || h[b3Sampled] != nil || h[b3Flags] != nil
}

// mostCommas bounds the work for a tracestate. It has at most 32 members, but any number of empty ones between them.
const mostCommas = 256

// joined joins the lines of a tracestate, and removes empty members, which are allowed there. It reports false if there are too many
// members.
func joined(lines []string) (text string, ok bool) {
	text = strings.Join(lines, ",")
	commas := strings.Count(text, ",")
	if commas > mostCommas {
		return "", false
	}
	members := strings.Split(text, ",")
	kept := members[:0]
	for _, m := range members {
		if strings.Trim(m, " \t") != "" {
			kept = append(kept, m)
		}
	}
	if len(kept) == commas+1 {
		return text, true
	}
	return strings.Join(kept, ","), true
}

// parseTraceparent parses a traceparent header: https://www.w3.org/TR/trace-context-2/#traceparent-header.
func parseTraceparent(s string) (c trace.SpanContextConfig, ok bool) {
	const length = 55 // of version 00; later ones may have more after another dash
	s = strings.Trim(s, " \t")
	if len(s) < length || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return c, false
	}
	var version, flags [1]byte
	if !unhex(version[:], s[:2]) || version[0] == 0xff || !unhex(flags[:], s[53:55]) ||
		!unhex(c.TraceID[:], s[3:35]) || !unhex(c.SpanID[:], s[36:52]) {
		return c, false
	}
	if len(s) > length && (version[0] == 0 || s[length] != '-') {
		return c, false
	}
	c.TraceFlags = trace.TraceFlags(flags[0]) & (trace.FlagsSampled | trace.FlagsRandom)
	c.Remote = true
	return c, c.TraceID.IsValid() && c.SpanID.IsValid()
}

// unhex decodes s, which must be lower case.
func unhex(dst []byte, s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

// b3 has the content of B3 headers: https://github.com/openzipkin/b3-propagation.
type b3 struct {
	trace, span string
	decision    decision
}

type decision uint8

const (
	deferred decision = iota // left to the receiver
	deny
	accept
	malformed
)

// parseB3 parses the single header: {TraceId}-{SpanId}[-{SamplingState}[-{ParentSpanId}]], or the state alone.
func parseB3(s string) (c b3, ok bool) {
	s = strings.Trim(s, " \t")
	id, rest, more := strings.Cut(s, "-")
	if !more {
		c.decision = state(s)
		return c, c.decision != deferred
	}
	c.trace = id
	var parent string
	var sampled, hasParent bool
	c.span, rest, sampled = strings.Cut(rest, "-")
	if sampled {
		rest, parent, hasParent = strings.Cut(rest, "-")
		if c.decision = state(rest); c.decision == deferred {
			return c, false
		}
		var id [8]byte
		if hasParent && (len(parent) != 16 || !unhex(id[:], parent)) {
			return c, false
		}
	}
	return c, true
}

func state(s string) decision {
	switch s {
	case "0":
		return deny
	case "1", "d": // debug is sampled
		return accept
	case "":
		return deferred
	}
	return malformed
}

func decide(sampled, flags string) decision {
	if flags == "1" {
		return accept
	}
	switch sampled {
	case "true": // obsolete
		return accept
	case "false":
		return deny
	}
	return state(sampled)
}

// b3Context returns the span context of B3 headers. A decision without ids applies to a new trace. Samplers take decisions only from a
// parent, so an id is made up for one.
func b3Context(b b3, ok bool) trace.SpanContext {
	if !ok || b.decision == malformed {
		return trace.SpanContext{}
	}
	c := trace.SpanContextConfig{Remote: true}
	if b.decision == accept {
		c.TraceFlags = trace.FlagsSampled
	}
	switch {
	case b.trace == "" && b.span == "":
		if b.decision == deferred {
			return trace.SpanContext{}
		}
		c.TraceID, c.SpanID = newTraceID(), newSpanID()
		c.TraceFlags |= trace.FlagsRandom
		return trace.NewSpanContext(c)
	case len(b.trace) == 32 && unhex(c.TraceID[:], b.trace), len(b.trace) == 16 && unhex(c.TraceID[8:], b.trace):
	default:
		return trace.SpanContext{}
	}
	if len(b.span) != 16 || !unhex(c.SpanID[:], b.span) || !c.SpanID.IsValid() || !c.TraceID.IsValid() {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(c)
}

func newTraceID() (id trace.TraceID) {
	binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64()|1) // never all zeros
	return id
}

func newSpanID() (id trace.SpanID) {
	binary.NativeEndian.PutUint64(id[:], rand.Uint64()|1)
	return id
}
