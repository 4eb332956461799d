package mesh_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
)

// thousand returns 1,000 documents as files, a VirtualService and a DestinationRule for each of 500 services. What
// differs from generation to generation is a header, and the settings of every tenth service.
func thousand(generation int) []policy.Source {
	sources := make([]policy.Source, 0, 500)
	for i := range 500 {
		limit := 1000
		if i%10 == 1 {
			limit += generation
		}
		sources = append(sources, policy.Source{Name: fmt.Sprintf("service-%d.yaml", i), Data: fmt.Appendf(nil, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: service-%[1]d}
spec:
  hosts: [service-%[1]d]
  http:
  - match: [{uri: {prefix: /v2/}}, {headers: {version: {exact: v2}}}]
    route: [{destination: {host: service-%[1]d, subset: v2}}]
  - route: [{destination: {host: service-%[1]d}}]
    timeout: 30s
    retries: {attempts: 2, retryOn: "connect-failure,refused-stream"}
    headers: {response: {set: {x-generation: "%[2]d"}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: service-%[1]d}
spec:
  host: service-%[1]d
  trafficPolicy:
    connectionPool: {http: {http2MaxRequests: %[3]d}}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1h, maxEjectionPercent: 50}
  subsets:
  - {name: v2, labels: {version: v2}}
`, i, generation, limit)})
	}
	return sources
}

// TestReloadUnderLoad replaces 1,000 documents again and again, good sets between bad ones, while calls are made. No call
// fails, and what was learned of destinations whose settings did not change stays.
func TestReloadUnderLoad(t *testing.T) {
	noLeaks(t)
	var broken atomic.Bool
	broken.Store(true)
	var failed atomic.Int32
	bad := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			failed.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	good := serve(t, says("ok"))
	services := discovery.Static{}
	for i := range 500 {
		services[fmt.Sprintf("service-%d", i)] = []discovery.Endpoint{good, bad}
	}
	feed := make(fed)
	var took, refused atomic.Int32
	opened := make(chan *mesh.Mesh, 1)
	go func() {
		m, err := mesh.New(t.Context(), mesh.WithDiscovery(services), mesh.WithPolicyFeed(feed), mesh.WithObserver(mesh.Observer{
			PolicyLoad: func(l mesh.PolicyLoad) {
				if l.Err == nil {
					took.Add(1)
				} else {
					refused.Add(1)
				}
			},
		}))
		if err != nil {
			t.Error(err)
		}
		opened <- m
	}()
	feed <- thousand(0)
	m := <-opened
	if m == nil {
		t.FailNow()
	}
	t.Cleanup(func() { m.Close() })
	c := m.Client()

	// Each of the services that are called learns, once, that one of its endpoints fails.
	const called = 20
	for i := range called {
		for range 20 {
			get(t, c, fmt.Sprintf("http://service-%d/", i*10))
		}
	}
	learned := failed.Load()
	if learned != called {
		t.Fatalf("%d calls failed before the endpoint was ejected for %d services", learned, called)
	}

	due, done := make(chan struct{}, 1), make(chan struct{})
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for generation := 1; ; generation++ {
			select {
			case <-due: // calls get their share of one processor
			case <-done:
				return
			}
			set := thousand(generation)
			switch generation % 4 {
			case 1: // corrupt
				set[7].Data = []byte("kind: VirtualService\nspec: [}")
			case 2: // truncated
				set[9].Data = set[9].Data[:len(set[9].Data)/3]
			case 3: // conflicting: the same document twice
				set[11].Data = set[10].Data
			}
			select {
			case feed <- set:
			case <-done:
				return
			}
		}
	})
	var next atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for {
				n := next.Add(1)
				if n%250 == 0 {
					select {
					case due <- struct{}{}:
					default:
					}
				}
				// 5,000 calls, and as many more as it takes to see a good reload.
				if n > 5000 && took.Load() > 2 {
					return
				}
				a, err := try(c, fmt.Sprintf("http://service-%d/", n%called*10))
				if err != nil || a.status != http.StatusOK || a.header.Get("x-generation") == "" {
					t.Errorf("call %d: %d %v, generation %q", n, a.status, err, a.header.Get("x-generation"))
					return
				}
			}
		})
	}
	callers.Wait()
	close(done)
	reloads.Wait()
	if n := failed.Load(); n != learned {
		t.Errorf("%d more calls went to the ejected endpoints: their ejection was forgotten", n-learned)
	}
	t.Logf("%d calls, %d good sets, %d bad ones", next.Load(), took.Load(), refused.Load())
	if took.Load() < 2 || refused.Load() == 0 {
		t.Error("nothing was reloaded: the test proves nothing")
	}
}
