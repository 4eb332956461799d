package metrics_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/prometheus/client_golang/prometheus"
)

// Documents take labels away, add them, and turn metrics off; the others stay as they are.
func TestOverrides(t *testing.T) {
	p := newProcessIn(t, prometheus.NewRegistry(), metrics.Config{})
	o := p.Observer()
	settings := telemetry.New(telemetry.Side{Metrics: map[string]telemetry.Metric{
		"REQUEST_COUNT": {Remove: []string{"response_code", "response_flags"}, Set: []telemetry.Tag{
			{Name: "tenant", Header: "X-Tenant"}, {Name: "zone", Text: "a"},
		}},
		"REQUEST_DURATION":       {Set: []telemetry.Tag{{Name: "destination_app", Text: "everybody"}}},
		"REQUEST_SIZE":           {Disabled: true},
		"TCP_SENT_BYTES":         {Disabled: true},
		"TCP_OPENED_CONNECTIONS": {Remove: []string{"source_app"}},
	}}, telemetry.Side{})
	to := &discovery.Endpoint{}
	for i, tenant := range []string{"red", "blue", "red", ""} {
		c := call(t, "order", to, "")
		c.Telemetry, c.Status = settings, 200+i
		if tenant != "" {
			c.Request.Header.Set("X-Tenant", tenant)
		}
		ends(o, c)
	}
	for tenant, n := range map[string]float64{"red": 2, "blue": 1, "unknown": 1} {
		s := p.one(t, "istio_requests_total", "tenant", tenant)
		if _, removed := s.labels["response_code"]; removed || s.value() != n || s.labels["zone"] != "a" {
			t.Errorf("%s: %v", tenant, s)
		}
	}
	if n := p.total(t, "istio_requests_total"); n != 4 {
		t.Errorf("%v requests", n)
	}
	p.is(t, 1, "istio_request_duration_milliseconds", "response_code", "202", "destination_app", "everybody")
	p.is(t, 1, "istio_response_bytes", "response_code", "202", "destination_app", "unknown")
	if n := len(p.scrape(t, "istio_request_bytes")); n != 0 {
		t.Errorf("%d series of a metric that is turned off", n)
	}
	failed := &mesh.Conn{Endpoint: to, Telemetry: settings}
	o.ConnStart(failed)
	o.ConnEnd(failed)
	if s := p.one(t, "istio_tcp_connections_opened_total"); s.value() != 1 || s.labels["source_app"] != "" {
		t.Errorf("opened: %v", s)
	}
	p.is(t, 1, "istio_tcp_connections_closed_total", "source_app", "vm")
	if n := len(p.scrape(t, "istio_tcp_sent_bytes_total")); n != 0 {
		t.Errorf("%d series of a metric that is turned off", n)
	}
	// Requests to this process are not changed.
	o.InboundEnd(context.Background(), &mesh.Inbound{Request: &http.Request{}, Start: time.Now(), Status: 200, GRPCStatus: -1, Telemetry: settings})
	p.is(t, 1, "istio_requests_total", "reporter", "destination", "response_code", "200")
}

// Labels that documents give may be those of a series from before the documents: what has the same labels is one series.
func TestOverridesMeetOtherSeries(t *testing.T) {
	for _, native := range []bool{false, true} {
		p := newProcessIn(t, prometheus.NewRegistry(), metrics.Config{NativeHistograms: native})
		o := p.Observer()
		to := &discovery.Endpoint{}
		settings := telemetry.New(telemetry.Side{Metrics: map[string]telemetry.Metric{
			"REQUEST_COUNT":    {Set: []telemetry.Tag{{Name: "response_code", Text: "200"}}},
			"REQUEST_DURATION": {Set: []telemetry.Tag{{Name: "response_code", Text: "200"}}},
		}}, telemetry.Side{})
		ends(o, call(t, "order", to, ""))
		c := call(t, "order", to, "")
		c.Status, c.Telemetry = 500, settings
		ends(o, c)
		ends(o, c)
		p.is(t, 3, "istio_requests_total", "response_code", "200")
		p.is(t, 3, "istio_request_duration_milliseconds", "response_code", "200")
		p.is(t, 2, "istio_response_bytes", "response_code", "500")
	}
}

// Values from headers are bounded, as all are.
func TestOverridesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcessIn(t, prometheus.NewRegistry(), metrics.Config{MaxIdentities: 100, IdleExpiry: time.Minute})
		o := p.Observer()
		to := &discovery.Endpoint{}
		settings := telemetry.New(telemetry.Side{Metrics: map[string]telemetry.Metric{
			"REQUEST_COUNT": {Set: []telemetry.Tag{{Name: "tenant", Header: "X-Tenant"}}},
		}}, telemetry.Side{})
		tenant := func(name string) {
			c := call(t, "order", to, "")
			c.Telemetry = settings
			c.Request.Header.Set("X-Tenant", name)
			ends(o, c)
		}
		for i := range 1000 {
			tenant(fmt.Sprint("\xff", i))
		}
		if n := p.total(t, "istio_requests_total"); n != 99 {
			t.Errorf("%v requests with labels, want 99", n)
		}
		p.is(t, 901, "mesh_metrics_overflow_total", "reporter", "source")
		p.is(t, 1000, "istio_request_duration_milliseconds")
		time.Sleep(2 * time.Minute)
		tenant("new")
		p.is(t, 1, "istio_requests_total", "tenant", "new")
		p.is(t, 2, "mesh_metrics_identities")
		if n := testing.AllocsPerRun(10, func() { tenant("new") }) - testing.AllocsPerRun(10, func() { call(t, "order", to, "").Request.Header.Set("X-Tenant", "new") }); n > 1 {
			t.Errorf("a call that documents change allocates %v times", n)
		}
	})
}

// What documents say reaches the metrics of both ends, and of raw connections.
func TestTelemetryDocuments(t *testing.T) {
	leak.Check(t)
	p := newProcessIn(t, prometheus.NewRegistry(), metrics.Config{})
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	m := meshtest.New(t, `
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: metrics, namespace: default}
spec:
  metrics:
  - overrides:
    - match: {metric: REQUEST_COUNT, mode: CLIENT}
      tagOverrides:
        tenant: {value: "request.headers['x-tenant']"}
        response_flags: {operation: REMOVE}
    - match: {metric: REQUEST_SIZE}
      disabled: true
    - match: {metric: TCP_OPENED_CONNECTIONS}
      tagOverrides: {zone: {value: "'a'"}}
`, mesh.WithDiscovery(&registry), mesh.WithObserver(p.Observer()))
	req, err := http.NewRequest(http.MethodGet, "http://orders/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Tenant", "blue")
	resp, err := m.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	conn, err := m.DialContext(t.Context(), "tcp", "orders:80")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	m.Handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))

	s := p.one(t, "istio_requests_total", "reporter", "source", "tenant", "blue")
	if _, there := s.labels["response_flags"]; there {
		t.Errorf("a label that is removed is there: %v", s)
	}
	p.is(t, 1, "istio_requests_total", "reporter", "destination", "response_flags", "-", "response_code", "404")
	if n := len(p.scrape(t, "istio_request_bytes")); n != 0 {
		t.Errorf("%d series of a metric that is turned off", n)
	}
	p.is(t, 1, "istio_tcp_connections_opened_total", "zone", "a")
}
