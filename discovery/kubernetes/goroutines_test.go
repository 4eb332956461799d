package kubernetes_test

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// TestWatcher_Goroutines counts the goroutines that each further service of a namespace takes beyond those that have watches of their own: one
// waits for endpoints. What is read of the services is read for the namespace as a whole.
func TestWatcher_Goroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const services = 100
		var objects []string
		for i := range 2 * services {
			name := fmt.Sprintf("s%d", i)
			objects = append(objects, serviceOf(name, http80), sliceOf(name, name, "10.0.0.1"))
		}
		_, r := start(t, objects...)
		r.Pods = func(discovery.Service) bool { return false }
		w := discovery.NewWatcher(r, nil)
		defer w.Close()
		var counts []int
		for i := range 2 * services {
			name := fmt.Sprintf("s%d", i)
			w.Subscribe(discovery.Service{Host: name + ".shop.svc.cluster.local", Name: name, Namespace: "shop"}, func([]discovery.Endpoint) {})
			if (i+1)%services == 0 {
				time.Sleep(3 * time.Second)
				synctest.Wait()
				counts = append(counts, runtime.NumGoroutine())
			}
		}
		if each := float64(counts[1]-counts[0]) / services; each < 0.8 || each > 1.2 { // others come and go with connections
			t.Errorf("%d services have %d goroutines, and %d have %d: want 1 for each, not %.1f", services, counts[0], 2*services, counts[1], each)
		}
	})
}
