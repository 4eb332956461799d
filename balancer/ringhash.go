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
	*ring
	index []int32 // of the hosts by their numbers on the ring; -1: not to be picked
}

func (r *ringHash) next(info pick, try int) int {
	if !info.hasHash {
		return r.draw()
	}
	return r.owner(rehash(info.hash, try))
}

// owner returns the index of the host that owns hash.
func (r *ringHash) owner(hash uint64) int {
	after, owner := r.most.next(hash, r.index)
	if afterLate, late := r.late.next(hash, r.index); late >= 0 && (owner < 0 || afterLate < after) {
		owner = late
	}
	return int(owner)
}

// ring is a hash ring. Entry k of a host is at xxHash64 of its ID, "_" and k, as in Envoy. Most changes are of a few hosts, so a ring shares
// what it can with the one before: the entries of hosts that come later are apart, and those of hosts that go stay, without an owner.
type ring struct {
	most, late circle

	// The hosts, in order, how many entries each has, and its number, which is what its entries call it.
	hosts   []*Host
	entries []uint32
	numbers []uint32
	used    uint32 // numbers, also of hosts that are gone
}

// circle is entries in order.
type circle struct {
	points []point
	starts []uint32
	shift  int // points[starts[h>>shift]] is the first point whose hash has those high bits or higher ones
}

type point struct {
	hash  uint64
	owner uint32 // number of the host
}

func comparePoints(a, b point) int {
	return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.owner, b.owner))
}

// next returns how far after hash the next entry with an owner in index is, and that owner; or -1 if there is none.
func (c *circle) next(hash uint64, index []int32) (after uint64, owner int32) {
	if len(c.points) == 0 {
		return 0, -1
	}
	i := int(c.starts[hash>>c.shift])
	for i < len(c.points) && c.points[i].hash < hash {
		i++
	}
	for range c.points {
		if i == len(c.points) {
			i = 0
		}
		if owner := index[c.points[i].owner]; owner >= 0 {
			return c.points[i].hash - hash, owner
		}
		i++
	}
	return 0, -1
}

// entriesAtRest is how many entries a ring has before hosts get fewer of them.
const entriesAtRest = 1 << 19

const (
	// changed is the part of a ring, one in so many, that may be late or without an owner: then the entries are merged.
	changed = 16

	// sparse is for picks that need less than one host in so many of a ring: they do not use its entries, most of which they would skip.
	sparse = 16
)

// newRing returns the ring of hosts that are in order and have weights. It shares what it can with the ring of the set before, which may be
// nil.
func newRing(hosts []*Host, minSize, maxSize int, before *ring) *ring {
	if before == nil {
		before = new(ring)
	}
	r := &ring{most: before.most, late: before.late, hosts: hosts, entries: ringEntries(hosts, minSize, maxSize), used: before.used}
	r.numbers = make([]uint32, len(hosts))
	var fresh []int // the indices of hosts whose entries must be made
	old := 0
	for i, h := range hosts {
		for old < len(before.hosts) && before.hosts[old] != h && compareHosts(before.hosts[old], h) < 0 {
			old++
		}
		if old < len(before.hosts) && before.hosts[old] == h && before.entries[old] == r.entries[i] {
			r.numbers[i] = before.numbers[old]
			continue
		}
		fresh = append(fresh, i)
		r.numbers[i] = r.used
		r.used++
	}
	late := merge(r.late.points, r.pointsOf(fresh), nil)
	switch gone := int(r.used) - len(hosts); {
	case changed*gone > len(hosts) || changed*len(late) > len(r.most.points):
		r.most, r.late = newCircle(merge(r.most.points, late, r.index(hosts))), circle{}
		r.used = uint32(len(hosts))
		for i := range hosts {
			r.numbers[i] = uint32(i)
		}
	case len(fresh) > 0:
		r.late = newCircle(late)
	}
	return r
}

// of returns the picks among hosts, which are some of the ring's, in the same order.
func (r *ring) of(hosts *sampler) *ringHash {
	index := r.index(hosts.hosts)
	if sparse*len(hosts.hosts) < len(r.hosts) {
		r = &ring{most: newCircle(merge(r.most.points, r.late.points, index))}
		for i := range hosts.hosts {
			index[i] = int32(i)
		}
	}
	return &ringHash{hosts, r, index}
}

// index returns the indices of hosts, which are some of the ring's, in the same order, by their numbers; -1 for the others.
func (r *ring) index(hosts []*Host) []int32 {
	index := make([]int32, r.used)
	for i := range index {
		index[i] = -1
	}
	i := 0
	for k, h := range r.hosts {
		if i < len(hosts) && hosts[i] == h {
			index[r.numbers[k]] = int32(i)
			i++
		}
	}
	return index
}

// merge returns the points of a and b in order. With an index they call their owners by that, and those without one are left out.
func merge(a, b []point, index []int32) []point {
	merged := make([]point, 0, len(a)+len(b))
	for len(a)+len(b) > 0 {
		from := &a
		if len(a) == 0 || len(b) > 0 && comparePoints(b[0], a[0]) < 0 {
			from = &b
		}
		p := (*from)[0]
		*from = (*from)[1:]
		if index != nil {
			if index[p.owner] < 0 {
				continue
			}
			p.owner = uint32(index[p.owner])
		}
		merged = append(merged, p)
	}
	return merged
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

// pointsOf returns the entries of some of the hosts, which are given by their indices, in order.
func (r *ring) pointsOf(which []int) []point {
	size := 0
	for _, i := range which {
		size += int(r.entries[i])
	}
	points := make([]point, 0, size)
	var key []byte
	for _, i := range which {
		key = append(append(key[:0], r.hosts[i].id...), '_')
		prefix := len(key)
		for k := range r.entries[i] {
			key = strconv.AppendUint(key[:prefix], uint64(k), 10)
			points = append(points, point{xxhash.Sum64(key), r.numbers[i]})
		}
	}
	return sortPoints(points)
}

// sortPoints returns points in order. Hashes are evenly spread, so one pass that distributes them by their high bits leaves next to nothing
// to sort.
func sortPoints(points []point) []point {
	c := newCircle(points)
	sorted, next := make([]point, len(points)), slices.Clone(c.starts)
	for _, p := range points {
		bucket := p.hash >> c.shift
		sorted[next[bucket]] = p
		next[bucket]++
	}
	for i := range len(c.starts) - 1 {
		if bucket := sorted[c.starts[i]:c.starts[i+1]]; len(bucket) > 1 {
			slices.SortFunc(bucket, comparePoints)
		}
	}
	return sorted
}

// newCircle returns the circle of points that are in order.
func newCircle(points []point) circle {
	c := circle{points: points, shift: 64 - max(1, bits.Len(uint(len(points)))-1)} // one or two points share a start
	c.starts = make([]uint32, 1<<(64-c.shift)+1)
	for _, p := range points {
		c.starts[p.hash>>c.shift+1]++
	}
	for i := 1; i < len(c.starts); i++ {
		c.starts[i] += c.starts[i-1]
	}
	return c
}
