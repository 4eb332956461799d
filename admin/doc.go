// Package admin is a page about one process: who calls it, what it calls, what hurts and why.
//
//	page := admin.New(admin.Config{Name: "orders"})
//	m, err := mesh.New(ctx, mesh.WithObserver(page.Observer()), ...)
//	...
//	defer page.Close()
//	private.Handle("/debug/mesh/", page)
//
// A [Page] is an http.Handler that nobody sees unless it is mounted. It changes nothing: it answers GET and HEAD. It shows names of
// services, addresses, identities, paths and texts of errors, so mount it on a port that only operators reach, such as one on the
// loopback, or behind a handler that checks who asks. It refuses to be read through names that it does not know (see [Config.Hosts]) and
// by scripts of other sites, which is no replacement for that. Headers, queries, bodies and credentials of requests are not kept.
//
// Browsers get a page that stays up to date while it is open, with its own style and script and without any request to elsewhere. It
// works without the script, too. Terminals get text, and programs JSON:
//
//	curl localhost:9090/debug/mesh/
//	curl localhost:9090/debug/mesh/?format=json
//
// What comes first is what hurts: destinations whose calls fail or are slow, whose circuit is open or whose endpoints are out, refused
// documents, certificates that are about to expire, each with why. A call fails here if it has no answer, one of 500 or more or a gRPC
// status that blames the server, or if this process refused it; one that its caller gave up does not.
//
// # Memory and cost
//
// Figures are of the last minute and are kept for 250 destinations, 100 endpoints of each and 2,000 in all, and 100 callers; those
// beyond are counted together, and what was not called for five minutes makes room. Raw connections are counted for the first 100
// targets. So a page takes some megabytes at most. A call that
// succeeds costs two map look-ups and two short locks, and no allocation. Of the calls that failed or were slow the last 200 are kept,
// no more than 5 per second of each destination and caller, and one in 5 seconds of those that were refused before anything was sent.
//
// 16 pages may be open at a time. While any is, a report is made each second, or each four if it is large, and soon after an event.
//
// # JSON
//
// The JSON has the field version, which is 1. It grows when fields are removed or change what they mean, not when some are added. Times
// are those of RFC 3339 in UTC, durations are milliseconds (Ms), shares are 0 to 1. Lists are never null. Fields that have nothing to say
// are left out where this says "if".
//
//	version, time, name, since   since when figures are kept
//	windowSeconds                the time that figures are of: up to 60
//	ready, notReady[]            of mesh.Status; the reasons if it is not ready
//	identity                     if there is one: id, expires, error if its source fails, trusted[] with domain, authorities, expires
//	documents                    in force: number, version, loaded, count; refused if the last load was: number, at, error
//	problems[]                   what hurts, the worst first: severity "critical" or "warning", title, why[], target if it is a destination
//	out, in                      the figures of all calls and of all requests; in.denied, and in.connections if there were raw ones
//	callers[]                    id (SPIFFE ID, "" for peers without one), figures, denied, history; others if there is no room for each
//	destinations[]               see below; destinationsOmitted if there are more, hostsUncalled: that documents name
//	routes[]                     of mesh.Status: host, document, file, line, name, matches[], targets[] (a target with its weight), action,
//	                             timeoutMs, perTryTimeoutMs, retries, fault, as far as there are any; routesOmitted if there are more
//	loads[]                      of documents, the latest first: at, number (0: a remark about those in force), version, inForce, error,
//	                             findings[] (policy.Finding: file, line, kind, namespace, name, field, severity, message), findingsOmitted
//	events[]                     the latest first: at, kind ("ejection", "readmission", "circuit", "discovery", "identity", "mirror",
//	                             "connection"), target and endpoint if it is about one, text, bad
//	calls[]                      that failed or were slow, the latest first, see below
//
// Figures are calls, errors, retries, callsPerSecond, errorsPerSecond, errorShare, p50Ms, p90Ms, p99Ms and slowestMs. The percentiles
// come from classes of durations, two for each power of two. A history is calls[] and errors[], of 60 times 5 seconds, the oldest first.
// A target is host, subset and port. Raw connections are open, opened, failed, bytesSent and bytesReceived, since the start.
//
// A destination is a target with figures, history and: inFlight; outside if it is not of the mesh; others if it stands for all that there
// is no room for; causes[] of the errors, the most frequent first (count, status, grpcStatus, flags, text, error: the last one); circuit
// if it has one (state and, while it is not closed, opened, calls, failures, slow: what it opened for); pool (active, pending,
// connections, refused, maxRequests, maxPending, maxConnections); retryLimits (active, most, budget: -1 without one); connections if
// there are raw ones; endpoints[] (address, locality, healthy, reason, until, inFlight, security, figures, gone if discovery does not know
// it any more), healthyEndpoints and endpointsOmitted.
//
// A call is at (its start), direction ("out" or "in"), failed (else it was slow), method, path, durationMs, attemptCount and, if they
// apply: target, caller, document, route, status, grpcStatus, flags, error, stopped (why there were no more attempts), decision (why it was
// denied), attempts[] (number, endpoint, startMs after the start of the call, durationMs, status, grpcStatus, error; 16 at most) and
// notKeptBefore, the number of calls like it that were not kept.
package admin
