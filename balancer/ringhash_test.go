package balancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/discovery"
)

// A ring that follows from the one before is the same as one that is made anew, whatever comes, goes, is ejected or has another weight.
func TestRingsThatFollowAreTheSameAsNewOnes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	b, err := New(Config{Algorithm: RingHash}, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	same := func(a, b *ring) bool {
		return slices.Equal(a.points, b.points) && slices.Equal(a.starts, b.starts) && a.shift == b.shift
	}
	set := make([]discovery.Endpoint, 50)
	for i := range set {
		set[i] = discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i>>8, i&255), Port: 80, Weight: 1}
	}
	for step := range 60 {
		n := len(set)
		if step%20 == 10 {
			n = 1 + random.IntN(5) // so few that each has more entries
		}
		random.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
		for range random.IntN(4) {
			set[random.IntN(n)].Weight = 1 + uint32(random.IntN(3))
		}
		b.Update(set[:n-random.IntN(min(n, 5))])
		for _, h := range b.Hosts()[:random.IntN(2)] {
			h.SetEjected(!h.Ejected())
		}
		p := b.pools[0]
		if want := newRing(p.members, b.cfg.MinRingSize, b.cfg.MaxRingSize, nil); !same(p.ring, want) {
			t.Fatalf("step %d: the ring differs from a new one", step)
		}
		for _, g := range b.picks.Load().groups {
			var want []point
			index := map[*Host]int{}
			for i, h := range g.hosts {
				index[h] = i
			}
			for _, point := range p.ring.points {
				if i, ok := index[p.members[point.owner]]; ok {
					want = append(want, point)
					want[len(want)-1].owner = uint32(i)
				}
			}
			sorted := &ring{points: want}
			sorted.starts, sorted.shift = bucketsOf(want)
			if got := g.picker.(*ringHash).ring; !same(got, sorted) {
				t.Fatalf("step %d: the ring of the hosts that are not ejected differs from a new one", step)
			}
		}
	}
}
