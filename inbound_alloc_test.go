//go:build !race

// The race detector makes sync.Pool, which holds the records of requests, drop what it is given.

package mesh_test

import (
	"context"
	"crypto/x509"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/jwttest"
)

// A request that the inbound side does not change goes through it without an allocation.
func TestHandlerAllocations(t *testing.T) {
	w := newTown(t)
	h := w.member(t, "payment-service", "").Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r, answer := inboundRequest(nil), discard{make(http.Header)}
	if n := testing.AllocsPerRun(100, func() { h.ServeHTTP(answer, r) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
	id := w.identity(t, "order-service")
	secured := w.member(t, "payment-service", strict+"---"+allowOrders).Handler(http.HandlerFunc(
		func(_ http.ResponseWriter, r *http.Request) { _ = r.Context().Err() }))
	told := inboundRequest(id.Certificate().Leaf)
	told.Header["X-Envoy-Expected-Rq-Timeout-Ms"] = []string{"5000"}
	// What differs for the handler, and a header of two parts.
	if n := testing.AllocsPerRun(100, func() { secured.ServeHTTP(answer, told) }); n > 3 {
		t.Errorf("%v allocations a request with mTLS and a deadline, want at most 3", n)
	}
	// A token that is known costs what its claims change for the handler: where a request is copied anyhow, nothing.
	issuer := jwttest.New("a")
	for _, test := range []struct {
		name, rule, documents string
		peer                  *x509.Certificate
		more                  float64 // than without rules
		body                  int64
	}{
		{"forwarded, plaintext", ", forwardOriginalToken: true", "", nil, 1, 0},
		{"forwarded, mTLS", ", forwardOriginalToken: true", "---" + strict + "---" + allowOrders, id.Certificate().Leaf, 0, 0},
		{"plaintext", "", "", nil, 3, 0}, // a header without the token, too
		{"plaintext, with a header of it", ", outputClaimToHeaders: [{header: x-sub, claim: sub}]", "", nil, 4, 0},
		{"plaintext, with a body", "", "", nil, 2, 10},
		{"mTLS", "", "---" + strict + "---" + allowOrders, id.Certificate().Leaf, 0, 0},
		{"mTLS, with a header of it", ", outputClaimToHeaders: [{header: x-sub, claim: sub}]", "---" + strict + "---" + allowOrders, id.Certificate().Leaf, 1, 0},
	} {
		r := inboundRequest(test.peer)
		r.ContentLength = test.body
		r.Header["Authorization"] = []string{"Bearer " + issuer.Token(`{"iss":"i","sub":"alice","aud":["shop"]}`)}
		allocations := func(documents string) float64 {
			h := w.member(t, "payment-service", documents).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			return testing.AllocsPerRun(100, func() { h.ServeHTTP(answer, r) })
		}
		without := allocations(test.documents)
		with := allocations(authentication("issuer: i, audiences: [shop], jwks: '"+jwttest.KeySet(issuer)+"'"+test.rule) + test.documents)
		if with > without+test.more {
			t.Errorf("a token, %s: %v allocations a request, %v without rules for it, want at most %v more", test.name, with, without, test.more)
		}
	}
	for _, reports := range []bool{false, true} { // which costs an observed request no more
		observed := w.member(t, "payment-service", "", mesh.WithServer(mesh.ServerConfig{ReportLoad: reports}), mesh.WithObserver(mesh.Observer{
			InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx },
			InboundEnd:   func(context.Context, *mesh.Inbound) {},
		})).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(nil) }))
		if n := testing.AllocsPerRun(100, func() { observed.ServeHTTP(answer, r) }); n > 3 {
			t.Errorf("%v allocations a request that is observed (load is reported: %v), want at most 3", n, reports)
		}
	}
}
