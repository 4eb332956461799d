package tried_test

import (
	"context"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/internal/tried"
)

func TestList(t *testing.T) {
	ctx := tried.With(context.Background())
	first := tried.From(ctx)
	first.Add("a")
	before := first.IDs()
	first.Add("b")
	first.Add("a")
	if got := tried.From(ctx).IDs(); !slices.Equal(got, []string{"a", "b"}) || !slices.Equal(before, []string{"a"}) {
		t.Errorf("IDs() = %v, and %v before; want [a b] and [a]", got, before)
	}
	if !first.Contains("b") || first.Contains("c") {
		t.Error("Contains is wrong about b or c")
	}
	if inner := tried.From(tried.With(ctx)); inner.Contains("a") {
		t.Error("a new call knows the endpoints of another")
	}
}

func TestNoList(t *testing.T) {
	list := tried.From(context.Background())
	list.Add("a")
	if list.Contains("a") || list.IDs() != nil {
		t.Errorf("a context without list holds %v", list.IDs())
	}
}
