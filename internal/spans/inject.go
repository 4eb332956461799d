package spans

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
)

// Outgoing is a request, or an attempt of one, without a span of its own.
type Outgoing struct {
	Caller context.Context // of the caller
	RPC    bool
	Seed   uint64      // of a request id: [Seed] of the call
	Header http.Header // as it is; it is changed only through Set
	Set    Setter
}

// Carry sets the headers of an attempt that is not recorded. ctx is its context.
func (t *Tracer) Carry(ctx context.Context, o *Outgoing) {
	h := carried{ctx: ctx, rpc: o.RPC, header: o.Header, set: o.Set, span: trace.SpanContextFromContext(o.Caller)}
	h.fresh, h.seed = !h.span.IsValid(), idSeed(o.Seed, &h.span)
	if !caller.SameContext(ctx, o.Caller) {
		h.span = trace.SpanContextFromContext(ctx)
	}
	h.id = h.span.SpanID()
	if h.span.IsValid() && !h.span.IsSampled() && !t.config.NoClientSpans {
		h.id = newSpanID() // nobody records this span, so any id will do
	}
	t.inject(&h)
}

// carried has what the trace headers of a request are made from.
type carried struct {
	ctx    context.Context // of the request, without the span whose header it is
	rpc    bool            // the request is a call of gRPC
	header http.Header     // as it is; it is changed only through set
	set    Setter
	sent   *outgoing.Request // set, if it is one
	clean  bool              // the header is known to carry no trace
	span   trace.SpanContext // that is sent, but for its id
	id     trace.SpanID
	fresh  bool   // the trace begins with the call
	seed   uint64 // of a request id: the same for all attempts of a call
}

// has reports whether the header has a field that carries a trace.
func (c *carried) has(key string) bool { return !c.clean && c.header[key] != nil }

// put sets a header that carries a trace. An empty value removes it.
func (c *carried) put(key, value string) {
	if c.sent != nil {
		c.sent.SetTrace(key, value)
	} else {
		c.set.SetHeader(key, value)
	}
}

// inject sets the headers. What is set replaces what came with the request, except for the request id, the baggage and the
// forwarded headers: these the caller may set.
func (t *Tracer) inject(c *carried) {
	in := inboundOf(c.ctx)
	var room [160]byte // traceparent, b3 and x-request-id
	b := room[:0]
	valid := c.span.IsValid()
	if c.sent, _ = c.set.(*outgoing.Request); c.sent != nil && valid {
		c.clean = c.sent.Untraced()
	}
	if valid && t.config.Propagator == nil {
		b = t.appendContext(b, c, in)
	}
	switch id, seed := t.requestID(c, in); {
	case seed != 0: // in the same memory
		made := len(b)
		text := string(appendUUID(b, seed))
		c.put(requestID, text[made:])
		t.setContext(c, text[:made])
	default:
		if id != "" {
			c.put(requestID, id)
		}
		t.setContext(c, string(b))
	}
	if valid && t.config.Propagator != nil {
		t.config.Propagator.Inject(trace.ContextWithSpanContext(c.ctx, c.span.WithSpanID(c.id)), carrier{c.header, c.set})
	}
	if t.config.Propagator == nil {
		passOnBaggage(c, in)
	}
	if in != nil {
		for i, values := range in.forwarded {
			if name := t.forward[i]; len(values) > 0 && c.header[name] == nil && (!c.rpc || field.IsPrintable(values[0])) {
				c.set.SetHeader(name, values[0])
			}
		}
	}
}

// passOnBaggage sets the baggage of the context, or else that of the inbound request, unless the caller has set one.
func passOnBaggage(c *carried, in *inbound) {
	bag := baggage.FromContext(c.ctx)
	switch {
	case bag.Len() == 0 && (in == nil || in.baggage == ""), c.has(baggageHeader):
	case bag.Len() > 0:
		c.put(baggageHeader, bag.String())
	default:
		c.put(baggageHeader, in.baggage)
	}
}

// requestID returns the id to set, or the seed to make it from. It returns neither if the call has one.
func (t *Tracer) requestID(c *carried, in *inbound) (id string, seed uint64) {
	switch {
	case t.config.NoRequestID || c.has(requestID):
		return "", 0
	case in == nil || in.requestID == "" && in.seed == 0:
		return "", c.seed
	}
	return in.requestID, in.seed
}

