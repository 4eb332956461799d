package spans

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/grpccode"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// Call is one call of a client, with all its attempts.
type Call struct {
	Method string
	URL    *url.URL // for gRPC, the path is /package.Service/Method
	RPC    bool
	Start  time.Time   // zero means now
	Owner  any         // identifies the call: a pointer
	Seed   uint64      // from which a request id is made; see [Seed]
	Header http.Header // of the request; it is not changed

	// Caller is the context of the caller.
	Caller context.Context

	// Documents has the settings of documents for spans of calls. It may be nil.
	Documents *telemetry.Tracing

	// Secret are query parameters that hold tokens, in addition to the standard ones.
	Secret []string

	// Shared means that a layer below makes the attempts, and finds the call with [Shared].
	Shared bool
}

// call is a call that is recorded. It is the context of its attempts.
type call struct {
	context.Context
	tracer *Tracer
	owner  any
	shared bool
	start  time.Time

	mu    sync.Mutex
	whole trace.Span // of the call, nil while there is none
	last  trace.Span // of the latest attempt; nil before the first one, and for gRPC
	first trace.SpanContext
	ended time.Time // when the latest attempt ended, zero while it is in flight
	n     int       // the number of attempts
}

// callKey finds the calls of one Tracer, and those that are shared. Without a Tracer it finds any call.
type callKey struct{ of *Tracer }

// Value implements context.Context.
func (c *call) Value(key any) any {
	if key, ok := key.(callKey); ok && (key.of == nil || key.of == c.tracer || c.shared) {
		return c
	}
	return c.Context.Value(key)
}

// callOf returns the call of owner, or nil if it is not recorded. A context may also lead to other calls: one within which this call is
// made, or the same one as another Tracer records it.
func (t *Tracer) callOf(ctx context.Context, owner any) *call {
	if c, ok := ctx.Value(callKey{t}).(*call); ok && c.owner == owner {
		return c
	}
	return nil
}

// Recorded reports whether the call of owner is recorded. Only then need it be ended.
func (t *Tracer) Recorded(ctx context.Context, owner any) bool { return t.callOf(ctx, owner) != nil }

// Shared returns the owner of the shared call that a request with the context ctx is an attempt of, or nil if there is none. A call that is
// made within such an attempt is not part of the shared call.
func Shared(ctx context.Context) any {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok || !c.shared || trace.SpanContextFromContext(ctx).SpanID() != trace.SpanContextFromContext(c.Context).SpanID() {
		return nil
	}
	return c.owner
}

var (
	clientKind   = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient)}
	internalKind = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindInternal)}
)

// MayRecord reports whether calls with ctx may have spans. If not, [Tracer.StartCall] would do nothing.
func (t *Tracer) MayRecord(ctx context.Context) bool {
	if t.tracer == nil || t.config.NoClientSpans {
		return false
	}
	parent := trace.SpanFromContext(ctx)
	if parent.IsRecording() {
		return true
	}
	sc := parent.SpanContext()
	return !sc.IsValid() || sc.IsRemote() // the trace begins here, or comes from another process
}

// StartCall begins a call. It returns the context to continue with.
//
// If ctx has a local span, the call has no span of its own until there is a second attempt. Otherwise StartCall creates one, so that
// sampling is decided once and the attempts stay together.
func (t *Tracer) StartCall(ctx context.Context, d *Call) context.Context {
	if !t.MayRecord(ctx) || disabled(d.Documents) {
		return ctx
	}
	sc := trace.SpanContextFromContext(ctx)
	local := sc.IsValid() && !sc.IsRemote()
	if local && !d.RPC && !t.config.CallSpans {
		return t.newCall(ctx, d, nil)
	}
	if !sc.IsValid() { // the application may have copied trace headers from its request
		if came := t.extract(d.Header); came.IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, came)
		} else if passedOver(d.Documents) {
			return unsampled(ctx)
		}
	}
	name, kind := method(d.Method), internalKind
	if d.RPC {
		name, kind = rpcMethod(d.URL.Path), clientKind
	}
	sctx, span := t.tracer.Start(ctx, name, kind...)
	if !span.IsRecording() {
		return sctx
	}
	span.SetAttributes(clientAttributes(d)...)
	return t.newCall(sctx, d, span)
}

