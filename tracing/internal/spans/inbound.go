package spans

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/grpccode"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// What W3C Baggage allows, and what is passed on at most: https://www.w3.org/TR/baggage/#limits.
const (
	maxBaggage        = 8192
	maxBaggageMembers = 64
)

// inbound has what is passed on to the calls that are made for an inbound request. It is the context of that request.
type inbound struct {
	context.Context
	requestID string // as received; "" for none
	seed      uint64 // from which a new request id is made if none was received; 0 for no id
	baggage   string
	forwarded [][]string // by the index of Tracer.forward
	trace     trace.TraceID
	fresh     bool       // the trace begins here
	span      trace.Span // nil unless it records
	request   *http.Request
	above     remote // the caller's span, which the header names
}

// remote is a span of another process. Only its context is known.
type remote struct {
	noop.Span
	sc trace.SpanContext
}

// SpanContext implements trace.Span.
func (r *remote) SpanContext() trace.SpanContext { return r.sc }

type inboundKey struct{}

// Value implements context.Context.
func (in *inbound) Value(key any) any {
	switch key {
	case inboundKey{}:
		return in
	case asserted.RequestIDKey{}:
		return in.id()
	}
	return in.Context.Value(key)
}

func inboundOf(ctx context.Context) *inbound {
	in, _ := ctx.Value(inboundKey{}).(*inbound)
	return in
}

// RequestID returns the id of the inbound request that ctx belongs to.
func RequestID(ctx context.Context) string {
	if in := inboundOf(ctx); in != nil {
		return in.id()
	}
	return ""
}

// id returns the request id. A new one is formatted only when it is asked for.
func (in *inbound) id() string {
	if in.requestID == "" && in.seed != 0 {
		return uuid(in.seed)
	}
	return in.requestID
}

// Baggage returns the baggage in ctx, otherwise that of the inbound request.
func Baggage(ctx context.Context) baggage.Baggage {
	if b := baggage.FromContext(ctx); b.Len() > 0 {
		return b
	}
	if in := inboundOf(ctx); in != nil {
		b, _ := baggage.Parse(in.baggage)
		return b
	}
	return baggage.Baggage{}
}

// Request is an inbound request, or a gRPC call as the POST that it is.
type Request struct {
	*http.Request
	RPC bool

	// Restart means that the trace headers are not trusted, NewID that the request id is not.
	Restart, NewID bool

	// Documents has the settings of documents for spans of requests. It may be nil.
	Documents *telemetry.Tracing

	// Peer describes the sender. It is nil if its attributes are not wanted.
	Peer Peer
}

// StartInbound begins the SERVER span of a request, unless another library has, and keeps what is passed on to the calls that are made for
// the request. It returns the context for the handler.
func (t *Tracer) StartInbound(ctx context.Context, r *Request) context.Context {
	in := &inbound{requestID: field.First(r.Header, requestID), request: r.Request}
	if r.NewID || len(in.requestID) > maxRequestID || !field.IsPrintable(in.requestID) {
		in.requestID = ""
	}
	local := trace.SpanContextFromContext(ctx)
	outer := local.IsValid() && !local.IsRemote() // such as a span of otelhttp around this
	if !r.Restart {
		ctx = t.received(ctx, in, r.Header, outer)
	}
	if t.forward != nil {
		in.forwarded = make([][]string, len(t.forward))
		for i, name := range t.forward {
			in.forwarded[i] = r.Header[name]
		}
	}
	if !outer && t.tracer != nil && !t.config.NoServerSpans && !disabled(r.Documents) {
		in.fresh = !trace.SpanContextFromContext(ctx).IsValid()
		if in.fresh && passedOver(r.Documents) {
			ctx = unsampled(ctx)
		} else {
			ctx, in.span = t.tracer.Start(ctx, serverName(r), serverKind...)
			if in.span.IsRecording() {
				in.span.SetAttributes(serverAttributes(r)...)
			} else {
				in.span = nil
			}
		}
		in.trace = trace.SpanContextFromContext(ctx).TraceID()
	}
	if in.requestID == "" && !t.config.NoRequestID {
		in.seed = max(1, rand.Uint64())
	}
	in.Context = ctx
	return in
}

// maxRequestID bounds the request ids that are accepted from peers, which are logged and passed on.
const maxRequestID = 256

// received takes the baggage and the caller's span from a header that is trusted.
func (t *Tracer) received(ctx context.Context, in *inbound, h http.Header, outer bool) context.Context {
	if t.config.Propagator != nil {
		if outer {
			return ctx
		}
		return t.config.Propagator.Extract(ctx, propagation.HeaderCarrier(h))
	}
	if values := h[baggageHeader]; len(values) > 0 {
		b := strings.ReplaceAll(strings.Join(values, ","), "\t", " ") // both are allowed around members, but gRPC cannot send tabs
		if len(b) <= maxBaggage && strings.Count(b, ",") < maxBaggageMembers && field.IsPrintable(b) {
			in.baggage = b
		}
	}
	if outer {
		return ctx
	}
	if sc := Extract(h); sc.IsValid() {
		in.above.sc = sc
		return trace.ContextWithSpan(ctx, &in.above)
	}
	return ctx
}

