package kubernetes_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
)

func slicesSort(all []string) { slices.Sort(all) }

// watched is a watch that runs until the end of a test.
type watched struct {
	t      *testing.T
	states chan string // or errors, in parentheses
	stop   func()
}

func valueOf(o kubernetes.Object) string {
	var thing struct{ Spec struct{ Value string } }
	if err := json.Unmarshal(o.Raw, &thing); err != nil {
		return err.Error()
	}
	return thing.Spec.Value
}

// watch follows things in namespace a.
func watch(t *testing.T, c *kubernetes.Client, options ...func(*kubernetes.Watch[string])) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watched{t: t, states: make(chan string, 100)}
	of := kubernetes.Watch[string]{Client: c, Resource: things, Namespace: "a", Decode: valueOf}
	for _, option := range options {
		option(&of)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for state, err := range of.All(ctx) {
			if err != nil {
				w.states <- "(" + err.Error() + ")"
				continue
			}
			w.states <- text(state)
		}
	}()
	w.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(w.stop)
	return w
}

// want waits for the next state.
func (w *watched) want(want string) {
	w.t.Helper()
	if got := w.next(); got != want {
		w.t.Fatalf("got %s\nwant %s", got, want)
	}
}

func (w *watched) next() string {
	w.t.Helper()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	select {
	case got := <-w.states:
		return got
	case <-timer.C:
		w.t.Fatal("nothing was yielded")
		return ""
	}
}
