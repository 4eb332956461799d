// Package admin serves a page about one process: who calls it, what it calls, what is wrong and why.
//
//	page := admin.New(admin.Config{Name: "orders"})
//	m, err := mesh.New(ctx, mesh.WithObserver(page.Observer()), ...)
//	...
//	defer page.Close()
//	private.Handle("/debug/mesh/", page)
//
// A [Page] is an http.Handler. Nothing is served until the program mounts it. It is read-only: it answers GET and HEAD. It shows names
// of services, addresses, identities, paths and error texts, so mount it on a port that only operators can reach, such as one on the
// loopback interface, or behind a handler that authenticates them. It refuses host names that it does not know (see [Config.Hosts]) and
// scripts of other sites, but that does not replace such protection. Headers, queries, bodies and credentials of requests are not kept.
// URLs that documents or errors name are shown without their credentials and queries.
//
// Browsers get a page that updates itself while it is open. Its style and script come from the page itself; it loads nothing from other
// sites. It also works without the script. Terminals get text, and programs get JSON:
//
//	curl localhost:9090/debug/mesh/
//	curl localhost:9090/debug/mesh/?format=json
//
// Problems come first, each with its reasons: destinations whose calls fail or are slow, whose circuit is open or whose endpoints get no
// calls; refused documents; certificates that are about to expire. A call counts as failed if it got no response, a status of 500 or
// higher or a gRPC status that blames the server, or if this process refused it. A call that its caller gave up does not.
//
// # Memory and cost
//
// Figures are those of the last minute. They are kept for 250 destinations, 100 endpoints of each and 2,000 in total, and 100 callers.
// All others are counted together. A destination or a caller without calls for five minutes makes room for another. Raw connections are
// counted for the first 100 targets. So a page takes a few megabytes at most. A successful call costs two map look-ups, two short locks
// and no allocation. The last 200 calls that failed or were slow are kept, at most 5 per second for each destination and caller, and one
// per 5 seconds of those that were refused before anything was sent.
//
// Up to 16 pages may be open at a time. While any page is open, a report is made every second, or up to every four seconds if it is
// large, and soon after an event. Reports are made one at a time, so the page takes one processor at most, however often it is requested.
// Up to 16 answers are kept in memory until their clients have read them, for 30 seconds at most if the ResponseWriter supports write
// deadlines. Further requests wait for up to ten seconds, and get 503 then.
//
// # JSON
//
// The JSON has a field version, which is 1. It is increased when fields are removed or change their meaning, not when fields are added.
// Times are in the format of RFC 3339 in UTC, durations are in milliseconds (Ms), and shares are from 0 to 1. Lists are never null. Fields
// that are described with "if" below are omitted otherwise.
//
//	version, time, name, since   since: when the collection of figures began
//	windowSeconds                the period that figures cover, up to 60
//	ready, notReady[]            of mesh.Status; notReady, the reasons, if it is not ready
//	identity                     if there is one: id, expires, error if its source fails, trusted[] with domain, authorities, expires
//	keys[]                       if tokens are verified with fetched keys: uri, keys (how many), fetched, error if the last fetch failed
//	documents                    those in force: number, version, loaded, count; refused (number, at, error) if the last load was refused;
//	                             alone[] (document, file, error, inForce, since): those that stand alone and are refused; aloneOmitted if
//	                             there are more
//	problems[]                   the worst first: severity "critical" or "warning", title, why[], target if it is about a destination
//	out, in                      the figures of all calls and of all requests; in.denied, and in.connections if there were raw ones
//	callers[]                    id (SPIFFE ID, "" for peers without one), figures, denied, history; others if it stands for several
//	destinations[]               see below; destinationsOmitted if there are more; hostsUncalled: hosts in documents without calls
//	routes[]                     of mesh.Status: host, document, file, line, name, matches[], targets[] (a target with its weight), action,
//	                             timeoutMs, perTryTimeoutMs, retries, fault, if they are set; routesOmitted if there are more
//	loads[]                      of documents, the latest first: at, number (0: a remark about those in force), version, inForce, error,
//	                             findings[] (policy.Finding: file, line, kind, namespace, name, field, severity, message; inForce and since if it stands alone), errors
//	                             first, and one for many documents of a kind that are skipped; findingsOmitted if there are more
//	events[]                     the latest first: at, kind ("ejection", "ejection withheld", "readmission", "circuit", "discovery",
//	                             "identity", "mirror", "connection"), target and endpoint if it is about one, text, bad; at most 20 of discovery
//	calls[]                      those that failed or were slow, the latest first, see below
//
// Figures are calls, errors, retries, callsPerSecond, errorsPerSecond, errorShare, p50Ms, p90Ms, p99Ms and slowestMs. The percentiles
// are computed from a histogram with two buckets per power of two. A history is calls[] and errors[] of 60 periods of 5 seconds, the
// oldest first. A target is host, subset and port. Raw connections are open, opened, failed, bytesSent and bytesReceived, all since the
// start.
//
// A destination is a target with figures, history and: inFlight; outside if it is outside the mesh; others if it stands for all
// destinations without room of their own; causes[] of the errors, the most frequent first (count, status, grpcStatus, flags, text, error:
// a recent one); circuit if it has one (state; opened, calls, failures and slow, the change that opened it, while it is not closed); pool
// (active, pending, connections, refused, maxRequests, maxPending, maxConnections); retryLimits (active, most, budget: -1 without one);
// connections if there are raw ones; endpoints[] (address, locality, healthy, reason, until, inFlight, security, figures, gone if
// discovery no longer has it, and if it fails and is not ejected withheld: since, reason, failures, calls, maxEjectionPercent, needed),
// healthyEndpoints and endpointsOmitted.
//
// A call is at (its start), direction ("out" or "in"), failed (otherwise it was slow), method, path, durationMs, attemptCount and, if they
// apply: target, caller, document, route, status, grpcStatus, flags, error, stopped (why there were no more attempts), decision (why it was
// denied), attempts[] (number, endpoint, startMs after the start of the call, durationMs, status, grpcStatus, error; 16 at most) and
// notKeptBefore, the number of similar calls that were not kept.
package admin
