package mesh_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/nosidecar/mesh"
)

// discard is a ResponseWriter that keeps nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// inboundRequest is a request as a server gets it, from the peer with a certificate, if it is not nil.
func inboundRequest(certificate *x509.Certificate) *http.Request {
	r := httptest.NewRequest("GET", "/v1/charge", nil)
	r.Header = http.Header{"User-Agent": {"test"}, "Accept": {"*/*"}}
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
	if certificate != nil {
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{certificate}}
	}
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
}

// BenchmarkHandler is what the inbound side adds to a handler that does nothing.
func BenchmarkHandler(b *testing.B) {
	w := newTown(b)
	id, err := w.Identity("default", "order-service")
	if err != nil {
		b.Fatal(err)
	}
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	secured := w.member(b, "payment-service", strict+"---"+allowOrders, mesh.WithServer(mesh.ServerConfig{MaxRequests: 1000}))
	for _, bm := range []struct {
		name     string
		peer     *x509.Certificate
		deadline bool // announced by the peer
		h        http.Handler
	}{
		{"bare", nil, false, next},
		{"plaintext", nil, false, w.member(b, "payment-service", "").Handler(next)},
		{"mTLS, authorized, limited", id.Certificate().Leaf, false, secured.Handler(next)},
		{"mTLS, authorized, limited, with a deadline", id.Certificate().Leaf, true, secured.Handler(next)},
	} {
		b.Run(bm.name, func(b *testing.B) {
			r, w := inboundRequest(bm.peer), discard{make(http.Header)}
			if bm.deadline {
				r.Header["X-Envoy-Expected-Rq-Timeout-Ms"] = []string{"5000"}
			}
			b.ReportAllocs()
			for b.Loop() {
				bm.h.ServeHTTP(w, r)
			}
		})
	}
}
