package engine

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
)

// accruals takes endpoints of a target out of the picks whose calls fail one after the other, by Linkerd's rules: see policy.Cluster.Accrual. Unlike
// outlier detection, it brings an endpoint back only once a call has succeeded. Like that, it may outlive the cluster that made it.
type accruals struct {
	config accrualConfig
	start  time.Time
	due    atomic.Int64 // when the next penalty is over, in nanoseconds from start

	byID sync.Map // the accrual of each endpoint. Few clusters have any, so that endpoints have no room for it

	mu sync.Mutex
}

type accrualConfig = struct {
	Failures int
	Min, Max time.Duration
	Jitter   float64
}

func newAccruals(config accrualConfig) *accruals {
	c := &accruals{config: config, start: time.Now()}
	c.due.Store(math.MaxInt64)
	return c
}

// accrual is what an endpoint has earned by failing.
type accrual struct {
	of       *accruals
	failures atomic.Int64 // in a row, while it is in
	state    atomic.Int32 // written with of.mu held

	// Guarded by of.mu.
	endpoint *endpoint
	penalty  time.Duration // the last one, without its random part
	until    time.Time     // when it is over, or when the trial has taken too long
	trial    uint32        // the number of the last one
}

// States of an endpoint.
const (
	isIn      = iota
	isOut     // until its penalty is over
	onTrial   // the next call decides
	isOnTrial // a call that will decide is under way, until it has taken as long as the next penalty
)

// watch gives the endpoint what it has earned under an earlier cluster.
func (c *accruals) watch(e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.find(e.host.ID())
	if a == nil {
		a = &accrual{of: c}
		c.byID.Store(e.host.ID(), a)
	}
	if e.replaces(a.endpoint) {
		a.endpoint = e
		a.showLocked()
	}
}

func (c *accruals) find(id string) *accrual {
	a, _ := c.byID.Load(id)
	known, _ := a.(*accrual)
	return known
}

// unwatch forgets an endpoint, unless the host of a newer cluster has taken its place.
func (c *accruals) unwatch(h *balancer.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.find(h.ID()); a != nil && a.endpoint.host == h {
		c.byID.Delete(h.ID())
	}
}

// showLocked takes the host out of the picks or puts it in.
func (a *accrual) showLocked() {
	state := a.state.Load()
	a.endpoint.host.SetEjected(state == isOut || state == isOnTrial)
}

// sweep puts the endpoints on trial whose penalty is over. A trial that has taken as long as the next penalty counts as failed, and so as that penalty:
// otherwise a call that hangs would keep the endpoint out. It costs next to nothing if there are none.
func (c *accruals) sweep(now time.Time) {
	if int64(now.Sub(c.start)) < c.due.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due.Store(math.MaxInt64)
	for _, earned := range c.byID.Range {
		a := earned.(*accrual)
		state := a.state.Load()
		if state != isOut && state != isOnTrial {
			continue
		}
		if now.Before(a.until) {
			c.expectLocked(a.until)
			continue
		}
		if state == isOnTrial {
			a.penalty = a.nextLocked()
		}
		a.state.Store(onTrial)
		a.showLocked()
	}
}

func (c *accruals) expectLocked(until time.Time) {
	c.due.Store(min(c.due.Load(), int64(until.Sub(c.start))))
}

// enter reports whether a call that has picked the endpoint may use it. If the call decides whether the endpoint comes back, trial is its number, and
// otherwise 0. If the call may not use the endpoint, the next pick does not give it. panics says that picks may give what is out.
func (a *accrual) enter(e *endpoint, panics bool) (trial uint32, ok bool) {
	if a.state.Load() == isIn {
		return 0, true
	}
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	switch a.state.Load() {
	case isIn:
		return 0, true
	case onTrial:
		a.trial = max(1, a.trial+1)
		a.until = time.Now().Add(a.nextLocked())
		a.of.expectLocked(a.until)
		a.state.Store(isOnTrial)
		a.showLocked()
		return a.trial, true
	}
	if !panics && e != a.endpoint { // of a cluster that was replaced, and has calls left
		e.host.SetEjected(true)
	}
	return 0, panics
}

// nextLocked returns the penalty after the last one.
func (a *accrual) nextLocked() time.Duration { return min(a.of.config.Max, 2*a.penalty) }

// report records how a call ended. Of an endpoint that is out, only trials matter.
func (a *accrual) report(result breaker.Result, trial uint32) {
	failed := result < 0 || result >= statusFailed
	switch {
	case trial != 0:
		a.decide(result, failed, trial)
	case result == breaker.NoResult || a.state.Load() != isIn:
	case failed:
		if n := a.failures.Add(1); n >= int64(a.of.config.Failures) {
			a.takeOut(int(n))
		}
	case a.failures.Load() != 0:
		a.failures.Store(0)
	}
}

// takeOut takes the endpoint out, unless another call has.
func (a *accrual) takeOut(failures int) {
	a.of.mu.Lock()
	if a.state.Load() != isIn {
		a.of.mu.Unlock()
		return
	}
	now := time.Now()
	a.penalizeLocked(a.of.config.Min, now)
	e, event := a.endpoint, breaker.Event{
		Endpoint: a.endpoint.host.ID(), Ejected: true, At: now, Reason: breaker.Consecutive5xx, Until: a.until, Failures: failures, Calls: failures,
	}
	a.of.mu.Unlock()
	e.tell(event)
}

// penalizeLocked takes the endpoint out for a time, and a random part of it that does not exceed the longest one.
func (a *accrual) penalizeLocked(penalty time.Duration, now time.Time) {
	c := &a.of.config
	a.penalty = penalty
	more := min(float64(penalty)*c.Jitter*rand.Float64(), float64(c.Max-penalty))
	a.until = now.Add(penalty + time.Duration(more))
	a.state.Store(isOut)
	a.of.expectLocked(a.until)
	a.showLocked()
}

// decide ends a trial. If nothing is known of the call, the next one decides. Of a trial that has taken too long, only a success matters, unless the
// endpoint has failed another one since.
func (a *accrual) decide(result breaker.Result, failed bool, trial uint32) {
	a.of.mu.Lock()
	var e *endpoint
	state := a.state.Load()
	current := state == isOnTrial && trial == a.trial
	switch {
	case !failed && result != breaker.NoResult:
		if state == onTrial || state == isOnTrial {
			a.failures.Store(0)
			a.state.Store(isIn)
			a.showLocked()
			e = a.endpoint
		}
	case !current:
	case failed:
		a.penalizeLocked(a.nextLocked(), time.Now())
	default:
		a.state.Store(onTrial)
		a.showLocked()
	}
	a.of.mu.Unlock()
	if e != nil {
		e.tell(breaker.Event{Endpoint: e.host.ID(), At: time.Now()})
	}
}

// tell tells observers that the endpoint is out, or in again.
func (e *endpoint) tell(event breaker.Event) {
	if hook := e.cluster.engine.hooks.Ejection; hook != nil {
		hook(e.cluster.target, event)
	}
}

// endpoints returns the status of the endpoints that are out.
func (c *accruals) endpoints(of map[string]breaker.EndpointStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, earned := range c.byID.Range {
		a, id := earned.(*accrual), id.(string)
		if state := a.state.Load(); state == isOut || state == isOnTrial {
			of[id] = breaker.EndpointStatus{ID: id, Ejected: true, Reason: breaker.Consecutive5xx, Until: a.until}
		}
	}
}
