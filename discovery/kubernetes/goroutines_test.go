package kubernetes_test

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// TestWatcher_Goroutines: beyond the services that have watches of their own, no further service of a namespace takes a goroutine. What is read
// of the services is read for the namespace as a whole.
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
		if each := float64(counts[1]-counts[0]) / services; each > 0.2 { // others come and go with connections
			t.Errorf("%d services have %d goroutines, and %d have %d: want none for each, not %.1f", services, counts[0], 2*services, counts[1], each)
		}
	})
}

// TestWatcher_EndsWhatItBegan: nothing of a service is read any more once its last subscription is closed, whenever that is.
func TestWatcher_EndsWhatItBegan(t *testing.T) {
	for steps := range 15 {
		synctest.Test(t, func(t *testing.T) {
			s, r := start(t, serviceOf("orders", http80), sliceOf("orders", "orders", "10.0.0.1"))
			w := discovery.NewWatcher(r, nil)
			sub := w.Subscribe(orders, func([]discovery.Endpoint) {})
			for range 3 * steps {
				runtime.Gosched()
			}
			sub.Close()
			w.Close()
			synctest.Wait()
			if n := s.Watches(); n > 0 {
				t.Errorf("closed after %d moments, %d watches are open", 3*steps, n)
			}
			got := listen(t, r, orders)
			got.want("a watch was ended", "10.0.0.1 http:80>8080")
			got.Close()
		})
	}
}
