package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy/route"
)

// annotatedService is the Service api with annotations, and what its spec has.
func annotatedService(annotations string) string {
	return "---\napiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: default, annotations: {" + annotations + "}}\nspec: {ports: [{port: 80, name: http}]}\n"
}

// attachedTo is an HTTPRoute of the Service api, or a ServiceProfile for it.
func attachedTo(annotations, rule string) string {
	return "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: api, namespace: default, annotations: {" + annotations + "}}\n" +
		"spec: {parentRefs: [{group: \"\", kind: Service, name: api}], rules: [{backendRefs: [{name: api, port: 80}]" + rule + "}]}\n"
}

// TestLinkerd_ServiceAnnotations: how often a request is sent to a server that fails, and how long the caller waits for one that does not answer.
func TestLinkerd_ServiceAnnotations(t *testing.T) {
	const (
		retried = "retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: '3'"
		timed   = "timeout.linkerd.io/request: 2s"
		profile = "---\napiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: api.default.svc.cluster.local, namespace: default}\n" +
			"spec: {routes: [{name: all, condition: {pathRegex: '.*'}, timeout: 1s}]}\n"
		virtual = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: api, namespace: default}\n" +
			"spec: {hosts: [api], http: [{route: [{destination: {host: api}}]%s}]}\n"
	)
	for _, tt := range []struct {
		name, documents, path string
		tries                 int
		wait                  time.Duration // 0: for a minute, when the caller gives up
	}{
		{name: "no annotations", documents: annotatedService(""), tries: 1},
		{name: "retries", documents: annotatedService(retried), tries: 4},
		{name: "a limit of 0 is the default", documents: annotatedService("retry.linkerd.io/http: gateway-error, retry.linkerd.io/limit: '0'"), tries: 2},
		{name: "another status", documents: annotatedService("retry.linkerd.io/http: '500-502'"), tries: 1},
		{name: "a timeout", documents: annotatedService(timed), tries: 1, wait: 2 * time.Second},
		{name: "both", documents: annotatedService(retried + ", " + timed), tries: 4, wait: 2 * time.Second},
		{name: "a timeout of tries", documents: annotatedService(retried + ", retry.linkerd.io/timeout: 1s"), tries: 4, wait: 4 * time.Second},
		{name: "for gRPC", documents: annotatedService("retry.linkerd.io/grpc: unavailable"), tries: 1},

		{name: "a route without settings", documents: annotatedService(retried+", "+timed) + attachedTo("", ""), tries: 4, wait: 2 * time.Second},
		{name: "a route that retries", documents: annotatedService(retried+", "+timed) + attachedTo("retry.linkerd.io/http: '503'", ""), tries: 2, wait: 2 * time.Second},
		{name: "a route with a timeout", documents: annotatedService(retried+", "+timed) + attachedTo("timeout.linkerd.io/request: 3s", ""), tries: 4, wait: 3 * time.Second},
		{name: "a rule with a timeout", documents: annotatedService(retried+", "+timed) + attachedTo("", ", timeouts: {request: 5s}"), tries: 4, wait: 5 * time.Second},
		{name: "a rule with retries", documents: annotatedService(retried+", "+timed) + attachedTo("", ", retry: {attempts: 1, codes: [503], backoff: 1ms}"), tries: 2, wait: 2 * time.Second},
		{name: "a route of another port", documents: annotatedService(retried) + strings.Replace(attachedTo("", ""), "name: api}]", "name: api, port: 81}]", 1), tries: 4},

		{name: "a VirtualService", documents: annotatedService(retried+", "+timed) + fmt.Sprintf(virtual, ""), tries: 4, wait: 2 * time.Second},
		{name: "with a timeout", documents: annotatedService(retried+", "+timed) + fmt.Sprintf(virtual, ", timeout: 7s"), tries: 4, wait: 7 * time.Second},
		{name: "with retries", documents: annotatedService(retried+", "+timed) + fmt.Sprintf(virtual, ", retries: {attempts: 0}"), tries: 1, wait: 2 * time.Second},
		{name: "a ServiceProfile", documents: annotatedService(retried+", "+timed) + profile, tries: 1, wait: time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				var tries atomic.Int64
				f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
					tries.Add(1)
					if r.URL.Path == "/slow" {
						<-r.Context().Done()
					}
					w.WriteHeader(http.StatusServiceUnavailable)
				}))
				c := f.Mesh(t, tt.documents).Client()
				c.Timeout = time.Minute
				if a := get(t, c, "http://api/"); a.status != http.StatusServiceUnavailable || tries.Load() != int64(tt.tries) {
					t.Errorf("status %d after %d tries, want %d", a.status, tries.Load(), tt.tries)
				}
				began := time.Now()
				try(c, "http://api/slow")
				if wait := time.Since(began); tt.wait != 0 && wait != tt.wait || tt.wait == 0 && wait != time.Minute {
					t.Errorf("waited %v, want %v", wait, tt.wait)
				}
			})
		})
	}
}

