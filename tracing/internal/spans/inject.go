package spans

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
)

// Outgoing is a request that is sent, as far as trace headers depend on it.
type Outgoing struct {
	Caller context.Context // of the caller; nil if it is that of the request
	RPC    bool
	Seed   uint64      // of the call; see [Seed]
	Number int         // of the attempt, from 1
	Header http.Header // the current header; it is changed only through Set
	Set    Setter

	ctx   context.Context   // of the request, without the span that is sent
	sent  *outgoing.Request // Set, if it has this type
	clean bool              // the header is known to carry no trace
	fresh bool              // the trace begins with the call
	valid bool              // span is valid
	span  trace.SpanContext // the span that is sent, except for its id
	id    trace.SpanID      // the id that is sent
	seed  uint64            // from which a request id is made: the same for all attempts of a call
}

// Carry sets the headers of an attempt without a span of its own. ctx is its context.
func (t *Tracer) Carry(ctx context.Context, o *Outgoing) {
	o.ctx, o.span = ctx, trace.SpanFromContext(ctx).SpanContext()
	o.valid = o.span.IsValid()
	if o.Caller == nil {
		o.fresh, o.seed = !o.valid, idSeed(o.Seed, &o.span)
		if sent, ok := o.Set.(*outgoing.Request); ok && !o.span.IsSampled() {
			sent.SetUnsampled()
		}
	} else {
		from := trace.SpanContextFromContext(o.Caller)
		o.fresh, o.seed = !from.IsValid(), idSeed(o.Seed, &from)
	}
	o.id = o.span.SpanID()
	if o.valid && !o.span.IsSampled() && !t.config.NoClientSpans {
		o.id = unrecordedID(o.seed, o.Number)
	}
	t.inject(o)
}

// has reports whether the header has a field that carries a trace.
func (o *Outgoing) has(key string) bool { return !o.clean && o.Header[key] != nil }

// put sets a header that carries a trace. An empty value removes it.
func (o *Outgoing) put(key, value string) {
	switch {
	case o.clean && value != "":
		o.sent.AddTrace(key, value)
	case o.sent != nil:
		o.sent.SetTrace(key, value)
	default:
		o.Set.SetHeader(key, value)
	}
}

// inject sets the headers. They replace those that the caller has set, except for the request id, the baggage and the forwarded headers,
// which the caller may choose.
func (t *Tracer) inject(o *Outgoing) {
	in := inboundOf(o.ctx)
	if o.sent, _ = o.Set.(*outgoing.Request); o.sent != nil && o.valid {
		o.clean = o.sent.Untraced()
	}
	var room [contextLength + b3Length + uuidLength]byte
	made := 0
	if o.valid && t.config.Propagator == nil {
		made = t.writeContext(&room, o, in)
	}
	switch id, seed := t.requestID(o, in); {
	case seed != 0: // one string for all values
		putUUID(room[made:], seed)
		text := string(room[:made+uuidLength])
		o.put(requestID, text[made:])
		t.setContext(o, text[:made])
	default:
		if id != "" {
			o.put(requestID, id)
		}
		t.setContext(o, string(room[:made]))
	}
	if o.valid && t.config.Propagator != nil {
		t.config.Propagator.Inject(trace.ContextWithSpanContext(o.ctx, o.span.WithSpanID(o.id)), carrier{o.Header, o.Set})
	}
	if t.config.Propagator == nil {
		passOnBaggage(o, in)
	}
	if in != nil {
		for i, values := range in.forwarded {
			if name := t.forward[i]; len(values) > 0 && o.Header[name] == nil && (!o.RPC || field.IsPrintable(values[0])) {
				o.Set.SetHeader(name, values[0])
			}
		}
	}
}

// passOnBaggage sets the baggage of the context, otherwise that of the inbound request, unless the caller has set one.
func passOnBaggage(o *Outgoing, in *inbound) {
	bag := baggage.FromContext(o.ctx)
	switch {
	case bag.Len() == 0 && (in == nil || in.baggage == ""), o.has(baggageHeader):
	case bag.Len() > 0:
		o.put(baggageHeader, bag.String())
	default:
		o.put(baggageHeader, in.baggage)
	}
}

// requestID returns the id to set, or the seed to make it from. It returns neither if none is to be set.
func (t *Tracer) requestID(o *Outgoing, in *inbound) (id string, seed uint64) {
	switch {
	case t.config.NoRequestID || o.has(requestID):
		return "", 0
	case in == nil || in.requestID == "" && in.seed == 0:
		return "", o.seed
	}
	return in.requestID, in.seed
}

// The lengths of a traceparent, of the single header of B3, and of a request id.
const (
	contextLength = 55
	b3Length      = 51
	uuidLength    = 36
)

// writeContext writes a traceparent, followed by a b3 header if that is sent. It returns their length.
func (t *Tracer) writeContext(b *[contextLength + b3Length + uuidLength]byte, o *Outgoing, in *inbound) int {
	traceID, flags := o.span.TraceID(), o.span.TraceFlags()&(trace.FlagsSampled|trace.FlagsRandom)
	if o.fresh || in != nil && in.fresh && in.trace == traceID {
		flags |= trace.FlagsRandom
	}
	copy(b[:], "00-")
	putHex(b[3:], binary.BigEndian.Uint64(traceID[:8]))
	putHex(b[19:], binary.BigEndian.Uint64(traceID[8:]))
	b[35] = '-'
	putHex(b[36:], binary.BigEndian.Uint64(o.id[:]))
	b[52], b[53], b[54] = '-', '0', '0'+byte(flags)
	if t.formats&b3Single == 0 {
		return contextLength
	}
	copy(b[contextLength:], b[3:52])
	b[contextLength+b3Length-2], b[contextLength+b3Length-1] = '-', sampledText(flags)[0]
	return contextLength + b3Length
}

