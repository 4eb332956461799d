package balancer

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// What a client knows of an endpoint is as old as its last call there. A client with few calls for its many endpoints therefore
// keeps to some of them, its aperture: to as many as get nearRate calls a second each. Which these are differs between clients, so
// that together they use all endpoints alike, and moves on slowly, so that they do so over time as well.
const (
	// nearRate is how many calls a second an endpoint is to have, so that what is known of it is fresh.
	nearRate = 13

	// moveEvery is how often the aperture moves on by an endpoint.
	moveEvery = 2 * time.Second

	// rateEvery is how often the rate of the calls is computed, from a sample: one call in 16 is counted.
	rateEvery = time.Second
	sampled   = 16
)

// aperture finds those endpoints of a balancer that it keeps to.
type aperture struct {
	least int
	seed  uint64 // of the order; 0 before the first

	_     [64]byte
	picks atomic.Int64 // in this second
	until atomic.Int64 // when it ends
	rate  atomic.Int64 // calls a second in the last one
	_     [64]byte
}

// orderLocked returns the indices of hosts in the order of this client. A host that comes or goes leaves the others in theirs.
func (b *Balancer) orderLocked(hosts []*Host) []int32 {
	for b.aperture.seed == 0 {
		b.aperture.seed = b.rand()
	}
	order, keys := make([]int32, len(hosts)), make([]uint64, len(hosts))
	for i, h := range hosts {
		order[i], keys[i] = int32(i), mix(b.aperture.seed^Hash(h.id))
	}
	slices.SortFunc(order, func(x, y int32) int { return cmp.Compare(keys[x], keys[y]) })
	return order
}

// count counts a pick that is sampled. The times of callers are not quite in order, and may jump.
func (a *aperture) count(now int64) {
	a.picks.Add(sampled)
	until := a.until.Load()
	past := now - until + int64(rateEvery) // of this second
	if past >= 0 && past < int64(rateEvery) || !a.until.CompareAndSwap(until, now+int64(rateEvery)) {
		return
	}
	if picks := a.picks.Swap(0); past > 0 {
		a.rate.Store(int64(float64(picks) / time.Duration(past).Seconds()))
	}
}

// near returns which part of an order is near now: width hosts, beginning at from.
func (a *aperture) near(now int64, n int) (from, width int) {
	return int(now / int64(moveEvery) % int64(n)), min(n, max(a.least, int(a.rate.Load()/nearRate)))
}
