// Package accesslog writes a line for each call through a mesh, and for each request to it, in the formats of Istio's sidecars: HTTP
// and gRPC, and raw TCP connections.
//
//	access, err := accesslog.New(accesslog.Config{Writer: os.Stdout})
//	...
//	m, err := mesh.New(ctx, mesh.WithObserver(access.Observer()), ...)
//	...
//	m.Close()
//	err = access.Close()
//
// [JSON] lines have the keys of Istio's JSON format, [Text] lines are those of its default format, and a [log/slog.Handler] gets
// records with the same keys. What is not known is "-". Line breaks, quotes, and whatever else could make one line look like two,
// or one field like another, is escaped. A field of more than 4,096 bytes is cut.
//
// A call is never held up: it copies what its line needs into a record, and a goroutine of the log formats and writes it. When
// more lines wait than Config.Queue allows, further ones are dropped and counted: give [Log.Dropped] to metrics.Config.Dropped to see
// how many.
//
// A Telemetry document (telemetry.istio.io) turns lines off, or filters them, for calls or requests; see [policy/telemetry/cel] for
// its expressions. Then come Config.Filter and Config.Sampling.
//
// # The fields
//
// A line means what it means at a sidecar. The caller of an outbound call is this program, so what is downstream of it has no
// address; a request to this process has no upstream host, which is the handler. In bytes, what a caller sent was received.
//
// response_code is that of the response. Where there was none, it is what Envoy answers in that case (503, 504, 404, 429), and 0
// if the caller gave up. response_code_details says in Envoy's words who answered, and names the AuthorizationPolicy that denied.
// upstream_transport_failure_reason is the error with which connections failed. Mirrored copies have no lines.
//
// [policy/telemetry/cel]: https://pkg.go.dev/github.com/nosidecar/mesh/policy/telemetry/cel
package accesslog
