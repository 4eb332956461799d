package balancer

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// ringHash sends a key to the host whose entry on the ring is next.
type ringHash struct {
	*sampler
	ring *ring
}

func (r *ringHash) next(info pick, try int) int {
	if !info.hasHash {
		return r.draw()
	}
	return r.ring.owner(rehash(info.hash, try))
}

// ring is a hash ring. Entry k of a host is at xxHash64 of its ID, "_" and k, as in Envoy.
type ring struct {
	points []point // sorted
	starts []uint32
	shift  int // points[starts[h>>shift]] is the first point whose hash has those high bits or higher ones

	// The hosts that the ring was made of, and how many entries each has. A ring of some of the hosts of another has neither.
	hosts   []*Host
	entries []uint32
}

type point struct {
	hash  uint64
	owner uint32 // index of the host
}

func comparePoints(a, b point) int {
	return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.owner, b.owner))
}

// entriesAtRest is how many entries a ring has before hosts get fewer of them.
const entriesAtRest = 1 << 19

// newRing returns the ring of hosts that are in order and have weights. It takes over what it can of the ring of the set before, which may
// be nil: most changes are of a few hosts.
func newRing(hosts []*Host, minSize, maxSize int, before *ring) *ring {
	entries := ringEntries(hosts, minSize, maxSize)
	if before == nil {
		before = &ring{starts: []uint32{}, shift: 64} // without hosts
	}
	owners := make([]int32, len(before.hosts)) // what the indices of the hosts before are now
	var fresh []int                            // the indices of those whose entries must be made
	i := 0
	for old, h := range before.hosts {
		for ; i < len(hosts) && compareHosts(hosts[i], h) < 0; i++ {
			fresh = append(fresh, i)
		}
		owners[old] = -1
		if i < len(hosts) && hosts[i] == h && entries[i] == before.entries[old] {
			owners[old] = int32(i)
			i++
		}
	}
	for ; i < len(hosts); i++ {
		fresh = append(fresh, i)
	}
	r := before.change(owners, ringPoints(hosts, entries, fresh))
	r.hosts, r.entries = hosts, entries
	return r
}

// ringEntries returns how many entries each of the hosts has.
func ringEntries(hosts []*Host, minSize, maxSize int) []uint32 {
	lightest := slices.MinFunc(hosts, func(a, b *Host) int { return cmp.Compare(a.weight, b.weight) }).weight
	count := func(h *Host, perLightest int) int {
		if h.weight == lightest {
			return perLightest
		}
		return int(math.Ceil(float64(perLightest) * float64(h.weight) / float64(lightest)))
	}
	total := func(perLightest int) int {
		sum := 0
		for _, h := range hosts {
			sum += count(h, perLightest)
		}
		return sum
	}

	// The number of entries of a host must not depend on how many hosts there are, or keys would move between hosts that
	// stay. It does so only below four hosts, where the minimum size requires more entries, and beyond half a million
	// entries, where it halves.
	each := max((minSize+3)/4, (minSize+len(hosts)-1)/len(hosts))
	for each > 1 {
		size, half := total(each), total((each+1)/2)
		if size <= maxSize && (size <= entriesAtRest || half < minSize) {
			break
		}
		each = (each + 1) / 2
	}
	entries := make([]uint32, len(hosts))
	if each > 1 || total(1) <= maxSize {
		for i, h := range hosts {
			entries[i] = uint32(count(h, each))
		}
		return entries
	}
	// The lightest host would have one entry and the ring would still be too large: heavier hosts get fewer entries.
	sum := 0.0
	for _, h := range hosts {
		sum += float64(h.weight)
	}
	for i, h := range hosts {
		entries[i] = uint32(max(1, int(float64(maxSize)*float64(h.weight)/sum)))
	}
	return entries
}

