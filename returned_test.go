package mesh_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/retry"
)

// usualRounds is how many rounds HTTP/1.1 has if MESH_ORDEAL is not set.
const usualRounds = 8

// Whatever peers and callers do, everything that calls take is given back when they have ended: slots, places in the counts of endpoints and
// destinations, retries, bodies of requests, goroutines. Each call and each attempt is observed from its start to one end. And the destination
// serves as many calls as before, once its endpoints are well again. A few rounds of HTTP/1.1 always have the same seeds. MESH_ORDEAL is a number of
// rounds of each protocol with random ones, as in make stress. MESH_ORDEAL_SEED repeats one: the peers and callers are the same, the order of
// goroutines is not.
func TestEverythingIsGivenBack(t *testing.T) {
	protocols, rounds, seed := []string{"HTTP/1.1"}, usualRounds, func(round int) uint64 { return uint64(round) }
	if n, err := strconv.Atoi(os.Getenv("MESH_ORDEAL")); err == nil {
		protocols, rounds, seed = append(protocols, "HTTP/2.0"), n, func(int) uint64 { return rand.Uint64() }
	}
	if n, err := strconv.ParseUint(os.Getenv("MESH_ORDEAL_SEED"), 10, 64); err == nil {
		seed = func(int) uint64 { return n }
	}
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			for round := range rounds {
				seed := seed(round)
				if !t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { giveBack(t, proto, seed) }) {
					return
				}
			}
		})
	}
}

func giveBack(t *testing.T, proto string, seed uint64) {
	synctest.Test(t, func(t *testing.T) {
		o := &ordeal{T: t, proto: proto, rand: rand.New(rand.NewPCG(seed, 0)), feed: make(handFeed)}
		o.run()
	})
}

// ordeal is a mesh among peers and callers that do anything.
type ordeal struct {
	*testing.T
	proto    string
	network  memnet.Network
	registry discovery.Memory
	feed     handFeed
	m        *mesh.Mesh
	most     int         // concurrent calls over HTTP/1.1
	well     atomic.Bool // the endpoints have no more faults
	ended    atomic.Bool
	balance  [2]atomic.Int64 // starts without an end, of calls and of attempts
	starts   atomic.Int64
	together atomic.Int64
	all      chan bool // closed when all that wait for each other have come

	mu     sync.Mutex
	rand   *rand.Rand
	bodies []*leak.Body
	conns  []net.Conn
}

// n returns a random number below most.
func (o *ordeal) n(most int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rand.IntN(most)
}

func (o *ordeal) one(n int) bool { return o.n(n) == 0 }

// while is a random time: mostly shorter than the limits of calls, sometimes longer.
func (o *ordeal) while() time.Duration {
	return time.Duration(o.n(80)*o.n(80)) * time.Millisecond / 10
}

func (o *ordeal) pause() { time.Sleep(o.while()) }

// work takes the time that an endpoint needs for an answer. Requests with the header "together" wait for each other.
func (o *ordeal) work(h http.Header) {
	if h.Get("Together") != "" {
		if o.together.Add(-1) == 0 {
			close(o.all)
		}
		<-o.all
	} else if o.one(2) && !o.well.Load() {
		o.pause()
	}
}

