// Package tracing makes spans of the requests that a process sends and receives, and carries traces from one to the other, so
// that the application copies no header. It speaks W3C Trace Context, B3 (single and multi), x-request-id and W3C Baggage, and
// works with any OpenTelemetry TracerProvider: the SDK, its samplers and its exporters are the application's.
//
// [Handler] is for servers: it reads the headers of a request and begins a SERVER span, and the request's context carries from
// there what belongs to it. [Transport] is for clients: it begins a CLIENT span for each request that it sends, as a child of
// the context's, and sets the headers. Requests must have the context of the request that they are made for; that is all there
// is to do.
//
// With retries, a Transport below them makes a span for each attempt, and a [Calls] above them keeps the attempts together.
// Package tracingmesh does all this for a mesh, package tracinggrpc for any gRPC client and server.
//
// # Spans
//
// The first attempt of a call is a child of the caller's span. With a second one, if there is one, an INTERNAL span of the whole
// call is made: it begins when the call did, links to the first attempt, and is the parent of all later ones, which have
// http.request.resend_count. Where the context has no local span, the INTERNAL span comes first and all attempts are its
// children, so that retries never become traces of their own; [Config.CallSpans] has it so for every call.
//
// Spans have the names and attributes of the semantic conventions 1.43: the method or "method route", and never a path. Clients
// call 4xx and 5xx errors, servers only 5xx; a call that its caller gave up is none. Spans end with the body of the response.
//
// What others choose is bounded: a span has 256 bytes at most of a path, a path and query, a User-Agent, a host, an unknown method, the
// name of a gRPC method and a header that documents add, as Envoy's max_path_tag_length has it, and 1,024 bytes of the text of an error.
// Bytes that are no UTF-8 are replaced, since exporters refuse a whole batch of spans for one of them.
//
// # With otelhttp and otelgrpc
//
// Around a [Transport] or a mesh, their spans are the parents of its attempts. Below one, their spans are children of the attempt,
// and send the header of the innermost span: have Formats be the format that they send. A server has one SERVER span if
// otelhttp is around a [Handler]. Inside one, or inside a mesh, set NoServerSpans: they read the headers for themselves, once
// those that are not believed are gone. NoClientSpans leaves the other side to them.
//
// A call that is not sampled costs its headers: below a local span that does not record no span is started at all.
package tracing
