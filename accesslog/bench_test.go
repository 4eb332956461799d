package accesslog_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/route"
)

func sampleCall() *mesh.Call {
	r, _ := http.NewRequest(http.MethodGet, "http://orders.shop.svc.cluster.local/v1/orders/42?full=true", nil)
	r.Header = http.Header{
		"User-Agent": {"Go-http-client/2.0"}, "X-Request-Id": {"4b9a1a3e-9c1b-4a5f-9d59-0d6f3b1c2a77"}, "Accept": {"*/*"},
	}
	return &mesh.Call{
		Request: r, Start: time.Unix(1786000000, 0), Status: 200, GRPCStatus: -1, Attempts: 1, Duration: 1234567, BytesReceived: 512,
		Target: route.Target{Host: "orders.shop.svc.cluster.local", Port: 8080, Subset: "v1"},
		Last:   &mesh.Attempt{Endpoint: "10.0.0.1:8080", Header: r.Header},
	}
}

func sampleInbound() *mesh.Inbound {
	r := sampleCall().Request
	r.RequestURI, r.Host, r.RemoteAddr = "/v1/orders/42?full=true", "orders.shop.svc.cluster.local", "10.0.0.7:41234"
	local := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 8), Port: 8080}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
	return &mesh.Inbound{
		Request: r, Start: time.Unix(1786000000, 0), Status: 200, GRPCStatus: -1, Duration: 1234567, Decision: authz.Decision{Allowed: true},
	}
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
		access, _ := newLog(b, accesslog.Config{Writer: io.Discard, Format: format})
		handled, _ := newLog(b, accesslog.Config{Handler: slog.NewJSONHandler(io.Discard, nil)})
		for name, write := range map[string]func(){
			"call": access.Writing(sampleCall(), nil), "request": access.Writing(nil, sampleInbound()), "handler": handled.Writing(sampleCall(), nil),
		} {
			b.Run([]string{"json", "text"}[format]+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					write()
				}
			})
		}
	}
}
