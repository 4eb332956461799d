package metrics

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/prometheus/client_golang/prometheus"
)

// state has the metrics of the mesh itself. Events are counted when the observer is called. The current state is read from
// [mesh.Mesh.Status] at each scrape: that needs no earlier event, and does not include destinations that are gone.
type state struct {
	vecs     []*prometheus.CounterVec
	counters []prometheus.Counter

	loads, ejections, ejectionsWithheld, circuits *prometheus.CounterVec
	retries, retriesStopped                       *prometheus.CounterVec
	discoveryUpdates, discoveryFailures, mirrors  *prometheus.CounterVec
	refused                                       *prometheus.CounterVec
	rotations, identityFailures                   prometheus.Counter
	metadataRefused, detached                     prometheus.Counter

	mu       sync.Mutex
	targets  kept                    // destinations
	services kept                    // of failures of discovery
	findings map[policy.Severity]int // of the latest load; nil before the first
	alone    map[string]int          // the documents that stand alone and are refused, by what is in force in their place
}

var targetNames = []string{"destination_service", "destination_port", "destination_subset"}

func (s *state) init() {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		s.vecs = append(s.vecs, v)
		return v
	}
	ofTarget := func(name, help string, labels ...string) *prometheus.CounterVec {
		return vec(name, help, append(slices.Clone(targetNames), labels...)...)
	}
	one := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		s.counters = append(s.counters, c)
		return c
	}
	s.targets, s.services = make(kept), make(kept)
	s.loads = vec("mesh_policy_loads_total", "Loads of documents, by result: loaded or refused.", "result")
	s.loads.WithLabelValues("loaded")
	s.loads.WithLabelValues("refused")
	s.ejections = ofTarget("mesh_ejections_total", "Endpoints that outlier detection ejected, by reason.", "reason")
	s.ejectionsWithheld = ofTarget("mesh_ejections_withheld_total",
		"Endpoints that fail but were not ejected, because of maxEjectionPercent: once until they recover, by reason.", "reason")
	s.circuits = ofTarget("mesh_circuit_changes_total", "Changes of circuits, by the state they changed to.", "state")
	s.retries = ofTarget("mesh_retries_total", "Attempts after the first.")
	s.retriesStopped = ofTarget("mesh_retries_stopped_total", "Failed calls that were not retried further, by reason.", "reason")
	s.discoveryUpdates = ofTarget("mesh_discovery_updates_total", "Sets of endpoints that discovery delivered.")
	s.discoveryFailures = vec("mesh_discovery_failures_total", "Failures of discovery. The last known endpoints stay in use.", "destination_service")
	s.mirrors = ofTarget("mesh_mirrors_dropped_total", "Copies of requests that were not sent.")
	s.refused = vec("mesh_connections_refused_total", "Connections to this process that were refused, by reason.", "reason")
	s.rotations = one("mesh_identity_rotations_total", "Identities that came into force.")
	s.identityFailures = one("mesh_identity_failures_total", "Failures of the source of the identity.")
	s.metadataRefused = one("mesh_peer_metadata_refused_total", "Values of x-envoy-peer-metadata that were not trusted.")
	s.detached = one("mesh_outbound_without_inbound_total",
		"Calls whose context does not come from a request, although the process serves requests. Traces break there.")
}

// mostTargets bounds the destinations that have label values of their own here.
const mostTargets = 1000

// kept has the counters of each destination or service, by its label values.
type kept map[[3]string]*keptCounters

type keptCounters struct {
	used int64 // in Unix seconds
	all  []labelled
}

// labelled is one counter of a vector.
type labelled struct {
	vec    *prometheus.CounterVec
	labels []string
}

// add adds n to the counter of v for the given values, or for others if there are too many. labels returns the labels of that counter.
func (k kept) add(n int, v *prometheus.CounterVec, values, others [3]string, labels func(values []string) []string) {
	if k[values] == nil && len(k) >= mostTargets {
		values = others
	}
	of := k[values]
	if of == nil {
		of = new(keptCounters)
		k[values] = of
	}
	of.used = time.Now().Unix()
	all := labels(values[:])
	if !slices.ContainsFunc(of.all, func(l labelled) bool { return l.vec == v && slices.Equal(l.labels, all) }) {
		of.all = append(of.all, labelled{v, all})
	}
	v.WithLabelValues(all...).Add(float64(n))
}

// expire removes the counters that were last used before a time.
func (k kept) expire(before int64) {
	for values, of := range k {
		if of.used >= before {
			continue
		}
		delete(k, values)
		for _, l := range of.all {
			l.vec.DeleteLabelValues(l.labels...)
		}
	}
}