// accrues are annotations by which two failures take an endpoint out.
const accrues = "balancer.linkerd.io/failure-accrual: consecutive, balancer.linkerd.io/failure-accrual-consecutive-max-failures: '2', " +
	"balancer.linkerd.io/failure-accrual-consecutive-min-penalty: 10s, balancer.linkerd.io/failure-accrual-consecutive-max-penalty: 30s, " +
	"balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio: '0'"

// failing is a server that fails on demand, and counts.
type failing struct {
	fails atomic.Bool
	seen  atomic.Int64
}

func (f *failing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.seen.Add(1)
	if r.URL.Path == "/hang" {
		<-r.Context().Done()
	}
	if f.fails.Load() {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// accruing is a mesh with two endpoints of the Service api, the first of which fails on demand.
type accruing struct {
	bad    failing
	mesh   *mesh.Mesh
	client *http.Client
	told   []string

	registry  *discovery.Memory
	endpoints []discovery.Endpoint
}

func newAccruing(t *testing.T, documents string) *accruing {
	a := new(accruing)
	a.bad.fails.Store(true)
	f := new(meshtest.Fleet)
	a.registry, a.endpoints = &f.Registry, []discovery.Endpoint{f.Add(t, a.bad.ServeHTTP), f.Add(t, says("good"))}
	a.registry.Set("api", a.endpoints...)
	began := time.Now()
	a.mesh = f.Mesh(t, documents, mesh.WithObserver(mesh.Observer{Ejection: func(_ route.Target, e breaker.Event) {
		a.told = append(a.told, fmt.Sprint(e.Endpoint, " ", e.Ejected, " ", time.Since(began).Round(time.Second)))
	}}))
	a.client = a.mesh.Client()
	return a
}

// calls makes requests, and returns how many the first endpoint saw, and how many failed.
func (a *accruing) calls(t *testing.T, n int) (seen, failed int) {
	t.Helper()
	before := a.bad.seen.Load()
	for range n {
		if get(t, a.client, "http://api/").status != http.StatusOK {
			failed++
		}
	}
	return int(a.bad.seen.Load() - before), failed
}

func (a *accruing) want(t *testing.T, when string, n, seen, failed int) {
	t.Helper()
	if gotSeen, gotFailed := a.calls(t, n); gotSeen != seen || gotFailed != failed {
		t.Errorf("%s: the endpoint got %d of %d calls, and %d failed; want %d and %d", when, gotSeen, n, gotFailed, seen, failed)
	}
}

// TestLinkerd_FailureAccrual: an endpoint that fails is out for the penalty. Then one call decides whether it comes back, or stays out for twice as long.
func TestLinkerd_FailureAccrual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccruing(t, annotatedService(accrues))
		a.want(t, "at first", 50, 2, 2)
		a.want(t, "out", 50, 0, 0)
		advance(9 * time.Second)
		a.want(t, "before the end of the penalty", 50, 0, 0)
		for _, penalty := range []time.Duration{time.Second, 20 * time.Second, 30 * time.Second, 30 * time.Second} {
			advance(penalty - time.Second)
			a.want(t, fmt.Sprint("before the end of ", penalty), 50, 0, 0)
			advance(time.Second)
			a.want(t, fmt.Sprint("after ", penalty), 50, 1, 1)
		}
		// What a status page shows.
		text := ""
		for _, s := range a.mesh.Status().Services {
			for _, e := range s.Endpoints {
				text += fmt.Sprint(e.Healthy, e.Reason, " ")
			}
		}
		if text != "falseconsecutive_5xx true " {
			t.Errorf("the status says %q", text)
		}
		advance(30 * time.Second)
		a.bad.fails.Store(false)
		if seen, failed := a.calls(t, 50); seen < 10 || failed > 0 {
			t.Errorf("recovered: the endpoint got %d of 50 calls, and %d failed", seen, failed)
		}
		// The first penalty is the shortest one again.
		a.bad.fails.Store(true)
		a.want(t, "again", 50, 2, 2)
		advance(10 * time.Second)
		a.want(t, "after the penalty", 50, 1, 1)
		if got := strings.Join(a.told, ", "); got != "10.0.0.1:80 true 0s, 10.0.0.1:80 false 2m0s, 10.0.0.1:80 true 2m0s" {
			t.Errorf("observers were told %s", got)
		}
	})
}

