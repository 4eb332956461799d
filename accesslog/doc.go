// Package accesslog writes a line for each call and each inbound request of a mesh, in the formats of Istio's sidecars. It covers HTTP,
// gRPC and raw TCP connections.
//
//	access, err := accesslog.New(accesslog.Config{Writer: os.Stdout})
//	...
//	m, err := mesh.New(ctx, mesh.WithObserver(access.Observer()), ...)
//	...
//	m.Close()
//	err = access.Close()
//
// [JSON] lines have the keys of Istio's JSON format. [Text] lines have Istio's default format. A [log/slog.Handler] gets records with
// the same keys. response_code, bytes_received, bytes_sent and duration (in whole milliseconds) are numbers, all other values are text;
// start_time is in UTC. An unknown text is "-". Line breaks, quotes, and any other character that could make one line look like two, or one
// field like another, are escaped. A field is cut after 4,096 bytes.
//
// Logging never blocks a call: the call copies its data into a record, and a goroutine of the log formats and writes it. If more
// lines wait than Config.Queue allows, further lines are dropped and counted. Pass [Log.Dropped] to metrics.Config.Dropped to export
// that number.
//
// A Telemetry document (telemetry.istio.io) can turn lines off, or filter them, for outbound calls or inbound requests; see
// [policy/telemetry/cel] for its expressions. Config.Filter and Config.Sampling apply in addition.
//
// # Fields
//
// A line means the same as that of a sidecar. The downstream of an outbound call is this program, so it has no address. The upstream of
// an inbound request is the handler, so it has no host. bytes_received are the bytes that the caller sent, as in a sidecar.
//
// response_code is the status of the response. Without a response, it is the status with which Envoy would have answered (503, 504,
// 404, 429), or 0 if the caller gave up. response_code_details says what answered, in Envoy's terms, and names the AuthorizationPolicy
// that denied a request. upstream_transport_failure_reason is the error of a connection that could not be made. Mirrored copies are not
// logged.
//
// [policy/telemetry/cel]: https://pkg.go.dev/github.com/nosidecar/mesh/policy/telemetry/cel
package accesslog
