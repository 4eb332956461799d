package mesh_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// What an observer sets is sent with that attempt alone, and the caller's request stays as it is.
func TestHeadersOfAttempts(t *testing.T) {
	// With a timeout the header of an attempt has been copied already.
	for name, field := range map[string]string{"without a timeout": "", "with a timeout": "    timeout: 1h\n"} {
		t.Run(name, func(t *testing.T) { testHeadersOfAttempts(t, field) })
	}
}

func testHeadersOfAttempts(t *testing.T, field string) {
	noLeaks(t)
	var mu sync.Mutex
	var seen []http.Header
	var registry discovery.Memory
	registry.Set("api", meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	const documents = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}
`
	var kept http.Header
	m := newMesh(t, documents+field, mesh.WithDiscovery(&registry),
		mesh.WithObserver(mesh.Observer{AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			a.Sent.SetHeader(fmt.Sprint("x-only-", a.Number), "yes")
			for i := range 20 { // more than there is room for
				a.Sent.SetHeader(fmt.Sprint("x-", i), fmt.Sprint(a.Number, ".", i))
			}
			if a.Number == 2 {
				a.Sent.SetHeader("X-Removed", "")
			}
			return ctx
		}}),
		mesh.WithObserver(mesh.Observer{AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			kept = a.Header // what the observer before has made of it
			return ctx
		}}))
	req, _ := http.NewRequest(http.MethodGet, "http://api/", nil)
	req.Header = http.Header{"X-Removed": {"no"}, "X-3": {"mine"}}
	before := maps.Clone(req.Header)
	resp, err := m.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !maps.EqualFunc(req.Header, before, slices.Equal) {
		t.Errorf("the caller's header is %v", req.Header)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 3 || kept.Get("X-Only-3") != "yes" {
		t.Fatalf("%d attempts; the second observer saw %v", len(seen), kept)
	}
	for i, h := range seen {
		n := i + 1
		for other := 1; other <= 3; other++ {
			if got := h.Get(fmt.Sprint("x-only-", other)) == "yes"; got != (other == n) {
				t.Errorf("attempt %d has the header of attempt %d: %t", n, other, got)
			}
		}
		if got, want := h.Get("X-19"), fmt.Sprint(n, ".19"); got != want || h.Get("X-3") != fmt.Sprint(n, ".3") {
			t.Errorf("attempt %d sent %q, want %q", n, got, want)
		}
		if got := h["X-Removed"] == nil; got != (n == 2) {
			t.Errorf("attempt %d: the header is removed: %t", n, got)
		}
	}
}
