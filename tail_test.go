package mesh_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
)

// shortTail is what docs/performance.md recommends where the longest latencies matter.
var shortTail = balancer.Config{Algorithm: balancer.PeakEWMA, Choices: 10, Aperture: 10}

const (
	tailServers = 20
	tailSlow    = 2 // of them
)

// tailLoad sends requests to servers of which some are slow, and returns the sorted latencies and how many went to slow ones. The first
// quarter, in which the client learns, does not count.
func tailLoad(t testing.TB, balancing *balancer.Config, requests int, every, usual, slow time.Duration, listen func(i int) (net.Listener, discovery.Endpoint), transport *http.Transport) (took []time.Duration, slowed int64) {
	var toSlow atomic.Int64
	endpoints := make([]discovery.Endpoint, tailServers)
	for i := range endpoints {
		wait, isSlow := usual, i < tailSlow
		if isSlow {
			wait = slow
		}
		ln, e := listen(i)
		endpoints[i] = e
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isSlow && r.URL.Path == "/counts" {
				toSlow.Add(1)
			}
			time.Sleep(wait)
			io.WriteString(w, "hello")
		})}
		served := make(chan struct{})
		go func() {
			defer close(served)
			server.Serve(ln)
		}()
		defer func() {
			server.Close()
			<-served
		}()
	}
	m, err := mesh.New(t.Context(), mesh.WithDiscovery(discovery.Static{"api": endpoints}), mesh.WithTransport(transport),
		mesh.WithEmptyPolicy(), mesh.WithProtection(mesh.Protection{Balancing: balancing}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	client := m.Client()
	defer client.CloseIdleConnections()
	took = make([]time.Duration, requests)
	var running sync.WaitGroup
	for i := range took {
		path := "/"
		if i >= requests/4 {
			path = "/counts"
		}
		running.Go(func() {
			began := time.Now()
			resp, err := client.Get("http://api" + path)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			took[i] = time.Since(began)
		})
		time.Sleep(every)
	}
	running.Wait()
	took = took[requests/4:]
	slices.Sort(took)
	return took, toSlow.Load()
}

// Two of twenty servers take ten times as long as the others. Least requests hardly notices while there is little to do.
func TestTwoSlowServersOfTwenty(t *testing.T) {
	const requests, usual, slow = 1200, 5 * time.Millisecond, 50 * time.Millisecond
	run := func(balancing *balancer.Config) (p99 time.Duration, share float64) {
		synctest.Test(t, func(t *testing.T) {
			var network memnet.Network
			took, slowed := tailLoad(t, balancing, requests, 2*time.Millisecond, usual, slow, func(i int) (net.Listener, discovery.Endpoint) {
				address := fmt.Sprintf("10.0.0.%d", i+1)
				return network.Listen(address + ":80"), discovery.Endpoint{Address: address, Port: 80}
			}, &http.Transport{DialContext: network.DialContext})
			p99, share = took[len(took)*99/100], float64(slowed)/float64(len(took))
		})
		return p99, share
	}
	p99, share := run(nil)
	t.Logf("least requests: p99 %v, %.1f%% to slow servers", p99, 100*share)
	if p99 < slow || share < 0.02 {
		t.Errorf("least requests: p99 is %v with %.4f of the requests to slow servers: this test compares nothing", p99, share)
	}
	p99, share = run(&shortTail)
	t.Logf("for a short tail: p99 %v, %.1f%% to slow servers", p99, 100*share)
	if p99 > 2*usual || share > 0.01 {
		t.Errorf("p99 is %v with %.4f of the requests to slow servers, want %v and hardly any", p99, share, usual)
	}
}

// BenchmarkTail is the same over the loopback, where the servers take 2 ms and 20 ms.
func BenchmarkTail(b *testing.B) {
	for _, way := range []struct {
		name      string
		balancing *balancer.Config
	}{{"least requests", nil}, {"short tail", &shortTail}} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				took, slowed := tailLoad(b, way.balancing, 4000, time.Millisecond, 2*time.Millisecond, 20*time.Millisecond, func(int) (net.Listener, discovery.Endpoint) {
					ln := rawtest.Listen(b)
					return ln, endpointOf(b, ln.Addr().String())
				}, &http.Transport{})
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
				b.ReportMetric(100*float64(slowed)/float64(len(took)), "%-to-slow")
			}
		})
	}
}