// appendContext appends a traceparent, and after it the b3 header, if that is sent.
func (t *Tracer) appendContext(b []byte, c *carried, in *inbound) []byte {
	traceID, flags := c.span.TraceID(), c.span.TraceFlags()&(trace.FlagsSampled|trace.FlagsRandom)
	if c.fresh || in != nil && in.fresh && in.trace == traceID {
		flags |= trace.FlagsRandom
	}
	b = append(b, "00-"...)
	b = appendHex(b, binary.BigEndian.Uint64(traceID[:8]))
	b = appendHex(b, binary.BigEndian.Uint64(traceID[8:]))
	b = append(b, '-')
	b = appendHex(b, binary.BigEndian.Uint64(c.id[:]))
	b = append(b, '-', '0', '0'+byte(flags))
	if t.formats&b3Single != 0 {
		b = append(b, b[3:52]...)
		b = append(b, '-', sampledText(flags)[0])
	}
	return b
}

// setContext sets the headers whose text appendContext has made. It removes those of the formats that are not sent: the application may
// have copied them, and they would name another span.
func (t *Tracer) setContext(c *carried, text string) {
	if text == "" {
		return
	}
	keep := func(f format, name, value string) {
		if t.formats&f != 0 && value != "" {
			c.put(name, value)
		} else if c.has(name) {
			c.put(name, "")
		}
	}
	keep(w3c, traceparent, text[:55])
	state := ""
	if ts := c.span.TraceState(); ts.Len() > 0 {
		state = ts.String()
	}
	keep(w3c, tracestate, state)
	keep(b3Single, b3Header, text[55:])
	if t.formats&b3Multi != 0 || !c.clean && hasB3(c.header) {
		keep(b3Multi, b3TraceID, text[3:35])
		keep(b3Multi, b3SpanID, text[36:52])
		keep(b3Multi, b3Sampled, sampledText(c.span.TraceFlags()))
		keep(b3Multi, b3ParentSpanID, "")
		keep(b3Multi, b3Flags, "")
	}
}

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
	c := carried{header: d.Header, seed: idSeed(d.Seed, &from)}
	id, seed := t.requestID(&c, inboundOf(d.Caller))
	if seed != 0 {
		id = uuid(seed)
	}
	if id != "" {
		set.SetHeader(requestID, id)
	}
}

// process makes request ids differ between processes.
var process = [2]uint64{rand.Uint64(), rand.Uint64()}

// Seed returns the seed of a call that began at start. All its attempts come to the same one, and no other call of this process does: owner
// tells it from those that begin at the same time.
func Seed(start time.Time, owner uint64) uint64 { return mix(uint64(start.UnixNano()) + mix(owner)) }

// mix is the finalizer of SplitMix64.
func mix(n uint64) uint64 {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// idSeed returns the seed of the request id of a call, which is never 0. The clock may be too coarse to tell calls apart, so the span that they
// are made for has a part in it.
func idSeed(seed uint64, caller *trace.SpanContext) uint64 {
	id := caller.SpanID()
	return max(1, seed^binary.NativeEndian.Uint64(id[:]))
}

const uuidLength = 36

func uuid(seed uint64) string {
	var room [uuidLength]byte
	return string(appendUUID(room[:0], seed))
}

// appendUUID appends a random UUID, of version 4, that is made of seed.
func appendUUID(b []byte, seed uint64) []byte {
	var digits [32]byte
	text := appendHex(digits[:0], mix(seed+process[0])&^0xf000|0x4000)
	text = appendHex(text, mix(seed^process[1])&^(3<<62)|2<<62)
	b = append(append(b, text[:8]...), '-')
	b = append(append(b, text[8:12]...), '-')
	b = append(append(b, text[12:16]...), '-')
	b = append(append(b, text[16:20]...), '-')
	return append(b, text[20:]...)
}

// appendHex appends the 16 digits of n. Package hex writes them one after the other; these are written eight at a time.
func appendHex(b []byte, n uint64) []byte {
	b = binary.BigEndian.AppendUint64(b, digits(n>>32))
	return binary.BigEndian.AppendUint64(b, digits(n&0xffffffff))
}

// digits returns the eight digits of a 32-bit number, each in a byte of its own.
func digits(n uint64) uint64 {
	n = (n | n<<16) & 0x0000ffff0000ffff
	n = (n | n<<8) & 0x00ff00ff00ff00ff
	n = (n | n<<4) & 0x0f0f0f0f0f0f0f0f
	letters := (n + 0x0606060606060606) >> 4 & 0x0101010101010101 // 1 where the digit is above 9
	return n + 0x3030303030303030 + letters*('a'-'0'-10)
}
