package smallmap_test

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/nosidecar/mesh/internal/smallmap"
)

// A Map does what a built-in one does, however many entries it has or had.
func TestMapIsAMap(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for _, keys := range []int{1, 3, 8, 9, 30} {
		var m smallmap.Map[int, int]
		want := make(map[int]int)
		for step := range 500 {
			key := random.IntN(keys)
			if random.IntN(3) == 0 {
				m.Delete(key)
				delete(want, key)
			} else {
				m.Set(key, step)
				want[key] = step
			}
			if got := maps.Collect(m.All()); !maps.Equal(got, want) || m.Len() != len(want) || m.Get(key) != want[key] {
				t.Fatalf("seed %d, %d keys, step %d: %v with %d keys, want %v", seed, keys, step, got, m.Len(), want)
			}
		}
		for key := range m.All() {
			m.Delete(key)
		}
		if m.Len() != 0 {
			t.Errorf("%d keys: %d are left after all were deleted", keys, m.Len())
		}
	}
}

func TestAllStops(t *testing.T) {
	for _, keys := range []int{3, 30} {
		var m smallmap.Map[int, int]
		for key := range keys {
			m.Set(key, key)
		}
		n := 0
		for range m.All() {
			if n++; n == 2 {
				break
			}
		}
		if n != 2 {
			t.Errorf("%d of %d keys, want 2", n, keys)
		}
	}
}
