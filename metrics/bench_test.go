package metrics

import (
	"context"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/metrics/internal/peermeta"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
)

const (
	orderID = "spiffe://cluster.local/ns/shop/sa/order"
	webID   = "spiffe://cluster.local/ns/default/sa/web"
)

func newTestWatcher(t testing.TB, c Config) *watcher {
	t.Helper()
	if c.Registerer == nil {
		c.Registerer = prometheus.NewRegistry()
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	w := newWatcher(m)
	w.setIdentity(webID)
	m.watch(w)
	return w
}

// answered returns a call to an endpoint that has answered.
func answered(t testing.TB, secure bool) *mesh.Call {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://order.shop.svc.cluster.local/v1/orders/42?full=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &mesh.Call{
		Request: req, Start: time.Now(), Target: route.Target{Host: "order.shop.svc.cluster.local", Port: 80}, Document: "order", Status: 200,
		GRPCStatus: -1, Attempts: 1, Duration: 3 * time.Millisecond, BytesReceived: 512,
		ResponseHeader: http.Header{"Content-Type": {"text/plain"}, "Date": {"now"}, "Content-Length": {"512"}},
	}
	c.Last = &mesh.Attempt{Call: c, Number: 1, Peer: &discovery.Endpoint{
		Address: "10.0.0.1", Port: 80, Labels: map[string]string{"app": "order", "version": "v1"},
	}}
	if secure {
		c.Last.PeerID = orderID
		said := peermeta.Metadata{
			Name: "order-1", Namespace: "shop", Workload: "order-v1", Cluster: "east", Identity: orderID,
			Labels: map[string]string{"app": "order", "version": "v1", "service.istio.io/canonical-name": "order"},
		}
		c.ResponseHeader[asserted.PeerMetadata] = []string{said.Encode()}
		c.ResponseHeader[asserted.PeerMetadataID] = []string{said.ID("10.0.0.1", "cluster.local")}
	}
	return c
}

func arrived(t testing.TB, secure bool) *mesh.Inbound {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://web/", nil)
	if err != nil {
		t.Fatal(err)
	}
	in := &mesh.Inbound{
		Request: req, Start: time.Now(), Status: 200, GRPCStatus: -1, Duration: time.Millisecond,
		ResponseHeader: http.Header{"Content-Type": {"text/plain"}},
	}
	if secure {
		in.Peer = orderID
		said := peermeta.Metadata{Name: "order-1", Namespace: "shop", Workload: "order-v1", Identity: orderID}
		req.Header[asserted.PeerMetadata], req.Header[asserted.PeerMetadataID] = []string{said.Encode()}, []string{"sidecar~10.0.0.1~order-1.shop~"}
	}
	return in
}

func BenchmarkRecord(b *testing.B) {
	ctx := context.Background()
	for _, secure := range []bool{false, true} {
		for _, native := range []bool{false, true} {
			name := "secure=" + strconv.FormatBool(secure) + "/native=" + strconv.FormatBool(native)
			w := newTestWatcher(b, Config{NativeHistograms: native})
			call := answered(b, secure)
			b.Run("call/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					w.callEnd(ctx, call)
				}
			})
			in := arrived(b, secure)
			b.Run("inbound/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					w.inboundEnd(ctx, in)
				}
			})
		}
	}
}

// Recording a call of a known path makes no garbage.
func TestRecordAllocates(t *testing.T) {
	ctx := context.Background()
	for _, secure := range []bool{false, true} {
		w := newTestWatcher(t, Config{})
		call, in := answered(t, secure), arrived(t, secure)
		if n := testing.AllocsPerRun(100, func() { w.callEnd(ctx, call) }); n != 0 {
			t.Errorf("secure %t: a call allocates %v times", secure, n)
		}
		if n := testing.AllocsPerRun(100, func() { w.inboundEnd(ctx, in) }); n != 0 {
			t.Errorf("secure %t: a request allocates %v times", secure, n)
		}
	}
}

// BenchmarkMessage is a gRPC message, of a call from here and of one to here.
func BenchmarkMessage(b *testing.B) {
	w := newTestWatcher(b, Config{})
	ctx := context.Background()
	call, in := answered(b, true), arrived(b, true)
	call.Request.Method, call.Request.Header = http.MethodPost, http.Header{"Content-Type": {"application/grpc"}}
	b.Run("call", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.callMessage(ctx, call, true)
		}
	})
	b.Run("inbound", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.inboundMessage(ctx, in, true)
		}
	})
}

// BenchmarkExemplar is what is added to a call of a sampled trace, once a second.
func BenchmarkExemplar(b *testing.B) {
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	ctx := trace.ContextWithSpanContext(context.Background(), span)
	var h histograms
	now := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		now++
		h.exemplify(ctx, 1000, now)
	}
}

// BenchmarkOverrides is a call whose metrics documents change.
func BenchmarkOverrides(b *testing.B) {
	w := newTestWatcher(b, Config{})
	call := answered(b, true)
	call.Telemetry = telemetry.New(telemetry.Side{Metrics: map[string]telemetry.Metric{
		"REQUEST_COUNT": {Remove: []string{"response_flags"}, Set: []telemetry.Tag{{Name: "method", Header: "X-Method"}}},
	}}, telemetry.Side{})
	b.ReportAllocs()
	for b.Loop() {
		w.callEnd(context.Background(), call)
	}
}
