package balancer

import (
	"github.com/cespare/xxhash/v2"
)

// maglev sends a key to the host that a table, filled by the hosts in turn, has for it.
type maglev struct {
	*sampler
	table []uint32
}

func (m *maglev) next(info pick, try int) int {
	if !info.hasHash {
		return m.draw()
	}
	return int(m.table[rehash(info.hash, try)%uint64(len(m.table))])
}

// newMaglevTable returns the table of hosts that are in order. Each host walks through the table in its own order. At its
// turn it takes the first free place; its weight says how often it has a turn (Maglev, NSDI 2016, 3.4).
func newMaglevTable(hosts []*Host, size int) []uint32 {
	if len(hosts) == 0 {
		return nil
	}
	for size < len(hosts) || !isPrime(size) {
		size = max(size+1, len(hosts))
	}
	type walk struct {
		place, step uint32
		credit      float64
	}
	walks := make([]walk, len(hosts))
	heaviest := 0.0
	second := xxhash.NewWithSeed(1)
	for i, h := range hosts {
		second.ResetWithSeed(1)
		second.WriteString(h.id)
		walks[i] = walk{
			place:  uint32(Hash(h.id) % uint64(size)),
			step:   uint32(second.Sum64()%uint64(size-1)) + 1,
			credit: 1, // every endpoint has a first turn, so that each gets keys
		}
		heaviest = max(heaviest, float64(h.weight))
	}
	table := make([]uint32, size)
	taken := make([]uint64, size/64+1) // a bit per place: most steps of a walk are over taken ones, and find these in the nearest cache
	for left := size; ; {
		for i := range walks {
			w := &walks[i]
			if w.credit < 1 {
				w.credit += float64(hosts[i].weight) / heaviest
				continue
			}
			w.credit += float64(hosts[i].weight)/heaviest - 1
			place := w.place
			for taken[place/64]&(1<<(place%64)) != 0 {
				if place += w.step; place >= uint32(size) {
					place -= uint32(size)
				}
			}
			w.place = place
			taken[place/64] |= 1 << (place % 64)
			table[place] = uint32(i)
			if left--; left == 0 {
				return table
			}
		}
	}
}
