// Package metrics keeps the metrics of a mesh for Prometheus: Istio's standard ones, label for label, so that Istio's dashboards and
// Kiali work on them as they are, and more about the mesh itself.
//
//	recorded, err := metrics.New(metrics.Config{})
//	...
//	m, err := mesh.New(ctx, mesh.WithObserver(recorded.Observer()), ...)
//	http.Handle("/metrics", promhttp.Handler())
//
// # Istio's metrics
//
// Both ends of a call report it: reporter is "source" for calls from here, "destination" for requests to [mesh.Mesh.Handler] and to a
// gRPC server of meshgrpc.
//
//	istio_requests_total                   counter    requests, HTTP and gRPC
//	istio_request_duration_milliseconds    histogram  until the end of the response body
//	istio_request_bytes                    histogram  body, and an estimate of the header
//	istio_response_bytes                   histogram  body, and an estimate of the header
//	istio_request_messages_total           counter    gRPC messages of clients, while streams run
//	istio_response_messages_total          counter    gRPC messages of servers, while streams run
//	istio_tcp_connections_opened_total     counter    raw connections: Mesh.DialContext and Mesh.ListenTCP
//	istio_tcp_connections_closed_total     counter
//	istio_tcp_sent_bytes_total             counter    sent by the server, also over connections that are open
//	istio_tcp_received_bytes_total         counter    received by the server
//	istio_build                            gauge      1, with the labels component="proxy" and tag
//
// Their labels are reporter; for source_ and destination_ each workload, workload_namespace, principal, app, version,
// canonical_service, canonical_revision and cluster; and destination_service, destination_service_name and
// destination_service_namespace. Requests and connections also have request_protocol (http, grpc, tcp), response_flags ("-" for none)
// and connection_security_policy (mutual_tls, none), requests response_code ("0": no response began) and grpc_response_status. What
// is not known is "unknown", a revision "latest". Only grpc_response_status is ever empty: for HTTP, and for calls without a status. A
// call for which no response came has the code with which a sidecar would have answered it, by its flags. Both ends know the truth
// about connection_security_policy; with Istio the source does not.
//
// The estimate of a header is 40 bytes for each field, and the lengths of method, host and path: HTTP/2 compresses headers, and adding
// them up would cost more than everything else here.
//
// Calls to hosts outside the mesh have the destination_service_name PassthroughCluster, and BlackHoleCluster where they are refused,
// whatever the host is.
//
// # Who is at the other end
//
// Workloads tell each other who they are, with the headers x-envoy-peer-metadata and x-envoy-peer-metadata-id, as Istio's sidecars do,
// and are understood by these. They are sent to peers of the mesh: to endpoints that have to prove a SPIFFE ID, and to services of the
// cluster, but to nobody else, even if a document names the host. A server answers with them only if the request has them, and only to a peer with an identity. They are believed only over mTLS, and only of the namespace that the
// peer's SPIFFE ID names. The application sees them neither in requests nor in responses. Of the rest discovery tells: the labels of the
// endpoint and its service account. Of a source nothing but its SPIFFE ID may be known: then its service account stands for its workload,
// app and canonical service. Raw connections carry no headers, so their two ends may name a workload differently, unless its endpoint
// has the label service.istio.io/workload-name.
//
// # Metrics of the mesh
//
// Where a destination is meant the labels are destination_service, destination_port and destination_subset, "-" where there is none.
//
//	mesh_ready                                  1 if everything is there that calls and requests need
//	mesh_policy_loads_total                     loads of documents; label result: loaded, refused
//	mesh_policy_number, mesh_policy_documents   the load in force, and how many documents it has
//	mesh_policy_info                            1; label version
//	mesh_policy_loaded_timestamp_seconds        when the documents in force were loaded
//	mesh_policy_refused_timestamp_seconds       when documents were last refused, 0 for never
//	mesh_policy_refused                         1 if the latest documents were refused
//	mesh_policy_findings                        of the latest load; label severity: error, warning
//	mesh_certificate_expiry_timestamp_seconds   of the own certificate; label principal
//	mesh_authority_expiry_timestamp_seconds     of the last authority of a trust domain; label trust_domain
//	mesh_identity_rotations_total               identities that came into force
//	mesh_identity_failures_total                failures of their source
//	mesh_endpoints                              by destination; label state: healthy, ejected, unhealthy
//	mesh_ejections_total                        by destination; label reason
//	mesh_circuit_state                          by destination, 1 for the present one; label state: closed, half-open, open
//	mesh_circuit_changes_total                  by destination; label state, the new one
//	mesh_requests_in_flight                     by destination
//	mesh_pool_active, mesh_pool_pending         by destination: requests that have a place in the pool, or wait for one
//	mesh_pool_connections                       by destination
//	mesh_pool_limit                             by destination; label of: requests, pending, connections
//	mesh_pool_refused_total                     by destination: calls that found the pool full
//	mesh_retries_total                          by destination: attempts after the first
//	mesh_retries_stopped_total                  by destination; label reason, such as budget
//	mesh_retries_active, mesh_retries_limit     by destination
//	mesh_retry_budget                           by destination: how many more are permitted now
//	mesh_discovery_updates_total                by destination: sets of endpoints
//	mesh_discovery_failures_total               label destination_service
//	mesh_mirrors_dropped_total                  by destination
//	mesh_connections_refused_total              to this process; label reason: plaintext, tls_disabled, too_many_pending, silent, too_slow,
//	                                            peer, not_tls, handshake, accept_failed
//	mesh_outbound_without_inbound_total         calls of a process that serves requests, made with a context that is not a request's:
//	                                            the trace breaks there
//	mesh_peer_metadata_refused_total            values of x-envoy-peer-metadata that were not believed
//	mesh_attempt_duration_milliseconds          histogram, by destination, if Config.MaxEndpoints is set; labels endpoint and result: success,
//	                                            failure
//	mesh_dropped_total                          what telemetry dropped, see Config.Dropped; label what
//	mesh_metrics_identities                     sets of labels that are kept
//	mesh_metrics_identities_limit               how many may be
//	mesh_metrics_overflow_total                 calls that were not counted for lack of room; label reporter
//
// What happens is counted when the mesh tells of it. What is in force is read from [mesh.Mesh.Status] at each scrape, so that a
// destination that is gone is gone here, too. A process with several meshes has one set of metrics: their numbers are added up.
//
// # Telemetry documents
//
// The metrics of Istio are changed as Telemetry documents say: turned off, without a label, or with one more, whose value is a literal or
// a header of the request. That costs about 10 ns a call. Labels that come and go make metrics of one name differ in their labels, which a
// pedantic registry of client_golang, which is made for tests, refuses.
//
// # Bounds
//
// Others choose much of what the labels say, so everything is bounded: the sets of labels (Config.MaxIdentities), the outcomes of one
// path (64), the hosts that no document names (a quarter of the sets; the others share the host "unknown"), the workloads that one peer
// says it is (64), the endpoints (Config.MaxEndpoints), the length of each value (253 bytes) and of a peer's metadata (8 kB). Calls beyond the first two are counted in
// mesh_metrics_overflow_total and nowhere else. Sets of labels that are not used are forgotten after Config.IdleExpiry.
//
// # Costs
//
// Recording a call over a known path takes about 75 ns and no allocation, 160 ns with native histograms. To tell the peer who calls costs
// as much as two headers that are set in an attempt. A gRPC message from here takes about 40 ns. A set of labels takes 4 kB, with what it
// is found by. An exemplar names the trace of a call whose span is sampled: one for each bucket of the durations, no more than one a
// second, since each costs about 500 ns and 8 allocations. Prometheus gets them if it asks for OpenMetrics (promhttp.HandlerOpts).
package metrics
