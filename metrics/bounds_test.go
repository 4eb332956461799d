package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/metrics/internal/peermeta"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Whatever callers and peers choose, series and memory stay bounded. MESH_CALLS is how many calls there are.
func TestNobodyMakesSeriesWithoutBound(t *testing.T) {
	calls := 5_000
	if v := os.Getenv("MESH_CALLS"); v != "" {
		var err error
		if calls, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	const limit = 200
	p := newProcess(t, metrics.Config{MaxIdentities: limit})
	o := p.Observer()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	warm := calls / 10
	var before int
	for i := range calls {
		if i == warm {
			before = leak.Heap()
		}
		anything(t, o, random)
	}
	after := leak.Heap()
	if n := len(p.scrape(t, "istio_requests_total")); n > limit || n < limit/4 {
		t.Errorf("%d sets of labels, want at most %d and some", n, limit)
	}
	counted := p.total(t, "istio_requests_total") + p.total(t, "mesh_metrics_overflow_total")
	if int(counted) != calls {
		t.Errorf("%v calls are counted, or known not to be, of %d", counted, calls)
	}
	t.Logf("%d calls: %d sets of labels, heap %+d kB, %d kB a scrape", calls, len(p.scrape(t, "istio_requests_total")), (after-before)>>10,
		len(p.text(t, ""))>>10)
	if after-before > 16<<20 {
		t.Errorf("the heap has grown by %d bytes", after-before)
	}
	runtime.KeepAlive(o)
}

// anything is a call or a request of which nearly everything is random.
func anything(t *testing.T, o mesh.Observer, random *rand.Rand) {
	text := func() string {
		return strings.Repeat(strconv.FormatUint(random.Uint64(), 36), 1+random.IntN(40)*random.IntN(2)) + "\xff"
	}
	header := func(peer string) http.Header {
		h := http.Header{"User-Agent": {text()}, "X-Envoy-Peer-Metadata-Id": {text()}}
		namespace := "ns" + strconv.Itoa(random.IntN(3))
		m := peermeta.Metadata{Name: text(), Namespace: namespace, Workload: strings.ToValidUTF8(text(), ""), Labels: map[string]string{"app": "a"}}
		switch random.IntN(3) {
		case 0:
			h["X-Envoy-Peer-Metadata"] = []string{text()}
		case 1:
			m.Name = "pod"
			h["X-Envoy-Peer-Metadata"] = []string{m.Encode()}
		}
		return h
	}
	peer := ""
	if random.IntN(2) == 0 {
		peer = fmt.Sprintf("spiffe://cluster.local/ns/ns%d/sa/%d", random.IntN(3), random.IntN(20))
	}
	req := &http.Request{Method: text(), Host: text(), URL: &url.URL{Path: text()}, Header: header(peer)}
	if random.IntN(2) == 0 {
		in := &mesh.Inbound{Request: req, Start: time.Now(), Peer: peer, Status: 100 + random.IntN(900), GRPCStatus: random.IntN(1000) - 1}
		o.InboundEnd(o.InboundStart(context.Background(), in), in)
		return
	}
	to := &discovery.Endpoint{Address: text(), Labels: map[string]string{"app": text()}}
	c := call(t, text(), to, peer)
	c.Request, c.Status, c.Outside, c.ResponseHeader = req, 100+random.IntN(900), random.IntN(5) == 0, header(peer)
	if random.IntN(4) == 0 {
		c.Last, c.Status, c.Flags = nil, 0, mesh.FlagNoHealthyUpstream
	}
	ends(o, c)
}

// A set of labels takes about 3 kB.
func TestMemoryOfIdentities(t *testing.T) {
	const n = 1000
	p := newProcess(t, metrics.Config{MaxIdentities: 2 * n})
	o := p.Observer()
	before := leak.Heap()
	for i := range n {
		c := call(t, fmt.Sprintf("service-%d.shop.svc.cluster.local", i), &discovery.Endpoint{Labels: map[string]string{"app": fmt.Sprint("app-", i)}}, "")
		c.Document = "document"
		ends(o, c)
	}
	each := (leak.Heap() - before) / n
	t.Logf("%d bytes each", each)
	if each > 5<<10 {
		t.Errorf("a set of labels takes %d bytes, want about 3 kB", each)
	}
	if got := len(p.scrape(t, "istio_requests_total")); got != n {
		t.Errorf("%d sets of labels, want %d", got, n)
	}
}

// Hosts that no document names share a value once there are many, while those of documents keep theirs.
func TestUnknownHostsShareOneValue(t *testing.T) {
	p := newProcess(t, metrics.Config{MaxIdentities: 200})
	o := p.Observer()
	for i := range 1000 {
		c := call(t, fmt.Sprintf("host-%d.example.com", i), nil, "")
		c.Status, c.Flags = 0, mesh.FlagNoHealthyUpstream
		ends(o, c)
	}
	c := call(t, "order.shop.svc.cluster.local", nil, "")
	c.Status, c.Flags, c.Document = 0, mesh.FlagNoHealthyUpstream, "order"
	ends(o, c)
	if n := p.one(t, "istio_requests_total", "destination_service", "unknown").value(); n != 950 {
		t.Errorf("%v calls to hosts without a value of their own, want 950", n)
	}
	s := p.one(t, "istio_requests_total", "destination_service_name", "order")
	if !s.has("response_code", "503", "response_flags", "UH", "destination_workload", "unknown", "destination_workload_namespace", "unknown",
		"destination_service_namespace", "shop") {
		t.Errorf("a call that reached nobody is %v", s)
	}
}

// A server is the service that it is, whatever the Host header of a request says.
func TestHostHeadersAreNoLabels(t *testing.T) {
	p := newProcess(t, metrics.Config{Workload: policy.Workload{Namespace: "shop"}, Name: "order-v1", Service: "order"})
	o := p.Observer()
	for i := range 3 {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = fmt.Sprintf("host-%d.example.com", i)
		o.InboundEnd(t.Context(), &mesh.Inbound{Request: r, Start: time.Now(), Status: 200, GRPCStatus: -1})
	}
	p.is(t, 3, "istio_requests_total", "destination_service", "order.shop.svc.cluster.local", "destination_service_name", "order",
		"destination_service_namespace", "shop")
}

// Hosts outside the mesh share one value from the first on.
func TestHostsOutside(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := p.Observer()
	for i := range 10 {
		c := call(t, fmt.Sprintf("%d.example.com", i), nil, "")
		c.Outside = true
		ends(o, c)
		c.Status, c.Err, c.Flags = 0, fmt.Errorf("refused: %w", mesh.ErrNotInMesh), mesh.FlagNoRoute
		ends(o, c)
	}
	for name, code := range map[string]string{"PassthroughCluster": "200", "BlackHoleCluster": "404"} {
		if s := p.one(t, "istio_requests_total", "destination_service_name", name); s.value() != 10 || !s.has("response_code", code) {
			t.Errorf("%s: %v", name, s)
		}
	}
}

func TestIdleSeriesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, metrics.Config{IdleExpiry: 10 * time.Minute})
		o := p.Observer()
		one, two := &discovery.Endpoint{Labels: map[string]string{"app": "one"}}, &discovery.Endpoint{Labels: map[string]string{"app": "two"}}
		old := call(t, "one", one, "")
		ends(o, old)
		ends(o, call(t, "two", two, ""))
		time.Sleep(9 * time.Minute)
		ends(o, call(t, "two", two, ""))
		if n := len(p.scrape(t, "istio_requests_total")); n != 2 {
			t.Errorf("%d series before the time is up", n)
		}
		time.Sleep(2 * time.Minute)
		if s := p.one(t, "istio_requests_total"); !s.has("destination_app", "two") || s.value() != 2 {
			t.Errorf("left is %v", s)
		}
		// It comes again with the next call, over the same endpoint, and counts from the start.
		ends(o, call(t, "one", one, ""))
		if s := p.one(t, "istio_requests_total", "destination_app", "one"); s.value() != 1 {
			t.Errorf("the new series is %v", s)
		}
		if n := p.one(t, "mesh_metrics_identities").value(); n != 2 {
			t.Errorf("%v sets of labels, want 2", n)
		}
	})
}

