package leak

import (
	"strings"
	"testing"
)

// waitHere is in the stack of a goroutine from when it said that it began.
func waitHere(began chan<- struct{}, stop <-chan struct{}) {
	began <- struct{}{}
	<-stop
}

func begin(stop <-chan struct{}) {
	began := make(chan struct{})
	go waitHere(began, stop)
	<-began
}

func TestSince(t *testing.T) {
	Check(t)
	early, late := make(chan struct{}), make(chan struct{})
	defer close(early)
	begin(early)
	before := goroutines()
	if left := since(before); left != "" {
		t.Errorf("nothing began since, but there is\n%s", left)
	}
	begin(late)
	if left := since(before); strings.Count(left, "created by") != 1 || !strings.Contains(left, "leak.waitHere") {
		t.Errorf("one goroutine began since, but there is\n%s", left)
	}
	if n := strings.Count(Running("leak.waitHere"), "created by"); n != 2 {
		t.Errorf("%d goroutines of 2 were found by their function", n)
	}
	close(late)
	if left := wait(func() string { return since(before) }); left != "" {
		t.Errorf("the goroutine ended, but there is\n%s", left)
	}
}