// setContext sets the headers from the text of writeContext. It removes headers of other formats, which the application may have copied:
// they would name another span.
func (t *Tracer) setContext(o *Outgoing, text string) {
	if text == "" {
		return
	}
	if o.clean {
		t.addContext(o, text)
		return
	}
	keep := func(f format, name, value string) {
		if t.formats&f != 0 && value != "" {
			o.put(name, value)
		} else if o.has(name) {
			o.put(name, "")
		}
	}
	keep(w3c, traceparent, text[:contextLength])
	state := ""
	if ts := o.span.TraceState(); ts.Len() > 0 {
		state = ts.String()
	}
	keep(w3c, tracestate, state)
	keep(b3Single, b3Header, text[contextLength:])
	if t.formats&b3Multi != 0 || hasB3(o.Header) {
		keep(b3Multi, b3TraceID, text[3:35])
		keep(b3Multi, b3SpanID, text[36:52])
		keep(b3Multi, b3Sampled, sampledText(o.span.TraceFlags()))
		keep(b3Multi, b3ParentSpanID, "")
		keep(b3Multi, b3Flags, "")
	}
}

// addContext is setContext for a header that carries no trace, as in most calls: no field needs to be looked up or removed.
func (t *Tracer) addContext(o *Outgoing, text string) {
	if t.formats&w3c != 0 {
		o.sent.AddTrace(traceparent, text[:contextLength])
		if ts := o.span.TraceState(); ts.Len() > 0 {
			o.sent.AddTrace(tracestate, ts.String())
		}
	}
	if t.formats&b3Single != 0 {
		o.sent.AddTrace(b3Header, text[contextLength:])
	}
	if t.formats&b3Multi != 0 {
		o.sent.AddTrace(b3TraceID, text[3:35])
		o.sent.AddTrace(b3SpanID, text[36:52])
		o.sent.AddSharedTrace(b3Sampled, sampledValues[o.span.TraceFlags()&trace.FlagsSampled])
	}
}

// sampledValues are the values of X-B3-Sampled.
var sampledValues = [...][]string{{"0"}, trace.FlagsSampled: {"1"}}

func sampledText(flags trace.TraceFlags) string {
	if flags.IsSampled() {
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
	from := trace.SpanContextFromContext(d.Caller)
	c := Outgoing{Header: d.Header, seed: idSeed(d.Seed, &from)}
	id, seed := t.requestID(&c, inboundOf(d.Caller))
	if seed != 0 {
		id = uuid(seed)
	}
	if id != "" {
		set.SetHeader(requestID, id)
	}
}

// process makes the ids of different processes differ.
var process = [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}

// unrecordedID returns a span id for an attempt that is not recorded. It only has to differ from those of other attempts. seed is that of the
// call's request id.
func unrecordedID(seed uint64, attempt int) (id trace.SpanID) {
	binary.NativeEndian.PutUint64(id[:], mix(seed+process[2]+uint64(attempt))|1)
	return id
}

// Seed returns the seed of a call that began at start. It is the same for all attempts of the call, and differs between calls: owner
// distinguishes those that begin at the same time.
func Seed(start time.Time, owner uint64) uint64 { return mix(uint64(start.UnixNano()) + mix(owner)) }

// mix is the finalizer of SplitMix64.
func mix(n uint64) uint64 {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// idSeed returns the seed of the request id of a call, which is never 0. It also depends on the caller's span, because the clock may be too
// coarse to distinguish calls.
func idSeed(seed uint64, caller *trace.SpanContext) uint64 {
	id := caller.SpanID()
	return max(1, seed^binary.NativeEndian.Uint64(id[:]))
}

func uuid(seed uint64) string {
	var room [uuidLength]byte
	putUUID(room[:], seed)
	return string(room[:])
}

// putUUID writes the UUID of version 4 that belongs to seed.
func putUUID(b []byte, seed uint64) {
	_ = b[uuidLength-1]
	high, low := mix(seed+process[0])&^0xf000|0x4000, mix(seed^process[1])&^(3<<62)|2<<62
	middle, last := digits(high&0xffffffff), digits(low>>32)
	binary.BigEndian.PutUint64(b, digits(high>>32))
	binary.BigEndian.PutUint32(b[9:], uint32(middle>>32))
	binary.BigEndian.PutUint32(b[14:], uint32(middle))
	binary.BigEndian.PutUint32(b[19:], uint32(last>>32))
	binary.BigEndian.PutUint32(b[24:], uint32(last))
	binary.BigEndian.PutUint64(b[28:], digits(low&0xffffffff))
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
}

// putHex writes the 16 digits of n, eight at a time. Package hex would write them one by one.
func putHex(b []byte, n uint64) {
	_ = b[15]
	binary.BigEndian.PutUint64(b, digits(n>>32))
	binary.BigEndian.PutUint64(b[8:], digits(n&0xffffffff))
}

// digits returns the eight digits of a 32-bit number, each in a byte of its own.
func digits(n uint64) uint64 {
	n = (n | n<<16) & 0x0000ffff0000ffff
	n = (n | n<<8) & 0x00ff00ff00ff00ff
	n = (n | n<<4) & 0x0f0f0f0f0f0f0f0f
	letters := (n + 0x0606060606060606) >> 4 & 0x0101010101010101 // 1 where the digit is above 9
	return n + 0x3030303030303030 + letters*('a'-'0'-10)
}
