// Package await waits in tests for what happens on other goroutines. Its limits are for tests that hang: no test depends
// on how fast a machine is.
package await

import (
	"testing"
	"time"
)

// limit is far beyond what anything takes on a machine that is busy with other things.
const limit = time.Minute

// True waits until done reports true, and ends the test with what was expected if it never does.
func True(t testing.TB, expected string, done func() bool) {
	t.Helper()
	if !Done(done) {
		t.Fatalf("waited in vain: %s", expected)
	}
}

// Done waits until done reports true, and reports false if it never does.
func Done(done func() bool) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); !done(); <-tick.C {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// Receive returns what comes from a channel, or the zero value when it is closed. It ends the test with what was expected
// if nothing ever comes.
func Receive[T any](t testing.TB, expected string, from <-chan T) T {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case v := <-from:
		return v
	case <-timer.C:
		t.Fatalf("waited in vain: %s", expected)
		panic("not reached")
	}
}
