package metrics

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/nosidecar/mesh/internal/workload"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// identityNames are the labels of an identity, in the order of identity.values.
var identityNames = []string{
	"reporter",
	"source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
	"source_canonical_service", "source_canonical_revision", "source_cluster",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_canonical_service", "destination_canonical_revision", "destination_cluster",
	"destination_service", "destination_service_name", "destination_service_namespace",
}

func (id *identity) values() []string {
	side := func(w *workload.Workload, principal string) []string {
		return []string{w.Name, w.Namespace, cmp.Or(principal, unknown), w.App, w.Version, w.Service, w.Revision, w.Cluster}
	}
	reporter := "source"
	if id.inbound {
		reporter = "destination"
	}
	return slices.Concat([]string{reporter}, side(&id.from, id.fromID), side(&id.to, id.toID),
		[]string{id.host, id.hostName, id.hostNamespace})
}

// The labels of each kind of series.
var (
	tcpNames     = append(slices.Clone(identityNames), "request_protocol", "response_flags", "connection_security_policy")
	requestNames = append(slices.Clone(tcpNames), "response_code", "grpc_response_status")
)

// family is one of Istio's metrics.
type family struct {
	name  string // in Telemetry documents
	desc  *prometheus.Desc
	count int // the index of the counter in a series; -1 for a histogram
	hist  int // the index of the histogram
}

func counter(document, name, help string, labels []string, count int) family {
	return family{document, prometheus.NewDesc(name, help, labels, nil), count, 0}
}

func histogramOf(document, name, help string, hist int) family {
	return family{document, prometheus.NewDesc(name, help, requestNames, nil), -1, hist}
}

// families are the metrics that a series has, by its kind.
var families = map[outcome][]family{
	kindRequest: {
		counter("REQUEST_COUNT", "istio_requests_total", "Requests, HTTP and gRPC.", requestNames, requests),
		histogramOf("REQUEST_DURATION", "istio_request_duration_milliseconds", "Time until the end of the response body.", duration),
		histogramOf("REQUEST_SIZE", "istio_request_bytes", "Size of the request body, and an estimate of its headers.", requestBytes),
		histogramOf("RESPONSE_SIZE", "istio_response_bytes", "Size of the response body, and an estimate of its headers.", responseBytes),
	},
	kindMessages: {
		counter("GRPC_REQUEST_MESSAGES", "istio_request_messages_total", "gRPC messages that clients sent.", identityNames, requestMessages),
		counter("GRPC_RESPONSE_MESSAGES", "istio_response_messages_total", "gRPC messages that servers sent.", identityNames, responseMessages),
	},
	kindTCP: {
		counter("TCP_OPENED_CONNECTIONS", "istio_tcp_connections_opened_total", "Raw connections that were opened.", tcpNames, opened),
		counter("TCP_CLOSED_CONNECTIONS", "istio_tcp_connections_closed_total", "Raw connections that were closed.", tcpNames, closed),
		counter("TCP_SENT_BYTES", "istio_tcp_sent_bytes_total", "Bytes that servers sent over raw connections.", tcpNames, sent),
		counter("TCP_RECEIVED_BYTES", "istio_tcp_received_bytes_total", "Bytes that servers received over raw connections.", tcpNames, received),
	},
}

// newNative returns the histograms of one series. Each has both classic and native buckets.
func newNative() []prometheus.Histogram {
	out := make([]prometheus.Histogram, histogramCount)
	for i := range out {
		out[i] = prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "native", Buckets: buckets, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
			NativeHistogramMinResetDuration: time.Hour,
		})
	}
	return out
}

// collect removes expired series, and sends the metrics of all others.
func (st *store) collect(ch chan<- prometheus.Metric, now int64) {
	st.mu.Lock()
	st.sweepLocked(now)
	all := make([]*sample, 0, 4*st.count)
	for _, p := range st.paths {
		for _, k := range *p.series.Load() {
			of := families[k.key&kinds]
			for i := range of {
				if k.series.has(&of[i]) {
					all = append(all, &sample{&of[i], []*series{k.series}})
				}
			}
		}
	}
	all = merged(all, st.altered)
	st.mu.Unlock()
	for _, m := range all {
		ch <- m
	}
}

