// Package tracing creates spans for the requests that a process receives and sends, and propagates traces from one to the other, so
// that the application copies no headers. It supports W3C Trace Context, B3 (single and multi), x-request-id and W3C Baggage, and
// works with any OpenTelemetry TracerProvider. The SDK, its samplers and its exporters are up to the application.
//
// [Handler] is for servers: it reads the headers of a request, starts a SERVER span, and puts what must be propagated into the
// context of the request. [Transport] is for clients: it starts a CLIENT span for each request that it sends, as a child of the span
// in the request's context, and sets the headers. So the application only has to use the context of the request that it serves for
// the requests that it makes.
//
// With retries, a Transport below them creates a span for each attempt, and a [Calls] above them groups the attempts of a call.
// Package tracingmesh does all this for a mesh, and package tracinggrpc for any gRPC client and server.
//
// Baggage is passed on as it was received if it has at most 64 members and 8,192 bytes, in printable ASCII; otherwise all of it is dropped.
// A tracestate that is invalid, or has more than 32 members, is dropped, and the trace goes on.
//
// # Spans
//
// The first attempt of a call is a child of the caller's span. If there is a second attempt, an INTERNAL span for the whole call is
// created. It starts at the start of the call, links to the first attempt, and is the parent of all later attempts, which have
// http.request.resend_count. If the context has no local span, the INTERNAL span is created first and all attempts are its
// children, so that retries do not become traces of their own. [Config.CallSpans] does that for every call.
//
// Spans have the names and attributes of the semantic conventions 1.43. The name is the method or "method route", never a path.
// The name of a gRPC call is its method. At the server, it is "grpc" if the method is not implemented, or if the call was refused before
// the server saw it: callers could make up any number of names. rpc.method_original has the method then.
//
// Client spans treat 4xx and 5xx as errors, server spans only 5xx. A call or a request whose caller gave up is not an error. Spans
// end with the body of the response.
//
// Values that peers and callers choose are bounded. A span has at most 256 bytes of a path, a path with its query, a User-Agent, a
// host, an unknown method, the name of a gRPC method, and a header that documents add, as with Envoy's max_path_tag_length, and at
// most 1,024 bytes of an error text. Invalid UTF-8 is replaced, since exporters reject a whole batch of spans because of it.
//
// # With otelhttp and otelgrpc
//
// If they are around a [Transport] or a mesh, their spans are the parents of its attempts. If they are below one, their spans are
// children of the attempt, and the headers name the innermost span: Formats should then be the format that they send. On a server
// with otelhttp around a [Handler], a request has a single SERVER span. If they are inside a Handler or a mesh, set NoServerSpans:
// they then read the headers themselves, after those that are not trusted were removed. NoClientSpans does the same for the client
// side.
//
// A call that is not sampled costs only its headers: below a local span that does not record, no span is started.
package tracing
