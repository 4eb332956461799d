package discovery_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// A large service that changes a thousand times a second once cost its subscribers a thousand updates.
func TestWatcher_ChangesOfLargeSetsComeTogether(t *testing.T) {
	for _, test := range []struct {
		endpoints, atMost int
		within            time.Duration // which a change comes
	}{
		{10, 101, 0},
		{499, 101, 0},
		{1000, 22, 5 * time.Millisecond},
		{10_000, 4, 50 * time.Millisecond},
	} {
		t.Run(fmt.Sprint(test.endpoints), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := make([]discovery.Endpoint, test.endpoints)
				for i := range set {
					set[i] = at(fmt.Sprintf("10.0.%d.%d", i>>8, i&255), 80)
				}
				var m discovery.Memory
				var latest atomic.Int64 // the size of the latest set
				var updates atomic.Int64
				w := discovery.NewWatcher(&m, nil)
				defer w.Close()
				w.Subscribe(orders, func(e []discovery.Endpoint) {
					latest.Store(int64(len(e)))
					updates.Add(1)
				})
				const changes = 100
				var sizes [changes]int
				for i := range sizes {
					sizes[i] = test.endpoints - i%2
					m.Set("orders", set[:sizes[i]]...)
					synctest.Wait()
					if i == 0 && latest.Load() != int64(test.endpoints) {
						t.Error("the first set does not come at once")
					}
					if test.within == 0 && latest.Load() != int64(sizes[i]) {
						t.Fatalf("change %d does not come at once", i)
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(test.within)
				synctest.Wait()
				if got := latest.Load(); got != int64(sizes[changes-1]) {
					t.Errorf("the latest set does not come within %v", test.within)
				}
				if n := updates.Load(); n > int64(test.atMost) {
					t.Errorf("%d updates in 100 ms, want at most %d", n, test.atMost)
				}
				time.Sleep(time.Second)
				m.Set("orders", set[1:]...)
				synctest.Wait()
				if latest.Load() != int64(test.endpoints-1) {
					t.Error("a change after a quiet time does not come at once")
				}
			})
		})
	}
}

// A watcher can be closed while it makes changes wait.
func TestWatcher_CloseDoesNotWaitForChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		set := make([]discovery.Endpoint, 10_000)
		for i := range set {
			set[i] = at(fmt.Sprintf("10.0.%d.%d", i>>8, i&255), 80)
		}
		m.Set("orders", set...)
		w := discovery.NewWatcher(&m, nil)
		w.Subscribe(orders, func([]discovery.Endpoint) {})
		synctest.Wait()
		began := time.Now()
		w.Close()
		if took := time.Since(began); took > 0 {
			t.Errorf("Close took %v", took)
		}
	})
}