// has reports whether a metric of the series has a value.
func (s *series) has(f *family) bool {
	switch {
	case s.hists == nil:
		return s.shown[f.count].Load()
	case f.count >= 0:
		return s.counts[f.count].Load() > 0
	}
	return s.hists.any(f.hist)
}

// sample is one metric of a series, or of several series to which documents have given the same labels. Its value is read by Write.
type sample struct {
	family *family
	of     []*series
}

// Desc implements prometheus.Metric.
func (m *sample) Desc() *prometheus.Desc { return m.family.desc }

// Write implements prometheus.Metric.
func (m *sample) Write(out *dto.Metric) error {
	s := m.of[0]
	out.Label = s.labels
	if m.family.count >= 0 {
		v := 0.0
		for _, s := range m.of {
			v += float64(s.counts[m.family.count].Load())
		}
		out.Counter = &dto.Counter{Value: &v}
		if s.hists != nil {
			out.Counter.Exemplar = s.hists.newest()
		}
		return nil
	}
	h, err := s.hists.write(m.family.hist)
	if err != nil {
		return err
	}
	for _, more := range m.of[1:] {
		if err := addTo(h, more.hists, m.family.hist); err != nil {
			return err
		}
	}
	if m.family.hist == duration {
		s.hists.attach(h)
	}
	out.Histogram = h
	return nil
}

// addTo adds the classic buckets of another histogram. Native buckets cannot be added, so the sum has none.
func addTo(to *dto.Histogram, from *histograms, which int) error {
	h, err := from.write(which)
	if err != nil {
		return err
	}
	count, sum := to.GetSampleCount()+h.GetSampleCount(), to.GetSampleSum()+h.GetSampleSum()
	to.SampleCount, to.SampleSum = &count, &sum
	for i, b := range h.Bucket {
		both := to.Bucket[i].GetCumulativeCount() + b.GetCumulativeCount()
		to.Bucket[i].CumulativeCount = &both
	}
	to.Schema, to.ZeroThreshold, to.ZeroCount, to.PositiveSpan, to.PositiveDelta = nil, nil, nil, nil, nil
	to.NegativeSpan, to.NegativeDelta = nil, nil
	return nil
}

// any reports whether the histogram has an observation.
func (h *histograms) any(which int) bool {
	if h.native != nil {
		return h.observed[which].Load()
	}
	for i := range h.own[which].counts {
		if h.own[which].counts[i].Load() > 0 {
			return true
		}
	}
	return false
}

// newest returns the latest exemplar, as an exemplar of a counter.
func (h *histograms) newest() *dto.Exemplar {
	var found *dto.Exemplar
	for i := range h.exemplars {
		if e := h.exemplars[i].Load(); e != nil && (found == nil || e.Timestamp.AsTime().After(found.Timestamp.AsTime())) {
			found = e
		}
	}
	if found == nil {
		return nil
	}
	one := 1.0
	return &dto.Exemplar{Label: found.Label, Value: &one, Timestamp: found.Timestamp}
}

// attach adds the exemplars to a histogram of durations.
func (h *histograms) attach(to *dto.Histogram) {
	for i := range h.exemplars {
		e := h.exemplars[i].Load()
		if e == nil {
			continue
		}
		if i == bucketCount && len(to.Bucket) == bucketCount {
			beyond := math.Inf(1)
			to.Bucket = append(to.Bucket, &dto.Bucket{CumulativeCount: to.SampleCount, UpperBound: &beyond})
		}
		if i < len(to.Bucket) {
			to.Bucket[i].Exemplar = e
		}
		if h.native != nil {
			to.Exemplars = append(to.Exemplars, e)
		}
	}
}
