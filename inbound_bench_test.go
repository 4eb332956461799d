package mesh_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/jwttest"
)

// discard is a ResponseWriter that keeps nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// discardHTTP1 is discard with what the inbound side tells HTTP/1 by.
type discardHTTP1 struct{ discard }

func (discardHTTP1) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, http.ErrHijacked }

// httpVersions are those of HTTP, with a ResponseWriter for each.
func httpVersions() map[int]http.ResponseWriter {
	return map[int]http.ResponseWriter{1: discardHTTP1{discard{make(http.Header)}}, 2: discard{make(http.Header)}}
}

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
	id := w.identity(b, "order-service")
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	secured := w.member(b, "payment-service", strict+"---"+allowOrders, mesh.WithServer(mesh.ServerConfig{MaxRequests: 1000}))
	deadline := []string{"X-Envoy-Expected-Rq-Timeout-Ms", "5000"} // announced by the peer
	issuer := jwttest.New("a")
	token := []string{"Authorization", "Bearer " + issuer.Token(`{"iss":"i","sub":"alice","aud":["shop"],"scope":"read write"}`)}
	users := func(more, documents string) http.Handler {
		rules := authentication("issuer: i, audiences: [shop], jwks: '" + jwttest.KeySet(issuer) + "'" + more)
		return w.member(b, "payment-service", rules+documents, mesh.WithServer(mesh.ServerConfig{MaxRequests: 1000})).Handler(next)
	}
	for _, bm := range []struct {
		name   string
		peer   *x509.Certificate
		header []string
		h      http.Handler
	}{
		{"bare", nil, nil, next},
		{"plaintext", nil, nil, w.member(b, "payment-service", "").Handler(next)},
		{"mTLS, authorized, limited", id.Certificate().Leaf, nil, secured.Handler(next)},
		{"mTLS, authorized, limited, with a deadline", id.Certificate().Leaf, deadline, secured.Handler(next)},
		{"plaintext, a token that is not looked at", nil, token, w.member(b, "payment-service", "").Handler(next)},
		{"plaintext, a token that is forwarded", nil, token, users(", forwardOriginalToken: true", "")},
		{"plaintext, a token", nil, token, users("", "")},
		{"plaintext, a token, and a header of it", nil, token, users(", outputClaimToHeaders: [{header: x-sub, claim: sub}]", "")},
		{"mTLS, authorized, limited, a token", id.Certificate().Leaf, token, users("", "---"+strict+"---"+allowOrders)},
	} {
		r := inboundRequest(bm.peer)
		if bm.header != nil {
			r.Header[bm.header[0]] = bm.header[1:]
		}
		for version, w := range httpVersions() {
			b.Run(fmt.Sprintf("%s, HTTP %d", bm.name, version), func(b *testing.B) {
				r.ProtoMajor = version
				b.ReportAllocs()
				for b.Loop() {
					bm.h.ServeHTTP(w, r)
				}
			})
		}
	}
}
