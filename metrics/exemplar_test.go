package metrics_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/metrics"
	"go.opentelemetry.io/otel/trace"
)

func span(sampled bool, id byte) context.Context {
	c := trace.SpanContextConfig{TraceID: trace.TraceID{15: id}, SpanID: trace.SpanID{7: id}}
	if sampled {
		c.TraceFlags = trace.FlagsSampled
	}
	return trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(c))
}

// Only traces that are kept are named, and no more than one a second of each bucket.
func TestExemplars(t *testing.T) {
	for _, native := range []bool{false, true} {
		t.Run(fmt.Sprint("native ", native), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testExemplars(t, native) })
		})
	}
}

func testExemplars(t *testing.T, native bool) {
	p := newProcess(t, metrics.Config{NativeHistograms: native})
	o := p.Observer()
	to := &discovery.Endpoint{}
	observe := func(ctx context.Context, took time.Duration) {
		c := call(t, "order", to, "")
		c.Start, c.Duration = time.Now(), took
		o.CallEnd(ctx, c)
	}
	observe(span(false, 1), 3*time.Millisecond)
	observe(context.Background(), 3*time.Millisecond)
	if text := p.text(t, "application/openmetrics-text"); strings.Contains(text, "trace_id") {
		t.Errorf("a trace that is not kept is named:\n%s", text)
	}
	observe(span(true, 2), 3*time.Millisecond)
	observe(span(true, 3), 3*time.Millisecond) // in the same second
	observe(span(true, 4), 30*time.Millisecond)
	observe(span(true, 5), 2*time.Hour) // beyond the last bucket; it ends later than the others
	text := p.text(t, "application/openmetrics-text")
	for _, want := range []string{
		`le="5.0"} 4 # {trace_id="00000000000000000000000000000002",span_id="0000000000000002"} 3.0 `,
		`le="50.0"} 5 # {trace_id="00000000000000000000000000000004",span_id="0000000000000004"} 30.0 `,
		`le="+Inf"} 6 # {trace_id="00000000000000000000000000000005",span_id="0000000000000005"} 7.2e+06 `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s in\n%s", want, text)
		}
	}
	if !strings.HasSuffix(text, "# EOF\n") {
		t.Error("that is no OpenMetrics")
	}
	if strings.Contains(text, "00000000000003") {
		t.Error("there are two exemplars of one second")
	}
	// A counter has the latest.
	if !strings.Contains(text, `} 6.0 # {trace_id="00000000000000000000000000000005",span_id="0000000000000005"} 1.0 `) {
		t.Errorf("the counter has not the latest exemplar:\n%s", text)
	}
	time.Sleep(time.Second)
	observe(span(true, 6), 3*time.Millisecond)
	if !strings.Contains(p.text(t, "application/openmetrics-text"), `le="5.0"} 5 # {trace_id="00000000000000000000000000000006"`) {
		t.Error("a second later the exemplar is still the old one")
	}
	if strings.Contains(p.text(t, "text/plain"), "trace_id") {
		t.Error("the text format has exemplars, which it cannot have")
	}
}

// The one slow call of a scrape interval has its exemplar, however many fast ones there are each second.
func TestSlowCallsKeepTheirExemplars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, metrics.Config{})
		o := p.Observer()
		observe := func(id byte, took time.Duration) {
			c := call(t, "order", &discovery.Endpoint{}, "")
			c.Start, c.Duration = time.Now().Add(-took), took
			o.CallEnd(span(true, id), c)
		}
		for i := range 15 * 20 { // what Prometheus scrapes every 15 seconds
			observe(1, 3*time.Millisecond)
			if i == 110 {
				observe(2, 800*time.Millisecond)
			}
			time.Sleep(time.Second / 20)
		}
		text := p.text(t, "application/openmetrics-text")
		if !strings.Contains(text, `le="1000.0"} 301 # {trace_id="00000000000000000000000000000002"`) {
			t.Errorf("the slow call has no exemplar:\n%s", text)
		}
		if n := strings.Count(text, " # {trace_id="); n != 3 { // one for each bucket with calls, and that of the counter
			t.Errorf("%d exemplars, want 3:\n%s", n, text)
		}
	})
}

// istiosBuckets are those of all three histograms, which Istio's dashboards and recorded rules count on.
var istiosBuckets = []float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
}

// Sums and buckets are those of what was observed.
func TestHistograms(t *testing.T) {
	for _, native := range []bool{false, true} {
		p := newProcess(t, metrics.Config{NativeHistograms: native})
		o := p.Observer()
		to := &discovery.Endpoint{}
		for _, took := range []time.Duration{400 * time.Microsecond, 500 * time.Microsecond, 501 * time.Microsecond, 4 * time.Second, 2 * time.Hour} {
			c := call(t, "order", to, "")
			c.Duration, c.BytesReceived = took, 1000
			ends(o, c)
		}
		h := p.one(t, "istio_request_duration_milliseconds").Histogram
		if h.GetSampleCount() != 5 || h.GetSampleSum() != 0.4+0.5+0.501+4000+7200000 {
			t.Errorf("native %t: %d durations of %v ms together", native, h.GetSampleCount(), h.GetSampleSum())
		}
		want := map[float64]uint64{0.5: 2, 1: 3, 2500: 3, 5000: 4, 3600000: 4}
		for _, b := range h.Bucket {
			if count, ok := want[b.GetUpperBound()]; ok && b.GetCumulativeCount() != count {
				t.Errorf("native %t: %d within %v ms, want %d", native, b.GetCumulativeCount(), b.GetUpperBound(), count)
			}
		}
		for _, name := range []string{"istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"} {
			var bounds []float64
			for _, b := range p.one(t, name).Histogram.Bucket {
				bounds = append(bounds, b.GetUpperBound())
			}
			if !slices.Equal(bounds, istiosBuckets) {
				t.Errorf("native %t: the buckets of %s are %v", native, name, bounds)
			}
		}
		if got := len(h.PositiveSpan) > 0; got != native {
			t.Errorf("native %t: there are native buckets: %t", native, got)
		}
		// The header of a response has one field here.
		if h := p.one(t, "istio_response_bytes").Histogram; h.GetSampleSum() != 5*(1000+56) {
			t.Errorf("native %t: %v bytes", native, h.GetSampleSum())
		}
	}
}
