package tracingmesh_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tracing"
)

func telemetryOf(spec string) policy.Source {
	return policy.Source{Name: "t.yaml", Data: []byte(
		"apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: traces, namespace: default}\nspec: {tracing: [" + spec + "]}\n")}
}

// hop is a service that is called by way of one that it serves: both sides of a mesh, with a server behind it.
type hop struct {
	*traces
	mesh   *mesh.Mesh
	front  http.Handler
	mu     sync.Mutex
	behind http.Header // of the last request to the server
}

func newHop(t *testing.T) *hop {
	h := &hop{traces: newTraces(t, tracing.Config{})}
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(_ http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.behind = r.Header
	}))
	h.mesh = meshtest.New(t, "", h.option, mesh.WithDiscovery(&registry))
	h.front = h.mesh.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://orders/", nil)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("X-Tenant", "red")
		resp, err := h.mesh.Transport().RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
	}))
	return h
}

// serve sends a request through, and returns the spans that it made, and what it carried on.
func (h *hop) serve(t *testing.T, header http.Header) (spans []sdk.ReadOnlySpan, behind http.Header) {
	t.Helper()
	before := len(h.Ended())
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header = header
	h.front.ServeHTTP(httptest.NewRecorder(), r)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.Ended()[before:], h.behind
}

func (h *hop) apply(t *testing.T, spec string) {
	t.Helper()
	if err := h.mesh.Apply(telemetryOf(spec)); err != nil {
		t.Fatal(err)
	}
}

func TestDocumentsLimitSampling(t *testing.T) {
	leak.Check(t)
	h := newHop(t)
	h.apply(t, "{randomSamplingPercentage: 0}")
	spans, behind := h.serve(t, http.Header{})
	parent := behind.Get("Traceparent")
	if len(spans) != 0 || len(parent) != 55 || parent[53:] != "02" || behind.Get("X-B3-Sampled") != "0" {
		t.Errorf("a new trace: %v, traceparent %q", names(spans), parent)
	}
	// What was decided before stays so, whatever this process would sample.
	spans, behind = h.serve(t, http.Header{"Traceparent": {remote}})
	if got := names(spans); len(got) != 2 || behind.Get("Traceparent")[:35] != remote[:35] {
		t.Errorf("a sampled trace: %v, traceparent %q", got, behind.Get("Traceparent"))
	}
	spans, _ = h.serve(t, http.Header{"X-B3-Sampled": {"1"}})
	if got := names(spans); len(got) != 2 {
		t.Errorf("a trace that is to be sampled: %v", got)
	}
	h.apply(t, "{randomSamplingPercentage: 100}")
	if spans, _ = h.serve(t, http.Header{}); len(spans) != 2 {
		t.Errorf("100%%: %v", names(spans))
	}
	h.apply(t, "{match: {mode: SERVER}, randomSamplingPercentage: 25}")
	n := 0
	for range 2000 {
		spans, _ := h.serve(t, http.Header{})
		if len(spans) != 0 && len(spans) != 2 {
			t.Fatalf("half a trace: %v", names(spans))
		}
		n += len(spans) / 2
	}
	if n < 350 || n > 650 { // 500 with a standard deviation of 19
		t.Errorf("%d of 2,000 traces are sampled, want a quarter", n)
	}
}

// A call that is made outside of any request begins a trace, too.
func TestDocumentsLimitSamplingOfCalls(t *testing.T) {
	leak.Check(t)
	h := newHop(t)
	for spec, want := range map[string]int{
		"{randomSamplingPercentage: 0}": 0, "{match: {mode: CLIENT}, randomSamplingPercentage: 0}": 0,
		"{match: {mode: SERVER}, randomSamplingPercentage: 0}": 2, "{randomSamplingPercentage: 100}": 2,
	} {
		h.apply(t, spec)
		before := len(h.Ended())
		if code := get(t, context.Background(), h.mesh, "http://orders/"); code != 200 {
			t.Fatal(code)
		}
		if n := len(h.Ended()) - before; n != want {
			t.Errorf("%s: %d spans, want %d", spec, n, want)
		}
	}
}

func TestDocumentsDisableSpans(t *testing.T) {
	leak.Check(t)
	h := newHop(t)
	for _, tt := range []struct {
		spec string
		want []trace.SpanKind
	}{
		{"{disableSpanReporting: true}", nil},
		{"{match: {mode: CLIENT}, disableSpanReporting: true}", []trace.SpanKind{trace.SpanKindServer}},
		{"{match: {mode: SERVER}, disableSpanReporting: true}", []trace.SpanKind{trace.SpanKindClient}},
		{"{disableSpanReporting: false}", []trace.SpanKind{trace.SpanKindClient, trace.SpanKindServer}},
	} {
		h.apply(t, tt.spec)
		spans, behind := h.serve(t, http.Header{"Traceparent": {remote}, "Tracestate": {"a=1"}})
		kinds := make(map[trace.SpanKind]bool)
		for _, s := range spans {
			kinds[s.SpanKind()] = true
		}
		for _, kind := range tt.want {
			if !kinds[kind] {
				t.Errorf("%s: no %s span in %v", tt.spec, kind, names(spans))
			}
		}
		for kind := range kinds {
			found := kind == trace.SpanKindInternal
			for _, w := range tt.want {
				found = found || kind == w
			}
			if !found {
				t.Errorf("%s: spans %v", tt.spec, names(spans))
			}
		}
		if parent := behind.Get("Traceparent"); len(parent) != 55 || parent[:35] != remote[:35] || parent[53:] != "01" || behind.Get("Tracestate") != "a=1" {
			t.Errorf("%s: traceparent %q and tracestate %q are carried on", tt.spec, parent, behind.Get("Tracestate"))
		}
	}
}

func TestDocumentsAddTags(t *testing.T) {
	leak.Check(t)
	t.Setenv("HOME_CLUSTER", "east")
	h := newHop(t)
	h.apply(t, `{customTags: {team: {literal: {value: shop}}, home: {environment: {name: HOME_CLUSTER}}, nothing: {environment: {name: NO_SUCH_VARIABLE}},
		tenant: {header: {name: x-tenant, defaultValue: nobody}}, missing: {header: {name: x-missing}}}}`)
	spans, _ := h.serve(t, http.Header{})
	if len(spans) != 2 {
		t.Fatalf("spans %v", names(spans))
	}
	for _, s := range spans {
		tenant := "nobody"
		if s.SpanKind() == trace.SpanKindClient {
			tenant = "red"
		}
		for key, want := range map[string]string{"team": "shop", "home": "east", "nothing": "", "tenant": tenant, "missing": ""} {
			if got := attribute(s, key); got != want {
				t.Errorf("%s of the %s span is %q, want %q", key, s.SpanKind(), got, want)
			}
		}
	}
	h.apply(t, `{match: {mode: SERVER}, customTags: {team: {literal: {value: other}}}}`)
	spans, _ = h.serve(t, http.Header{})
	for _, s := range spans {
		want := ""
		if s.SpanKind() == trace.SpanKindServer {
			want = "other"
		}
		if got := attribute(s, "team"); got != want || attribute(s, "home") != "" {
			t.Errorf("after the reload team of the %s span is %q, want %q", s.SpanKind(), got, want)
		}
	}
}