// TestLinkerd_FailureAccrual_OneCallDecides: while it is under way, no other call gets the endpoint. If its caller gives up, the next one decides.
func TestLinkerd_FailureAccrual_OneCallDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccruing(t, annotatedService(accrues))
		a.want(t, "at first", 50, 2, 2)
		advance(10 * time.Second)
		ctx, giveUp := context.WithCancel(t.Context())
		defer giveUp()
		hung := 0
		for hung == 0 {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/hang", nil)
			before := a.bad.seen.Load()
			go func() {
				if resp, err := a.client.Do(req); err == nil {
					resp.Body.Close()
				}
			}()
			synctest.Wait()
			hung = int(a.bad.seen.Load() - before)
		}
		a.want(t, "on trial", 50, 0, 0)
		giveUp()
		synctest.Wait()
		a.want(t, "after the caller gave up", 50, 1, 1)
	})
}

// TestLinkerd_FailureAccrual_AllOut: nothing keeps the last endpoint in. A success in between starts the count again.
func TestLinkerd_FailureAccrual_AllOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var bad failing
		f.Registry.Set("api", f.Add(t, bad.ServeHTTP))
		c := f.Mesh(t, annotatedService(accrues)).Client()
		for i, fails := range []bool{true, false, true, false, true, true} {
			bad.fails.Store(fails)
			if a := get(t, c, "http://api/"); (a.status == http.StatusInternalServerError) != fails {
				t.Fatalf("call %d: status %d", i, a.status)
			}
		}
		if _, err := try(c, "http://api/"); !errors.Is(err, balancer.ErrNoHealthy) || bad.seen.Load() != 6 {
			t.Errorf("with no endpoint left: %v, %d calls arrived", err, bad.seen.Load())
		}
		advance(10 * time.Second)
		bad.fails.Store(false)
		if a := get(t, c, "http://api/"); a.status != http.StatusOK {
			t.Errorf("after the penalty: status %d", a.status)
		}
	})
}

// TestLinkerd_FailureAccrual_Beside: a DestinationRule with outlierDetection and a ServiceProfile put other rules in its place, and a reload that leaves
// the annotations alone keeps what was learned.
func TestLinkerd_FailureAccrual_Beside(t *testing.T) {
	for _, tt := range []struct {
		name, documents string
		seen            int // of 50 calls; -1: about half
	}{
		{"nothing", "", 2},
		{"a DestinationRule", destinationRule("loadBalancer: {simple: ROUND_ROBIN}"), 2},
		{"one with outlierDetection", destinationRule("outlierDetection: {consecutive5xxErrors: 5, maxEjectionPercent: 100}"), 5},
		{"a ServiceProfile", "---\napiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: api.default.svc.cluster.local, namespace: default}\nspec: {routes: []}\n", -1},
		{"a TrafficSplit", "---\napiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {name: api, namespace: default}\nspec: {service: api, backends: [{service: api, weight: 1}]}\n", -1},
		{"an HTTPRoute", attachedTo("", ""), 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccruing(t, annotatedService(accrues)+tt.documents)
				if seen, _ := a.calls(t, 50); tt.seen >= 0 && seen != tt.seen || tt.seen < 0 && seen < 10 {
					t.Errorf("the failing endpoint got %d of 50 calls, want %d", seen, tt.seen)
				}
				if tt.seen != 2 {
					return
				}
				for i, annotations := range []string{accrues, accrues + ", timeout.linkerd.io/request: 9s"} {
					if err := a.mesh.Apply(source(annotatedService(annotations) + tt.documents + "# " + strconv.Itoa(i))); err != nil {
						t.Fatal(err)
					}
					a.want(t, "after a reload", 50, 0, 0)
				}
			})
		})
	}
}
