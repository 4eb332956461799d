package mesh_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// TestReportsWeighServers: of two servers that are as fast, the one that says that a request takes three times as much of it gets a third of
// the requests of the other, once reports count.
func TestReportsWeighServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		var network memnet.Network
		var calls meshtest.Weighed
		var endpoints []discovery.Endpoint
		for i := range calls {
			server := w.member(t, "payment-service", strict, calls.Server(i))
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
		calls.Check(t, func() error {
			resp, err := client.Get("http://payment-service/")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		})
	})
}
