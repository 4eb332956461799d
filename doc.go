// Package mesh gives a process what a service mesh gives it, without the sidecar.
//
// It reads the documents that operators write for Istio, Linkerd, the Gateway API, SMI and Consul and enforces them inside the
// process, behind an ordinary [http.Client] and [http.Handler]:
//
//	m, err := mesh.New(ctx, mesh.WithPolicyFeed(file.New("mesh.d"))) // a folder that is followed, of package policy/file
//	if err != nil { ... }
//	defer m.Close()
//
//	resp, err := m.Client().Get("http://user-service/users/42")
//
//	srv := &http.Server{Handler: m.Handler(mux), ReadHeaderTimeout: 5 * time.Second}
//	err = srv.Serve(m.Listen(ln))
//
// # What a mesh is made of
//
//   - Documents: [WithPolicyDir] reads a folder once, [WithPolicyFeed] follows a folder, Kubernetes or Consul, and [WithPolicy]
//     takes what the program holds itself.
//   - Endpoints: those of ServiceEntries and of DNS, or of a registry given with [WithDiscovery].
//   - The workload that the process is: [WithWorkload]. Documents select by its namespace and labels. In a Kubernetes pod its
//     environment can say it, see [policy.WorkloadFromEnv].
//   - An identity: [WithIdentity]. Without one, no mTLS connection is accepted or made with the process's own certificate.
//   - Traces, metrics, access logs and a live page: [WithObserver].
//   - What no document can express: [WithProtection] for calls, [WithServer] for requests to this process.
//
// It is used through [Mesh.Client] or [Mesh.Transport] for HTTP calls, [Mesh.Handler] and [Mesh.Listen] for HTTP servers, package
// [meshgrpc] for gRPC, and [Mesh.DialContext] and [Mesh.ListenTCP] for other protocols. [Mesh.Status] is a snapshot of what is in
// force, for a status page or a readiness probe.
//
// # The life of one request
//
// A request passes these stages in this order, which is Envoy's.
//
//  1. Plan. The compiled documents are loaded once, from an atomic pointer. A reload during the request does not affect
//     it: the request sees one plan from beginning to end.
//
//  2. Route. The host selects a table of routes. The first route that matches decides. It may answer at once (redirect,
//     direct response); otherwise it picks a destination by weight. The pick is made once: retries stay with it, or a
//     canary would leak into its stable sibling.
//
//  3. Rate limit, then fault. Both act once per request, outside the retries: an injected failure is a response, not
//     something to retry. Neither counts against an endpoint.
//
//  4. Deadline. The route's timeout covers everything that follows: all attempts and the waits between them. An injected
//     delay comes before it, as in Envoy, because it stands for a slow network and not for a slow server.
//
//  5. Rewrite. Path, authority and headers are rewritten on a copy, never on the caller's request. The key of consistent
//     hashing is taken from the result.
//
//  6. Mirror. A request that got this far is copied, whatever becomes of it later. As in Envoy, a request that a fault
//     aborted is not copied.
//
//  7. Retry. The loop around the next stages. It bounds the time of each attempt, keeps the body for replay, waits between
//     attempts with full jitter, and asks a budget before each retry.
//
//  8. Pool. Limits on connections and on requests in flight. They come before the circuit, because a full queue says
//     nothing about the health of the destination.
//
//  9. Circuit. If the destination fails as a whole, the attempt ends here.
//
//  10. Balance. An endpoint is picked. Ejected endpoints, and those that this call has already tried, are avoided.
//
//  11. Endpoint. The request goes out on the endpoint's own connections. Host header, TLS server name and URL stay those of
//     the service; only the dialled address differs. Where documents or the endpoint require mTLS, the connection presents
//     the identity of this process and is accepted only if the endpoint has the expected SPIFFE ID. The URL still says http.
//
//  12. End. A call ends when its response body does: at EOF, at an error or at Close. Then, exactly once, outlier
//     detection and circuit learn the outcome, slots are released and observers are notified.
//
// gRPC calls ([meshgrpc]), mirrored copies and raw connections ([Mesh.DialContext]) pass the same stages, as far as the stages
// apply to them.
//
// # The life of one inbound request
//
// A request to a server that uses [Mesh.Handler] and [Mesh.Listen] passes these stages, in this order.
//
//  1. Connection. PeerAuthentication decides what the port takes: STRICT takes mTLS only, PERMISSIVE tells mTLS from
//     plaintext by the first byte, DISABLE takes plaintext. Handshakes run concurrently with Accept and are bounded in
//     number, so a silent peer blocks nobody else.
//
//  2. Identity. The peer's certificate is verified against the bundles in force for each request, because certificates
//     expire and bundles change while a connection lives. A certificate that was already verified costs one map look-up.
//
//  3. Tokens. If RequestAuthentications are about the workload, the request's JSON Web Tokens are verified, and whatever the
//     client wrote where their claims go is removed. A token that no rule accepts ends the request; a request without one
//     goes on.
//
//  4. Authorization. AuthorizationPolicies of Istio, intentions of Consul, Servers of Linkerd and TrafficTargets of SMI see the request
//     as it was sent, with the claims of its token. As far as there are any, all of them must allow it. Where a path or a repeated
//     header can be read in several ways, an ALLOW rule must match under every reading, a DENY rule under any.
//
//  5. CORS. The policy of the route that the request would have as a call answers preflights of web pages, which do not count
//     for the limits, and sets the fields of other answers. That of a request that was denied has none.
//
//  6. Limits. First concurrency, then rate. Only authorized requests count.
//
//  7. Deadline. The time for which a caller in the mesh will wait becomes the deadline of the handler's context.
//
//  8. Sanitizing. Headers that only the mesh may set are removed from the request of a peer without an identity. A peer with
//     an identity is named in x-forwarded-client-cert. This comes after authorization, which sees what was sent, and before
//     any code that trusts these headers.
//
//  9. Handler. While it runs, the request is authorized again when documents or bundles change, and when the certificate of
//     its peer expires. If it is denied then, it is cut off.
//
// # Responses and errors
//
// Whatever a document prescribes comes back as a response: redirects, direct responses, injected aborts, 404 where no route
// matches, 429 from a rate limit, and 503 with x-envoy-overloaded when a connection pool is full. A failure to get a response
// is an [*Error]: it names the layer, the destination and the response flags, and gives its cause to [errors.Is] and
// [errors.As].
//
// # The layers alone
//
// Every layer is a package that works without documents, as an [http.RoundTripper] around another: retry, timeout,
// breaker, balancer, policy/limit, policy/fault and policy/route. So are policy/authz and policy/jwt, as an [http.Handler]. The
// mesh runs the same cores.
//
// [meshgrpc]: https://pkg.go.dev/github.com/nosidecar/mesh/meshgrpc
package mesh
