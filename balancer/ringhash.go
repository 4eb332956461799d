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
}

type point struct {
	hash  uint64
	owner uint32 // index of the host
}

// entriesAtRest is how many entries a ring has before hosts get fewer of them.
const entriesAtRest = 1 << 19

// newRing returns the ring of hosts that are in order and have weights.
func newRing(hosts []*Host, minSize, maxSize int) *ring {
	lightest := slices.MinFunc(hosts, func(a, b *Host) int { return cmp.Compare(a.weight, b.weight) }).weight
	count := func(h *Host, perLightest int) int {
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
	if each > 1 || total(1) <= maxSize {
		return index(ringPoints(hosts, func(h *Host) int { return count(h, each) }))
	}
	// The lightest host would have one entry and the ring would still be too large: heavier hosts get fewer entries.
	sum := 0.0
	for _, h := range hosts {
		sum += float64(h.weight)
	}
	return index(ringPoints(hosts, func(h *Host) int { return max(1, int(float64(maxSize)*float64(h.weight)/sum)) }))
}

func ringPoints(hosts []*Host, count func(*Host) int) []point {
	size := 0
	for _, h := range hosts {
		size += count(h)
	}
	points := make([]point, 0, size)
	var key []byte
	for i, h := range hosts {
		key = append(append(key[:0], h.id...), '_')
		prefix := len(key)
		for k := range count(h) {
			key = strconv.AppendInt(key[:prefix], int64(k), 10)
			points = append(points, point{xxhash.Sum64(key), uint32(i)})
		}
	}
	return points
}

// index sorts points, given in the order of their hosts. Hashes are evenly spread, so one pass that distributes them by
// their high bits leaves next to nothing to sort, and finds a key's place without a search.
func index(points []point) *ring {
	width := max(1, bits.Len(uint(len(points)))-1)
	r := &ring{points: make([]point, len(points)), starts: make([]uint32, 1<<width+1), shift: 64 - width}
	for _, p := range points {
		r.starts[p.hash>>r.shift+1]++
	}
	for i := 1; i < len(r.starts); i++ {
		r.starts[i] += r.starts[i-1]
	}
	next := slices.Clone(r.starts)
	for _, p := range points {
		bucket := p.hash >> r.shift
		r.points[next[bucket]] = p
		next[bucket]++
	}
	for i := range len(r.starts) - 1 {
		if bucket := r.points[r.starts[i]:r.starts[i+1]]; len(bucket) > 1 {
			slices.SortFunc(bucket, func(a, b point) int {
				return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.owner, b.owner))
			})
		}
	}
	return r
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

// only returns the ring without the entries of those members that are not among hosts.
func (r *ring) only(hosts, members []*Host) *ring {
	if len(hosts) == len(members) {
		return r
	}
	place := make([]int, len(members)) // in hosts; both are in the same order
	kept := 0
	for i, h := range members {
		place[i] = -1
		if kept < len(hosts) && hosts[kept] == h {
			place[i] = kept
			kept++
		}
	}
	points := make([]point, 0, len(r.points))
	for _, p := range r.points {
		if i := place[p.owner]; i >= 0 {
			points = append(points, point{p.hash, uint32(i)})
		}
	}
	return index(points)
}
