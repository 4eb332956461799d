// Package metrics exports the metrics of a mesh to Prometheus: Istio's standard metrics with the same labels, so that Istio's
// dashboards and Kiali work unchanged, and metrics about the mesh itself.
//
//	recorded, err := metrics.New(metrics.Config{})
//	...
//	m, err := mesh.New(ctx, mesh.WithObserver(recorded.Observer()), ...)
//	http.Handle("/metrics", promhttp.Handler())
//
// # Istio's metrics
//
// Both ends of a call report it. The label reporter is "source" for outbound calls, and "destination" for requests to
// [mesh.Mesh.Handler] and to a gRPC server of meshgrpc.
//
//	istio_requests_total                   counter    requests, HTTP and gRPC
//	istio_request_duration_milliseconds    histogram  until the end of the response body
//	istio_request_bytes                    histogram  body, and an estimate of the header
//	istio_response_bytes                   histogram  body, and an estimate of the header
//	istio_request_messages_total           counter    gRPC messages of clients, while streams run
//	istio_response_messages_total          counter    gRPC messages of servers, while streams run
//	istio_tcp_connections_opened_total     counter    raw connections: Mesh.DialContext and Mesh.ListenTCP
//	istio_tcp_connections_closed_total     counter
//	istio_tcp_sent_bytes_total             counter    sent by the server, including over connections that are still open
//	istio_tcp_received_bytes_total         counter    received by the server
//	istio_build                            gauge      1, with the labels component="proxy" and tag
//
// Their labels are reporter; workload, workload_namespace, principal, app, version, canonical_service, canonical_revision and cluster,
// each with the prefixes source_ and destination_; and destination_service, destination_service_name and
// destination_service_namespace. Requests and connections also have request_protocol (http, grpc, tcp), response_flags ("-" for none)
// and connection_security_policy (mutual_tls, none). Requests also have response_code ("0": no response began) and
// grpc_response_status. An unknown value is "unknown", or "latest" for a revision. Only grpc_response_status can be empty: for HTTP,
// and for calls without a status. A call without a response has the code with which a sidecar would have answered it, by its flags.
// Both ends report the actual connection_security_policy; with Istio, the source does not know it.
//
// The estimated size of a header is 40 bytes per field, plus the lengths of method, host and path. HTTP/2 compresses headers, and
// adding up their lengths would cost more than everything else here.
//
// Calls to hosts outside the mesh have the destination_service_name PassthroughCluster, or BlackHoleCluster if they are refused,
// whatever the host is.
//
// # Peers
//
// Workloads identify themselves to each other with the headers x-envoy-peer-metadata and x-envoy-peer-metadata-id. Istio's sidecars do
// the same, and both understand each other. The headers are sent only to peers of the mesh, which are endpoints that must prove a
// SPIFFE ID and services of the cluster. They are not sent to other hosts, even if a document names them. A server answers with them
// only if the request has them, and only to an authenticated peer. They are trusted only over mTLS, and only if they are about the
// namespace in the peer's SPIFFE ID. The application does not see them, neither in requests nor in responses. Without them, the labels
// and the service account of an endpoint in discovery describe a destination. If only the SPIFFE ID of a source is known, its service
// account serves as its workload, app and canonical service. Raw connections carry no headers, so the two ends may name a workload
// differently, unless its endpoint has the label service.istio.io/workload-name.
//
// # Metrics of the mesh
//
// Metrics by destination have the labels destination_service, destination_port and destination_subset. "-" means none.
//
//	mesh_ready                                  1 if the mesh has everything that calls and requests need
//	mesh_policy_loads_total                     loads of documents; label result: loaded, refused
//	mesh_policy_number, mesh_policy_documents   the load in force, and how many documents it has
//	mesh_policy_info                            1; label version
//	mesh_policy_loaded_timestamp_seconds        when the documents in force were loaded
//	mesh_policy_refused_timestamp_seconds       when documents were last refused, 0 for never
//	mesh_policy_refused                         1 if the latest documents were refused
//	mesh_policy_documents_refused               that stand alone and are refused; label in_force: last good, nothing, denial
//	mesh_policy_findings                        of the latest load; label severity: error, warning
//	mesh_identity_failing                       1 if the source of identities has failed and has yielded none since
//	mesh_certificate_expiry_timestamp_seconds   of this process's certificate; label principal
//	mesh_authority_expiry_timestamp_seconds     of the last authority of a trust domain; label trust_domain
//	mesh_identity_rotations_total               identities that came into force
//	mesh_identity_failures_total                failures of the source of identities
//	mesh_token_keys                             keys for tokens that were fetched; labels uri, state: used, skipped
//	mesh_token_keys_fetched_timestamp_seconds   when they were last fetched, 0 for never; label uri
//	mesh_destinations_omitted                   destinations beyond the bound of mesh.Status, whose current state is not exported
//	mesh_endpoints                              by destination; label state: healthy, ejected, unhealthy
//	mesh_ejections_total                        by destination; label reason
//	mesh_ejections_withheld_total               endpoints that fail but stay, because of maxEjectionPercent, counted once until they
//	                                            recover; by destination; label reason
//	mesh_circuit_state                          by destination, 1 for the current state; label state: closed, half-open, open
//	mesh_circuit_changes_total                  by destination; label state, the new state
//	mesh_requests_in_flight                     by destination
//	mesh_pool_active, mesh_pool_pending         by destination: requests that have a place in the pool, or wait for one
//	mesh_pool_connections                       by destination
//	mesh_pool_limit                             by destination; label of: requests, pending, connections
//	mesh_pool_refused_total                     by destination: calls that found the pool full
//	mesh_retries_total                          by destination: attempts after the first
//	mesh_retries_stopped_total                  by destination; label reason, such as budget
//	mesh_retries_active, mesh_retries_limit     by destination
//	mesh_retry_budget                           by destination: how many more retries are permitted now
//	mesh_discovery_updates_total                by destination: sets of endpoints from discovery
//	mesh_discovery_failures_total               label destination_service
//	mesh_mirrors_dropped_total                  by destination
//	mesh_connections_refused_total              to this process; label reason: plaintext, tls_disabled, too_many_pending, silent, too_slow,
//	                                            peer, not_tls, handshake, accept_failed
//	mesh_outbound_without_inbound_total         calls of a process that serves requests, whose context does not come from a request:
//	                                            traces break there
//	mesh_peer_metadata_refused_total            values of x-envoy-peer-metadata that were not trusted
//	mesh_attempt_duration_milliseconds          histogram, by destination, if Config.MaxEndpoints is set; labels endpoint and result: success,
//	                                            failure
//	mesh_dropped_total                          items that telemetry dropped, see Config.Dropped; label what
//	mesh_metrics_identities                     sets of labels that are kept
//	mesh_metrics_identities_limit               how many sets of labels may be kept
//	mesh_metrics_overflow_total                 calls and raw connections that were not counted for lack of room; label reporter
//
// Events are counted when the mesh reports them. The current state is read from [mesh.Mesh.Status] at each scrape, so a destination
// disappears here when it disappears there. A process with several meshes has one set of metrics, which adds up their numbers.
//
// # Telemetry documents
//
// Telemetry documents can turn off each of Istio's metrics, remove labels, and add labels whose value is a literal or a header of the
// request. That costs about 10 ns per call. When labels change, series with old and new labels of one metric exist side by side. A
// pedantic registry of client_golang, which is meant for tests, refuses that.
//
// # Bounds
//
// Peers and callers choose many of the label values, so everything is bounded: the sets of labels (Config.MaxIdentities), the outcomes
// of one path (64), the hosts that no document names (a quarter of the sets; the others share the host "unknown"), the workloads that
// one peer claims to be (64), the endpoints (Config.MaxEndpoints), the destinations whose current state is exported (250, the ones called
// last; mesh_destinations_omitted counts the rest), the length of each value (253 bytes) and of a peer's metadata (8 kB).
// Calls and raw connections beyond the first two bounds are counted only in mesh_metrics_overflow_total. Unused sets of labels are removed after
// Config.IdleExpiry.
//
// # Costs
//
// Recording a call over a known path takes about 75 ns and no allocation, or 160 ns with native histograms. Sending the metadata of this
// workload costs as much as setting two headers per attempt. An outbound gRPC message takes about 40 ns. A set of labels takes 4 kB,
// including the tables that find it. An exemplar names the trace of a call whose span is sampled. There is one per bucket of the
// durations, replaced at most once per second, since each costs about 500 ns and 8 allocations. Prometheus gets exemplars if it asks for
// OpenMetrics (promhttp.HandlerOpts).
package metrics
