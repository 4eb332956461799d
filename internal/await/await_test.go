package await_test

import (
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/await"
)

func TestTrueAndReceive(t *testing.T) {
	var n atomic.Int32
	await.True(t, "three looks", func() bool { return n.Add(1) == 3 })
	c := make(chan int, 1)
	c <- 7
	if got := await.Receive(t, "seven", c); got != 7 {
		t.Errorf("Receive = %d, want 7", got)
	}
	close(c)
	if got := await.Receive(t, "the end", c); got != 0 {
		t.Errorf("Receive of a closed channel = %d, want 0", got)
	}
}

// recorder is a test that ends without ending this one.
type recorder struct {
	testing.TB
	said string
}

func (r *recorder) Helper() {}
func (r *recorder) Fatalf(format string, args ...any) {
	r.said = args[0].(string)
	runtime.Goexit()
}

func TestWaitsEnd(t *testing.T) {
	for name, wait := range map[string]func(testing.TB){
		"True":    func(t testing.TB) { await.True(t, "what never comes", func() bool { return false }) },
		"Receive": func(t testing.TB) { await.Receive(t, "what never comes", make(chan int)) },
	} {
		synctest.Test(t, func(t *testing.T) {
			r, done := &recorder{TB: t}, make(chan struct{})
			go func() {
				defer close(done)
				wait(r)
			}()
			select {
			case <-done:
				if r.said != "what never comes" {
					t.Errorf("%s ended with %q", name, r.said)
				}
			case <-time.After(time.Hour):
				t.Errorf("%s waits for ever", name)
			}
		})
	}
}
