package metrics_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/prometheus/client_golang/prometheus"
)

// Headers that documents make labels of may be long: only what becomes the label is kept.
func TestLongHeadersAreNotKept(t *testing.T) {
	p := newProcessIn(t, prometheus.NewRegistry(), metrics.Config{})
	o := p.Observer()
	side := telemetry.Side{Metrics: map[string]telemetry.Metric{"REQUEST_COUNT": {Set: []telemetry.Tag{{Name: "tenant", Header: "X-Tenant"}}}}}
	settings := telemetry.New(side, side)
	before := leak.Heap()
	for i := range 64 {
		c := call(t, "api.default.svc.cluster.local", nil, "")
		c.Status, c.Telemetry = 200+i, settings
		for n := range 16 {
			c.Request.Header = http.Header{"X-Tenant": {strings.Repeat("x", 64<<10) + fmt.Sprint(n)}}
			ends(o, c)
		}
	}
	if grown := leak.Heap() - before; grown > 8<<20 {
		t.Errorf("a thousand long headers keep %d MB", grown>>20)
	}
	if got := p.total(t, "istio_requests_total", "tenant", strings.Repeat("x", 253)); got != 64*16 {
		t.Errorf("%v calls have the label, want %d", got, 64*16)
	}
	runtime.KeepAlive(o)
}

// Nor is a long host kept that nobody serves.
func TestLongHostsAreNotKept(t *testing.T) {
	for _, long := range []string{"%s%d", "%[2]d%[1]s"} { // they differ before or after the part that labels show
		p := newProcess(t, metrics.Config{})
		o := p.Observer()
		before := leak.Heap()
		for i := range 200 {
			c := call(t, fmt.Sprintf(long, strings.Repeat("x", 256<<10), i)+".default.svc.cluster.local", nil, "")
			c.Status = 503
			ends(o, c)
		}
		if grown := leak.Heap() - before; grown > 8<<20 {
			t.Errorf("200 long hosts keep %d MB", grown>>20)
		}
		if got := p.total(t, "istio_requests_total"); got != 200 {
			t.Errorf("%v calls are counted, want 200", got)
		}
		runtime.KeepAlive(o)
	}
}

// Hosts that differ only beyond what a label shows are one there: two equal series would make Prometheus refuse the whole scrape.
func TestAttemptsToLongHosts(t *testing.T) {
	p := newProcess(t, metrics.Config{MaxEndpoints: 100})
	o := p.Observer()
	before := leak.Heap()
	for i := range 100 {
		c := call(t, strings.Repeat("x", 256<<10)+fmt.Sprint(i), &discovery.Endpoint{}, "")
		c.Last.Endpoint, c.Last.Start, c.Last.Status, c.Last.GRPCStatus = "10.0.0.1:80", c.Start, 200, -1
		o.AttemptEnd(t.Context(), c.Last)
		ends(o, c)
	}
	if grown := leak.Heap() - before; grown > 8<<20 {
		t.Errorf("100 long hosts keep %d MB", grown>>20)
	}
	p.is(t, 100, "mesh_attempt_duration_milliseconds", "endpoint", "10.0.0.1:80")
	runtime.KeepAlive(o)
}

// Peers with an identity may claim a lot. What is refused for its length is not kept.
func TestLongMetadataIsNotKept(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := identified(t, p.Observer())
	before := leak.Heap()
	endpoint := &discovery.Endpoint{}
	for i := range 200 {
		value := strings.Repeat("A", 256<<10) + fmt.Sprint(i)
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = http.Header{"X-Envoy-Peer-Metadata": {value}, "X-Envoy-Peer-Metadata-Id": {fmt.Sprint(i)}}
		o.InboundEnd(t.Context(), &mesh.Inbound{Request: r, Peer: "spiffe://cluster.local/ns/default/sa/web", Start: time.Now(), Status: 200, GRPCStatus: -1})
		if i%50 == 0 {
			endpoint = &discovery.Endpoint{}
		}
		c := call(t, "orders.default.svc.cluster.local", endpoint, "spiffe://cluster.local/ns/default/sa/orders")
		c.ResponseHeader = http.Header{"X-Envoy-Peer-Metadata": {value}}
		ends(o, c)
	}
	if grown := leak.Heap() - before; grown > 4<<20 {
		t.Errorf("400 long values keep %d MB", grown>>20)
	}
	if p.total(t, "istio_requests_total", "source_workload", "web") != 200 || p.total(t, "mesh_peer_metadata_refused_total") == 0 {
		t.Error("the long values were not refused")
	}
	runtime.KeepAlive(o)
}

// stalled is a registry that does not gather.
type stalled struct {
	prometheus.Registerer
	collector prometheus.Collector
}

func (r *stalled) Register(c prometheus.Collector) error {
	r.collector = c
	return nil
}

func (*stalled) Unregister(prometheus.Collector) bool { return true }

// A scrape that does not go on stops no call, to a known endpoint or to another one.
func TestAStalledScrapeStopsNoCalls(t *testing.T) {
	var registry stalled
	m, err := metrics.New(metrics.Config{Registerer: &registry, MaxEndpoints: 10})
	if err != nil {
		t.Fatal(err)
	}
	o := m.Observer()
	attempt := func(endpoint string) {
		c := call(t, "orders.default.svc.cluster.local", &discovery.Endpoint{}, "")
		c.Last.Endpoint, c.Last.Start, c.Last.Status, c.Last.GRPCStatus = endpoint, c.Start, 200, -1
		o.AttemptEnd(t.Context(), c.Last)
		ends(o, c)
	}
	attempt("10.0.0.1:80")
	attempt("10.0.0.2:80")
	var scrape sync.WaitGroup
	ch := make(chan prometheus.Metric)
	scrape.Go(func() {
		defer close(ch)
		registry.collector.Collect(ch)
	})
	for metric := range ch {
		if strings.Contains(metric.Desc().String(), "mesh_attempt_duration_milliseconds") {
			break // another one waits to be taken
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		attempt("10.0.0.1:80")
		attempt("10.0.0.3:80")
	}()
	await.Receive(t, "the end of the calls", done)
	for range ch {
	}
	scrape.Wait()
	m.Close()
}

// A wrapper of the registry adds its labels to those of each series, for itself alone.
func TestWrappedRegistries(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m, err := metrics.New(metrics.Config{MaxEndpoints: 10, Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"a": "first", "z": "last"}, registry)})
	if err != nil {
		t.Fatal(err)
	}
	o := m.Observer()
	c := call(t, "orders.default.svc.cluster.local", &discovery.Endpoint{}, "")
	c.Last.Endpoint, c.Last.Start, c.Last.Status, c.Last.GRPCStatus = "10.0.0.1:80", c.Start, 200, -1
	o.AttemptEnd(t.Context(), c.Last)
	ends(o, c)
	var scrapes sync.WaitGroup
	for range 4 {
		scrapes.Go(func() {
			for range 5 {
				if _, err := registry.Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	scrapes.Wait()
	m.Close()
	if left, err := registry.Gather(); len(left) > 0 || err != nil {
		t.Errorf("after Close there are %d metrics, %v", len(left), err)
	}
}
