//go:build !race

// The race detector makes sync.Pool, which holds the records of requests, drop what it is given.

package mesh_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh"
)

// A request that the inbound side does not change goes through it without an allocation.
func TestHandlerAllocations(t *testing.T) {
	w := newTown(t)
	h := w.member(t, "payment-service", "").Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r, answer := inboundRequest(nil), discard{make(http.Header)}
	if n := testing.AllocsPerRun(100, func() { h.ServeHTTP(answer, r) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
	id, err := w.Identity("default", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	secured := w.member(t, "payment-service", strict+"---"+allowOrders).Handler(http.HandlerFunc(
		func(_ http.ResponseWriter, r *http.Request) { _ = r.Context().Err() }))
	told := inboundRequest(id.Certificate().Leaf)
	told.Header["X-Envoy-Expected-Rq-Timeout-Ms"] = []string{"5000"}
	// What differs for the handler, and a header of two parts.
	if n := testing.AllocsPerRun(100, func() { secured.ServeHTTP(answer, told) }); n > 3 {
		t.Errorf("%v allocations a request with mTLS and a deadline, want at most 3", n)
	}
	observed := w.member(t, "payment-service", "", mesh.WithObserver(mesh.Observer{
		InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx },
		InboundEnd:   func(context.Context, *mesh.Inbound) {},
	})).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(nil) }))
	if n := testing.AllocsPerRun(100, func() { observed.ServeHTTP(answer, r) }); n > 3 {
		t.Errorf("%v allocations a request that is observed, want at most 3", n)
	}
}
