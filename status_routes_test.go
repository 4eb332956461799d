package mesh_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/retry"
)

const routed = `# where shop is
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - name: canary
    match:
    - {uri: {prefix: /v1}, method: {exact: GET}, headers: {x-canary: {}}}
    - {queryParams: {beta: {regex: "1|2"}}, withoutHeaders: {x-old: {exact: "yes"}}}
    route: [{destination: {host: shop, port: {number: 8080}}, weight: 9}, {destination: {host: other}, weight: 1}]
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 500ms}
    fault: {delay: {percentage: {value: 5}, fixedDelay: 1s}, abort: {percentage: {value: 10}, httpStatus: 503}}
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new}
  - route: [{destination: {host: shop}}]
`

// TestStatus_Routes: each route shows the document, the file and the line that it is from, and what becomes of requests.
func TestStatus_Routes(t *testing.T) {
	m := newMesh(t, "", mesh.WithDiscovery(new(discovery.Memory)), mesh.WithPolicy(
		policy.Source{Name: "mesh.d/other.yaml", Data: []byte(yamlOf("unrelated"))},
		policy.Source{Name: "mesh.d/shop.yaml", Data: []byte(strings.Repeat("# more\n", 2) + "---\n" + routed)},
	))
	for range 2 { // the second time from memory
		var shop []string
		for _, r := range m.Status().Routes {
			if r.Host != "shop.default.svc.cluster.local" {
				continue
			}
			text := fmt.Sprintf("%s %s:%d %q %q", r.Document, r.File, r.Line, r.Name, r.Matches)
			for _, to := range r.Targets {
				text += fmt.Sprintf(" -> %s:%d %d", to.Host, to.Port, to.Weight)
			}
			shop = append(shop, text+fmt.Sprintf(" %s %v %v %d %s", r.Action, r.Timeout, r.PerTryTimeout, r.Retries, r.Fault))
		}
		want := []string{
			`VirtualService default/shop mesh.d/shop.yaml:11 "canary" ["path /v1*, method = GET, header x-canary is there" "not header x-old = yes, query beta ~ 1|2"]` +
				` -> shop.default.svc.cluster.local:8080 9 -> other.default.svc.cluster.local:0 1  2s 500ms 3 delay 1s for 5%, abort with 503 for 10%`,
			`VirtualService default/shop mesh.d/shop.yaml:19 "" ["path = /old"] redirect 0s 0s 0 `,
			`VirtualService default/shop mesh.d/shop.yaml:21 "" [] -> shop.default.svc.cluster.local:0 0  0s 0s 2 `,
		}
		if strings.Join(shop, "\n") != strings.Join(want, "\n") {
			t.Errorf("routes of shop:\n%s\nwant\n%s", strings.Join(shop, "\n"), strings.Join(want, "\n"))
		}
	}
}

// TestStatus_RoutesFollowReloads: after a reload the routes are those in force.
func TestStatus_RoutesFollowReloads(t *testing.T) {
	m := newMesh(t, yamlOf("a"), mesh.WithDiscovery(new(discovery.Memory)))
	if r := m.Status().Routes; len(r) != 1 || r[0].File != "test.yaml" {
		t.Fatalf("routes %+v, want that of a", r)
	}
	if err := m.Apply(policy.Source{Name: "next.yaml", Data: []byte(yamlOf("a") + "---" + yamlOf("b"))}); err != nil {
		t.Fatal(err)
	}
	if r := m.Status().Routes; len(r) != 2 || r[0].File != "next.yaml" || r[1].Host != "b.default.svc.cluster.local" {
		t.Errorf("routes after a reload %+v, want those of a and b", r)
	}
}

const poolOfOne = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}, http: {http2MaxRequests: 1, http1MaxPendingRequests: 5, maxRetries: 4}}}
`

// TestStatus_Pool: a full pool shows how many calls it has, holds and has refused, and how many retries are left.
func TestStatus_Pool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		release := make(chan struct{})
		f.Registry.Set("api", f.Add(t, func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}))
		m := f.Mesh(t, poolOfOne, mesh.WithProtection(mesh.Protection{RetryBudget: &retry.BudgetConfig{MinPerSecond: 3}}))
		var call sync.WaitGroup
		call.Go(func() { get(t, m.Client(), "http://api/") })
		synctest.Wait()
		if a := get(t, m.Client(), "http://api/"); a.status != http.StatusServiceUnavailable {
			t.Errorf("status %d, want that of a full pool", a.status)
		}
		s := m.Status().Services[0]
		if got := fmt.Sprintf("%+v %+v", s.Pool, s.Retries); got != "{Active:1 Pending:0 Connections:1 Refused:1 MaxRequests:1 MaxPending:5 MaxConnections:7} {Active:0 Most:4 Budget:3}" {
			t.Errorf("pool and retries: %s", got)
		}
		close(release)
		call.Wait()
	})
}

// TestStatus_Trusted: the identity shows whom it trusts, and for how long.
func TestStatus_Trusted(t *testing.T) {
	w := newTown(t)
	w.TTL = time.Hour
	m := newMesh(t, "", mesh.WithIdentity(w.Source("default", "web")), mesh.WithDiscovery(new(discovery.Memory)))
	s := m.Status().Identity
	if len(s.Trusted) != 1 || s.Trusted[0].Domain != "cluster.local" || s.Trusted[0].Authorities != 1 || !s.Trusted[0].Expires.After(time.Now()) {
		t.Errorf("trusted: %+v, want the authority of cluster.local", s.Trusted)
	}
}

// TestStatus_RoutesAreCopies: changing a status does not change any other.
func TestStatus_RoutesAreCopies(t *testing.T) {
	m := newMesh(t, routed, mesh.WithDiscovery(new(discovery.Memory)))
	first := m.Status().Routes
	if len(first) == 0 || len(first[0].Matches) != 2 {
		t.Fatalf("routes %+v, want those of shop", first)
	}
	was := first[0].Matches[0]
	first[0].Matches[0] = "changed"
	if is := m.Status().Routes[0].Matches[0]; is != was {
		t.Errorf("the match is %q, want %q", is, was)
	}
}
