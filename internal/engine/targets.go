package engine

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/policy/route"
)

// targets are the clusters of a view by their targets. Reading takes no lock; changes are made with Engine.mu held. The cost of a
// change does not grow with their number.
type targets struct {
	all     sync.Map // route.Target to *cluster
	n       atomic.Int64
	changes atomic.Int64 // how many were added and removed

	documented, strangers byUse // guarded by Engine.mu
}

// get returns the cluster of a target, nil if there is none.
func (t *targets) get(target route.Target) *cluster {
	if c, ok := t.all.Load(target); ok {
		return c.(*cluster)
	}
	return nil
}

// len returns the number of clusters.
func (t *targets) len() int { return int(t.n.Load()) }

// each calls f for each cluster. A cluster that is added or removed meanwhile may be among them or not.
func (t *targets) each(f func(*cluster)) {
	t.all.Range(func(_, c any) bool {
		f(c.(*cluster))
		return true
	})
}

// list returns all clusters.
func (t *targets) list() []*cluster {
	list := make([]*cluster, 0, t.len())
	t.each(func(c *cluster) { list = append(list, c) })
	return list
}

// addLocked adds the cluster of a target that has none.
func (t *targets) addLocked(c *cluster) {
	t.all.Store(c.target, c)
	t.n.Add(1)
	t.changes.Add(1)
	heap.Push(t.kindOf(c), c)
}

// removeLocked removes a cluster that is there.
func (t *targets) removeLocked(c *cluster) {
	c.self.Store(nil)
	t.all.Delete(c.target)
	t.n.Add(-1)
	t.changes.Add(1)
	heap.Remove(t.kindOf(c), int(c.place))
}

func (t *targets) kindOf(c *cluster) *byUse {
	if c.config.documented {
		return &t.documented
	}
	return &t.strangers
}

// dropIdleLocked removes the clusters of a kind that had no call since the given time, and returns them.
func (t *targets) dropIdleLocked(kind *byUse, then, now time.Time) (dropped []*cluster) {
	for {
		c := kind.oldest(now)
		if c == nil || !c.idleSince(then) {
			return dropped
		}
		t.removeLocked(c)
		dropped = append(dropped, c)
	}
}

// byUse is a heap of clusters, at its top the one that was called longest ago. Calls do not touch it, so a cluster may have
// been called since it got its place: see oldest.
type byUse []*cluster

// oldest returns the cluster that was called longest ago, nil if there is none. Those with calls in flight come last.
func (h *byUse) oldest(now time.Time) *cluster {
	for len(*h) > 0 {
		c := (*h)[0]
		rank := c.used.Load()
		if c.calls.Load() > 0 {
			rank = now.Unix() + 1
		}
		if rank == c.rank {
			return c
		}
		c.rank = rank
		heap.Fix(h, 0)
	}
	return nil
}

// Len implements heap.Interface.
func (h byUse) Len() int { return len(h) }

// Less implements heap.Interface.
func (h byUse) Less(i, j int) bool { return h[i].rank < h[j].rank }

// Swap implements heap.Interface.
func (h byUse) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = int32(i), int32(j)
}

// Push implements heap.Interface.
func (h *byUse) Push(x any) {
	c := x.(*cluster)
	c.place, c.rank = int32(len(*h)), c.used.Load()
	*h = append(*h, c)
}

// Pop implements heap.Interface.
func (h *byUse) Pop() any {
	last := len(*h) - 1
	c := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return c
}
