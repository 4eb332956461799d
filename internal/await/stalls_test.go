package await

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Stalls{last: time.Now()} // which nobody but this goroutine watches
		want := func(since time.Time, want time.Duration) {
			t.Helper()
			if got := s.Since(since); got != want {
				t.Errorf("the longest stall since %v is %v, want %v", since, got, want)
			}
		}
		began := time.Now()
		time.Sleep(lookEvery)
		want(began, 0)
		time.Sleep(lookEvery + 3*time.Second)
		want(began, 3*time.Second) // though it was not noted before
		between := time.Now()
		time.Sleep(lookEvery + time.Second)
		want(between, time.Second)
		want(began, 3*time.Second)
		want(time.Now(), 0)
		if !s.Excuse(began) || s.Excuse(between) {
			t.Error("a stall of 3 s is no excuse, or one of 1 s is")
		}
	})
}

func TestWatchStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := WatchStalls(t)
		time.Sleep(time.Hour)
		if got := s.Since(time.Time{}); got != 0 {
			t.Errorf("a process that ran all the time stood still for %v", got)
		}
	})
}
