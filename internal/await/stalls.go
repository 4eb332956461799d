package await

import (
	"sync"
	"testing"
	"time"
)

// Stalls knows when the process stood still, because its machine was busy or frozen. Tests about times that cannot do without the real
// clock use it, to tell what the machine delayed from what the code did too late.
type Stalls struct {
	mu    sync.Mutex
	last  time.Time // when the watching goroutine ran last
	known []stall   // in the order of time
}

// stall is a time during which a goroutine that had something to do did not run.
type stall struct {
	end    time.Time
	length time.Duration
}

const (
	lookEvery = 20 * time.Millisecond
	briefly   = 2 * lookEvery // of what is not noted
)

// WatchStalls watches the process until the end of the test.
func WatchStalls(t testing.TB) *Stalls {
	s := &Stalls{last: time.Now()}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.look()
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
	return s
}

func (s *Stalls) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if length := now.Sub(s.last) - lookEvery; length > briefly {
		s.known = append(s.known, stall{now, length})
	}
	s.last = now
}

// Excuse reports whether the process stood still since at for so long that limits of some seconds may have been exceeded: a test that
// failed is to be repeated.
func (s *Stalls) Excuse(at time.Time) bool { return s.Since(at) > 2*time.Second }

// Since returns the length of the longest stall that ended after at, or that the goroutines of this process are just waking from. It is
// 0 if there was none worth mentioning.
func (s *Stalls) Since(at time.Time) time.Duration {
	s.look() // the goroutine that watches may wake last
	s.mu.Lock()
	defer s.mu.Unlock()
	longest := time.Duration(0)
	for i := len(s.known) - 1; i >= 0 && s.known[i].end.After(at); i-- {
		longest = max(longest, s.known[i].length)
	}
	return longest
}
