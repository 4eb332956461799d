// Package meshgrpc takes gRPC calls through a mesh, in both directions, with grpc-go's own clients and servers:
//
//	conn, err := grpc.NewClient("mesh:///order-service:8080", meshgrpc.DialOptions(m)...)
//
//	server := grpc.NewServer(meshgrpc.ServerOptions(m)...)
//	err := server.Serve(m.Listen(listener))
//
// A gRPC call is an HTTP/2 request: a POST of "/package.Service/Method" with its metadata as headers. So the documents mean
// what they mean for HTTP, and the mesh enforces them, with the same state as for HTTP. What gRPC adds:
//
//   - Timeouts are told to servers as grpc-timeout. As in Envoy, the timeout of a route begins when the request is sent whole:
//     with CloseSend, for a stream that its caller sends on. The limit of a try bounds the wait for response headers; a stream that
//     was answered is never cut by it. For unary calls it bounds the whole try.
//   - A call is retried as long as no response headers came: a status that is the whole reply, a "trailers-only" response, is
//     what retryOn looks at. A server may say when to retry, or not to retry, with grpc-retry-pushback-ms. Retries carry
//     grpc-previous-rpc-attempts.
//   - Streams keep what was sent for a retry, up to 256 KiB (gRPC's own limit, which grpc.MaxRetryRPCBufferSize changes for a call), until they are answered.
//   - A wait-for-ready call whose destination has no endpoint, or none that can be connected to, is repeated until its context ends.
//   - Unary calls are mirrored, streams are not: an observer's MirrorDropped is told.
//   - Outlier detection maps a status to an HTTP status as Envoy does.
//
// Errors are status errors. The status of a server is passed on unchanged. Where the mesh got no answer, the error unwraps to
// a [mesh.Error]; a response that a document prescribes, such as an abort, becomes its status.
package meshgrpc
