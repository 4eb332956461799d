package metrics_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

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
	before := heap()
	for i := range 64 {
		c := call(t, "api.default.svc.cluster.local", nil, "")
		c.Status, c.Telemetry = 200+i, settings
		for n := range 16 {
			c.Request.Header = http.Header{"X-Tenant": {strings.Repeat("x", 64<<10) + fmt.Sprint(n)}}
			ends(o, c)
		}
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("a thousand long headers keep %d MB", grown>>20)
	}
	if got := p.total(t, "istio_requests_total", "tenant", strings.Repeat("x", 253)); got != 64*16 {
		t.Errorf("%v calls have the label, want %d", got, 64*16)
	}
	runtime.KeepAlive(o)
}

// Nor is a long host kept that nobody serves.
func TestLongHostsAreNotKept(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := p.Observer()
	before := heap()
	for i := range 200 {
		c := call(t, strings.Repeat("x", 256<<10)+fmt.Sprint(i)+".default.svc.cluster.local", nil, "")
		c.Status = 503
		ends(o, c)
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("200 long hosts keep %d MB", grown>>20)
	}
	if got := p.total(t, "istio_requests_total"); got != 200 {
		t.Errorf("%v calls are counted, want 200", got)
	}
	runtime.KeepAlive(o)
}
