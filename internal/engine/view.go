package engine

import (
	"maps"
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// view is a plan with the clusters that calls under it have needed so far. It never changes: another cluster or another
// plan make another view. The hosts are a cache, which fills as hosts are called.
type view struct {
	plan     *policy.Plan
	clusters map[route.Target]*cluster
	hosts    *hostCache
}

func (e *Engine) newView(plan *policy.Plan) *view {
	return &view{plan: plan, clusters: make(map[route.Target]*cluster), hosts: newHostCache(e, plan)}
}

// Apply puts a plan into force for the calls that begin from now on. The caller then calls settle, without locks of its
// own, since hooks are told of what follows: it ends the state of those destinations whose settings changed.
func (e *Engine) Apply(plan *policy.Plan) (settle func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return nil, ErrClosed
	}
	old := e.view.Load()
	next := e.newView(plan)
	replaced := make(map[*cluster]*cluster) // old by new
	for target, c := range old.clusters {
		config := e.clusterConfig(plan, target)
		if !config.same(&c.config) {
			successor, err := newCluster(e, target, config, c)
			if err != nil {
				return nil, err
			}
			replaced[successor] = c
			c = successor
		}
		next.clusters[target] = c
	}
	e.view.Store(next)
	return func() {
		for successor, c := range replaced {
			// In this order, so that the watch of the service and its last good endpoints pass on.
			successor.starting.Do(successor.start)
			c.close()
		}
	}, nil
}

// cluster returns the state of a target, which the first call to it creates. It returns nil if v is not the view in
// force any more: then the caller starts again with the one that is.
func (e *Engine) cluster(v *view, target route.Target) (*cluster, error) {
	if c := v.clusters[target]; c != nil {
		return c, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return nil, ErrClosed
	}
	current := e.view.Load()
	if current.plan != v.plan {
		return nil, nil
	}
	if c := current.clusters[target]; c != nil {
		return c, nil
	}
	c, err := newCluster(e, target, e.clusterConfig(current.plan, target), nil)
	if err != nil {
		return nil, err
	}
	next := *current
	next.clusters = maps.Clone(current.clusters)
	if len(next.clusters) >= clustersKept {
		dropIdle(next.clusters, time.Now())
	}
	next.clusters[target] = c
	e.view.Store(&next)
	return c, nil
}

const (
	// clustersKept is how many targets are kept before idle ones are dropped: which ports a host is called on, and under
	// AllowAny also which hosts are called, is up to the callers.
	clustersKept = 256

	// clusterIdle is how long a target must have been without calls to be dropped then.
	clusterIdle = 10 * time.Minute
)

func dropIdle(clusters map[route.Target]*cluster, now time.Time) {
	for target, c := range clusters {
		if c.idleSince(now.Add(-clusterIdle)) {
			delete(clusters, target)
			c.close()
		}
	}
}

// drop forgets a target that turned out to be none.
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

// Clusters returns how many targets the engine keeps state for.
func (e *Engine) Clusters() int {
	return len(e.view.Load().clusters)
}
