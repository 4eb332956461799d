// Package leak finds goroutines and bodies that tests have left behind, and measures the memory that tests are about.
package leak

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines may take to end on a busy machine.
const patience = 30 * time.Second

// Run runs the tests of a package and returns the exit code. It is 1 if the tests leave goroutines that did not run before:
//
//	func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }
func Run(m *testing.M) int {
	before := goroutines()
	code := m.Run()
	if code != 0 {
		return code
	}
	if left := wait(func() string { return since(before) }); left != "" {
		os.Stderr.WriteString("left running after the tests:\n" + left)
		return 1
	}
	return 0
}

// Check fails a test that leaves goroutines that did not run when Check was called. It looks for them after all cleanups that were
// registered later, so call it first. It is not for tests that run in parallel.
func Check(t testing.TB) {
	t.Helper()
	before := goroutines()
	t.Cleanup(func() {
		if left := wait(func() string { return since(before) }); left != "" {
			t.Errorf("left running:\n%s", left)
		}
	})
}

// CheckOf is like [Check], but only for goroutines whose stack contains one of the texts, whenever they began. It is for tests during
// which other goroutines come and go.
func CheckOf(t testing.TB, texts ...string) {
	t.Helper()
	t.Cleanup(func() {
		if left := wait(func() string { return Running(texts...) }); left != "" {
			t.Errorf("left running:\n%s", left)
		}
	})
}

// Running returns the stacks of the goroutines whose stack contains one of the texts, except that of the caller.
func Running(texts ...string) string {
	var found strings.Builder
	for _, stack := range stacks() {
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(stack, text) }) {
			found.WriteString(stack + "\n\n")
		}
	}
	return found.String()
}

// wait polls look until it returns "" or patience has passed, and returns its last result.
func wait(look func() string) (left string) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		if left = look(); left == "" || time.Now().After(end) {
			return left
		}
	}
}

// since returns the stacks of the goroutines that are not in before.
func since(before map[string]bool) string {
	var left strings.Builder
	for _, stack := range stacks() {
		if !before[number(stack)] && !ofTesting(stack) {
			left.WriteString(stack + "\n\n")
		}
	}
	return left.String()
}

// ofTesting reports whether a goroutine belongs to package testing or to the runtime.
func ofTesting(stack string) bool {
	for _, of := range []string{
		"created by testing.", // tests, which may wait for each other
		"os/signal.loop",      // runs forever after the first signal.Notify
	} {
		if strings.Contains(stack, of) {
			return true
		}
	}
	return false
}

func goroutines() map[string]bool {
	running := make(map[string]bool)
	for _, stack := range stacks() {
		running[number(stack)] = true
	}
	return running
}

// number returns the part before the state in "goroutine 7 [running]:". Numbers are never reused.
func number(stack string) string {
	number, _, _ := strings.Cut(stack, " [")
	return number
}

// stacks returns the stacks of all goroutines except the caller's.
func stacks() []string {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n")[1:] // the caller's comes first
		}
	}
}
