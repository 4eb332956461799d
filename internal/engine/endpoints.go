package engine

import (
	"slices"
	"sync"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine/sockets"
)

// update takes a set of endpoints from discovery.
func (c *cluster) update(endpoints []discovery.Endpoint) {
	chosen, unserving := c.choose(endpoints)
	n := len(chosen)
	c.updating.Lock()
	if c.calls.Load()&clusterGone == 0 {
		c.balancer.Update(chosen)
		for _, h := range c.balancer.Hosts() {
			e := h.Value().(*endpoint)
			if described := h.Endpoint(); e.described != described {
				e.described = described
				if e.tracker != nil {
					e.tracker.SetTakesCalls(h.TakesCalls())
				}
				c.describe(h, e) // it may have another identity now
			}
		}
		c.unserving.Store(int64(unserving))
		c.unselected.Store(int64(len(endpoints) - n - unserving))
	}
	c.updating.Unlock()
	if n > 0 && &chosen[0] != &endpoints[0] {
		giveBack(chosen)
	}
	if c.engine.hooks.EndpointsChanged != nil {
		c.told.mu.Lock()
		defer c.told.mu.Unlock()
		c.told.n, c.told.news = n, true
		c.tellLocked()
	}
}

// told is how many endpoints observers are told of. They are told one number at a time, and the latest last.
type told struct {
	mu   sync.Mutex // not held while they are told
	n    int
	news bool // n has yet to be told
	busy bool // a goroutine tells, and will tell what is new then
}

// tellLocked tells observers what is new, with c.told.mu released meanwhile, unless another goroutine does.
func (c *cluster) tellLocked() {
	if c.told.busy {
		return
	}
	c.told.busy = true
	defer func() { c.told.busy = false }()
	for c.told.news {
		c.told.news = false
		c.tellUnlocked(c.told.n)
	}
}

// tellUnlocked tells observers with c.told.mu released, and takes it again even after a panic.
func (c *cluster) tellUnlocked(n int) {
	c.told.mu.Unlock()
	defer c.told.mu.Lock()
	c.engine.hooks.EndpointsChanged(c.target, n)
}

// choose returns the endpoints of the target that serve its port, each with the port that the cluster dials. It returns endpoints
// itself if there is nothing to change, and otherwise copies, which the caller gives back. unserving is the number of endpoints
// of the target that do not serve its port.
func (c *cluster) choose(endpoints []discovery.Endpoint) (chosen []discovery.Endpoint, unserving int) {
	match := c.config.Filter.Match
	if len(c.config.Subset) == 0 && match == nil && !slices.ContainsFunc(endpoints, func(e discovery.Endpoint) bool {
		return len(e.Ports) > 0 || e.Port == 0 || e.OnlyPorts
	}) {
		return endpoints, 0
	}
	chosen = copies(len(endpoints))
	for i := range endpoints {
		if !hasLabels(endpoints[i].Labels, c.config.Subset) || match != nil && !match(&endpoints[i]) {
			continue
		}
		port := endpoints[i].DialPort(c.target.Port)
		if port == 0 && endpoints[i].OnlyPorts {
			unserving++
			continue
		}
		chosen = append(chosen, endpoints[i])
		e := &chosen[len(chosen)-1]
		e.Port, e.Ports, e.OnlyPorts = port, nil, false
	}
	return chosen, unserving
}

func hasLabels(has, want map[string]string) bool {
	for name, value := range want {
		if v, ok := has[name]; !ok || v != value {
			return false
		}
	}
	return true
}

// unused has slices of endpoints: the one that a change of a large set needs is kept for the next change.
var unused sync.Pool

// copies returns an empty slice with room for n endpoints.
func copies(n int) []discovery.Endpoint {
	if p, ok := unused.Get().(*[]discovery.Endpoint); ok && cap(*p) >= n {
		return (*p)[:0]
	}
	return make([]discovery.Endpoint, 0, n)
}

func giveBack(endpoints []discovery.Endpoint) {
	clear(endpoints)
	unused.Put(&endpoints)
}

// identified describes the endpoints again: the IDs that they must have depend on the form of our own identity.
func (c *cluster) identified() {
	c.updating.Lock()
	defer c.updating.Unlock()
	if c.calls.Load()&clusterGone != 0 {
		return
	}
	for _, h := range c.balancer.Hosts() {
		c.describe(h, h.Value().(*endpoint))
	}
}

func (c *cluster) attach(h *balancer.Host) any {
	e := &endpoint{cluster: c, host: h}
	e.plain.Store(c.sockets.Share(h.ID(), sockets.Security{}))
	c.describe(h, e)
	if c.outlier != nil {
		e.tracker = c.outlier.Track(h.ID())
		c.outlier.watch(e)
	}
	if c.accruals != nil {
		c.accruals.watch(e)
	}
	return e
}

func (c *cluster) removed(h *balancer.Host) {
	if c.outlier != nil {
		c.outlier.unwatch(h)
	}
	if c.accruals != nil {
		c.accruals.unwatch(h)
	}
}

func (c *cluster) drained(h *balancer.Host) {
	h.Value().(*endpoint).close()
}
