package accesslog_test

import (
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
)

func sampleCall() *mesh.Call {
	r, _ := http.NewRequest(http.MethodGet, "http://orders.shop.svc.cluster.local/v1/orders/42?full=true", nil)
	r.Header = http.Header{
		"User-Agent": {"Go-http-client/2.0"}, "X-Request-Id": {"4b9a1a3e-9c1b-4a5f-9d59-0d6f3b1c2a77"}, "Accept": {"*/*"},
	}
	return &mesh.Call{Request: r, Status: 200, GRPCStatus: -1, Attempts: 1, Duration: 1234567}
}

func BenchmarkCallEnd(b *testing.B) {
	for _, format := range []accesslog.Format{accesslog.JSON, accesslog.Text} {
		b.Run([]string{"json", "text"}[format], func(b *testing.B) {
			access, _ := newLog(b, accesslog.Config{Writer: io.Discard, Format: format})
			o, call, ctx := access.Observer(), sampleCall(), b.Context()
			b.ReportAllocs()
			for b.Loop() {
				o.CallEnd(ctx, call)
			}
			b.ReportMetric(float64(access.Dropped())/float64(b.N), "dropped/op")
		})
	}
}

// BenchmarkQueued is what the call itself pays: its line is taken from the queue and not written.
func BenchmarkQueued(b *testing.B) {
	access, _ := newLog(b, accesslog.Config{Handler: slog.DiscardHandler})
	o, call, ctx := access.Observer(), sampleCall(), b.Context()
	b.ReportAllocs()
	for b.Loop() {
		o.CallEnd(ctx, call)
	}
	b.ReportMetric(float64(access.Dropped())/float64(b.N), "dropped/op")
}

// BenchmarkLine is what the log's own goroutine does for a line.
func BenchmarkLine(b *testing.B) {
	for _, format := range []accesslog.Format{accesslog.JSON, accesslog.Text} {
		b.Run([]string{"json", "text"}[format], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				accesslog.Line(format, "/v1/orders/42")
			}
		})
	}
}
