package engine

import (
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// view is a plan with the clusters that calls under it need. The plan of a view never changes; a new plan gets a new view.
// Clusters and hosts are added as they are called.
type view struct {
	hosts    hostCache
	plan     *policy.Plan
	clusters *targets
}

func (e *Engine) newView(plan *policy.Plan) *view {
	v := &view{plan: plan, clusters: new(targets)}
	v.hosts.init(e, plan)
	return v
}

// Apply puts a plan into force for the calls that begin from now on. The caller then calls settle, which ends the state of the
// destinations whose settings changed. settle calls hooks, so the caller must hold no locks. If the new state of a destination
// cannot be made, Apply fails; with apart, only the calls to that destination do.
func (e *Engine) Apply(plan *policy.Plan, apart bool) (settle func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return nil, ErrClosed
	}
	old := e.view.Load()
	next := e.newView(plan)
	replaced := make(map[*cluster]*cluster) // old by new
	var kept, gone []*cluster
	for _, c := range old.clusters.list() {
		target := c.target
		if checkPort(plan, target) != nil {
			gone = append(gone, c)
			continue
		}
		config := e.clusterConfig(plan, target)
		if !config.equal(&c.config) {
			successor, err := newClusterLocked(e, target, config, c)
			switch {
			case err != nil && apart:
				gone = append(gone, c) // the next call tries again, and may fail
				continue
			case err != nil:
				return nil, err
			}
			successor.used.Store(c.used.Load())
			replaced[successor] = c
			c = successor
		}
		kept = append(kept, c)
	}
	for _, c := range kept {
		next.clusters.addLocked(c)
	}
	if next.clusters.strangers.Len() > 0 { // documents may have named them until now
		e.sweepLaterLocked()
	}
	e.view.Store(next)
	return func() {
		defer closeAll(gone)
		for successor, c := range replaced {
			defer func() { // if an observer panics, the others still begin
				defer c.close() // last, so that the watch of the service, with its last good endpoints, is never without a subscriber
				successor.starting.Do(successor.start)
			}()
		}
	}, nil
}

// enter counts a call in the cluster of a target, which the first call creates. current is false if the documents changed after
// v was loaded: then the caller starts over with the view in force.
func (e *Engine) enter(v *view, target route.Target, read *time.Time) (c *cluster, current bool, err error) {
	c = v.clusters.get(target)
	if c == nil {
		if c, current, err = e.create(v.plan, target); err != nil || !current {
			return nil, false, err
		}
	}
	return c, c.enter(read), nil
}

// create returns the cluster of a target, and makes it if there is none. current is false if plan is no longer in force.
func (e *Engine) create(plan *policy.Plan, target route.Target) (c *cluster, current bool, err error) {
	var dropped []*cluster
	defer func() { closeAll(dropped) }() // without the lock
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return nil, false, ErrClosed
	}
	v := e.view.Load()
	if v.plan != plan {
		return nil, false, nil
	}
	if c := v.clusters.get(target); c != nil {
		return c, true, nil
	}
	if err := checkPort(plan, target); err != nil {
		return nil, false, err
	}
	if c, err = newClusterLocked(e, target, e.clusterConfig(plan, target), nil); err != nil {
		return nil, false, err
	}
	c.used.Store(time.Now().Unix())
	dropped = e.makeRoomLocked(v.clusters, c)
	v.clusters.addLocked(c)
	return c, true, nil
}

// checkPort refuses a target whose port is not in the document that lists its endpoints. Envoy has no cluster for it either.
func checkPort(plan *policy.Plan, target route.Target) error {
	if err := plan.Host(target.Host).Entry.CheckPort(target.Port); err != nil {
		return refuse(LayerRoute, FlagNoCluster, err)
	}
	return nil
}

// Clusters returns how many targets the engine keeps state for.
func (e *Engine) Clusters() int {
	return e.view.Load().clusters.len()
}