// What is counted for destinations that nobody calls any more expires as well, here and in the metrics of the mesh itself.
func TestIdleDestinationsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, metrics.Config{IdleExpiry: time.Minute})
		o := p.Observer()
		all := []string{"mesh_ejections_total", "mesh_circuit_changes_total", "mesh_retries_total", "mesh_retries_stopped_total",
			"mesh_discovery_updates_total", "mesh_mirrors_dropped_total", "mesh_discovery_failures_total"}
		happen := func(host string) {
			target := route.Target{Host: host, Port: 80}
			c := call(t, host, &discovery.Endpoint{}, "")
			c.Target, c.Attempts, c.Stopped = target, 3, retry.LimitReached
			ends(o, c)
			o.Ejection(target, breaker.Event{Ejected: true, Reason: breaker.Consecutive5xx})
			o.Circuit(target, breaker.Change{To: breaker.Open})
			o.Endpoints(target, 1)
			o.MirrorDropped(target, nil)
			o.DiscoveryFailed(discovery.Service{Host: host}, nil)
		}
		count := func(want int, of ...string) {
			t.Helper()
			for _, name := range all {
				got := p.scrape(t, name)
				if len(got) != want {
					t.Errorf("%s has %d series, want %d", name, len(got), want)
				}
				for i, host := range of {
					if i < len(got) && !got[i].has("destination_service", host) {
						t.Errorf("%s: left is %v, want %q", name, got[i], host)
					}
				}
			}
		}
		for i := range 1010 { // more than have labels of their own
			happen(fmt.Sprintf("host-%d", i))
		}
		count(1001)
		time.Sleep(50 * time.Second)
		happen("host-7")
		time.Sleep(30 * time.Second)
		count(1, "host-7")
		happen("host-2000") // there is room again
		count(2, "host-2000", "host-7")
		time.Sleep(2 * time.Minute)
		count(0)
	})
}

