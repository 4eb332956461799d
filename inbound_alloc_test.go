//go:build !race

// The race detector makes sync.Pool, which holds the records of requests, drop what it is given.

package mesh_test

import (
	"context"
	"crypto/x509"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/jwttest"
)

// A request that the inbound side does not change goes through it without an allocation, except over HTTP/1, where the handler gets a
// ResponseWriter that can be cut off. If the handler gets a context or a request of its own, that is in the same allocation.
func TestHandlerAllocations(t *testing.T) {
	w := newTown(t)
	none := w.member(t, "payment-service", "").Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	id := w.identity(t, "order-service")
	secured := w.member(t, "payment-service", strict+"---"+allowOrders).Handler(http.HandlerFunc(
		func(_ http.ResponseWriter, r *http.Request) { _ = r.Context().Err() }))
	body := inboundRequest(nil)
	body.ContentLength = 10
	told := inboundRequest(id.Certificate().Leaf)
	told.Header["X-Envoy-Expected-Rq-Timeout-Ms"] = []string{"5000"}
	for _, test := range []struct {
		name string
		h    http.Handler
		r    *http.Request
		most map[int]float64
	}{
		{"plaintext", none, inboundRequest(nil), map[int]float64{1: 1, 2: 0}},
		{"plaintext, with a body", none, body, map[int]float64{1: 1, 2: 1}},
		// What differs for the handler, and a header of two parts.
		{"mTLS and a deadline", secured, told, map[int]float64{1: 3, 2: 3}},
	} {
		for version, answer := range httpVersions() {
			test.r.ProtoMajor = version
			if n := testing.AllocsPerRun(100, func() { test.h.ServeHTTP(answer, test.r) }); n > test.most[version] {
				t.Errorf("%s, HTTP %d: %v allocations per request, want at most %v", test.name, version, n, test.most[version])
			}
		}
	}
	for _, reports := range []bool{false, true} { // which costs an observed request no more
		observed := w.member(t, "payment-service", "", mesh.WithServer(mesh.ServerConfig{ReportLoad: reports}), mesh.WithObserver(mesh.Observer{
			InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx },
			InboundEnd:   func(context.Context, *mesh.Inbound) {},
		})).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(nil) }))
		r, answer := inboundRequest(nil), discard{make(http.Header)}
		if n := testing.AllocsPerRun(100, func() { observed.ServeHTTP(answer, r) }); n > 3 {
			t.Errorf("%v allocations per request that is observed (load is reported: %v), want at most 3", n, reports)
		}
	}
}

// A token that is known costs what its claims change for the handler: where a request is copied anyhow, nothing. Over HTTP/1, the copy of
// the request is in an allocation that is needed anyhow.
func TestTokenAllocations(t *testing.T) {
	w := newTown(t)
	id := w.identity(t, "order-service")
	issuer := jwttest.New("a")
	secured := "---" + strict + "---" + allowOrders
	for _, test := range []struct {
		name, rule, documents string
		peer                  *x509.Certificate
		body                  int64
		more                  map[int]float64 // than without rules
	}{
		{"forwarded, plaintext", ", forwardOriginalToken: true", "", nil, 0, map[int]float64{1: 0, 2: 1}},
		{"forwarded, mTLS", ", forwardOriginalToken: true", secured, id.Certificate().Leaf, 0, nil},
		{"plaintext", "", "", nil, 0, map[int]float64{1: 2, 2: 3}}, // a header without the token
		{"plaintext, with a header of it", ", outputClaimToHeaders: [{header: x-sub, claim: sub}]", "", nil, 0, map[int]float64{1: 3, 2: 4}},
		{"plaintext, with a body", "", "", nil, 10, map[int]float64{1: 2, 2: 2}},
		{"mTLS", "", secured, id.Certificate().Leaf, 0, nil},
		{"mTLS, with a header of it", ", outputClaimToHeaders: [{header: x-sub, claim: sub}]", secured, id.Certificate().Leaf, 0, map[int]float64{1: 1, 2: 1}},
	} {
		r := inboundRequest(test.peer)
		r.ContentLength = test.body
		r.Header["Authorization"] = []string{"Bearer " + issuer.Token(`{"iss":"i","sub":"alice","aud":["shop"]}`)}
		handler := func(documents string) http.Handler {
			return w.member(t, "payment-service", documents).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		}
		without := handler(test.documents)
		with := handler(authentication("issuer: i, audiences: [shop], jwks: '"+jwttest.KeySet(issuer)+"'"+test.rule) + test.documents)
		for version, answer := range httpVersions() {
			r.ProtoMajor = version
			before := testing.AllocsPerRun(100, func() { without.ServeHTTP(answer, r) })
			after := testing.AllocsPerRun(100, func() { with.ServeHTTP(answer, r) })
			if after > before+test.more[version] {
				t.Errorf("a token, %s, HTTP %d: %v allocations per request, %v without rules for it, want at most %v more",
					test.name, version, after, before, test.more[version])
			}
		}
	}
}

// HTTP/2 has a new goroutine for each request, whose stack grows from 2 KiB to 4 on the way to the handler. Another time would cost more than all
// that the inbound side does.
func TestHandlerStack(t *testing.T) {
	if testing.CoverMode() != "" {
		t.Skip("the counters of coverage take some of the stack")
	}
	// New stacks are as large as the collector found others to be on average, so there are many small ones.
	const requests = 500
	var small, arrived, served sync.WaitGroup
	leave := make(chan struct{})
	for range 4 * requests {
		small.Go(func() { <-leave })
	}
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector shrinks stacks

	w := newTown(t)
	id := w.identity(t, "order-service")
	linkerd := serverOf(8080, "") + authorizationPolicy(byOrders) + ordersAlone
	for _, documents := range []string{strict + "---" + allowOrders, strict + linkerd, strict + "---" + allowOrders + linkerd,
		strings.Replace(allowing("order-service", "charge"), "- {name: read,", "- {name: charge, methods: [GET]}\n  - {name: read,", 1)} {
		h := w.member(t, "payment-service", documents).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			arrived.Done()
			<-leave
		}))
		r := inboundRequest(id.Certificate().Leaf)
		r.ProtoMajor = 2
		var before, during runtime.MemStats
		runtime.ReadMemStats(&before)
		for range requests {
			arrived.Add(1)
			served.Go(func() { belowNetHTTP(func() { h.ServeHTTP(discard{}, r) }) })
		}
		arrived.Wait()
		runtime.ReadMemStats(&during)
		if each := (during.StackInuse - before.StackInuse) / requests; each > 6<<10 {
			t.Errorf("a request has a stack of %d bytes, want 4 KiB, by\n%s", each, documents)
		}
	}
	close(leave)
	served.Wait()
	small.Wait()
}

// belowNetHTTP calls f with as much of the stack in use as below an http.Server that speaks HTTP/2 over TLS.
//
//go:noinline
func belowNetHTTP(f func()) {
	var frames [720]byte
	f()
	runtime.KeepAlive(&frames)
}

// A request without an origin costs nothing, whatever documents there are.
func TestCORSAllocations(t *testing.T) {
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for version, w := range httpVersions() {
		var counts []float64
		for _, documents := range []string{"", corsDocuments} {
			r := inboundRequest(nil)
			r.Host, r.ProtoMajor = "shop", version
			h := newMesh(t, documents).Handler(next)
			counts = append(counts, testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }))
		}
		if counts[0] != counts[1] {
			t.Errorf("HTTP %d: %v allocations per request with policies, %v without", version, counts[1], counts[0])
		}
	}
}
