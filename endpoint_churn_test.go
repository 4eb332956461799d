package mesh_test

import (
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/route"
)

const churned = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    retries: {attempts: 3, retryOn: "5xx,reset,connect-failure,refused-stream"}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 5, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 50}
`

// TestChurn calls a service whose endpoints change all the time and of which one always fails. No call may fail, since
// there is always a healthy endpoint that could have served it. It runs for a second, or for as long as MESH_CHURN says:
// the test command of this project has it run for a minute.
func TestChurn(t *testing.T) {
	noLeaks(t)
	limit := time.Second
	if s := os.Getenv("MESH_CHURN"); s != "" {
		var err error
		if limit, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	endpoints := []discovery.Endpoint{serve(t, fails(http.StatusServiceUnavailable))}
	for range 8 {
		endpoints = append(endpoints, serve(t, says("ok")))
	}
	var registry discovery.Memory
	registry.Set("api", endpoints...)
	var updates, ejections, readmissions atomic.Int64
	c := newMesh(t, churned, mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
		Endpoints: func(route.Target, int) { updates.Add(1) },
		Ejection: func(_ route.Target, event breaker.Event) {
			if !event.Ejected {
				readmissions.Add(1)
				return
			}
			ejections.Add(1)
			if event.Endpoint != endpoints[0].ID() {
				t.Errorf("%s was ejected, which is healthy", event.Endpoint)
			}
		},
	})).Client()

	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		const perSecond = 1000
		tick := time.NewTicker(time.Second / perSecond)
		defer tick.Stop()
		sets := 0
		for start := time.Now(); ; {
			// A slow machine misses ticks, and catches up.
			for ; sets < int(time.Since(start).Seconds()*perSecond); sets++ {
				// The failing endpoint stays, the healthy ones come and go, three at least.
				set := []discovery.Endpoint{endpoints[0]}
				for _, i := range rand.Perm(8)[:3+rand.IntN(6)] {
					set = append(set, endpoints[1+i])
				}
				registry.Set("api", set...)
			}
			select {
			case <-done:
				t.Logf("%d sets of endpoints in %v", sets, limit)
				return
			case <-tick.C:
			}
		}
	})
	var calls atomic.Int64
	end := time.Now().Add(limit)
	proven := func() bool { return ejections.Load() > 0 && updates.Load() > 0 } // which takes a busy machine longer
	var callers sync.WaitGroup
	for range 32 {
		callers.Go(func() {
			for !t.Failed() && (time.Now().Before(end) || !proven() && time.Now().Before(end.Add(time.Minute))) {
				a, err := try(c, "http://api/")
				if err != nil || a.status != http.StatusOK {
					t.Errorf("call %d failed: %d %v", calls.Load(), a.status, err)
				}
				calls.Add(1)
			}
		})
	}
	callers.Wait()
	close(done)
	running.Wait()
	t.Logf("%d calls, %d updates seen, %d ejections, %d readmissions", calls.Load(), updates.Load(), ejections.Load(), readmissions.Load())
	if !proven() {
		t.Error("nothing changed: the test proves nothing")
	}
}
