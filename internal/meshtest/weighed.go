package meshtest

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
)

// Weighed counts the calls to two equally fast servers. The second one reports three times the utilization per call.
type Weighed [2]atomic.Int64

// Server makes server i report its load.
func (w *Weighed) Server(i int) mesh.Option {
	cost, counted := [...]float64{0.01, 0.03}[i], int64(0)
	return mesh.WithServer(mesh.ServerConfig{ReportLoad: true, Utilization: func() float64 {
		since := w[i].Load() - counted
		counted += since
		return cost * float64(since)
	}})
}

// Check makes calls, in a bubble, and checks that the second server gets a third of the calls of the first one once reports count.
func (w *Weighed) Check(t testing.TB, call func() error) {
	t.Helper()
	share := func(n int) float64 {
		before := w[0].Load()
		for range n {
			if err := call(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		return float64(w[0].Load()-before) / float64(n)
	}
	if got := share(160); got != 0.5 {
		t.Errorf("the first one gets %.2f of the calls before reports count, want 0.50", got)
	}
	share(120)
	if got := share(400); got < 0.72 || got > 0.78 {
		t.Errorf("the first one gets %.2f of the calls, want 0.75", got)
	}
}