func (t *Tracer) newCall(ctx context.Context, d *Call, whole trace.Span) *call {
	return &call{Context: ctx, tracer: t, owner: d.Owner, shared: d.Shared, start: orNow(d.Start), whole: whole}
}

// orNow returns the current time for a zero time. So callers need not read the clock for calls that are not recorded.
func orNow(at time.Time) time.Time {
	if at.IsZero() {
		return time.Now()
	}
	return at
}

func clientAttributes(d *Call) []attribute.KeyValue {
	all := make([]attribute.KeyValue, 0, 8)
	if d.RPC {
		all = append(all, semconv.RPCSystemNameGRPC, semconv.RPCMethodKey.String(rpcMethod(d.URL.Path)))
	} else {
		all = appendMethod(all, d.Method)
		all = append(all, semconv.URLFullKey.String(fullURL(d.URL, d.Secret)))
	}
	return appendTags(appendServer(all, d.URL.Host), d.Documents, d.Header)
}

// Attempt is one attempt of a call.
type Attempt struct {
	Number   int         // from 1
	Start    time.Time   // zero means now
	Endpoint string      // address and port, "" if they are not known
	Header   http.Header // of the request that is sent; it is changed only through Set
	Set      Setter
}

// StartAttempt begins an attempt, and sets the headers that carry its span. It returns the context to continue with.
func (t *Tracer) StartAttempt(ctx context.Context, d *Call, a *Attempt) context.Context {
	o := Outgoing{Caller: d.Caller, RPC: d.RPC, Seed: d.Seed, Number: a.Number, Header: a.Header, Set: a.Set}
	c := t.callOf(ctx, d.Owner)
	if c == nil {
		t.Carry(ctx, &o)
		return ctx
	}
	from := trace.SpanContextFromContext(d.Caller)
	o.ctx, o.fresh, o.seed = ctx, !from.IsValid(), idSeed(d.Seed, &from)
	if d.RPC {
		c.try(a)
		o.span = c.whole.SpanContext()
	} else {
		var span trace.Span
		ctx, span = t.startAttempt(ctx, c, d, a)
		o.span = span.SpanContext()
	}
	o.id, o.valid = o.span.SpanID(), o.span.IsValid()
	t.inject(&o)
	return ctx
}

// try records an attempt of a gRPC call as an event of the call's span.
func (c *call) try(a *Attempt) {
	attributes := append(make([]attribute.KeyValue, 0, 3), attribute.Int("mesh.attempt", a.Number))
	c.whole.AddEvent("attempt", trace.WithTimestamp(orNow(a.Start)), trace.WithAttributes(appendPeer(attributes, a.Endpoint)...))
}

func (t *Tracer) startAttempt(ctx context.Context, c *call, d *Call, a *Attempt) (context.Context, trace.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLast()
	c.n++
	attributes := appendPeer(clientAttributes(d), a.Endpoint)
	if a.Number > 1 {
		attributes = append(attributes, semconv.HTTPRequestResendCountKey.Int(a.Number-1))
		if c.whole == nil && c.n > 1 { // only now is a second attempt known
			_, c.whole = t.tracer.Start(c.Context, method(d.Method), trace.WithSpanKind(trace.SpanKindInternal),
				trace.WithTimestamp(c.start), trace.WithAttributes(clientAttributes(d)...),
				trace.WithLinks(trace.Link{SpanContext: c.first}))
		}
	}
	if c.whole != nil {
		ctx = trace.ContextWithSpan(ctx, c.whole)
	}
	ctx, c.last = t.tracer.Start(ctx, method(d.Method), trace.WithSpanKind(trace.SpanKindClient),
		trace.WithTimestamp(orNow(a.Start)), trace.WithAttributes(attributes...))
	if c.n == 1 {
		c.first = c.last.SpanContext()
	}
	return ctx, c.last
}

// AttemptEnd is how an attempt ended.
type AttemptEnd struct {
	Status  int
	Version string // of the protocol, "" if it is not known
	Err     error
	At      time.Time
	Peer    Peer // nil if its attributes are not wanted
}