// What expires makes room.
func TestOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, metrics.Config{MaxIdentities: 2, IdleExpiry: time.Minute})
		o := p.Observer()
		to := &discovery.Endpoint{}
		for i := range 5 {
			ends(o, call(t, fmt.Sprint("host-", i), to, ""))
		}
		if n := len(p.scrape(t, "istio_requests_total")); n != 2 {
			t.Errorf("%d series, want 2", n)
		}
		if n := p.one(t, "mesh_metrics_overflow_total", "reporter", "source").value(); n != 3 {
			t.Errorf("%v calls were not counted, want 3", n)
		}
		time.Sleep(2 * time.Minute)
		ends(o, call(t, "host-9", to, "")) // nobody has scraped meanwhile
		if s := p.one(t, "istio_requests_total"); !s.has("destination_service_name", "host-9") {
			t.Errorf("left is %v", s)
		}
	})
}

// Raw connections without room for their labels are counted as such, once each, whether they were made or not.
func TestOverflowOfConnections(t *testing.T) {
	p := newProcess(t, metrics.Config{MaxIdentities: 1})
	o := p.Observer()
	for i := range 3 {
		made := &mesh.Conn{Target: route.Target{Host: fmt.Sprint("host-", i)}, Local: &net.TCPAddr{}}
		o.ConnStart(made)
		o.ConnEnd(made)
		failed := &mesh.Conn{Target: made.Target, Err: errors.New("refused")}
		o.ConnStart(failed)
		o.ConnEnd(failed)
	}
	if n := p.total(t, "istio_tcp_connections_opened_total"); n != 2 {
		t.Errorf("%v connections were counted, want 2", n)
	}
	p.is(t, 4, "mesh_metrics_overflow_total", "reporter", "source")
}

// A peer that answers with ever new codes does not use up what is there for all.
func TestOutcomesOfOnePath(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := p.Observer()
	to := &discovery.Endpoint{}
	for code := 100; code < 600; code++ {
		c := call(t, "order", to, "")
		c.Status = code
		ends(o, c)
	}
	if n := len(p.scrape(t, "istio_requests_total")); n != 64 {
		t.Errorf("%d series, want 64", n)
	}
	if n := p.total(t, "mesh_metrics_overflow_total"); n != 500-64 {
		t.Errorf("%v calls were not counted", n)
	}
}

// A peer may say of itself that it is this or that workload, but not any number of them.
func TestWorkloadsOfOnePeer(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := p.Observer()
	for i := range 100 {
		said := peermeta.Metadata{Namespace: "shop", Workload: fmt.Sprint("w", i)}
		in := &mesh.Inbound{Start: time.Now(), Peer: "spiffe://cluster.local/ns/shop/sa/order", Status: 200, GRPCStatus: -1}
		in.Request = &http.Request{Header: http.Header{asserted.PeerMetadata: {said.Encode()}}}
		o.InboundEnd(context.Background(), in)
	}
	if n := len(p.scrape(t, "istio_requests_total")); n != 65 {
		t.Errorf("%d sources, want 64 and the one that stands for the rest", n)
	}
	if n := p.one(t, "istio_requests_total", "source_workload", "order").value(); n != 36 {
		t.Errorf("%v requests of a peer that is not believed, want 36", n)
	}
}

// Whatever a peer says is a value that Prometheus takes.
func TestLabelsAreShortAndUTF8(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := p.Observer()
	long := strings.Repeat("ä", 1000)
	ends(o, call(t, "order", &discovery.Endpoint{Labels: map[string]string{"app": "\xff", "version": long}}, "spiffe://x/ns/\xff/sa/"+long))
	for _, s := range p.scrape(t, "istio_requests_total") {
		for name, v := range s.labels {
			if len(v) > 253 || v == "" && name != "grpc_response_status" {
				t.Errorf("%s is %q", name, v)
			}
		}
	}
	p.text(t, "")
}

func TestConfigIsRefused(t *testing.T) {
	for name, c := range map[string]metrics.Config{
		"negative": {MaxIdentities: -1}, "endpoints": {MaxEndpoints: -1}, "soon": {IdleExpiry: time.Second}, "owner": {Owner: strings.Repeat("x", 9000)},
	} {
		c.Registerer = newProcess(t, metrics.Config{}).registry // where it would be refused, too
		if m, err := metrics.New(c); err == nil {
			m.Close()
			t.Errorf("%s is taken", name)
		}
	}
}

// A registry has one of them at a time.
func TestRegistered(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	if _, err := metrics.New(metrics.Config{Registerer: p.registry}); err == nil || !strings.Contains(err.Error(), "a process needs one Metrics") {
		t.Errorf("two in one registry: %v", err)
	}
	o := p.Observer()
	ends(o, call(t, "order", nil, ""))
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	ends(o, call(t, "order", nil, ""))
	if n := len(p.scrape(t, "istio_requests_total")); n != 0 {
		t.Errorf("%d series after Close", n)
	}
	again, err := metrics.New(metrics.Config{Registerer: p.registry})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
