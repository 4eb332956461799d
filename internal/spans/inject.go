package spans

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"
)

// outgoing is what the header of a request is made of.
type outgoing struct {
	ctx    context.Context // of the caller, without the span whose header it is
	header http.Header     // as it is; it is not changed
	span   trace.SpanContext
	fresh  bool   // the trace begins with the call
	seed   uint64 // of a request id: the same for all attempts of a call
}

// inject sets the headers. What is set wins over what came with the request, but for the request id, the baggage and the
// forwarded headers, which are the caller's to set.
func (t *Tracer) inject(o *outgoing, set Setter) {
	in := inboundOf(o.ctx)
	var room [160]byte // traceparent, b3 and x-request-id
	b := room[:0]
	valid := o.span.IsValid()
	if valid && t.config.Propagator == nil {
		b = t.appendContext(b, o, in)
	}
	switch id, seed := t.requestID(o, in); {
	case seed != 0: // in the same piece of memory
		made := len(b)
		text := string(appendUUID(b, seed))
		set.SetHeader(requestID, text[made:])
		t.setContext(o, text[:made], set)
	default:
		if id != "" {
			set.SetHeader(requestID, id)
		}
		t.setContext(o, string(b), set)
	}
	if valid && t.config.Propagator != nil {
		t.config.Propagator.Inject(trace.ContextWithSpanContext(o.ctx, o.span), carrier{o.header, set})
	}
	if t.config.Propagator == nil && o.header[baggageHeader] == nil {
		if bag := baggage.FromContext(o.ctx); bag.Len() > 0 {
			set.SetHeader(baggageHeader, bag.String())
		} else if in != nil && in.baggage != "" {
			set.SetHeader(baggageHeader, in.baggage)
		}
	}
	if in != nil {
		for i, values := range in.forwarded {
			if name := t.forward[i]; len(values) > 0 && o.header[name] == nil {
				set.SetHeader(name, values[0])
			}
		}
	}
}

// requestID returns the id that is to be set, or of what it is to be made. It returns neither if the call has one.
func (t *Tracer) requestID(o *outgoing, in *inbound) (id string, seed uint64) {
	switch {
	case t.config.NoRequestID || o.header[requestID] != nil:
		return "", 0
	case in == nil || in.requestID == "" && in.seed == 0:
		return "", max(1, o.seed)
	}
	return in.requestID, in.seed
}

// appendContext appends a traceparent, and after it what of the b3 header is not in it.
func (t *Tracer) appendContext(b []byte, o *outgoing, in *inbound) []byte {
	flags := o.span.TraceFlags() & (trace.FlagsSampled | trace.FlagsRandom)
	if o.fresh || in != nil && in.fresh && in.trace == o.span.TraceID() {
		flags |= trace.FlagsRandom
	}
	traceID, spanID := o.span.TraceID(), o.span.SpanID()
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, traceID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, spanID[:])
	b = append(b, '-', '0', '0'+byte(flags))
	if t.formats&b3Single != 0 {
		b = append(b, b[3:52]...)
		b = append(b, '-', sampledText(o.span)[0])
	}
	return b
}

// setContext sets the headers of what appendContext returned. Headers of formats that are not sent, which the application may
// have copied, would name another span.
func (t *Tracer) setContext(o *outgoing, text string, set Setter) {
	if text == "" {
		return
	}
	keep := func(f format, name, value string) {
		if t.formats&f != 0 && value != "" {
			set.SetHeader(name, value)
		} else if o.header[name] != nil {
			set.SetHeader(name, "")
		}
	}
	keep(w3c, traceparent, text[:55])
	state := ""
	if ts := o.span.TraceState(); ts.Len() > 0 {
		state = ts.String()
	}
	keep(w3c, tracestate, state)
	keep(b3Single, b3Header, text[55:])
	keep(b3Multi, b3TraceID, text[3:35])
	keep(b3Multi, b3SpanID, text[36:52])
	keep(b3Multi, b3Sampled, sampledText(o.span))
	keep(b3Multi, b3ParentSpanID, "")
	keep(b3Multi, b3Flags, "")
}

func sampledText(sc trace.SpanContext) string {
	if sc.IsSampled() {
		return "1"
	}
	return "0"
}

// carrier is a propagation.TextMapCarrier.
type carrier struct {
	header http.Header
	set    Setter
}

func (c carrier) Get(key string) string { return c.header.Get(key) }

func (c carrier) Set(key, value string) { c.set.SetHeader(http.CanonicalHeaderKey(key), value) }

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c.header))
	for name := range c.header {
		keys = append(keys, name)
	}
	return keys
}

// SetRequestID sets the request id of a call that has none.
func (t *Tracer) SetRequestID(d *Call, set Setter) {
	if t.config.NoRequestID || d.Header[requestID] != nil {
		return
	}
	if in := inboundOf(d.Caller); in != nil {
		if id := in.id(); id != "" {
			set.SetHeader(requestID, id)
			return
		}
	}
	seed := max(1, seedOf(d.Start, trace.SpanContextFromContext(d.Caller), d.Seed))
	set.SetHeader(requestID, string(appendUUID(nil, seed)))
}

// process makes request ids differ between processes.
var process = [2]uint64{rand.Uint64(), rand.Uint64()}

// seedOf returns the seed of a call, which all its attempts come to without any memory of one another.
func seedOf(start time.Time, sc trace.SpanContext, owner uint64) uint64 {
	id := sc.SpanID()
	n := owner
	for _, b := range id {
		n = n<<8 | n>>56 ^ uint64(b)
	}
	return mix(uint64(start.UnixNano()) + mix(n))
}

// mix is the finalizer of SplitMix64.
func mix(n uint64) uint64 {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

const uuidLength = 36

func appendUUID(b []byte, seed uint64) []byte {
	var u [16]byte
	put(u[:8], mix(seed+process[0]))
	put(u[8:], mix(seed^process[1]))
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	at := len(b)
	b = append(b, "00000000-0000-0000-0000-000000000000"...)
	text := b[at : at+uuidLength]
	hex.Encode(text[:8], u[:4])
	hex.Encode(text[9:13], u[4:6])
	hex.Encode(text[14:18], u[6:8])
	hex.Encode(text[19:23], u[8:10])
	hex.Encode(text[24:], u[10:])
	return b
}
