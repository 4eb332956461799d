package dashboards

// Selectors and legends that several panels use.
const (
	process = `job=~"$job"`
	target  = `job=~"$job",destination_service=~"$destination"`
	to      = `{{destination_service}}:{{destination_port}} {{destination_subset}}`

	// harmless are the response flags of calls that have not failed: they were delayed by a fault, or their caller gave up.
	harmless = `-|DI|DC|DI,DC`

	// serverFaults are the statuses of gRPC that blame the server, as those from 500 do in HTTP.
	serverFaults = `2|4|12|13|14|15`
)

// content returns the rows of the dashboard, from a summary to the details.
func content() []row {
	return []row{
		{"Is all well?", []panel{
			{kind: overview, title: "Processes that are not ready", help: "They lack a valid identity, or keys to verify tokens with.", bad: 1,
				queries: []query{{`count(mesh_ready{` + process + `} == 0) or vector(0)`, ""}}},
			{kind: overview, title: "Processes with refused documents", help: "The latest documents have errors, or some that stand alone have; the last good ones are still in force.", bad: 1,
				queries: []query{{`count(mesh_policy_refused{` + process + `} == 1 or sum without (in_force) (mesh_policy_documents_refused{` + process + `}) > 0) or vector(0)`, ""}}},
			{kind: overview, title: "Next certificate expires in", help: "It should never come near zero: certificates are replaced at half their life.", unit: "s", bad: 600, minimum: true,
				queries: []query{{`min(mesh_certificate_expiry_timestamp_seconds{` + process + `}) - time()`, ""}}},
			{kind: overview, title: "Ejected endpoints", help: "As each process sees them: an endpoint that three callers have ejected counts three times.", bad: 1,
				queries: []query{{`sum(mesh_endpoints{` + target + `,state="ejected"}) or vector(0)`, ""}}},
			{kind: overview, title: "Open circuits", help: "Destinations to which a process sends nothing for now.", bad: 1,
				queries: []query{{`count(mesh_circuit_state{` + target + `,state="open"} == 1) or vector(0)`, ""}}},
			{kind: overview, title: "Calls that fail here", help: "The share of calls that the mesh ended or gave up: refused, timed out, without an endpoint, out of retries, or answered by a fault.", unit: "percentunit", bad: 0.01,
				queries: []query{{`(sum(rate(istio_requests_total{reporter="source",` + process + `,response_flags!~"` + harmless + `"}[$__rate_interval])) or vector(0)) / (sum(rate(istio_requests_total{reporter="source",` + process + `}[$__rate_interval])) > 0) or vector(0)`, ""}}},
		}},
		{"Documents", []panel{
			{title: "Loads", help: "Sets of documents that were loaded, and that were refused.",
				queries: []query{{`sum by (job, result) (increase(mesh_policy_loads_total{` + process + `}[$__rate_interval]))`, "{{job}} {{result}}"}}},
			{title: "Findings of the latest load", help: "An error refuses the whole set, or its document if that stands alone.",
				queries: []query{{`sum by (job, severity) (mesh_policy_findings{` + process + `})`, "{{job}} {{severity}}"}}},
			{title: "Refused documents that stand alone", help: "By what is in force in their place. A denial closes what they may protect.",
				queries: []query{{`sum by (job, in_force) (mesh_policy_documents_refused{` + process + `})`, "{{job}} {{in_force}}"}}},
			{title: "Age of the documents in force", help: "In the process that has had its documents for the longest time.", unit: "s",
				queries: []query{{`max by (job) (time() - mesh_policy_loaded_timestamp_seconds{` + process + `})`, "{{job}}"}}},
			{title: "Documents in force", help: "How many documents apply to a process.",
				queries: []query{{`max by (job) (mesh_policy_documents{` + process + `})`, "{{job}}"}}},
			{kind: rows, title: "Versions in force", help: "Processes with the same documents have the same version.",
				queries: []query{{`count by (job, version) (mesh_policy_info{` + process + `})`, ""}}},
		}},
		{"Endpoints", []panel{
			{title: "Endpoints by state", help: "The mean of what the processes see.",
				queries: []query{{`avg by (destination_service, destination_port, destination_subset, state) (mesh_endpoints{` + target + `})`, to + ` {{state}}`}}},
			{title: "Ejections", help: "Endpoints that outlier detection took out, per second.", unit: "ops",
				queries: []query{{`sum by (destination_service, reason) (rate(mesh_ejections_total{` + target + `}[$__rate_interval]))`, "{{destination_service}} {{reason}}"}}},
			{title: "Ejections withheld", help: "Endpoints that failed and stayed, since maxEjectionPercent allows no more ejections: once until they recover, since the start.",
				queries: []query{{`sum by (destination_service, reason) (mesh_ejections_withheld_total{` + target + `})`, "{{destination_service}} {{reason}}"}}},
			{title: "Updates from discovery", help: "Sets of endpoints that were delivered, and failures: the last known endpoints stay.", unit: "ops",
				queries: []query{
					{`sum by (destination_service) (rate(mesh_discovery_updates_total{` + target + `}[$__rate_interval]))`, "{{destination_service}} delivered"},
					{`sum by (destination_service) (rate(mesh_discovery_failures_total{` + target + `}[$__rate_interval]))`, "{{destination_service}} failed"},
				}},
			{title: "Calls in flight", queries: []query{{`sum by (destination_service, destination_port, destination_subset) (mesh_requests_in_flight{` + target + `})`, to}}},
		}},
		{"Circuits and connection pools", []panel{
			{title: "Circuits that are open or half open", help: "The number of processes.",
				queries: []query{{`sum by (destination_service, destination_port, destination_subset, state) (mesh_circuit_state{` + target + `,state!="closed"})`, to + ` {{state}}`}}},
			{title: "Changes of circuits", unit: "ops",
				queries: []query{{`sum by (destination_service, state) (rate(mesh_circuit_changes_total{` + target + `}[$__rate_interval]))`, "{{destination_service}} {{state}}"}}},
			{title: "Use of the pool", help: "The fullest pool among the processes, as a share of its bound. Pools without a bound are not shown.", unit: "percentunit",
				queries: []query{
					{`max by (destination_service) (mesh_pool_active{` + target + `} / ignoring (of) mesh_pool_limit{` + target + `,of="requests"})`, "{{destination_service}} requests"},
					{`max by (destination_service) (mesh_pool_pending{` + target + `} / ignoring (of) mesh_pool_limit{` + target + `,of="pending"})`, "{{destination_service}} pending"},
				}},
			{title: "Calls that found the pool full", unit: "ops",
				queries: []query{{`sum by (destination_service) (rate(mesh_pool_refused_total{` + target + `}[$__rate_interval]))`, "{{destination_service}}"}}},
			{title: "Connections", queries: []query{{`sum by (destination_service, destination_port, destination_subset) (mesh_pool_connections{` + target + `})`, to}}},
		}},
		{"Retries and their budget", []panel{
			{title: "Retries", help: "Attempts after the first, per second.", unit: "ops",
				queries: []query{{`sum by (destination_service) (rate(mesh_retries_total{` + target + `}[$__rate_interval]))`, "{{destination_service}}"}}},
			{title: "Why retries stopped", help: "A budget that is used up shows here.", unit: "ops",
				queries: []query{{`sum by (destination_service, reason) (rate(mesh_retries_stopped_total{` + target + `}[$__rate_interval]))`, "{{destination_service}} {{reason}}"}}},
			{title: "Budget left", help: "How many more retries the tightest budget permits now. Only for destinations with a budget.",
				queries: []query{{`min by (destination_service) (mesh_retry_budget{` + target + `})`, "{{destination_service}}"}}},
			{title: "Retries in flight", help: "With the limits.",
				queries: []query{
					{`sum by (destination_service) (mesh_retries_active{` + target + `})`, "{{destination_service}}"},
					{`sum by (destination_service) (mesh_retries_limit{` + target + `})`, "{{destination_service}} limit"},
				}},
		}},
		{"Certificates and keys", []panel{
			{title: "Time until certificates expire", unit: "s",
				queries: []query{{`min by (principal) (mesh_certificate_expiry_timestamp_seconds{` + process + `} - time())`, "{{principal}}"}}},
			{title: "Time until authorities expire", help: "Of the last authority that a trust domain has.", unit: "s",
				queries: []query{{`min by (trust_domain) (mesh_authority_expiry_timestamp_seconds{` + process + `} - time())`, "{{trust_domain}}"}}},
			{title: "Rotations", help: "Identities that came into force, and failures of their source.",
				queries: []query{
					{`sum by (job) (increase(mesh_identity_rotations_total{` + process + `}[$__rate_interval]))`, "{{job}} rotated"},
					{`sum by (job) (increase(mesh_identity_failures_total{` + process + `}[$__rate_interval]))`, "{{job}} failed"},
				}},
			{title: "Processes whose source of identities fails", help: "It has failed and has yielded no identity since. The last one stays in force until it expires.",
				queries: []query{{`sum by (job) (mesh_identity_failing{` + process + `})`, "{{job}}"}}},
			{title: "Age of the keys for tokens", help: "Since they were last fetched, which is done at least every 15 minutes.", unit: "s",
				queries: []query{{`max by (uri) (time() - (mesh_token_keys_fetched_timestamp_seconds{` + process + `} > 0))`, "{{uri}}"}}},
			{title: "Keys for tokens", help: "In the process that has the fewest. Skipped ones cannot verify tokens, or are too weak.",
				queries: []query{{`min by (uri, state) (mesh_token_keys{` + process + `})`, "{{uri}} {{state}}"}}},
			{title: "Connections refused", help: "By the listeners of the processes.", unit: "ops",
				queries: []query{{`sum by (job, reason) (rate(mesh_connections_refused_total{` + process + `}[$__rate_interval]))`, "{{job}} {{reason}}"}}},
		}},
		{"The tail", []panel{
			{title: "99th percentile by destination", help: "As callers see it, with retries.", unit: "ms",
				queries: []query{{`histogram_quantile(0.99, sum by (le, destination_service) (rate(istio_request_duration_milliseconds_bucket{reporter="source",` + target + `}[$__rate_interval])))`, "{{destination_service}}"}}},
			{title: "99th percentile by endpoint", help: "As each endpoint sees it. One that is far above the others hurts.", unit: "ms",
				queries: []query{{`histogram_quantile(0.99, sum by (le, destination_service, instance) (rate(istio_request_duration_milliseconds_bucket{reporter="destination",` + target + `}[$__rate_interval])))`, "{{destination_service}} {{instance}}"}}},
			{title: "99th percentile by endpoint, as callers see it", help: "Attempts by the endpoint that they went to: a slow one shows even if it reports no metrics itself. Only for processes with metrics.Config.MaxEndpoints.", unit: "ms",
				queries: []query{{`histogram_quantile(0.99, sum by (le, destination_service, endpoint) (rate(mesh_attempt_duration_milliseconds_bucket{` + target + `}[$__rate_interval])))`, "{{destination_service}} {{endpoint}}"}}},
			{title: "Attempts that failed, by endpoint", help: "As a share of the attempts that went to it. Only for processes with metrics.Config.MaxEndpoints.", unit: "percentunit",
				queries: []query{{`sum by (destination_service, endpoint) (rate(mesh_attempt_duration_milliseconds_count{` + target + `,result="failure"}[$__rate_interval])) / sum by (destination_service, endpoint) (rate(mesh_attempt_duration_milliseconds_count{` + target + `}[$__rate_interval]))`, "{{destination_service}} {{endpoint}}"}}},
			{title: "Calls by response flag", help: "Why calls failed, were answered by the mesh (FI, RL), were delayed by a fault (DI) or given up by their caller (DC).", unit: "ops",
				queries: []query{{`sum by (destination_service, response_flags) (rate(istio_requests_total{reporter="source",` + target + `,response_flags!="-"}[$__rate_interval]))`, "{{destination_service}} {{response_flags}}"}}},
			{title: "Errors by endpoint", help: "Responses with a status of 5xx, or with one of gRPC that blames the server.", unit: "ops",
				queries: []query{{`sum by (destination_service, instance) (rate(istio_requests_total{reporter="destination",` + target + `,response_code=~"5.."}[$__rate_interval]) or rate(istio_requests_total{reporter="destination",` + target + `,grpc_response_status=~"` + serverFaults + `"}[$__rate_interval]))`, "{{destination_service}} {{instance}}"}}},
		}},
		{"Telemetry", []panel{
			{title: "Lost", help: "What telemetry has dropped, and calls that were not counted for lack of room.", unit: "ops",
				queries: []query{
					{`sum by (job, what) (rate(mesh_dropped_total{` + process + `}[$__rate_interval]))`, "{{job}} {{what}}"},
					{`sum by (job) (rate(mesh_metrics_overflow_total{` + process + `}[$__rate_interval]))`, "{{job}} calls"},
					{`sum by (job) (rate(mesh_mirrors_dropped_total{` + process + `}[$__rate_interval]))`, "{{job}} mirrored copies"},
				}},
			{title: "Destinations that are not shown", help: "Only those that were called last are shown with their endpoints, circuits, pools and retries: 250 of each process.",
				queries: []query{{`max by (job) (mesh_destinations_omitted{` + process + `})`, "{{job}}"}}},
			{title: "Room for labels", help: "Sets of labels that are kept, as a share of the bound.", unit: "percentunit",
				queries: []query{{`max by (job) (mesh_metrics_identities{` + process + `} / mesh_metrics_identities_limit{` + process + `})`, "{{job}}"}}},
			{title: "Broken traces", help: "Calls whose context does not come from a request.", unit: "ops",
				queries: []query{{`sum by (job) (rate(mesh_outbound_without_inbound_total{` + process + `}[$__rate_interval]))`, "{{job}}"}}},
			{title: "Peer metadata that was not trusted", unit: "ops",
				queries: []query{{`sum by (job) (rate(mesh_peer_metadata_refused_total{` + process + `}[$__rate_interval]))`, "{{job}}"}}},
		}},
	}
}
