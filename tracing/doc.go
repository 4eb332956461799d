// Package tracing makes spans of the requests that a process sends and receives, and carries traces from one to the other, so
// that the application copies no header. It speaks W3C Trace Context, B3 (single and multi), x-request-id and W3C Baggage, and
// works with any OpenTelemetry TracerProvider: the SDK, its samplers and its exporters are the application's.
//
// [Handler] is for servers: it reads the headers of a request, begins a SERVER span, and puts the trace into the request's context.
// [Transport] is for clients: it begins a CLIENT span for each request that it sends, as a child of the context's span, and sets
// the headers. The application only has to make its requests with the context of the request that they serve.
//
// With retries, a Transport below them makes a span for each attempt, and a [Calls] above them keeps the attempts together.
// Package tracingmesh does all this for a mesh, package tracinggrpc for any gRPC client and server.
//
// # Spans
//
// The first attempt of a call is a child of the caller's span. A second attempt adds an INTERNAL span of the whole call: it begins
// when the call did, links to the first attempt, and is the parent of all later attempts, which have http.request.resend_count.
// Where the context has no local span, the INTERNAL span comes first and all attempts are its children, so that retries never
// become traces of their own. With [Config.CallSpans] that is so for every call.
//
// Spans have the names and attributes of the semantic conventions 1.43. The name is the method or "method route", never a path. For
// clients 4xx and 5xx are errors, for servers only 5xx; a call that its caller gave up is not an error. Spans end with the body of
// the response.
//
// Values that peers and callers choose are bounded: a span has at most 256 bytes of a path, a path and query, a User-Agent, a host, an
// unknown method, the name of a gRPC method and a header that documents add, as with Envoy's max_path_tag_length, and 1,024 bytes of
// the text of an error. Bytes that are not UTF-8 are replaced, since exporters refuse a whole batch of spans because of one of them.
//
// # With otelhttp and otelgrpc
//
// Around a [Transport] or a mesh, their spans are the parents of its attempts. Below one, their spans are children of the attempt, and
// they send the header of the innermost span: set Formats to the format that they send. A server has one SERVER span if otelhttp
// is around a [Handler]. If otelhttp is inside a Handler or a mesh, set NoServerSpans: it reads the headers itself, after those that
// are not trusted have been removed. NoClientSpans leaves the client side to them.
//
// A call that is not sampled costs only its headers: below a local span that does not record, no span is started.
package tracing
