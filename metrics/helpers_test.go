package metrics_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// process is the metrics of one process, in a registry of its own.
type process struct {
	*metrics.Metrics
	registry *prometheus.Registry
}

func newProcess(t testing.TB, c metrics.Config) *process {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	return newProcessIn(t, registry, c)
}

// newProcessIn is newProcess with a registry that may take other labels than those that were described.
func newProcessIn(t testing.TB, registry *prometheus.Registry, c metrics.Config) *process {
	t.Helper()
	c.Registerer = registry
	m, err := metrics.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return &process{m, registry}
}

// sample is one series as it was scraped.
type sample struct {
	labels map[string]string
	*dto.Metric
}

func (s sample) value() float64 {
	switch {
	case s.Counter != nil:
		return s.Counter.GetValue()
	case s.Gauge != nil:
		return s.Gauge.GetValue()
	}
	return float64(s.Histogram.GetSampleCount())
}

// scrape returns the series of one metric.
func (p *process) scrape(t testing.TB, name string) (out []sample) {
	t.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			labels := make(map[string]string)
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			out = append(out, sample{labels, m})
		}
	}
	return out
}

// one returns the only series of a metric that has the given labels.
func (p *process) one(t testing.TB, name string, labels ...string) sample {
	t.Helper()
	var found []sample
	for _, s := range p.scrape(t, name) {
		if s.has(labels...) {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d series of %s with %q, want 1: %v", len(found), name, labels, p.scrape(t, name))
	}
	return found[0]
}

func (s sample) has(labels ...string) bool {
	for i := 0; i < len(labels); i += 2 {
		if s.labels[labels[i]] != labels[i+1] {
			return false
		}
	}
	return true
}

// total returns the sum of the series of a metric that have the given labels.
func (p *process) total(t testing.TB, name string, labels ...string) (sum float64) {
	t.Helper()
	for _, s := range p.scrape(t, name) {
		if s.has(labels...) {
			sum += s.value()
		}
	}
	return sum
}

func (s sample) String() string {
	var out []string
	for name, value := range s.labels {
		out = append(out, fmt.Sprintf("%s=%q", name, value))
	}
	slices.Sort(out)
	return fmt.Sprintf("{%s} %v", strings.Join(out, " "), s.value())
}

// text returns what a Prometheus gets that asks for a format.
func (p *process) text(t testing.TB, accept string) string {
	t.Helper()
	h := promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, ErrorHandling: promhttp.HTTPErrorOnError})
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	data, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("status %d, %v: %s", w.Code, err, data)
	}
	return string(data)
}

// call returns a call to a host that an endpoint has answered.
func call(t testing.TB, host string, to *discovery.Endpoint, peer string) *mesh.Call {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://host/path", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &mesh.Call{
		Request: req, Start: time.Now(), Target: route.Target{Host: host, Port: 80}, Status: 200, GRPCStatus: -1, Attempts: 1,
		Duration: 3 * time.Millisecond, ResponseHeader: http.Header{"Date": {"now"}},
	}
	if to != nil {
		c.Last = &mesh.Attempt{Call: c, Number: 1, Peer: to, PeerID: peer}
	}
	return c
}

func ends(o mesh.Observer, c *mesh.Call) { o.CallEnd(context.Background(), c) }

// identified gives an observer the identity of a process of the namespace default.
func identified(t testing.TB, o mesh.Observer) mesh.Observer {
	t.Helper()
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ca.Identity("default", "web")
	if err != nil {
		t.Fatal(err)
	}
	o.Identity(id, nil)
	return o
}
