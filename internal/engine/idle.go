package engine

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/nosidecar/mesh/policy/route"
)

// Callers choose which targets are called, and on which ports, so the state of targets that are no longer called is dropped:
// connections, watches, what was learned.
const (
	// clustersKept is how many targets are kept before targets without calls for clusterIdle are dropped.
	clustersKept = 256
	clusterIdle  = 10 * time.Minute

	// Targets that no document names, strangers, are dropped when they had no calls for strangerIdle. DNS knows any number
	// of them: no more of these are kept than http.DefaultTransport keeps idle connections. A registry knows only its
	// services. Beyond that the least recently used ones are dropped.
	strangerIdle   = 5 * time.Minute
	strangersKept  = 100
	registeredKept = 1024
)

// makeRoomLocked drops idle targets so that there is room for c. The caller closes the returned ones after it has released
// mu.
func (e *Engine) makeRoomLocked(clusters map[route.Target]*cluster, c *cluster) (dropped []*cluster) {
	now := time.Now()
	if len(clusters) >= clustersKept {
		dropped = dropIdle(clusters, func(c *cluster) bool { return c.idleSince(now.Add(-clusterIdle)) })
	}
	if c.config.documented {
		return dropped
	}
	c.used.Store(now.Unix())
	if e.sweeper == nil {
		e.sweeper = time.AfterFunc(strangerIdle, e.sweep)
	}
	kept, strangers := strangersKept, 0
	if e.config.Resolver != nil {
		kept = registeredKept
	}
	var idle []*cluster
	for _, c := range clusters {
		if !c.config.documented {
			if strangers++; c.calls.Load() == 0 {
				idle = append(idle, c)
			}
		}
	}
	if over := min(strangers+1-kept, len(idle)); over > 0 {
		slices.SortFunc(idle, func(a, b *cluster) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
		for _, c := range idle[:over] {
			delete(clusters, c.target)
			dropped = append(dropped, c)
		}
	}
	return dropped
}

// sweep drops targets that no document names and that were not called for a while. It runs while there are any.
func (e *Engine) sweep() {
	var dropped []*cluster
	defer func() { closeAll(dropped) }()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return
	}
	next := *e.view.Load()
	next.clusters = maps.Clone(next.clusters)
	then := time.Now().Add(-strangerIdle)
	strangers := 0
	dropped = dropIdle(next.clusters, func(c *cluster) bool {
		if !c.config.documented {
			strangers++
		}
		return !c.config.documented && c.idleSince(then)
	})
	e.view.Store(&next)
	if strangers == len(dropped) {
		e.sweeper = nil
		return
	}
	e.sweeper.Reset(strangerIdle)
}

// drop forgets a target that turned out not to exist.
func (e *Engine) drop(c *cluster) {
	e.mu.Lock()
	current := e.view.Load()
	if current.clusters[c.target] == c {
		next := *current
		next.clusters = maps.Clone(current.clusters)
		delete(next.clusters, c.target)
		e.view.Store(&next)
	}
	e.mu.Unlock()
	c.close()
}

// dropIdle deletes the clusters that are idle, and returns them.
func dropIdle(clusters map[route.Target]*cluster, idle func(*cluster) bool) (dropped []*cluster) {
	for target, c := range clusters {
		if idle(c) {
			delete(clusters, target)
			dropped = append(dropped, c)
		}
	}
	return dropped
}

func closeAll(clusters []*cluster) {
	for _, c := range clusters {
		c.close()
	}
}
