package engine_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// Of 20 servers, two are slow and one fails at once. They must get far less than their share. With least requests, the one that fails
// would get more.
func TestBalancingByLatencyAvoidsSlowAndFailingServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		var calls, slow, failing atomic.Int64
		var list []discovery.Endpoint
		for i := range 20 {
			list = append(list, f.Add(t, func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				switch {
				case i < 2:
					slow.Add(1)
					time.Sleep(100 * time.Millisecond)
				case i == 2:
					failing.Add(1)
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				time.Sleep(10 * time.Millisecond)
			}))
		}
		f.Registry.Set("web", list...)
		m := f.Mesh(t, noRetries, mesh.WithProtection(mesh.Protection{Balancing: &balancer.Config{Algorithm: balancer.PeakEWMA, Choices: 4}}, "web"))
		client := m.Client()
		var running sync.WaitGroup
		for range 8 {
			running.Go(func() {
				for range 100 {
					resp, err := client.Get("http://web/")
					if err != nil {
						t.Error(err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		}
		running.Wait()
		if n := slow.Load(); n > calls.Load()/20 {
			t.Errorf("two slow servers of 20 got %d of %d calls", n, calls.Load())
		}
		if n := failing.Load(); n > calls.Load()/40 {
			t.Errorf("a server of 20 that fails got %d of %d calls", n, calls.Load())
		}
	})
}

func TestBalancingLeavesWhatDocumentsAskFor(t *testing.T) {
	for _, test := range []struct {
		name, simple string
		want         int // servers that are called
	}{{"by default", "", 2}, {"least requests", "LEAST_REQUEST", 2}, {"round robin", "ROUND_ROBIN", 4}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f meshtest.Fleet
				var list []discovery.Endpoint
				for _, name := range []string{"a", "b", "c", "d"} {
					list = append(list, f.Add(t, says(name)))
				}
				f.Registry.Set("web", list...)
				rule := web
				if test.simple != "" {
					rule = strings.Replace(web, "{host: web}", "{host: web, trafficPolicy: {loadBalancer: {simple: "+test.simple+"}}}", 1)
				}
				m := f.Mesh(t, rule, mesh.WithProtection(mesh.Protection{Balancing: &balancer.Config{Algorithm: balancer.PeakEWMA, Aperture: 2}}))
				called := map[string]bool{}
				for range 100 {
					name, err := ask(t, m, "http://web/")
					if err != nil {
						t.Fatal(err)
					}
					called[name] = true
				}
				if len(called) != test.want {
					t.Errorf("%d servers were called, want %d", len(called), test.want)
				}
			})
		})
	}
	for want, config := range map[string]balancer.Config{
		"have a DestinationRule say what is hashed": {Algorithm: balancer.Maglev},
		"Config.Choices is 11":                      {Choices: 11},
	} {
		if _, err := mesh.New(context.Background(), mesh.WithProtection(mesh.Protection{Balancing: &config})); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", config, err, want)
		}
	}
}
