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

	loads, ejections, circuits, retries, retriesStopped *prometheus.CounterVec
	discoveryUpdates, discoveryFailures, mirrors        *prometheus.CounterVec
	refused                                             *prometheus.CounterVec
	rotations, identityFailures                         prometheus.Counter
	metadataRefused, detached                           prometheus.Counter

	mu       sync.Mutex
	targets  map[route.Target]bool // those with a label value of their own
	services map[string]bool       // the same, for failures of discovery
	lastLoad *mesh.PolicyLoad      // without the documents
	findings map[policy.Severity]int
	alone    map[string]int // the documents that stand alone and are refused, by what is in force in their place
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
	s.targets, s.services = make(map[route.Target]bool), make(map[string]bool)
	s.loads = vec("mesh_policy_loads_total", "Loads of documents, by result: loaded or refused.", "result")
	s.loads.WithLabelValues("loaded")
	s.loads.WithLabelValues("refused")
	s.ejections = ofTarget("mesh_ejections_total", "Endpoints that outlier detection ejected, by reason.", "reason")
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

// of returns the labels of a destination, or those of the unknown destination if there are too many.
func (s *state) of(t route.Target, more ...string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.targets[t] {
		if len(s.targets) >= mostTargets {
			t = route.Target{Host: unknown}
		} else {
			s.targets[t] = true
		}
	}
	return append(targetValues(t.Host, t.Port, t.Subset), more...)
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
		s.ejections.WithLabelValues(s.of(target, string(event.Reason))...).Inc()
	}
}

func (s *state) circuit(target route.Target, change breaker.Change) {
	s.circuits.WithLabelValues(s.of(target, change.To.String())...).Inc()
}

func (s *state) endpoints(target route.Target, _ int) {
	s.discoveryUpdates.WithLabelValues(s.of(target)...).Inc()
}

func (s *state) discoveryFailed(service discovery.Service, _ error) {
	s.mu.Lock()
	host := service.Host
	if !s.services[host] {
		if len(s.services) >= mostTargets {
			host = unknown
		} else {
			s.services[host] = true
		}
	}
	s.mu.Unlock()
	s.discoveryFailures.WithLabelValues(workload.Bounded(host)).Inc()
}

func (s *state) mirrorDropped(target route.Target, _ error) {
	s.mirrors.WithLabelValues(s.of(target)...).Inc()
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
	s.lastLoad, s.findings = &mesh.PolicyLoad{Number: load.Number, Err: load.Err}, findings
}

// retried counts the attempts of a call after the first, and the reason why there were no more.
func (s *state) retried(c *mesh.Call) {
	if c.Attempts > 1 {
		s.retries.WithLabelValues(s.of(c.Target)...).Add(float64(c.Attempts - 1))
	}
	if reason := stopReasons[c.Stopped]; reason != "" {
		s.retriesStopped.WithLabelValues(s.of(c.Target, reason)...).Inc()
	}
}

// stopReasons are the reasons why calls were not retried although they should have been.
var stopReasons = map[retry.Reason]string{
	retry.LimitReached: "limit", retry.BudgetRefused: "budget", retry.LimiterRefused: "too_many_under_way",
	retry.OutOfTime: "out_of_time", retry.BodyCommitted: "body_committed", retry.Nested: "nested",
}