// count adds to a counter of a destination, or to that of the unknown destination if there are too many.
func (s *state) count(v *prometheus.CounterVec, n int, t route.Target, more ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets.add(n, v, [3]string(targetValues(t.Host, t.Port, t.Subset)), [3]string{unknown, "-", "-"},
		func(values []string) []string { return append(slices.Clone(values), more...) })
}

// expire removes the counters of destinations that were not used for some time.
func (s *state) expire(before int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets.expire(before)
	s.services.expire(before)
}

func targetValues(host string, port int, subset string) []string {
	text := func(s string) string {
		if s = workload.Bounded(s); s == "" {
			return "-"
		}
		return s
	}
	number := "-"
	if port != 0 {
		number = strconv.Itoa(port)
	}
	return []string{text(host), number, text(subset)}
}

func (s *state) ejection(target route.Target, event breaker.Event) {
	if event.Ejected {
		s.count(s.ejections, 1, target, string(event.Reason))
	}
}

func (s *state) ejectionWithheld(target route.Target, event breaker.Event) {
	s.count(s.ejectionsWithheld, 1, target, string(event.Reason))
}

func (s *state) circuit(target route.Target, change breaker.Change) {
	s.count(s.circuits, 1, target, change.To.String())
}

func (s *state) endpoints(target route.Target, _ int) {
	s.count(s.discoveryUpdates, 1, target)
}

func (s *state) discoveryFailed(service discovery.Service, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services.add(1, s.discoveryFailures, [3]string{workload.Bounded(service.Host)}, [3]string{unknown},
		func(values []string) []string { return slices.Clone(values[:1]) })
}

func (s *state) mirrorDropped(target route.Target, _ error) {
	s.count(s.mirrors, 1, target)
}

func (s *state) identity(id *tlsid.Identity, err error) {
	switch {
	case id != nil:
		s.rotations.Inc()
	case err != nil:
		s.identityFailures.Inc()
	}
}

func (s *state) connectionRefused(_ net.Addr, refusal tlsid.Refusal) {
	s.refused.WithLabelValues(reasonOf(refusal)).Inc()
}

// reasonOf returns the value of the label reason, which is one of a fixed set.
func reasonOf(r tlsid.Refusal) string {
	_, badPeer := errors.AsType[*tlsid.PeerError](r.Err)
	_, notTLS := errors.AsType[tls.RecordHeaderError](r.Err)
	switch {
	case r.RemoteAddr == nil:
		return "accept_failed"
	case errors.Is(r.Err, tlsid.ErrPlaintext):
		return "plaintext"
	case errors.Is(r.Err, tlsid.ErrTLSDisabled):
		return "tls_disabled"
	case errors.Is(r.Err, tlsid.ErrTooManyPending):
		return "too_many_pending"
	case errors.Is(r.Err, io.EOF):
		return "silent"
	case errors.Is(r.Err, os.ErrDeadlineExceeded), errors.Is(r.Err, context.DeadlineExceeded):
		return "too_slow"
	case badPeer:
		return "peer"
	case notTLS:
		return "not_tls"
	}
	return "handshake"
}

func (s *state) policyLoad(load mesh.PolicyLoad) {
	if load.Number == 0 { // a remark about the documents in force
		return
	}
	if load.Err != nil {
		s.loads.WithLabelValues("refused").Inc()
	} else {
		s.loads.WithLabelValues("loaded").Inc()
	}
	findings := make(map[policy.Severity]int)
	alone := make(map[policy.Finding]bool) // with what identifies a document
	for _, f := range load.Findings {
		findings[f.Severity]++
		if f.InForce != "" {
			alone[policy.Finding{File: f.File, Kind: f.Kind, Namespace: f.Namespace, Name: f.Name, InForce: f.InForce}] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if load.Err == nil {
		s.alone = make(map[string]int)
		for f := range alone {
			s.alone[f.InForce]++
		}
	}
	s.findings = findings
}

// retried counts the attempts of a call after the first, and the reason why there were no more.
func (s *state) retried(c *mesh.Call) {
	if c.Attempts > 1 {
		s.count(s.retries, c.Attempts-1, c.Target)
	}
	if reason := stopReasons[c.Stopped]; reason != "" {
		s.count(s.retriesStopped, 1, c.Target, reason)
	}
}

// stopReasons are the reasons why calls were not retried although they should have been.
var stopReasons = map[retry.Reason]string{
	retry.LimitReached: "limit", retry.BudgetRefused: "budget", retry.LimiterRefused: "too_many_under_way",
	retry.OutOfTime: "out_of_time", retry.BodyCommitted: "body_committed", retry.Nested: "nested",
}