// documents are those of a load.
func (o *ordeal) documents() []policy.Source {
	timeout, perTry := time.Duration(50+o.n(400))*time.Millisecond, time.Duration(10+o.n(200))*time.Millisecond
	if o.well.Load() {
		// HTTP/2 of net/http gives a connection to calls until the last one that maxRequestsPerConnection permits is under way, and refuses
		// the others then. It sends them again itself. If that happens to a call twice in a row, it waits a second before.
		timeout, perTry = time.Minute, time.Minute
	}
	text := fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    timeout: %v
    retries: {attempts: %d, perTryTimeout: %v, backoff: 5ms, retryOn: "5xx,reset,connect-failure,refused-stream,retriable-4xx"}
`, timeout, 1+o.n(3), perTry)
	if !o.well.Load() && o.one(2) {
		text += "    mirror: {host: other}\n"
	}
	if !o.well.Load() && o.one(4) {
		text += fmt.Sprintf("    fault: {delay: {fixedDelay: %dms, percentage: {value: 20}}, abort: {httpStatus: 503, percentage: {value: 10}}}\n", 1+o.n(300))
	}
	text += destinationRule(fmt.Sprintf(`
connectionPool:
  tcp: {maxConnections: %d, connectTimeout: %dms, idleTimeout: %dms}
  http: {http1MaxPendingRequests: %d, http2MaxRequests: %d, maxRetries: %d, maxRequestsPerConnection: %d}
outlierDetection: {consecutive5xxErrors: %d, interval: 20ms, baseEjectionTime: 50ms, maxEjectionPercent: 100}
`, o.most, 20+o.n(100), 20+o.n(1000), o.most+o.n(6), 5+o.n(10), 1+o.n(3), o.n(3), 1+o.n(4)))
	return yaml(text)
}

func (o *ordeal) start() {
	for i, host := range []string{"api", "other"} {
		var at []discovery.Endpoint
		for n := range 3 {
			e := discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i, n+1), Port: 80}
			o.listen(e.ID())
			at = append(at, e)
		}
		o.registry.Set(host, at...)
	}
	o.most = 1 + o.n(4)
	transport := speaking(o.proto)
	if o.proto == "HTTP/2.0" {
		transport.Protocols.SetHTTP2(false)
		transport.Protocols.SetUnencryptedHTTP2(true)
	}
	transport.DialContext = o.network.DialContext
	transport.ExpectContinueTimeout = 20 * time.Millisecond
	options := []mesh.Option{
		mesh.WithDiscovery(&o.registry), mesh.WithTransport(transport), mesh.WithPolicyFeed(o.feed),
		mesh.WithProtection(mesh.Protection{
			Circuit:     &breaker.Config{OpenDuration: 20 * time.Millisecond, ProbeTimeout: time.Second, ConsecutiveFailures: 10},
			RetryBudget: &retry.BudgetConfig{MinPerSecond: 100}, BodyIdle: 100 * time.Millisecond, RetryAfter: true,
		}),
	}
	if o.one(2) {
		options = append(options, mesh.WithObserver(o.observer()))
	}
	go func() { o.feed <- o.documents() }()
	o.m = meshtest.New(o.T, "", options...)
}

func (o *ordeal) observer() mesh.Observer {
	return mesh.Observer{
		CallStart: func(ctx context.Context, _ *mesh.Call) context.Context {
			o.starts.Add(1)
			o.balance[0].Add(1)
			return ctx
		},
		CallEnd: func(context.Context, *mesh.Call) { o.balance[0].Add(-1) },
		AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			o.balance[1].Add(1)
			a.Sent.SetHeader("X-Observed", "yes")
			return ctx
		},
		AttemptEnd: func(context.Context, *mesh.Attempt) { o.balance[1].Add(-1) },
	}
}

// run makes calls, and then looks at what is left of them.
func (o *ordeal) run() {
	o.start()
	var callers sync.WaitGroup
	for range 1 + o.n(8) {
		callers.Go(func() {
			for range 10 {
				o.call()
			}
		})
	}
	for range o.n(4) {
		o.pause()
		switch o.n(3) {
		case 0:
			o.feed <- o.documents()
		case 1:
			o.m.Client().CloseIdleConnections()
		case 2:
			o.registry.Set("api", discovery.Endpoint{Address: fmt.Sprintf("10.0.0.%d", 1+o.n(4)), Port: 80})
		}
	}
	callers.Wait()
	time.Sleep(time.Minute) // copies end, and connections that were being closed
	synctest.Wait()
	o.check()
	o.recover()
}

func (o *ordeal) check() {
	for _, s := range o.m.Status().Services {
		if s.InFlight != 0 || s.Pool.Active != 0 || s.Pool.Pending != 0 || s.Retries.Active != 0 {
			o.Errorf("%s has %d calls, the pool %+v, the retries %+v", s.Host, s.InFlight, s.Pool, s.Retries)
		}
		for _, e := range s.Endpoints {
			if e.InFlight != 0 {
				o.Errorf("the endpoint %s has %d attempts", e.Address, e.InFlight)
			}
		}
	}
	for i, what := range []string{"calls", "attempts"} {
		if n := o.balance[i].Load(); n != 0 {
			o.Errorf("%d %s did not end", n, what)
		}
	}
}

// recover makes as many calls at a time as the pool permits, to endpoints that are well.
func (o *ordeal) recover() {
	o.well.Store(true)
	o.mu.Lock()
	for _, conn := range o.conns { // some have settings that are odd
		conn.Close()
	}
	o.mu.Unlock()
	synctest.Wait()
	o.registry.Set("api", discovery.Endpoint{Address: "10.0.0.1", Port: 80})
	o.feed <- o.documents()
	synctest.Wait()
	for n := 0; ; n++ {
		resp, err := o.m.Client().Get("http://api/")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Sleep(time.Second); n == 100 {
			o.Fatalf("the destination does not recover: %v, %v", resp, err)
		}
	}
	o.together.Store(int64(o.most))
	o.all = make(chan bool)
	var callers sync.WaitGroup
	for range o.most {
		callers.Go(func() {
			req, _ := http.NewRequest(http.MethodGet, "http://api/", nil)
			req.Header.Set("Together", "yes")
			resp, err := o.m.Client().Do(req)
			if err != nil {
				o.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				o.Errorf("%d of %d calls at a time: %s", o.most, o.most, resp.Status)
			}
		})
	}
	callers.Wait()
	o.m.Client().CloseIdleConnections()
	time.Sleep(time.Hour)
	synctest.Wait()
	for _, s := range o.m.Status().Services {
		if s.Pool.Connections != 0 {
			o.Errorf("%s keeps %d connections", s.Host, s.Pool.Connections)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, b := range o.bodies {
		if n := b.Closed.Load(); n == 0 {
			o.Errorf("body %d was not closed", i)
		}
	}
}
