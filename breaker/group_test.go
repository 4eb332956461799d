package breaker_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/breaker"
)

func TestGroup(t *testing.T) {
	var changed []string
	g := &breaker.Group{
		Config:   breaker.Config{ConsecutiveFailures: 1},
		OnChange: func(name string, c breaker.Change) { changed = append(changed, name+" "+c.To.String()) },
	}
	for name, outcome := range map[string]breaker.Outcome{"good": breaker.Success, "bad": breaker.Failure} {
		lease, err := g.Allow(name)
		if err != nil {
			t.Fatal(err)
		}
		lease.Done(outcome)
	}
	if _, err := g.Allow("good"); err != nil {
		t.Errorf("the circuit that did not fail: %v", err)
	}
	if _, err := g.Allow("bad"); !errors.Is(err, breaker.ErrOpen) || !strings.Contains(err.Error(), "bad") {
		t.Errorf("error %v, want ErrOpen with the name", err)
	}
	if want := map[string]breaker.State{"good": breaker.Closed, "bad": breaker.Open}; !maps.Equal(g.States(), want) {
		t.Errorf("states %v, want %v", g.States(), want)
	}
	if len(changed) != 1 || changed[0] != "bad open" {
		t.Errorf("changes %v", changed)
	}
	invalid := &breaker.Group{Config: breaker.Config{MinRequests: -1}}
	if _, err := invalid.Allow("x"); err == nil || errors.Is(err, breaker.ErrOpen) {
		t.Errorf("invalid config: %v", err)
	}
	if allocs := testing.AllocsPerRun(100, func() {
		lease, _ := g.Allow("good")
		lease.Done(breaker.Success)
	}); allocs > 0 {
		t.Errorf("%v allocations a call, want none", allocs)
	}
}
