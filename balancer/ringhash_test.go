package balancer

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/nosidecar/mesh/discovery"
)

// A ring that follows from the one before gives keys the same owners as one that is made anew, whatever comes, goes, is ejected or has another
// weight.
func TestRingsThatFollowAreTheSameAsNewOnes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	b, err := New(Config{Algorithm: RingHash}, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	set := make([]discovery.Endpoint, 100)
	for i := range set {
		set[i] = discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i>>8, i&255), Port: 80, Weight: 1}
	}
	shared, merged, dense := 0, 0, 0
	for step := range 60 {
		n := len(set)
		if step%20 == 10 {
			n = 1 + random.IntN(5) // so few that each has more entries
		}
		random.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
		if step%3 == 0 {
			set[random.IntN(n)].Weight = 1 + uint32(random.IntN(3))
		}
		b.Update(set[:n-random.IntN(min(n, 5))])
		for i, h := range b.Hosts() {
			h.SetEjected(i == 0 && step%4 == 0 || i > 3 && step%20 == 15)
		}
		p := b.pools[0]
		if len(p.ring.late.points) > 0 {
			shared++
		} else {
			merged++
		}
		anew := newRing(p.members, int(b.cfg.MinRingSize), int(b.cfg.MaxRingSize), nil).most.points
		for _, g := range b.picks.Load().groups {
			got := g.picker.(*ringHash)
			if got.ring != p.ring {
				dense++
			}
			owned := map[*Host]bool{}
			for _, h := range g.hosts {
				owned[h] = true
			}
			var want []point
			for _, point := range anew {
				if owned[p.members[point.owner]] {
					want = append(want, point)
				}
			}
			for i, point := range want {
				next := want[(i+1)%len(want)]
				for hash, owner := range map[uint64]uint32{point.hash: point.owner, point.hash + 1: next.owner} {
					if got, want := g.hosts[got.owner(hash)].ID(), p.members[owner].ID(); got != want {
						t.Fatalf("step %d: %x belongs to %s, and on a new ring to %s", step, hash, got, want)
					}
				}
			}
		}
	}
	if shared == 0 || merged == 0 || dense == 0 {
		t.Errorf("%d rings shared entries, %d did not, %d were of few hosts: want some of each", shared, merged, dense)
	}
}
