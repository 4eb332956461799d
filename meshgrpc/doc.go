// Package meshgrpc takes gRPC calls through a mesh, outbound and inbound, with grpc-go's own clients and servers:
//
//	conn, err := grpc.NewClient("mesh:///order-service:8080", meshgrpc.DialOptions(m)...)
//
//	server := grpc.NewServer(meshgrpc.ServerOptions(m)...)
//	err := server.Serve(m.Listen(listener))
//
// A gRPC call is an HTTP/2 request: a POST of "/package.Service/Method" with its metadata as headers. So documents mean the same as
// for HTTP, and the mesh enforces them with the same state. These points are specific to gRPC:
//
//   - Servers learn of timeouts through grpc-timeout. As in Envoy, the timeout of a route begins when the whole request is sent;
//     for a client stream, that is at CloseSend. The per-try timeout of a stream bounds the wait for response headers, and never
//     ends a stream that was answered. For a unary call it bounds the whole try.
//   - retryOn is compared to the status of a trailers-only response. Once response headers have come, a call is retried only for what
//     they say: their HTTP status, a header for retriable-headers, or x-envoy-ratelimited. A server can delay or forbid a retry with
//     grpc-retry-pushback-ms. Retries carry grpc-previous-rpc-attempts.
//   - Until a stream is answered, its messages are kept for a retry, up to 256 KiB. That is gRPC's own limit, which
//     grpc.MaxRetryRPCBufferSize changes for a call.
//   - A wait-for-ready call is repeated until its context, or the timeout of the service config, ends if its destination has no endpoint,
//     or none that can be connected to.
//   - Unary calls are mirrored. Streams are not: an observer's MirrorDropped is called for them.
//   - Outlier detection maps a gRPC status to an HTTP status as Envoy does.
//
// Errors are status errors. The status of a server is passed on unchanged. If no server answered, the error unwraps to a
// [mesh.Error]. A response that a document prescribes, such as an abort, becomes the corresponding status.
package meshgrpc
