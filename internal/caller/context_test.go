package caller_test

import (
	"context"
	"testing"

	"github.com/nosidecar/mesh/internal/caller"
)

// values is a context of a type that == fails on.
type values struct {
	context.Context
	all []string
}

type wrapped struct{ context.Context }

func TestSameContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	odd := values{ctx, nil}
	for _, test := range []struct {
		name string
		a, b context.Context
		want bool
	}{
		{"one", ctx, ctx, true},
		{"two", ctx, context.Background(), false},
		{"background", context.Background(), context.Background(), true},
		{"not comparable", odd, odd, false},
		{"not comparable inside", wrapped{odd}, wrapped{odd}, false},
		{"comparable inside", wrapped{ctx}, wrapped{ctx}, true},
		{"none", nil, nil, true},
		{"none and one", nil, ctx, false},
	} {
		if got := caller.SameContext(test.a, test.b); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}
