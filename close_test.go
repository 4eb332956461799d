package mesh_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
)

// An observer that does not return makes Close wait, but not for ever.
func TestCloseDoesNotWaitForEverForAnObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed, loads, proceed := make(handFeed, 2), 0, make(chan bool)
		feed <- nil
		m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(feed), mesh.WithEmptyPolicy(), mesh.WithObserver(mesh.Observer{
			PolicyLoad: func(mesh.PolicyLoad) {
				if loads++; loads > 1 {
					<-proceed
				}
			},
		}))
		if err != nil {
			t.Fatal(err)
		}
		feed <- nil
		synctest.Wait()
		began := time.Now()
		if err := m.Close(); err == nil || !strings.Contains(err.Error(), "observer") {
			t.Errorf("Close = %v, want an error that says why", err)
		}
		if waited := time.Since(began); waited < time.Second || waited > time.Minute {
			t.Errorf("Close waited for %v", waited)
		}
		close(proceed)
		if err := m.Close(); err != nil {
			t.Errorf("Close = %v when the observer has returned", err)
		}
	})
}
