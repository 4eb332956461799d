package engine

import "time"

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
func (e *Engine) makeRoomLocked(t *targets, c *cluster) (dropped []*cluster) {
	now := time.Now()
	if t.len() >= clustersKept {
		then := now.Add(-clusterIdle)
		dropped = append(t.dropIdleLocked(&t.documented, then, now), t.dropIdleLocked(&t.strangers, then, now)...)
	}
	if c.config.documented {
		return dropped
	}
	e.sweepLaterLocked()
	kept := strangersKept
	if e.config.Resolver != nil {
		kept = registeredKept
	}
	for t.strangers.Len() >= kept {
		oldest := t.strangers.oldest(now)
		if oldest.calls.Load() > 0 {
			break // all of them are in use
		}
		t.removeLocked(oldest)
		dropped = append(dropped, oldest)
	}
	return dropped
}

// sweepLaterLocked makes sure that strangers are dropped when they are idle.
func (e *Engine) sweepLaterLocked() {
	if e.sweeper == nil {
		e.sweeper = time.AfterFunc(strangerIdle, e.sweep)
	}
}

// sweep drops targets that no document names and that were not called for a while. It runs while there are any.
func (e *Engine) sweep() {
	var dropped []*cluster
	defer func() { closeAll(dropped) }()
	e.mu.Lock()
	defer e.mu.Unlock()
	t, now := e.view.Load().clusters, time.Now()
	dropped = t.dropIdleLocked(&t.strangers, now.Add(-strangerIdle), now)
	if t.strangers.Len() == 0 {
		e.sweeper = nil
		return
	}
	e.sweeper.Reset(strangerIdle)
}

// drop forgets a target that turned out not to exist.
func (e *Engine) drop(c *cluster) {
	e.mu.Lock()
	if t := e.view.Load().clusters; t.get(c.target) == c {
		t.removeLocked(c)
	}
	e.mu.Unlock()
	c.close()
}

func closeAll(clusters []*cluster) {
	for _, c := range clusters {
		c.close()
	}
}
