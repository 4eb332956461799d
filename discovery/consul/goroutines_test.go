package consul_test

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/consul"
)

// TestWatcher_Goroutines counts the goroutines that each further service takes: one, which waits for the answer to its query. Connections are
// bounded.
func TestWatcher_Goroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const services = 80
		f := newFake(t)
		for i := range 2 * services {
			f.set(fmt.Sprintf("s%d", i), instance("one", 80))
		}
		r, err := consul.New(f.Client(t), consul.Config{})
		if err != nil {
			t.Fatal(err)
		}
		w := discovery.NewWatcher(r, nil)
		defer w.Close()
		var counts []int
		for i := range 2 * services {
			w.Subscribe(discovery.Service{Host: fmt.Sprintf("s%d", i)}, func([]discovery.Endpoint) {})
			if (i+1)%services == 0 {
				time.Sleep(3 * time.Second)
				synctest.Wait()
				counts = append(counts, runtime.NumGoroutine())
			}
		}
		if each := float64(counts[1]-counts[0]) / services; each < 0.8 || each > 1.2 {
			t.Errorf("%d services have %d goroutines, and %d have %d: want 1 for each, not %.1f", services, counts[0], 2*services, counts[1], each)
		}
	})
}

// TestWatcher_EndsWhatItBegan: nothing of a service is read any more once its last subscription is closed, whenever that is.
func TestWatcher_EndsWhatItBegan(t *testing.T) {
	for steps := range 15 {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			f.set("web", instance("one", 80))
			r, err := consul.New(f.Client(t), consul.Config{})
			if err != nil {
				t.Fatal(err)
			}
			w := discovery.NewWatcher(r, nil)
			sub := w.Subscribe(discovery.Service{Host: "web"}, func([]discovery.Endpoint) {})
			for range 3 * steps {
				runtime.Gosched()
			}
			sub.Close()
			w.Close()
			synctest.Wait()
			if _, blocked := f.count("web"); blocked > 0 {
				t.Errorf("closed after %d moments, %d queries are blocked", 3*steps, blocked)
			}
		})
	}
}
