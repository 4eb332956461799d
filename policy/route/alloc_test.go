//go:build !race

// The race detector makes sync.Pool, which package regexp relies on, drop what it is given.

package route_test

import (
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/policy/route"
)

func TestMatchAllocs(t *testing.T) {
	routes := bigTable(t, 100)
	req := get(t, "http://a/last/user%2F7?q=1", "X-User", "jo")
	if n := testing.AllocsPerRun(100, func() {
		view := route.NewRequest(req)
		e, _, ok := routes.Match(&view)
		if !ok || e.Index != 99 {
			t.Fatal("no match")
		}
		e.Pick(nil)
	}); n > 1 { // url.URL unescapes an escaped path to check it
		t.Errorf("%v allocations with an escaped path, want 1", n)
	}
	req = get(t, "http://a/last/user?q=1", "X-User", "jo")
	if n := testing.AllocsPerRun(100, func() {
		view := route.NewRequest(req)
		e, _, _ := routes.Match(&view)
		e.Pick(nil)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestStaticEditsAllocs(t *testing.T) {
	r := to("b")
	r.Headers.Request = route.HeaderOps{Set: headers("x-a", "1"), Remove: []string{"x-b"}}
	edits := table(t, r).Rule(0).Pick(nil).Request
	h := http.Header{}
	view := route.Request{Header: h}
	if n := testing.AllocsPerRun(100, func() { edits.Apply(h, &view) }); n > 1 { // the slice of the value
		t.Errorf("%v allocations, want 1", n)
	}
}
