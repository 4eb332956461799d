package metrics

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func compare(a, b string) int { return cmp.Compare(a, b) }

// identityNames are the labels of an identity, in the order of its values.
var identityNames = []string{
	"reporter",
	"source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
	"source_canonical_service", "source_canonical_revision", "source_cluster",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_canonical_service", "destination_canonical_revision", "destination_cluster",
	"destination_service", "destination_service_name", "destination_service_namespace",
}

func (id *identity) values() []string {
	side := func(w *workload, principal string) []string {
		return []string{w.name, w.namespace, cmp.Or(principal, unknown), w.app, w.version, w.service, w.revision, w.cluster}
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

// The metrics of Istio that a series has, by its kind.
type family struct {
	desc  *prometheus.Desc
	count int // which of the counters, -1 for a histogram
	hist  int
}

func counter(name, help string, labels []string, count int) family {
	return family{prometheus.NewDesc(name, help, labels, nil), count, 0}
}

func histogramOf(name, help string, hist int) family {
	return family{prometheus.NewDesc(name, help, requestNames, nil), -1, hist}
}

var families = map[outcome][]family{
	kindRequest: {
		counter("istio_requests_total", "Requests, HTTP and gRPC.", requestNames, requests),
		histogramOf("istio_request_duration_milliseconds", "Time until the end of the response body.", duration),
		histogramOf("istio_request_bytes", "Size of the request body, and an estimate of its headers.", requestBytes),
		histogramOf("istio_response_bytes", "Size of the response body, and an estimate of its headers.", responseBytes),
	},
	kindMessages: {
		counter("istio_request_messages_total", "gRPC messages that clients sent.", identityNames, requestMessages),
		counter("istio_response_messages_total", "gRPC messages that servers sent.", identityNames, responseMessages),
	},
	kindTCP: {
		counter("istio_tcp_connections_opened_total", "Raw connections that were opened.", tcpNames, opened),
		counter("istio_tcp_connections_closed_total", "Raw connections that were closed.", tcpNames, closed),
		counter("istio_tcp_sent_bytes_total", "Bytes that servers sent over raw connections.", tcpNames, sent),
		counter("istio_tcp_received_bytes_total", "Bytes that servers received over raw connections.", tcpNames, received),
	},
}

// newNative returns the histograms of one series, each with the classic buckets and the native ones.
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

// collect sends the metrics of all series that were used lately.
func (st *store) collect(ch chan<- prometheus.Metric, now int64) {
	st.mu.Lock()
	st.sweepLocked(now)
	all := make([]*series, 0, st.count)
	for _, p := range st.paths {
		if list := p.series.Load(); list != nil {
			for _, k := range *list {
				all = append(all, k.series)
			}
		}
	}
	st.mu.Unlock()
	for _, s := range all {
		for i, f := range families[s.key&kinds] {
			ch <- &sample{&families[s.key&kinds][i], f.desc, s}
		}
	}
}

// sample is one metric of a series, read when it is written.
type sample struct {
	family *family
	desc   *prometheus.Desc
	series *series
}

// Desc implements prometheus.Metric.
func (m *sample) Desc() *prometheus.Desc { return m.desc }

// Write implements prometheus.Metric.
func (m *sample) Write(out *dto.Metric) error {
	out.Label = m.series.labels
	if m.family.count >= 0 {
		v := float64(m.series.counts[m.family.count].Load())
		out.Counter = &dto.Counter{Value: &v}
		if h := m.series.hists; h != nil {
			out.Counter.Exemplar = h.newest()
		}
		return nil
	}
	h, err := m.series.hists.write(m.family.hist)
	if err != nil {
		return err
	}
	if m.family.hist == duration {
		m.series.hists.attach(h)
	}
	out.Histogram = h
	return nil
}

// newest returns the latest exemplar, with the value that it stands for in a counter.
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

// attach puts the exemplars into a histogram of durations.
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