var serverKind = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}

func serverName(r *Request) string {
	if r.RPC {
		return rpcMethod(r.URL.Path)
	}
	return method(r.Method)
}

func serverAttributes(r *Request) []attribute.KeyValue {
	all := make([]attribute.KeyValue, 0, 12)
	if r.RPC {
		all = append(all, semconv.RPCSystemNameGRPC, semconv.RPCMethodKey.String(rpcMethod(r.URL.Path)))
	} else {
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		all = appendMethod(all, r.Method)
		all = append(all, semconv.URLPathKey.String(bounded(r.URL.Path, longest)), semconv.URLSchemeKey.String(scheme),
			semconv.NetworkProtocolVersionKey.String(Version(r.ProtoMajor, r.ProtoMinor)))
		if agent := field.First(r.Header, "User-Agent"); agent != "" {
			all = append(all, semconv.UserAgentOriginalKey.String(bounded(agent, longest)))
		}
	}
	all = appendServer(all, r.Host)
	if host, port := splitHostPort(r.RemoteAddr); port != "" {
		all = append(all, semconv.NetworkPeerAddressKey.String(host))
	}
	if r.Peer != nil {
		all = r.Peer.Append(all)
	}
	return appendTags(all, r.Documents, r.Header)
}

// Response is how an inbound request ended.
type Response struct {
	Status  int    // the HTTP status; 0 if the response was cut off before it began
	Broken  bool   // the handler has panicked, so the response was cut off if it had begun
	Gone    bool   // the caller was gone before the handler returned, which is no error
	RPC     bool   // it is the response to a gRPC call, with Code
	Code    uint32 // the gRPC status
	Unknown bool   // the gRPC method may not exist
	Route   string // the pattern that the request matched, "" if it is not known
	Flags   string // why the request was refused, "" if it was not
}

// EndInbound ends the SERVER span of a request.
func EndInbound(ctx context.Context, r *Response) {
	in := inboundOf(ctx)
	if in == nil || in.span == nil {
		return
	}
	span := in.span
	if r.Flags != "" {
		span.SetAttributes(attribute.String(flagsKey, r.Flags))
	}
	switch {
	case r.RPC:
		name := grpccode.Name(r.Code)
		span.SetAttributes(semconv.RPCResponseStatusCodeKey.String(name))
		if grpccode.ServerFault(r.Code) {
			fail(span, name)
		}
	case r.Status == 0 && r.Gone:
	case r.Status == 0:
		fail(span, other)
	default:
		span.SetAttributes(semconv.HTTPResponseStatusCodeKey.Int(r.Status))
		switch {
		case r.Status >= http.StatusInternalServerError:
			fail(span, strconv.Itoa(r.Status))
		case r.Broken:
			fail(span, other)
		}
	}
	switch route := pathOf(r.Route); {
	case r.RPC && r.Unknown: // callers can make up any number of methods
		span.SetName(semconv.RPCSystemNameGRPC.Value.AsString())
		span.SetAttributes(semconv.RPCMethodKey.String(other), semconv.RPCMethodOriginalKey.String(rpcMethod(in.request.URL.Path)))
	case !r.RPC && route != "":
		span.SetName(method(in.request.Method) + " " + route)
		span.SetAttributes(semconv.HTTPRouteKey.String(route))
	}
	span.End()
}

// Answer makes r the response to a gRPC call. The code is -1 if there was none. refused means that the server never saw the call.
func (r *Response) Answer(code int, refused bool) {
	const canceled, unknown, unimplemented = 1, 2, 12
	switch r.RPC, r.Code = true, unknown; {
	case code >= 0:
		r.Code = uint32(code)
	case r.Gone:
		r.Code = canceled
	}
	r.Unknown = refused || code == unimplemented
}

// EchoRequestID sets x-request-id in a response header to the id of the request that ctx belongs to.
func EchoRequestID(ctx context.Context, h http.Header) {
	if id := RequestID(ctx); id != "" {
		h[requestID] = []string{id}
	}
}

func fail(span trace.Span, kind string) {
	span.SetStatus(codes.Error, "")
	span.SetAttributes(semconv.ErrorTypeKey.String(kind))
}

// pathOf returns a pattern of http.ServeMux without method and host.
func pathOf(pattern string) string {
	if i := strings.IndexByte(pattern, '/'); i >= 0 {
		return pattern[i:]
	}
	return ""
}

// Strip returns a copy of a header without the [Tracer.Trusted] headers.
func (t *Tracer) Strip(h http.Header) http.Header {
	h = maps.Clone(h)
	for _, name := range t.trusted {
		delete(h, name)
	}
	return h
}
