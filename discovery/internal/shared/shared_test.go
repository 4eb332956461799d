package shared_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/internal/shared"
)

// Who is slow is told what counts now, in the order in which it was found out.
func TestAnswers(t *testing.T) {
	type step = func(*shared.Answers)
	set := func(addresses ...string) step {
		return func(a *shared.Answers) {
			endpoints := []discovery.Endpoint{}
			for _, address := range addresses {
				endpoints = append(endpoints, discovery.Endpoint{Address: address})
			}
			a.Set(endpoints)
		}
	}
	fail := func(text string) step { return func(a *shared.Answers) { a.Fail(errors.New(text)) } }
	unknown := func(a *shared.Answers) { a.SetUnknown() }
	for _, test := range []struct {
		name  string
		steps []step
		want  []string
	}{
		{"an answer", []step{set("a")}, []string{"[a]"}},
		{"an error before an answer is over", []step{fail("x"), set("a")}, []string{"[a]"}},
		{"an error after an answer", []step{set("a"), fail("x")}, []string{"[a]", "x"}},
		{"the last of each", []step{set("a"), fail("x"), set("a", "b"), fail("y"), fail("z")}, []string{"[a b]", "z"}},
		{"an error alone", []step{fail("x")}, []string{"x"}},
		{"a service that there is not", []step{set("a"), unknown}, []string{"discovery: unknown service: orders"}},
		{"a service that there is again", []step{unknown, set()}, []string{"[]"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var a shared.Answers
			for _, step := range test.steps {
				step(&a)
			}
			woken := 0
			f := a.Join(discovery.Service{Host: "orders"}, func() { woken++ })
			defer f.Leave()
			var got []string
			take := func() {
				f.Step(t.Context(), false, func(endpoints []discovery.Endpoint, err error) bool {
					if err != nil {
						got = append(got, err.Error())
						return true
					}
					addresses := []string{}
					for _, e := range endpoints {
						addresses = append(addresses, e.Address)
					}
					got = append(got, fmt.Sprint(addresses))
					return true
				})
			}
			take()
			take() // nothing more comes
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if a.Set(nil); woken != 1 {
				t.Errorf("woken %d times by an answer, want once", woken)
			}
		})
	}
}

func TestFollower_Leave(t *testing.T) {
	var a shared.Answers
	one, two := a.Join(discovery.Service{}, func() {}), a.Join(discovery.Service{}, func() {})
	if one.Leave() {
		t.Error("the first is the last to leave")
	}
	if !two.Leave() {
		t.Error("somebody follows when all have left")
	}
}
