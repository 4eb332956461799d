package meshtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// Soak is a load test during which everything changes: endpoints of the service "api" come and go 50 times per second, documents change
// every second, and the certificates of both sides, if they have any, every few seconds. No call may fail, and no goroutines or memory
// may be left afterwards.
type Soak struct {
	// MTLS gives both sides an identity and makes them authenticate each other.
	MTLS bool

	// Documents are used in addition to those for the service and for MTLS.
	Documents string

	// Transport is the template for connections of the client. Run changes it. Nil means an empty one.
	Transport *http.Transport

	// Serve serves behind the inbound side of a mesh until stop is called.
	Serve func(m *mesh.Mesh, ln net.Listener) (stop func())

	// Dial prepares calls to "api". Many goroutines use call. hangUp closes the connections after the last call.
	Dial func(t testing.TB, m *mesh.Mesh) (call func(context.Context) error, hangUp func())
}

const (
	soakServers = 8       // servers, which share the addresses of all endpoints
	soakCallers = 8       // concurrent callers
	soakSets    = 50      // sets of endpoints per second
	soakNew     = 4       // new endpoints in each set
	soakHeap    = 5 << 20 // bytes by which the heap may have grown
)

const soakDocuments = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    retries: {attempts: 0}
    headers: {request: {set: {x-generation: "%d"}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: %s}}
`

// Run runs the test for 2 seconds, or for the duration in the environment variable MESH_SOAK, after a second to warm up. Then it waits up
// to a minute until nothing is left.
func (s Soak) Run(t *testing.T) {
	limit := 2 * time.Second
	if v := os.Getenv("MESH_SOAK"); v != "" {
		var err error
		if limit, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	r := s.begin(t, limit)
	r.round(t, time.Second, false)
	var goroutines, heap int
	until(func() bool { // gives everything that is about to end a second to do so
		r.hangUp() // a connection is not idle as soon as its last call is over
		goroutines, heap = runtime.NumGoroutine(), liveHeap()
		return false
	}, time.Second)
	calls, endpoints := r.calls.Load(), r.endpoints
	r.round(t, limit, true)

	start, peak := time.Now(), liveHeap()
	var moreGoroutines, moreHeap int
	quiet := until(func() bool {
		r.hangUp()
		moreGoroutines, moreHeap = runtime.NumGoroutine()-goroutines, liveHeap()-heap
		return moreGoroutines <= 0 && moreHeap <= soakHeap
	}, time.Minute)
	t.Logf("%d calls, %d endpoints, %d rotations; heap %.1f MB before, %+.1f MB at the end, %+.1f MB after %v",
		r.calls.Load()-calls, r.endpoints-endpoints, r.rotations.Load(), megabytes(heap), megabytes(peak-heap), megabytes(moreHeap),
		time.Since(start).Round(time.Second/10))
	if !quiet {
		stacks := make([]byte, 1<<18)
		t.Errorf("left a minute after the last call: %+.1f MB of heap and %+d goroutines of\n%s", megabytes(moreHeap), moreGoroutines,
			stacks[:runtime.Stack(stacks, true)])
	}
}

// soaking is a running Soak.
type soaking struct {
	registry  discovery.Memory
	client    *mesh.Mesh
	server    *mesh.Mesh
	servers   []string // addresses
	mode      string
	more      string // documents
	call      func(context.Context) error
	hangUp    func()
	calls     atomic.Int64
	rotations atomic.Int64
	endpoints int // how many there have been
	reloads   int
}

func (s Soak) begin(t *testing.T, limit time.Duration) *soaking {
	t.Helper()
	r := &soaking{mode: "DISABLE", more: s.Documents}
	options := func(account string) []mesh.Option { return nil }
	if s.MTLS {
		r.mode = "STRICT"
		ca, err := tlsid.NewDevCA("cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		ca.RotateEvery = min(max(limit/4, time.Second), 5*time.Second)
		ca.TTL = 4 * ca.RotateEvery
		options = func(account string) []mesh.Option {
			return []mesh.Option{mesh.WithIdentity(ca.Source("default", account)), mesh.WithObserver(mesh.Observer{
				Identity: func(*tlsid.Identity, error) { r.rotations.Add(1) },
			})}
		}
	}
	r.server = New(t, r.documents(), options("api")...)
	for range soakServers {
		ln := rawtest.Listen(t)
		r.servers = append(r.servers, ln.Addr().String())
		t.Cleanup(s.Serve(r.server, ln))
	}
	template := s.Transport
	if template == nil {
		template = new(http.Transport)
	}
	// Each endpoint has a new address, as pods do, but leads to one of a few servers.
	template.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		var a, b, c byte
		if _, err := fmt.Sscanf(address, "10.%d.%d.%d:80", &a, &b, &c); err != nil {
			return nil, fmt.Errorf("no endpoint has the address %s: %w", address, err)
		}
		return new(net.Dialer).DialContext(ctx, network, r.servers[c%soakServers])
	}
	r.change()
	r.client = New(t, r.documents(), append(options("client"), mesh.WithDiscovery(&r.registry), mesh.WithTransport(template))...)
	r.call, r.hangUp = s.Dial(t, r.client)
	return r
}

func (r *soaking) documents() string { return fmt.Sprintf(soakDocuments, r.reloads, r.mode) + r.more }

// change replaces some of the endpoints.
func (r *soaking) change() {
	r.endpoints = max(r.endpoints+soakNew, soakServers)
	endpoints := make([]discovery.Endpoint, soakServers)
	for i := range endpoints {
		n := r.endpoints - i
		endpoints[i] = discovery.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255), Port: 80, ServiceAccount: "api"}
	}
	r.registry.Set("api", endpoints...)
}

// round makes calls for a while. If changing is set, the endpoints and documents change meanwhile.
func (r *soaking) round(t *testing.T, limit time.Duration, changing bool) {
	t.Helper()
	var callers sync.WaitGroup
	done := make(chan struct{})
	for range soakCallers {
		callers.Go(func() {
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for {
				if err := r.call(context.Background()); err != nil {
					t.Errorf("a call failed: %v", err)
				}
				r.calls.Add(1)
				select {
				case <-tick.C:
				case <-done:
					return
				}
			}
		})
	}
	tick := time.NewTicker(time.Second / soakSets)
	defer tick.Stop()
	start := time.Now()
	for reloads := 0; time.Since(start) < limit && !t.Failed(); <-tick.C {
		if !changing {
			continue
		}
		r.change()
		if int(time.Since(start)/time.Second) == reloads {
			continue
		}
		reloads++
		r.reloads++
		for _, m := range []*mesh.Mesh{r.client, r.server} {
			if err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(r.documents())}); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	callers.Wait()
	r.hangUp()
}

// until polls done, and reports whether it returned true within the limit.
func until(done func() bool, limit time.Duration) bool {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); ; <-tick.C {
		if done() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// liveHeap returns the number of bytes in use on the heap. The second collection empties pools.
func liveHeap() int {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

func megabytes(n int) float64 { return float64(n) / (1 << 20) }
