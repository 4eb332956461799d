// Package mesh gives a process what a service mesh gives it, without the sidecar.
//
// It reads the documents that operators write for Istio, Linkerd and SMI and enforces them inside the process, behind an
// ordinary [http.Client]:
//
//	m, err := mesh.New(ctx, mesh.WithPolicyDir("mesh.d"))
//	if err != nil { ... }
//	defer m.Close()
//	resp, err := m.Client().Get("http://user-service/users/42")
//
// # The life of one request
//
// A request passes these stages in this order. The order is Envoy's, and each stage sits where it does for a reason.
//
//  1. Plan. The compiled documents are loaded once, from an atomic pointer. Whatever is reloaded meanwhile, this request
//     sees one plan from beginning to end.
//
//  2. Route. The host leads to a table of routes; the first that matches decides. It may answer at once (redirect, direct
//     response), and else picks a destination by weight. The pick is made once: retries stay with it, or a canary would
//     leak into its stable sibling. Path, authority and headers are rewritten on a copy, never on the caller's request.
//
//  3. Rate limit, then fault. Both act once per request and outside the retries: a refused or injected failure is an
//     answer, not something to try again. Neither counts against an endpoint.
//
//  4. Deadline. The route's timeout covers everything that follows: all tries and the waits between them. An injected
//     delay comes before it, as in Envoy: it stands for a slow network, not for a slow server.
//
//  5. Mirror. What got this far is copied, whatever becomes of it now. A request that a fault aborts is not, as in Envoy.
//
//  6. Retry. The loop around the next stages. It bounds each try in time, keeps the body for replay, waits between tries
//     with full jitter, and asks a budget before each.
//
//  7. Pool. Limits on connections and requests in flight, before the circuit: a queue that is full says nothing about
//     the health of the destination.
//
//  8. Circuit. If the destination as a whole fails, the try ends here.
//
//  9. Balance. An endpoint is picked: not one that is ejected, not one this call already tried.
//
//  10. Endpoint. The request goes out on the endpoint's own connections. Host header, TLS server name and the URL stay the
//     service's; only the dial differs. Where documents or the endpoint ask for mTLS, the connection presents the identity
//     of this process and is made only with the SPIFFE ID that the endpoint is expected to have; the URL still says http.
//
//  11. End. A call ends when its response body does: at EOF, at an error or at Close. Then, exactly once, outlier
//     detection and circuit learn the outcome, slots are released and observers are told.
//
// # The life of one inbound request
//
//		ln, err := net.Listen("tcp", ":8080")
//		srv := &http.Server{Handler: m.Handler(mux)}
//		err = srv.Serve(m.Listen(ln))
//
//	 1. Connection. [Mesh.Listen] asks PeerAuthentication for the mode of the port: STRICT takes mTLS only, PERMISSIVE tells
//	    mTLS from plaintext by the first byte, DISABLE takes plaintext. Handshakes are made beside Accept, within bounds, so
//	    silent peers delay nobody.
//
//	 2. Identity. The peer's certificate is verified against the bundles of today, for each request: certificates expire and
//	    bundles change while a connection lives. What was verified before costs a look-up.
//
//	 3. Authorization. AuthorizationPolicies see the request as it was sent. Where a path or a repeated header can be read in
//	    several ways, an ALLOW rule must match under every reading, a DENY rule under any.
//
//	 4. Sanitising. What a peer outside the mesh says about itself or the mesh is removed, and one inside is named in
//	    x-forwarded-client-cert. This comes after authorization, which sees what was sent, and before anything that believes.
//
//	 5. Limits. Concurrency, then rate: who is refused here was allowed to ask.
//
//	 6. Deadline. How long a caller in the mesh will wait becomes the deadline of the handler's context.
//
// # Answers and errors
//
// What documents order is an answer, so it is a response: redirects, direct responses, injected aborts, 404 where no
// route matches, 429 from a rate limit, and 503 with x-envoy-overloaded when a connection pool is full. A failure to get
// a response is an [*Error]: it names the layer, the destination and the response flags, and gives its cause to
// [errors.Is] and [errors.As].
//
// # The layers alone
//
// Every layer is a package that works without documents, as an [http.RoundTripper] around another: retry, timeout,
// breaker, balancer, policy/limit, policy/fault and policy/route. The mesh runs the same cores.
package mesh
