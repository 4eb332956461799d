package metrics

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/policy"
	"github.com/prometheus/client_golang/prometheus"
)

// scraped is a gauge or a counter whose value is read at each scrape.
type scraped struct {
	*prometheus.Desc
	kind prometheus.ValueType
}

// newScraped makes a counter if the name ends as those of counters do, and a gauge otherwise.
func newScraped(name, help string, labels ...string) scraped {
	m := scraped{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
	if strings.HasSuffix(name, "_total") {
		m.kind = prometheus.CounterValue
	}
	return m
}

func scrapedOfTarget(name, help string, labels ...string) scraped {
	return newScraped(name, help, append(slices.Clone(targetNames), labels...)...)
}

var (
	buildInfo  = newScraped("istio_build", "The version of this library, where Istio's proxies report theirs.", "component", "tag")
	identities = newScraped("mesh_metrics_identities", "Sets of labels that are kept.")
	mostKept   = newScraped("mesh_metrics_identities_limit", "How many sets of labels may be kept.")
	overflows  = newScraped("mesh_metrics_overflow_total", "Calls and raw connections that were not counted, since there was no room for their labels.", "reporter")
	dropped    = newScraped("mesh_dropped_total", "Items that telemetry has dropped, such as records of the access log.", "what")

	ready           = newScraped("mesh_ready", "1 if the mesh has the identity and the keys that calls and requests need.")
	policyNumber    = newScraped("mesh_policy_number", "The number of the load of documents that is in force.")
	policyDocuments = newScraped("mesh_policy_documents", "How many documents are in force for this process.")
	policyInfo      = newScraped("mesh_policy_info", "Always 1: the version of the documents in force.", "version")
	policyLoaded    = newScraped("mesh_policy_loaded_timestamp_seconds", "When the documents in force were loaded.")
	policyRefusedAt = newScraped("mesh_policy_refused_timestamp_seconds", "When documents were last refused, 0 if none were.")
	policyRefused   = newScraped("mesh_policy_refused", "1 if the latest documents were refused, so that older ones are in force.")
	policyFindings  = newScraped("mesh_policy_findings", "Findings of the latest load of documents.", "severity")

	policyAlone = newScraped("mesh_policy_documents_refused", "Documents that stand alone and are refused, by what is in force in their place.", "in_force")

	identityFailing   = newScraped("mesh_identity_failing", "1 if the source of the identity has failed, and has yielded none since.")
	certificateExpiry = newScraped("mesh_certificate_expiry_timestamp_seconds", "When the certificate of this process expires.", "principal")
	authorityExpiry   = newScraped("mesh_authority_expiry_timestamp_seconds", "When the last authority of a trust domain expires.", "trust_domain")

	tokenKeys        = newScraped("mesh_token_keys", "Fetched keys that tokens are verified with: used, or skipped because they cannot be.", "uri", "state")
	tokenKeysFetched = newScraped("mesh_token_keys_fetched_timestamp_seconds", "When keys were last fetched, 0 if they never were.", "uri")

	omitted         = newScraped("mesh_destinations_omitted", "Destinations that were called and whose current state is not exported, since there are too many.")
	endpointCount   = scrapedOfTarget("mesh_endpoints", "Endpoints of a destination: healthy, ejected or otherwise unhealthy.", "state")
	inFlight        = scrapedOfTarget("mesh_requests_in_flight", "Calls to a destination that are in flight, however many attempts they make.")
	circuitState    = scrapedOfTarget("mesh_circuit_state", "1 for the current state of the circuit of a destination.", "state")
	poolActive      = scrapedOfTarget("mesh_pool_active", "Requests that hold a place in the connection pool.")
	poolPending     = scrapedOfTarget("mesh_pool_pending", "Requests that wait for a place in the connection pool.")
	poolConnections = scrapedOfTarget("mesh_pool_connections", "Connections of the pool.")
	poolLimit       = scrapedOfTarget("mesh_pool_limit", "The limits of the connection pool: requests, pending requests and connections.", "of")
	poolRefused     = scrapedOfTarget("mesh_pool_refused_total", "Calls that found the connection pool full.")
	retriesActive   = scrapedOfTarget("mesh_retries_active", "Retries in flight.")
	retriesLimit    = scrapedOfTarget("mesh_retries_limit", "How many retries may be in flight.")
	retryBudget     = scrapedOfTarget("mesh_retry_budget", "How many more retries the budget permits now.")
)

func (s *state) describe(ch chan<- *prometheus.Desc) {
	for _, v := range s.vecs {
		v.Describe(ch)
	}
	for _, c := range s.counters {
		ch <- c.Desc()
	}
	for _, g := range []scraped{
		buildInfo, identities, mostKept, overflows, dropped, ready, policyNumber, policyDocuments, policyInfo, policyLoaded, policyRefusedAt,
		policyRefused, policyFindings, policyAlone, identityFailing, certificateExpiry, authorityExpiry, tokenKeys, tokenKeysFetched, omitted, endpointCount, inFlight, circuitState,
		poolActive, poolPending, poolConnections, poolLimit, poolRefused, retriesActive, retriesLimit, retryBudget,
	} {
		ch <- g.Desc
	}
}

func (s *state) collect(m *Metrics, ch chan<- prometheus.Metric) {
	for _, v := range s.vecs {
		v.Collect(ch)
	}
	for _, c := range s.counters {
		ch <- c
	}
	r := readings{}
	r.add(buildInfo, 1, "proxy", workload.Bounded(m.settings.version))
	m.store.mu.Lock()
	r.add(identities, float64(m.store.count))
	m.store.mu.Unlock()
	r.add(mostKept, float64(m.settings.most))
	for i, reporter := range []string{"source", "destination"} {
		r.add(overflows, float64(m.store.overflow[i].Load()), reporter)
	}
	for what, count := range m.settings.dropped {
		r.add(dropped, float64(count()), workload.Bounded(what))
	}
	s.mu.Lock()
	findings, refused := maps.Clone(s.findings), maps.Clone(s.alone)
	s.mu.Unlock()
	if findings != nil {
		for severity, name := range map[policy.Severity]string{policy.Error: "error", policy.Warning: "warning"} {
			r.add(policyFindings, float64(findings[severity]), name)
		}
	}
	for _, instead := range []string{"last good", "nothing", "denial"} {
		r.add(policyAlone, float64(refused[instead]), instead)
	}
	r.meshes(m.inForce())
	for g, of := range r {
		for _, v := range of {
			ch <- prometheus.MustNewConstMetric(g.Desc, g.kind, v.value, v.labels...)
		}
	}
}

// readings has the values of metrics, by metric and labels.
type readings map[scraped]map[string]*reading

type reading struct {
	value  float64
	labels []string
}

// at returns the reading of a metric, which it creates if necessary. fresh reports whether it did.
func (r readings) at(g scraped, labels []string) (found *reading, fresh bool) {
	of := r[g]
	if of == nil {
		of = make(map[string]*reading)
		r[g] = of
	}
	key := strings.Join(labels, "\xff")
	found = of[key]
	if fresh = found == nil; fresh {
		found = &reading{labels: labels}
		of[key] = found
	}
	return found, fresh
}

// add adds v to the values of other meshes.
func (r readings) add(g scraped, v float64, labels ...string) {
	at, _ := r.at(g, labels)
	at.value += v
}

// earliest keeps the earliest time of all meshes.
func (r readings) earliest(g scraped, t time.Time, labels ...string) {
	if at, fresh := r.at(g, labels); fresh || seconds(t) < at.value {
		at.value = seconds(t)
	}
}

// inForce returns the status of all open meshes, or of all closed ones if none is open.
func (m *Metrics) inForce() []mesh.Status {
	var all []mesh.Status
	m.each(func(w *watcher) {
		if of := w.mesh.Load(); of != nil {
			all = append(all, of.Status())
		}
	})
	open := slices.DeleteFunc(slices.Clone(all), func(of mesh.Status) bool {
		return slices.Contains(of.NotReady, mesh.ErrClosed.Error())
	})
	if len(open) > 0 {
		return open
	}
	return all
}

// meshes adds the status of all meshes: a process with several meshes has one set of metrics.
func (r readings) meshes(all []mesh.Status) {
	if len(all) == 0 {
		return
	}
	isReady, latest, circuits := true, &all[0], make(map[[3]string]string)
	isRefused, fails := false, false
	for i := range all {
		of := &all[i]
		isReady = isReady && of.Ready
		isRefused = isRefused || of.Documents.Refused.Number > of.Documents.Number
		fails = fails || of.Identity.Error != ""
		r.add(omitted, float64(of.ServicesOmitted))
		if of.Documents.Loaded.After(latest.Documents.Loaded) {
			latest = of
		}
		if id := of.Identity; id.ID != "" {
			r.earliest(certificateExpiry, id.Expires, workload.Bounded(id.ID))
			for _, trusted := range id.Trusted {
				r.earliest(authorityExpiry, trusted.Expires, workload.Bounded(trusted.Domain))
			}
		}
		for _, keys := range of.Keys {
			uri := workload.Bounded(keys.URI)
			r.add(tokenKeys, float64(keys.Keys), uri, "used")
			r.add(tokenKeys, float64(keys.Skipped), uri, "skipped")
			r.earliest(tokenKeysFetched, keys.Fetched, uri)
		}
		r.services(of, circuits)
	}
	for to, in := range circuits {
		for _, state := range circuitStates {
			r.add(circuitState, truth(in == state), to[0], to[1], to[2], state)
		}
	}
	d := &latest.Documents
	r.add(ready, truth(isReady))
	r.add(identityFailing, truth(fails))
	r.add(policyRefused, truth(isRefused))
	r.add(policyNumber, float64(d.Number))
	r.add(policyDocuments, float64(d.Count))
	r.add(policyInfo, 1, workload.Bounded(d.Version))
	r.add(policyLoaded, seconds(d.Loaded))
	r.add(policyRefusedAt, seconds(d.Refused.At))
}

func (r readings) services(of *mesh.Status, circuits map[[3]string]string) {
	for i := range of.Services {
		service := &of.Services[i]
		to := targetValues(service.Host, service.Port, service.Subset)
		with := func(more string) []string { return append(slices.Clone(to), more) }
		if service.Circuit != "" {
			key := [3]string(to)
			circuits[key] = worse(circuits[key], service.Circuit)
		}
		r.add(inFlight, float64(service.InFlight), to...)
		states := map[string]int{"healthy": service.EndpointsOmitted, "ejected": 0, "unhealthy": 0} // only healthy ones are omitted
		for _, e := range service.Endpoints {
			switch {
			case e.Healthy:
				states["healthy"]++
			case !e.Until.IsZero():
				states["ejected"]++
			default:
				states["unhealthy"]++
			}
		}
		for state, n := range states {
			r.add(endpointCount, float64(n), with(state)...)
		}
		p := &service.Pool
		r.add(poolActive, float64(p.Active), to...)
		r.add(poolPending, float64(p.Pending), to...)
		r.add(poolConnections, float64(p.Connections), to...)
		r.add(poolRefused, float64(p.Refused), to...)
		for what, n := range map[string]int{"requests": p.MaxRequests, "pending": p.MaxPending, "connections": p.MaxConnections} {
			if n > 0 {
				r.add(poolLimit, float64(n), with(what)...)
			}
		}
		r.add(retriesActive, float64(service.Retries.Active), to...)
		if n := service.Retries.Most; n > 0 {
			r.add(retriesLimit, float64(n), to...)
		}
		if n := service.Retries.Budget; n >= 0 {
			r.add(retryBudget, float64(n), to...)
		}
	}
}

var circuitStates = []string{breaker.Closed.String(), breaker.HalfOpen.String(), breaker.Open.String()}

func worse(a, b string) string {
	if slices.Index(circuitStates, a) > slices.Index(circuitStates, b) {
		return a
	}
	return b
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
