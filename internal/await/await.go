// Package await waits in tests for other goroutines. Its limits end tests that hang: no test depends on the speed of a machine.
package await

import (
	"testing"
	"time"
)

// limit is far more than anything takes on a busy machine.
const limit = time.Minute

// True waits until done returns true. If it never does, the test fails with the text expected.
func True(t testing.TB, expected string, done func() bool) {
	t.Helper()
	if !Done(done) {
		t.Fatalf("waited in vain: %s", expected)
	}
}

// Done waits until done returns true, and reports false if it never does.
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

// Receive returns the next value from a channel, or the zero value if it is closed. If nothing comes, the test fails with the text
// expected.
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
