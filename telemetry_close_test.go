package mesh_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// exported counts the CLIENT spans that an exporter got.
type exported struct{ spans atomic.Int64 }

func (e *exported) ExportSpans(_ context.Context, spans []sdk.ReadOnlySpan) error {
	for _, s := range spans {
		if s.SpanKind() == trace.SpanKindClient {
			e.spans.Add(1)
		}
	}
	return nil
}

func (e *exported) Shutdown(context.Context) error { return nil }

// allTelemetry is one mesh with everything that observes it.
type allTelemetry struct {
	*mesh.Mesh
	provider *sdk.TracerProvider
	exported exported
	registry *prometheus.Registry
	metrics  *metrics.Metrics
	log      *accesslog.Log
	lines    bytes.Buffer // read after log is closed
	page     *admin.Page
}

func newAllTelemetry(t *testing.T, registry discovery.Resolver) *allTelemetry {
	t.Helper()
	all := &allTelemetry{registry: prometheus.NewRegistry(), page: admin.New(admin.Config{})}
	all.provider = sdk.NewTracerProvider(sdk.WithBatcher(&all.exported))
	traces, err := tracingmesh.Observer(tracing.Config{Provider: all.provider})
	if err != nil {
		t.Fatal(err)
	}
	if all.metrics, err = metrics.New(metrics.Config{Registerer: all.registry}); err != nil {
		t.Fatal(err)
	}
	if all.log, err = accesslog.New(accesslog.Config{Writer: &all.lines, Queue: 10_000}); err != nil {
		t.Fatal(err)
	}
	all.Mesh = newMesh(t, "", mesh.WithDiscovery(registry), mesh.WithObserver(traces), mesh.WithObserver(all.metrics.Observer()),
		mesh.WithObserver(all.log.Observer()), mesh.WithObserver(all.page.Observer()))
	return all
}

// counted returns how many requests with the status 200 a scrape tells of.
func (all *allTelemetry) counted(t *testing.T) (n int64) {
	t.Helper()
	families, err := all.registry.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "istio_requests_total" && strings.Contains(m.String(), `"200"`) {
				n += int64(m.Counter.GetValue())
			}
		}
	}
	return n
}

// logged returns how many lines with the status 200 the closed log has written.
func (all *allTelemetry) logged(t *testing.T) (n int64) {
	t.Helper()
	for line := range bytes.Lines(all.lines.Bytes()) {
		var fields struct {
			Code int `json:"response_code"`
		}
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		if fields.Code == http.StatusOK {
			n++
		}
	}
	return n
}

// Everything is closed while calls, scrapes and the event stream of the page are under way. Nothing hangs, what had ended is told of
// everywhere, and what ends later does no harm.
func TestCloseWhileAllOfTelemetryIsUnderWay(t *testing.T) {
	noLeaks(t)
	const callers, atLeast, atMost = 4, 10, 100
	arrived, gate := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	defer release()
	var registry discovery.Memory
	registry.Set("orders", serve(t, func(http.ResponseWriter, *http.Request) {}))
	registry.Set("slow", serve(t, func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-gate
	}))
	all := newAllTelemetry(t, &registry)
	pages := httptest.NewServer(all.page)
	defer pages.Close()

	var running, calling, warm sync.WaitGroup
	var ended atomic.Int64
	scrape, stop := make(chan struct{}, 1), make(chan struct{})
	call := func(url string) bool {
		resp, err := all.Client().Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return false
		}
		ended.Add(1)
		select {
		case scrape <- struct{}{}:
		default: // one is under way
		}
		return true
	}
	warm.Add(callers)
	for range callers {
		calling.Go(func() {
			for n := 1; n <= atMost; n++ {
				ok := call("http://orders/")
				if n == atLeast {
					warm.Done()
				}
				if !ok && n >= atLeast {
					return // the mesh is closed
				}
			}
		})
	}
	running.Go(func() { call("http://slow/") }) // has begun before the end, and ends after it
	running.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-scrape:
				all.counted(t)
			}
		}
	})
	events, err := http.Get(pages.URL + "/?events")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	if n, err := events.Body.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("the event stream: %v", err)
	}
	running.Go(func() { _, _ = io.Copy(io.Discard, events.Body) }) // until the page ends it

	warm.Wait()
	<-arrived
	before := ended.Load()
	counted := all.counted(t)
	var closing sync.WaitGroup
	closing.Go(func() {
		if err := all.Close(); err != nil {
			t.Errorf("the mesh: %v", err)
		}
	})
	closing.Go(all.page.Close)
	closing.Go(func() {
		if err := all.log.Close(); err != nil {
			t.Errorf("the log: %v", err)
		}
	})
	closing.Go(func() {
		if err := all.provider.Shutdown(context.Background()); err != nil {
			t.Errorf("the traces: %v", err)
		}
	})
	closing.Go(func() { all.metrics.Close() })
	closing.Wait()
	release()
	close(stop)
	calling.Wait()
	running.Wait()
	if before < callers*atLeast || counted < before || all.exported.spans.Load() < before || all.logged(t) < before {
		t.Errorf("%d calls had ended: %d are counted, %d have spans, %d have lines", before, counted, all.exported.spans.Load(), all.logged(t))
	}
	if dropped := all.log.Dropped(); dropped > uint64(callers*atMost+1-int(before)) {
		t.Errorf("%d lines were dropped", dropped)
	}
}