// ringPoints returns the entries of some of the hosts, which are given by their indices, in order.
func ringPoints(hosts []*Host, entries []uint32, which []int) []point {
	size := 0
	for _, i := range which {
		size += int(entries[i])
	}
	points := make([]point, 0, size)
	var key []byte
	for _, i := range which {
		key = append(append(key[:0], hosts[i].id...), '_')
		prefix := len(key)
		for k := range entries[i] {
			key = strconv.AppendUint(key[:prefix], uint64(k), 10)
			points = append(points, point{xxhash.Sum64(key), uint32(i)})
		}
	}
	return sortPoints(points)
}

// sortPoints returns points in order. Hashes are evenly spread, so one pass that distributes them by their high bits leaves next to nothing
// to sort.
func sortPoints(points []point) []point {
	starts, shift := bucketsOf(points)
	sorted, next := make([]point, len(points)), slices.Clone(starts)
	for _, p := range points {
		bucket := p.hash >> shift
		sorted[next[bucket]] = p
		next[bucket]++
	}
	for i := range len(starts) - 1 {
		if bucket := sorted[starts[i]:starts[i+1]]; len(bucket) > 1 {
			slices.SortFunc(bucket, comparePoints)
		}
	}
	return sorted
}

// bucketsOf returns where the points with the same high bits begin if points are in order, and by how much the bits below shift those.
func bucketsOf(points []point) (starts []uint32, shift int) {
	shift = shiftOf(len(points))
	starts = make([]uint32, 1<<(64-shift)+1)
	for _, p := range points {
		starts[p.hash>>shift+1]++
	}
	for i := 1; i < len(starts); i++ {
		starts[i] += starts[i-1]
	}
	return starts, shift
}

// shiftOf returns how many bits are too low to tell n points apart: buckets have one or two each.
func shiftOf(n int) int { return 64 - max(1, bits.Len(uint(n))-1) }

// change returns the ring in which the owner i is owners[i], which is in the order of i, or has no entries if that is negative. The points of
// new owners, in order, come on top.
func (r *ring) change(owners []int32, added []point) *ring {
	c := &ring{points: make([]point, 0, len(r.points)+len(added)), starts: slices.Clone(r.starts), shift: r.shift}
	done, bucket, moved := 0, 0, uint32(0) // points of r that are in place; starts that are; by how much the next ones move
	move := func(to int, by uint32) {
		for ; moved != 0 && bucket < to; bucket++ {
			c.starts[bucket] += moved
		}
		bucket, moved = to, moved+by
	}
	take := func(to int) {
		for _, p := range r.points[done:to] {
			if i := owners[p.owner]; i >= 0 {
				c.points = append(c.points, point{p.hash, uint32(i)})
			} else {
				move(int(p.hash>>r.shift)+1, ^uint32(0))
			}
		}
		done = to
	}
	for _, a := range added {
		to, _ := slices.BinarySearchFunc(r.points[done:], a, func(p, a point) int {
			return cmp.Or(cmp.Compare(p.hash, a.hash), cmp.Compare(owners[p.owner], int32(a.owner)))
		})
		take(done + to)
		c.points = append(c.points, a)
		move(int(a.hash>>r.shift)+1, 1)
	}
	take(len(r.points))
	move(len(c.starts), 0)
	if shift := shiftOf(len(c.points)); shift != r.shift {
		c.starts, c.shift = bucketsOf(c.points)
	}
	return c
}

// owner returns the index of the host that owns hash.
func (r *ring) owner(hash uint64) int {
	i := int(r.starts[hash>>r.shift])
	for i < len(r.points) && r.points[i].hash < hash {
		i++
	}
	if i == len(r.points) {
		i = 0
	}
	return int(r.points[i].owner)
}

// only returns the ring without the entries of those of its hosts that are not among the given ones, which are in the same order.
func (r *ring) only(hosts []*Host) *ring {
	if len(hosts) == len(r.hosts) {
		return r
	}
	owners := make([]int32, len(r.hosts))
	kept := 0
	for i, h := range r.hosts {
		owners[i] = -1
		if kept < len(hosts) && hosts[kept] == h {
			owners[i] = int32(kept)
			kept++
		}
	}
	return r.change(owners, nil)
}
