package limit_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh/policy/limit"
)

// Waiting calls get slots in the order in which they came, whichever of them have given up meanwhile, and none is forgotten.
func TestWaitersThatGiveUp(t *testing.T) {
	for name, leaves := range map[string][]int{
		"nobody": nil, "the only one so far": {0}, "the last": {2}, "the first": {0, 1}, "one between": {1}, "all": {0, 1, 2},
		"one between, then the last": {1, 2}, "the last, then one between": {2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, err := limit.NewPool(limit.PoolConfig{MaxConnections: 1})
				if err != nil {
					t.Fatal(err)
				}
				slot, err := p.Acquire(t.Context(), false)
				if err != nil {
					t.Fatal(err)
				}
				got := make(chan int, 8)
				wait := func(ctx context.Context, i int) {
					go func() {
						slot, err := p.Acquire(ctx, false)
						if err != nil {
							return
						}
						got <- i
						slot.Release()
					}()
					synctest.Wait()
				}
				early := 3 // how many come before some give up
				if name == "the only one so far" {
					early = 1
				}
				var cancels []context.CancelFunc
				for i := range early {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					cancels = append(cancels, cancel)
					wait(ctx, i)
				}
				var want []int
				gone := map[int]bool{}
				for _, i := range leaves {
					cancels[i]()
					synctest.Wait()
					gone[i] = true
				}
				wait(t.Context(), 3) // and one comes later
				for i := range 4 {
					if i == 3 || i < early && !gone[i] {
						want = append(want, i)
					}
				}
				if n := p.Stats().Pending; n != len(want) {
					t.Errorf("%d are waiting, want %d", n, len(want))
				}
				slot.Release()
				synctest.Wait()
				close(got)
				var order []int
				for i := range got {
					order = append(order, i)
				}
				if !slices.Equal(order, want) {
					t.Errorf("slots went to %v, want %v", order, want)
				}
				if s := p.Stats(); s.Active != 0 || s.Pending != 0 {
					t.Errorf("left are %+v", s)
				}
			})
		})
	}
}
