package balancer_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
)

func TestTakesCalls(t *testing.T) {
	b := newBalancer(t, balancer.Config{Locality: balancer.Locality{
		Enabled: true, Own: discovery.Locality{Region: "eu"},
		Distribute: []balancer.Distribution{{From: "eu", To: []balancer.Portion{{"eu", 1}, {"us", 0}}}},
	}})
	set := placed("eu", "eu", "us", "ap")
	set[1].Draining = true
	b.Update(set)
	hosts := b.Hosts()
	for i, want := range []bool{true, false, false, false} {
		if hosts[i].TakesCalls() != want {
			t.Errorf("host %d: TakesCalls = %v, want %v", i, !want, want)
		}
	}
	hosts[0].SetEjected(true)
	if !hosts[0].TakesCalls() {
		t.Error("an ejected host counts as one that takes no calls")
	}
	b.Update(set[1:])
	if hosts[0].TakesCalls() {
		t.Error("a removed host takes calls")
	}
}

// Healthy says what a Pick without panic would find.
func TestHealthy(t *testing.T) {
	b := newBalancer(t, balancer.Config{PanicFraction: 0.5})
	check := func(when string, want error) {
		t.Helper()
		if got := b.Healthy(); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	check("at first", balancer.ErrNoEndpoints)
	set := placed("", "")
	b.Update(set)
	check("with two", nil)
	hosts := b.Hosts()
	hosts[0].SetEjected(true)
	check("with one of two", nil)
	hosts[1].SetEjected(true)
	check("with all ejected, which picks ignore", balancer.ErrNoHealthy)
	if _, err := b.Pick(balancer.PickInfo{}); err != nil {
		t.Errorf("a pick: %v", err)
	}
	hosts[1].SetEjected(false)
	check("with one that came back", nil)
	set[1].Draining = true
	b.Update(set)
	check("with one ejected and one draining", balancer.ErrNoHealthy)
	b.Update(nil)
	check("with none", balancer.ErrNoEndpoints)
}

// TestTransportForgetsEndpointsWithoutCalls: the last endpoint that takes calls stays, though another was called before.
func TestTransportForgetsEndpointsWithoutCalls(t *testing.T) {
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	defer srv.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	endpoint := func(srv *httptest.Server) discovery.Endpoint {
		host, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
		n, _ := strconv.Atoi(port)
		return discovery.Endpoint{Address: host, Port: n}
	}
	outlier, err := breaker.NewOutlier(breaker.OutlierConfig{Consecutive5xx: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var memory discovery.Memory
	memory.Set("svc", endpoint(srv), endpoint(other))
	tr := &balancer.Transport{Resolver: &memory, Outlier: outlier, Config: balancer.Config{Algorithm: balancer.RoundRobin}}
	defer tr.Close()
	get := func() int {
		resp, err := tr.RoundTrip(httptest.NewRequest("GET", "http://svc/", strings.NewReader("")))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode
	}
	get()
	get()
	if n := len(outlier.Endpoints()); n != 2 {
		t.Fatalf("%d endpoints are known, want both", n)
	}
	draining := endpoint(other)
	draining.Draining = true
	memory.Set("svc", endpoint(srv), draining)
	for len(outlier.Endpoints()) != 1 { // until the watcher has told; the test's own limit ends it
		get()
	}
	status = http.StatusServiceUnavailable
	get()
	if e := outlier.Endpoints(); len(e) != 1 || e[0].Ejected {
		t.Errorf("endpoints = %+v, want the only one not ejected", e)
	}
}

// told is an Outlier that ejects whom it is told to.
type told struct {
	ejected   map[string]bool
	forgotten []string
}

func (o *told) Report(string, *http.Response, error) {}
func (o *told) Ejected(endpoint string) bool         { return o.ejected[endpoint] }
func (o *told) Forget(endpoint string)               { o.forgotten = append(o.forgotten, endpoint) }

// TestOutlierForgets: an Update says who takes no calls any more, and nobody else.
func TestOutlierForgets(t *testing.T) {
	o := &told{}
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{Outlier: o})
	if err != nil {
		t.Fatal(err)
	}
	set := endpoints(3)
	b.Update(set)
	if len(o.forgotten) > 0 {
		t.Errorf("forgotten are %v, though all take calls", o.forgotten)
	}
	set[2].Draining = true
	b.Update(set)
	b.Update(set[:1])
	if want := []string{set[2].ID(), set[1].ID(), set[2].ID()}; !slices.Equal(o.forgotten, want) {
		t.Errorf("forgotten are %v, want %v", o.forgotten, want)
	}
}

// TestOutlierReadmits: picks notice within a tenth of a second that an endpoint is not ejected any more.
func TestOutlierReadmits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &told{ejected: map[string]bool{}}
		b, err := balancer.New(balancer.Config{}, balancer.Hooks{Outlier: o})
		if err != nil {
			t.Fatal(err)
		}
		set := endpoints(2)
		b.Update(set)
		first := b.Hosts()[0]
		check := func(ejected bool) {
			t.Helper()
			for range 50 {
				pick(t, b, balancer.PickInfo{}).Release(0, false)
			}
			if first.Ejected() != ejected {
				t.Errorf("ejected = %v, want %v", !ejected, ejected)
			}
		}
		o.ejected[first.ID()] = true
		check(true)
		time.Sleep(time.Second)
		check(true)
		delete(o.ejected, first.ID())
		check(true) // it has just been looked at
		time.Sleep(100 * time.Millisecond)
		check(false)
		if n := first.InFlight(); n != 0 {
			t.Errorf("%d calls in flight, want none", n)
		}
	})
}

// A new endpoint that is ejected is readmitted later, even if picks look for endpoints to readmit just before it is in the set.
func TestOutlierReadmitsWhatIsNewMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := endpoints(2)
		o := &told{ejected: map[string]bool{set[1].ID(): true}}
		var b *balancer.Balancer
		b, err := balancer.New(balancer.Config{}, balancer.Hooks{Outlier: o, Attach: func(h *balancer.Host) any {
			if h.ID() == set[1].ID() {
				time.Sleep(time.Second)
				pick(t, b, balancer.PickInfo{}).Release(0, false)
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		b.Update(set[:1])
		b.Update(set)
		delete(o.ejected, set[1].ID())
		time.Sleep(time.Second)
		pick(t, b, balancer.PickInfo{}).Release(0, false)
		if b.Hosts()[1].Ejected() {
			t.Error("the endpoint stays ejected for good")
		}
	})
}
