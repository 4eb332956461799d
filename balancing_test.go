package mesh_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/memnet"
)

// TestReportsWeighServers: of two servers that are as fast, the one that says that a request takes three times as much of it gets a third of
// the requests of the other, once reports count.
func TestReportsWeighServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		var network memnet.Network
		var calls [2]atomic.Int64
		var endpoints []discovery.Endpoint
		for i, cost := range []float64{0.01, 0.03} {
			var counted int64
			server := w.member(t, "payment-service", strict, mesh.WithServer(mesh.ServerConfig{ReportLoad: true, Utilization: func() float64 {
				since := calls[i].Load() - counted
				counted += since
				return cost * float64(since)
			}}))
			e := discovery.Endpoint{Address: fmt.Sprintf("10.0.0.%d", i+1), Port: 80, ServiceAccount: "payment-service"}
			ln := server.Listen(network.Listen(addressOf(e)))
			http1 := &http.Server{Handler: server.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls[i].Add(1) }))}
			var serving sync.WaitGroup
			serving.Go(func() { http1.Serve(ln) })
			t.Cleanup(func() {
				http1.Close()
				serving.Wait()
			})
			endpoints = append(endpoints, e)
		}
		w.registry.Set("payment-service", endpoints...)
		m := w.member(t, "order-service", strict, mesh.WithTransport(&http.Transport{DialContext: network.DialContext}),
			mesh.WithProtection(mesh.Protection{Balancing: &balancer.Config{Algorithm: balancer.WeightedRoundRobin}}))
		client := m.Client()
		share := func(n int) float64 {
			before := calls[0].Load()
			for range n {
				resp, err := client.Get("http://payment-service/")
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				time.Sleep(50 * time.Millisecond)
			}
			return float64(calls[0].Load()-before) / float64(n)
		}
		if got := share(160); got != 0.5 {
			t.Errorf("the first one gets %.2f of the calls before reports count, want 0.50", got)
		}
		share(120)
		if got := share(400); got < 0.72 || got > 0.78 {
			t.Errorf("the first one gets %.2f of the calls, want 0.75", got)
		}
	})
}
