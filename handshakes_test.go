package mesh_test

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nosidecar/mesh/internal/await"
)

// Calls that come at once share one connection to an endpoint of the mesh, and so one handshake: at first, and whenever certificates rotate.
func TestABurstTakesOneHandshake(t *testing.T) {
	noLeaks(t)
	const calls = 40
	w := newTown(t)
	arrived, answer := make(chan struct{}, calls), make(chan struct{})
	var accepted atomic.Int64
	payment := w.member(t, "payment-service", strict)
	w.serveAs(t, payment, &http.Server{
		Handler: payment.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			arrived <- struct{}{}
			<-answer
		})),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				accepted.Add(1)
			}
		},
	})
	m := w.member(t, "order-service", strict)
	for burst := range int64(3) {
		before := accepted.Load()
		var callers sync.WaitGroup
		for range calls {
			callers.Go(func() {
				if a, err := try(m.Client(), "http://payment-service/"); err != nil || a.status != http.StatusOK {
					t.Errorf("answered %d, %v", a.status, err)
				}
			})
		}
		for range calls {
			await.Receive(t, "the calls", arrived)
		}
		if n := accepted.Load() - before; n != 1 {
			t.Errorf("burst %d: %d connections for %d calls, want 1", burst, n, calls)
		}
		for range calls {
			answer <- struct{}{}
		}
		callers.Wait()
		now, err := m.Identity()
		if err != nil {
			t.Fatal(err)
		}
		w.Rotate()
		await.True(t, "the identity has rotated", func() bool {
			next, err := m.Identity()
			return err == nil && next != now
		})
	}
}