// EndAttempt records the end of an attempt. Its span ends with the next attempt or with the call: then it is known why the call ended.
func (t *Tracer) EndAttempt(ctx context.Context, owner any, e *AttemptEnd) {
	c := t.callOf(ctx, owner)
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil || !c.ended.IsZero() {
		return
	}
	c.ended = e.At
	if e.Version != "" {
		c.last.SetAttributes(semconv.NetworkProtocolVersionKey.String(e.Version))
	}
	if e.Peer != nil {
		c.last.SetAttributes(e.Peer.Append(nil)...)
	}
	settle(ctx, c.last, e.Status, e.Err)
}

// endLast ends the span of the latest attempt.
func (c *call) endLast() {
	if c.last == nil {
		return
	}
	if c.ended.IsZero() {
		c.last.End()
	} else {
		c.last.End(trace.WithTimestamp(c.ended))
	}
	c.last, c.ended = nil, time.Time{}
}

// settle records how a call or an attempt of HTTP ended.
func settle(ctx context.Context, span trace.Span, status int, err error) {
	if status > 0 {
		span.SetAttributes(semconv.HTTPResponseStatusCodeKey.Int(status))
	}
	switch {
	case err != nil && !gaveUp(ctx, err):
		failWith(span, err)
	case err == nil && status >= http.StatusBadRequest:
		fail(span, strconv.Itoa(status))
	}
}

// CallEnd is how a call ended.
type CallEnd struct {
	Status     int
	GRPCStatus int // -1 if there is none
	Err        error
	Flags      string // response flags, "" for none
	Route      string // the route that applied, "" for none
	Stopped    string // why there were no more attempts, "" if the call succeeded
	Peer       Peer   // of the last attempt; nil if its attributes are not wanted
}

// EndCall ends a call.
func (t *Tracer) EndCall(ctx context.Context, d *Call, e *CallEnd) {
	c := t.callOf(ctx, d.Owner)
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	details := make([]attribute.KeyValue, 0, 3)
	for _, kv := range [...]attribute.KeyValue{
		attribute.String(flagsKey, e.Flags), attribute.String(routeKey, e.Route), attribute.String(retryKey, e.Stopped),
	} {
		if kv.Value.AsString() != "" {
			details = append(details, kv)
		}
	}
	if c.n == 0 && c.whole == nil { // a call for which nothing was sent has a span, too
		_, c.whole = t.tracer.Start(c.Context, method(d.Method), trace.WithSpanKind(trace.SpanKindClient),
			trace.WithTimestamp(c.start), trace.WithAttributes(clientAttributes(d)...))
	}
	if c.last != nil {
		c.last.SetAttributes(details...)
		if c.ended.IsZero() { // the body was closed on one goroutine while another one reached its end
			settle(ctx, c.last, e.Status, e.Err)
		}
	}
	c.endLast()
	if c.whole == nil {
		return
	}
	c.whole.SetAttributes(details...)
	if e.Peer != nil {
		c.whole.SetAttributes(e.Peer.Append(nil)...)
	}
	if d.RPC {
		settleRPC(ctx, c.whole, e)
	} else {
		settle(ctx, c.whole, e.Status, e.Err)
	}
	c.whole.End()
}

// lastCode is the highest code that gRPC defines.
const lastCode = 16

// settleRPC records how a gRPC call ended.
func settleRPC(ctx context.Context, span trace.Span, e *CallEnd) {
	code := e.GRPCStatus
	if code < 0 && e.Err != nil {
		switch {
		case errors.Is(e.Err, context.DeadlineExceeded):
			code = 4
		case errors.Is(e.Err, context.Canceled):
			code = 1
		}
	}
	if code >= 0 {
		span.SetAttributes(semconv.RPCResponseStatusCodeKey.String(grpccode.Name(uint32(code))))
	}
	switch {
	case e.Err != nil && gaveUp(ctx, e.Err):
	case code > lastCode: // servers can make up any number
		fail(span, other)
	case code > 0:
		fail(span, grpccode.Name(uint32(code)))
	case e.Err != nil:
		failWith(span, e.Err)
	}
}
