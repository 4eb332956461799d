package admin_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// scene is a process with a page, with peers that call it over mTLS and services that it calls, all on the loopback.
type scene struct {
	page   *admin.Page
	mesh   *mesh.Mesh
	admin  *httptest.Server // of the page
	client *http.Client     // of the process, for its own calls
	peers  []*http.Client   // web and batch, and one without identity

	payments [3]atomic.Int32 // what each endpoint answers; 0: 200
	mail     atomic.Int32
	search   atomic.Int64 // how long it takes
}

const ordersYAML = `# How orders is called, and by whom.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  action: DENY
  rules:
  - from: [{source: {principals: ["cluster.local/ns/shop/sa/batch"]}}]
    to: [{operation: {paths: ["/admin*"]}}]
`

const paymentsYAML = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payments, namespace: shop}
spec:
  host: payments
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool: {http: {http2MaxRequests: 100, maxRetries: 10}}
    outlierDetection: {consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 120s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payments, namespace: shop}
spec:
  hosts: [payments]
  http:
  - name: refunds
    match: [{uri: {prefix: /v1/refunds}, method: {exact: POST}}]
    route: [{destination: {host: payments}}]
    timeout: 2s
    retries: {attempts: 0}
  - name: charges
    route: [{destination: {host: payments}}]
    timeout: 1s
    retries: {attempts: 1, perTryTimeout: 400ms, retryOn: 5xx}
`

const restYAML = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: inventory, namespace: shop}
spec:
  hosts: [inventory]
  http:
  - match: [{headers: {x-canary: {exact: "1"}}}]
    route: [{destination: {host: inventory}}]
    fault: {delay: {percentage: {value: 5}, fixedDelay: 10ms}}
  - route: [{destination: {host: inventory}}]
    timeout: 500ms
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mail, namespace: shop}
spec:
  hosts: [mail]
  http:
  - route: [{destination: {host: mail}}]
    retries: {attempts: 0}
`

func documents() []policy.Source {
	return []policy.Source{
		{Name: "mesh.d/orders.yaml", Data: []byte(ordersYAML)},
		{Name: "mesh.d/payments.yaml", Data: []byte(paymentsYAML)},
		{Name: "mesh.d/rest.yaml", Data: []byte(restYAML)},
	}
}

func newScene(t testing.TB) *scene {
	t.Helper()
	s := &scene{page: admin.New(admin.Config{Name: "orders", Slow: 300 * time.Millisecond})}
	registry := new(discovery.Memory)
	var payments []discovery.Endpoint
	for i := range s.payments {
		e := meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
			if code := s.payments[i].Load(); code != 0 {
				http.Error(w, "the ledger is locked", int(code))
			}
		})
		e.Locality = discovery.Locality{Region: "eu", Zone: fmt.Sprintf("eu-%d", i%2+1)}
		payments = append(payments, e)
	}
	registry.Set("payments.shop", payments...)
	fine := func(http.ResponseWriter, *http.Request) {}
	registry.Set("ledger.shop", meshtest.Refusing(t))
	registry.Set("inventory.shop", meshtest.Serve(t, fine), meshtest.Serve(t, fine))
	registry.Set("search.shop", meshtest.Serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(time.Duration(s.search.Load())):
		case <-r.Context().Done():
		}
	}))
	registry.Set("mail.shop", meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		if code := s.mail.Load(); code != 0 {
			w.WriteHeader(int(code))
		}
	}))

	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ca.RotateEvery = -1
	options := func(account string) []mesh.Option {
		return []mesh.Option{
			mesh.WithIdentity(ca.Source("shop", account)), mesh.WithDiscovery(registry),
			mesh.WithWorkload(policy.Workload{Namespace: "shop", Labels: map[string]string{"app": account}}),
		}
	}
	s.mesh = meshtest.New(t, "", append(options("orders"), mesh.WithPolicy(documents()...), mesh.WithObserver(s.page.Observer()),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 5}}, "mail"))...)
	t.Cleanup(s.page.Close)
	s.client = s.mesh.Client()

	ln := rawtest.Listen(t)
	server := &http.Server{Handler: s.mesh.Handler(http.HandlerFunc(s.orders))}
	ln = s.mesh.Listen(ln)
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	at := meshtest.EndpointOf(t, ln.Addr().String())
	at.ServiceAccount = "orders"
	at.Labels = map[string]string{"security.istio.io/tlsMode": "istio"}
	registry.Set("orders.shop", at)
	for _, account := range []string{"web", "batch"} {
		s.peers = append(s.peers, meshtest.New(t, "", options(account)...).Client())
	}
	plain := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, ln.Addr().String())
	}}}
	t.Cleanup(plain.CloseIdleConnections)
	s.peers = append(s.peers, plain)

	s.admin = httptest.NewServer(s.page)
	t.Cleanup(s.admin.Close)
	t.Cleanup(s.page.Close) // before the server, which waits for its requests
	return s
}

// orders serves the process itself.
func (s *scene) orders(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/fail") {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// call makes a call and reads the answer, whatever it is.
func call(client *http.Client, method, url string) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		panic(err)
	}
	if resp, err := client.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// traffic makes calls in both directions until stop is called.
func (s *scene) traffic(seed uint64) (stop func()) {
	ended := make(chan struct{})
	var callers sync.WaitGroup
	every := func(d time.Duration, f func(*rand.Rand)) {
		random := rand.New(rand.NewPCG(seed, uint64(d)))
		callers.Go(func() {
			tick := time.NewTicker(d)
			defer tick.Stop()
			for {
				select {
				case <-ended:
					return
				case <-tick.C:
					f(random)
				}
			}
		})
	}
	every(20*time.Millisecond, func(r *rand.Rand) {
		call(s.client, "POST", fmt.Sprintf("http://payments/v1/charges/%d?card=4111", r.IntN(1000)))
	})
	every(9*time.Millisecond, func(r *rand.Rand) { call(s.client, "GET", fmt.Sprintf("http://inventory/items/%d", r.IntN(1000))) })
	every(60*time.Millisecond, func(r *rand.Rand) { call(s.client, "GET", "http://search/query?q=shoes") })
	every(110*time.Millisecond, func(*rand.Rand) { call(s.client, "POST", "http://mail/send") })
	every(15*time.Millisecond, func(r *rand.Rand) { call(s.peers[0], "GET", fmt.Sprintf("http://orders/orders/%d", r.IntN(1000))) })
	every(130*time.Millisecond, func(*rand.Rand) { call(s.peers[1], "GET", "http://orders/export") })
	every(300*time.Millisecond, func(*rand.Rand) { call(s.peers[2], "GET", "http://orders/healthz") })
	return sync.OnceFunc(func() {
		close(ended)
		callers.Wait()
	})
}

// broken returns the documents with a mistake in one of them.
func broken() []policy.Source {
	list := slices.Clone(documents())
	list[1].Data = []byte(strings.Replace(paymentsYAML, "perTryTimeout: 400ms", "perTryTimeout: 400 ms", 1))
	return list
}
