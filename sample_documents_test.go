package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// The sample documents of policy/testdata/seed, each enforced as its own comments describe, percentages and retries read as Istio does.

func TestSampleWeightsAndHeaderMatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("user-service", labeled(f.Add(t, says("v1")), "version", "v1"), labeled(f.Add(t, says("v2")), "version", "v2"))
		c := f.Mesh(t, readSeed(t, "01-istio-routing-destination-retry-timeout.yaml")).Client()

		const calls = 5000
		versions := map[string]int{}
		for range calls {
			versions[get(t, c, "http://user-service/").body]++
		}
		// 90/10: four standard deviations are 85.
		between(t, "calls to v1", versions["v1"], calls*90/100-85, calls*90/100+85)
		between(t, "calls to v2", versions["v2"], calls*10/100-85, calls*10/100+85)
		for range 100 {
			if got := get(t, c, "http://user-service/", "version", "v2").body; got != "v2" {
				t.Fatalf("with version: v2 the call went to %s", got)
			}
		}
	})
}

func TestSampleRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var calls atomic.Int32
		f.Registry.Set("order-service", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.WriteHeader(http.StatusServiceUnavailable)
		}))
		c := f.Mesh(t, readSeed(t, "01-istio-routing-destination-retry-timeout.yaml")).Client()
		a := get(t, c, "http://order-service/")
		if a.status != http.StatusServiceUnavailable || calls.Load() != 4 || retry.Attempts(a.resp) != 4 {
			t.Errorf("status %d after %d calls, Attempts %d; want 503 after 1 + 3 calls", a.status, calls.Load(), retry.Attempts(a.resp))
		}
	})
}

func TestSampleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("payment-service", f.Add(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		c := f.Mesh(t, readSeed(t, "01-istio-routing-destination-retry-timeout.yaml")).Client()
		start := time.Now()
		_, err := try(c, "http://payment-service/")
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("the call ended after %v, want 10s", took)
		}
		var failure *mesh.Error
		if !errors.As(err, &failure) || failure.Flags.String() != "UT" || failure.Layer != "timeout" ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want a timeout with flag UT", err)
		}
	})
}

func TestSampleCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("myapp", labeled(f.Add(t, says("v1")), "version", "v1"), labeled(f.Add(t, says("v2")), "version", "v2"))
		c := f.Mesh(t, readSeed(t, "03-canary.yaml")+"\n---\n"+versions("myapp")).Client()
		const calls = 5000
		n := map[string]int{}
		for range calls {
			n[get(t, c, "http://myapp/").body]++
		}
		between(t, "calls to v2", n["v2"], calls*5/100-62, calls*5/100+62)
	})
}

func TestSampleABTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("myapp", labeled(f.Add(t, says("v1")), "version", "v1"), labeled(f.Add(t, says("v2")), "version", "v2"))
		c := f.Mesh(t, readSeed(t, "04-ab-testing.yaml")+"\n---\n"+versions("myapp")).Client()
		for tier, want := range map[string]string{"premium": "v2", "free": "v1", "": "v1", "Premium": "v1"} {
			for range 20 {
				if got := get(t, c, "http://myapp/", "user-tier", tier).body; got != want {
					t.Errorf("user-tier %q went to %s, want %s", tier, got, want)
				}
			}
		}
	})
}

func TestSampleMirroring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var mu sync.Mutex
		copies := map[string]int{}
		f.Registry.Set("myapp", labeled(f.Add(t, says("v1")), "version", "v1"), labeled(f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			copies[r.Method+" "+r.Host+r.URL.Path+" "+string(body)]++
			mu.Unlock()
			w.WriteHeader(http.StatusInternalServerError) // which must not matter
		}), "version", "v2"))
		c := f.Mesh(t, readSeed(t, "05-mirroring.yaml")+"\n---\n"+versions("myapp")).Client()
		for range 50 {
			resp, err := c.Post("http://myapp/orders", "text/plain", io.MultiReader(strings.NewReader("one order")))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(body) != "v1" {
				t.Fatalf("the call went to %s", body)
			}
			synctest.Wait()
		}
		if want := "POST myapp-shadow/orders one order"; copies[want] != 50 || len(copies) != 1 {
			t.Errorf("copies: %v, want 50 of %q", copies, want)
		}
	})
}

func TestSampleEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var broken atomic.Bool
		broken.Store(true)
		bad := f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			if broken.Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
			io.WriteString(w, "bad")
		})
		f.Registry.Set("payment-service", f.Add(t, says("good")), bad)
		var events []string
		m := f.Mesh(t, readSeed(t, "08-circuit-breaking.yaml"), mesh.WithObserver(mesh.Observer{Ejection: func(_ route.Target, event breaker.Event) {
			what := "endpoint readmitted"
			if event.Ejected {
				what = "endpoint ejected"
			}
			events = append(events, fmt.Sprintf("%s %s %s", what, event.Endpoint, event.Reason))
		}}))
		c := m.Client()
		failures := 0
		for range 200 {
			if get(t, c, "http://payment-service/").status != http.StatusOK {
				failures++
			}
		}
		if failures != 5 {
			t.Errorf("%d calls failed before the endpoint was ejected, want 5", failures)
		}
		broken.Store(false)
		advance(29 * time.Second)
		for range 50 {
			if got := get(t, c, "http://payment-service/").body; got != "good" {
				t.Fatalf("29s after the ejection a call went to the ejected endpoint")
			}
		}
		advance(31 * time.Second) // the sweep comes every 30s
		back := 0
		for range 200 {
			if get(t, c, "http://payment-service/").body == "bad" {
				back++
			}
		}
		between(t, "calls to the readmitted endpoint", back, 50, 150)
		if want := fmt.Sprintf("[endpoint ejected %s consecutive_5xx endpoint readmitted %s ]", bad.ID(), bad.ID()); fmt.Sprint(events) != want {
			t.Errorf("events %v, want %s", events, want)
		}
	})
}

func TestSamplePerTryTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var calls atomic.Int32
		f.Registry.Set("user-service", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			<-r.Context().Done()
		}))
		c := f.Mesh(t, readSeed(t, "09-retries.yaml")).Client()
		start := time.Now()
		_, err := try(c, "http://user-service/")
		took := time.Since(start)
		// Four tries of 2s, with waits of 25, 75 and 175 ms at the most: within the route's 10s.
		if calls.Load() != 4 || took < 8*time.Second || took > 8*time.Second+275*time.Millisecond {
			t.Errorf("%d tries in %v, want 4 in 8s and the waits", calls.Load(), took)
		}
		var failure *mesh.Error
		if !errors.As(err, &failure) || failure.Flags.String() != "UT,URX" || failure.Attempts != 4 {
			t.Errorf("error %v, want 4 attempts and flags UT,URX", err)
		}
	})
}

func TestSampleCompleteSetup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var endpoints []discovery.Endpoint
		for i := range 3 {
			e := f.Add(t, says(fmt.Sprint("endpoint ", i)))
			e.Ports, e.Port = []discovery.Port{{Name: "http", Number: 3000, Target: 80}}, 0
			endpoints = append(endpoints, e)
		}
		f.Registry.Set("user-service.myapp", endpoints...)
		m := f.Mesh(t, outbound(t, "10-complete-setup.yaml"), mesh.WithWorkload(policy.Workload{Namespace: "myapp"}))
		c := m.Client()

		users := map[string]string{}
		spread := map[string]bool{}
		calls := 0
		for i := range 300 {
			user := fmt.Sprint("user-", i%30)
			a, err := try(c, "http://user-service:3000/api/profile", "x-user-id", user)
			if err != nil {
				t.Fatal(err)
			}
			if a.status == http.StatusServiceUnavailable {
				continue // 1 in 10,000, as the document has it
			}
			calls++
			if users[user] == "" {
				users[user] = a.body
			}
			if users[user] != a.body {
				t.Errorf("%s went to %s and to %s", user, users[user], a.body)
			}
			spread[a.body] = true
		}
		if len(spread) != 3 {
			t.Errorf("30 users went to %d endpoints, want 3", len(spread))
		}
		// maxRequestsPerConnection: 2
		if dials := f.Network.Dials(); dials < calls/2 || dials > calls {
			t.Errorf("%d calls over %d connections, want two a connection", calls, dials)
		}
		if a := get(t, c, "http://user-service:3000/other"); a.status != http.StatusNotFound {
			t.Errorf("a path that no route matches gave %d, want 404", a.status)
		}
	})
}

// versions has the subsets that the canary, A/B and mirroring documents of the seed name.
func versions(host string) string {
	return strings.ReplaceAll(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: HOST-versions
spec:
  host: HOST
  subsets:
  - name: v1
    labels: {version: v1}
  - name: v2
    labels: {version: v2}
`, "HOST", host)
}

// outbound returns the documents of a seed file without those of the security kinds: with STRICT, endpoints without TLS are
// not called. Those have tests of their own.
func outbound(t testing.TB, name string) string {
	var kept []string
	for document := range strings.SplitSeq(readSeed(t, name), "\n---\n") {
		if !strings.Contains(document, "security.istio.io") {
			kept = append(kept, document)
		}
	}
	return strings.Join(kept, "\n---\n")
}
