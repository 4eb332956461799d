package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// cluster is the state of one target: its endpoints and what was learned about them. Envoy calls this a cluster, too.
type cluster struct {
	// Each call reads what comes before target, so it is together.

	// Each part is handed on to the next cluster of the target if a reload leaves its settings alone.
	balancer *balancer.Balancer
	sockets  *sockets.Set
	outlier  *outlierDetector // nil if endpoints are never ejected by outlier detection
	accruals *accruals        // nil if endpoints are never taken out by Linkerd's failure accrual
	circuit  *breaker.Circuit // nil if there is none
	limiter  *retry.Limiter
	budget   *retry.Budget
	rate     *limit.Rate // nil if there is none

	// failover lists the targets that attempts go to, the best first: see failover.go. nil means only this one.
	failover []route.Target

	// What calls need to know of the settings.
	bodyIdle     time.Duration
	hashes       bool // endpoints are picked by a key of the call
	timesAnswers bool // it matters how long endpoints take to answer
	reports      bool // endpoints report their load
	mayQueue     bool // HTTP/1 calls may wait for a connection
	unusable     bool // see whyUnusable

	answered atomic.Bool               // discovery has answered once, or need not
	seen     atomic.Pointer[time.Time] // the reading of the clock that the last call saw: see notice

	target route.Target
	engine *Engine
	config clusterConfig

	woken atomic.Int64 // when the targets of failover were last kept awake, in Unix seconds

	plaintext secured // of all endpoints without TLS

	// self leads to the cluster until it is removed from the view. Whoever remembers a cluster keeps only that, and so neither
	// uses nor keeps one that is gone.
	self  *atomic.Pointer[cluster]
	rank  int64 // see byUse; guarded by Engine.mu
	place int32 // in byUse; guarded by Engine.mu

	generation int32 // that of the cluster that it replaced, plus 1

	heard      atomic.Bool // discovery has answered, or has had enough time to: see healthy
	confirmed  atomic.Bool // discovery knows the target
	starting   sync.Once
	unselected atomic.Int64 // endpoints that are not in the subset
	unserving  atomic.Int64 // endpoints of the subset that do not serve the port

	updating sync.Mutex // held while the endpoints change, so that none are added after the end

	told told

	mu   sync.Mutex
	subs []*discovery.Subscription // one, unless a document lists several names

	used atomic.Int64 // when the last call was, in Unix seconds: see notice

	// Each call writes here, so this is not on a cache line with what calls only read.
	calls atomic.Int64 // in flight, with the bits below
}

// Bits of cluster.calls.
const (
	clusterClosed = 1 << 61 // see close
	clusterGone   = 1 << 62 // it is closed, and no call is left
)

// newClusterLocked builds the state of a target. Parts of the previous cluster of the same target, which may be nil, are kept
// where their settings are the same.
func newClusterLocked(e *Engine, target route.Target, config clusterConfig, previous *cluster) (*cluster, error) {
	config.treatment = e.alikeLocked(config.treatment)
	c := &cluster{engine: e, target: target, config: config, failover: failoverTargets(&config, target)}
	c.self = new(atomic.Pointer[cluster])
	c.self.Store(c)
	c.timesAnswers, c.reports = config.timesAnswers(), config.Balancer.Algorithm == balancer.WeightedRoundRobin
	c.bodyIdle, c.hashes = config.bodyIdle, config.Balancer.HashKey.Source != balancer.NoKey
	c.mayQueue, c.unusable = config.Pool.MaxConnections > 0, config.Closed != "" || config.Missing && c.failover == nil
	mode := config.TLS.Mode
	c.plaintext.always = mode != policy.TLSAuto && mode != policy.TLSDisable
	if previous == nil {
		previous = &cluster{config: clusterConfig{treatment: new(treatment)}}
	}
	c.generation = previous.generation + 1
	var err error
	if c.balancer, err = balancer.New(config.Balancer, balancer.Hooks{
		Attach: c.attach, Removed: c.removed, Drained: c.drained,
	}); err != nil {
		return nil, err
	}

	before := previous.sockets
	if before != nil && previous.config.TLS.Equal(config.TLS) && previous.config.Pool == config.Pool && previous.config.UpgradeHTTP2 == config.UpgradeHTTP2 {
		c.sockets = before
	} else if c.sockets, err = sockets.New(e.config.Template, &config.Cluster, before); err != nil {
		return nil, err
	}
	if err := c.protect(previous); err != nil {
		return nil, err
	}
	return c, nil
}

// protect sets what ejects endpoints, and what limits the calls and their retries. Each part whose configuration is that of the
// previous cluster is taken over from it, with its state.
func (c *cluster) protect(previous *cluster) (err error) {
	e, target, config := c.engine, c.target, &c.config // a circuit outlives its cluster, so its hook must not hold it
	if config.Eject {
		if p := previous.outlier; p != nil && previous.config.Outlier == config.Outlier {
			c.outlier = p
		} else if c.outlier, err = newOutlierDetector(config.Outlier); err != nil {
			return err
		}
	}

	if config.Accrual != (accrualConfig{}) {
		if p := previous.accruals; p != nil && p.config == config.Accrual {
			c.accruals = p
		} else {
			c.accruals = newAccruals(config.Accrual)
		}
	}

	if config.hasCircuit {
		if p := previous.circuit; p != nil && previous.config.circuit == config.circuit {
			c.circuit = p
		} else if c.circuit, err = breaker.New(config.circuit, func(change breaker.Change) {
			if f := e.hooks.CircuitChanged; f != nil {
				f(target, change)
			}
		}); err != nil {
			return err
		}
	}

	if previous.engine != nil && previous.config.RetryLimit == config.RetryLimit && c.sockets == previous.sockets {
		c.limiter = previous.limiter
	} else if c.limiter, err = retry.NewLimiter(config.RetryLimit, c.sockets.Active); err != nil {
		return err
	}

	if previous.engine != nil && previous.config.budget == config.budget {
		c.budget = previous.budget
	} else if c.budget, err = retry.NewBudget(config.budget); err != nil {
		return err
	}

	if config.rate != (limit.RateConfig{}) {
		if p := previous.rate; p != nil && previous.config.rate == config.rate {
			c.rate = p
		} else if c.rate, err = limit.NewRate(config.rate); err != nil {
			return err
		}
	}
	return nil
}

// enter counts a call in, which began after a reading of the clock. It returns false if the cluster is closed and has no endpoints any more: then
// there is a newer view.
func (c *cluster) enter(read *time.Time) bool {
	if c.calls.Add(1)&clusterGone != 0 {
		c.calls.Add(-1)
		return false
	}
	if c.seen.Load() != read {
		c.notice(read)
	}
	return true
}

// notice does what has become due by a new reading of the clock. The other calls with that reading need not look at the time. If an observer
// panics, the call is counted out again.
func (c *cluster) notice(read *time.Time) {
	returned := false
	defer func() {
		if !returned {
			c.leave()
		}
	}()
	c.starting.Do(c.start)
	c.used.Store(read.Unix())
	c.sweep(*read)
	c.seen.Store(read)
	returned = true
}

// sweep brings back the endpoints whose time is over.
func (c *cluster) sweep(now time.Time) {
	if c.outlier != nil {
		c.outlier.Sweep(now)
	}
	if c.accruals != nil {
		c.accruals.sweep(now)
	}
}

// leave counts a call out. The last one of a closed cluster gives up its endpoints.
func (c *cluster) leave() {
	if c.calls.Add(-1) == clusterClosed {
		c.giveUp()
	}
}

// idleSince reports whether there has been no call since the given time.
func (c *cluster) idleSince(then time.Time) bool {
	return c.calls.Load() == 0 && c.used.Load() < then.Unix()
}

// start begins to watch the endpoints. It is not part of newClusterLocked because it calls observers, which must not happen while
// the mesh is locked. They are told last: if one panics, all endpoints are watched nevertheless, until the cluster ends.
func (c *cluster) start() {
	c.told.mu.Lock()
	c.told.busy = true
	c.told.mu.Unlock()
	c.watch()
	c.told.mu.Lock()
	defer c.told.mu.Unlock()
	c.told.busy = false
	c.tellLocked()
}

func (c *cluster) watch() {
	entry := c.config.entry
	switch {
	case c.config.Missing || c.config.Closed != "": // an undefined subset has no endpoints
	case c.failover != nil && !slices.Contains(c.failover, c.target): // it stands for others
	case c.config.Passthrough: // to where the caller would go without a mesh
		c.subscribe(c.engine.names, c.config.service, c.update)
	case entry == nil:
		c.subscribe(c.engine.watcher, c.config.service, c.update)
	case entry.LookUp:
		var mu sync.Mutex // held while the endpoints are handed on, so that the latest set comes last
		named := make([][]discovery.Endpoint, len(entry.Endpoints))
		for i, e := range entry.Endpoints {
			c.subscribe(c.engine.names, discovery.Service{Host: e.Address}, func(found []discovery.Endpoint) {
				mu.Lock()
				defer mu.Unlock()
				named[i] = at(e, found)
				c.update(slices.Concat(named...))
			})
		}
	default:
		c.update(entry.Endpoints)
	}
}

// at returns e once for each address that was found for its name.
func at(e discovery.Endpoint, found []discovery.Endpoint) []discovery.Endpoint {
	endpoints := make([]discovery.Endpoint, len(found))
	for i := range found {
		endpoints[i] = e
		endpoints[i].Address = found[i].Address
	}
	return endpoints
}

func (c *cluster) subscribe(watcher *discovery.Watcher, service discovery.Service, update func([]discovery.Endpoint)) {
	sub := watcher.Subscribe(service, update)
	c.mu.Lock()
	c.subs = append(c.subs, sub)
	c.mu.Unlock()
	if c.calls.Load()&clusterGone != 0 {
		sub.Close() // it ended before it began
	}
}

// refresh asks discovery to look again soon: a connection to an endpoint failed, so the endpoint may be gone.
func (c *cluster) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sub := range c.subs {
		sub.Refresh()
	}
}

// close makes the cluster end with the last of its calls. Until then, calls may still wait for endpoints. It may be called more
// than once.
func (c *cluster) close() {
	c.calls.Or(clusterClosed)
	c.giveUp()
}

// giveUp ends a closed cluster, if it has no calls left.
func (c *cluster) giveUp() {
	if !c.calls.CompareAndSwap(clusterClosed, clusterClosed|clusterGone) {
		return
	}
	c.mu.Lock()
	subs := c.subs // whoever adds another finds the cluster gone
	c.mu.Unlock()
	for _, sub := range subs {
		sub.Close()
	}
	c.updating.Lock()
	defer c.updating.Unlock()
	c.balancer.Update(nil)
}

// wait waits until discovery has reported on the endpoints, no longer than the connect timeout.
func (c *cluster) wait(ctx context.Context) error {
	c.mu.Lock()
	subs := c.subs
	c.mu.Unlock()
	if len(subs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.sockets.ConnectTimeout(), errDiscoverySlow)
	defer cancel()
	if len(subs) == 1 {
		return subs[0].Wait(ctx)
	}
	// One name that has endpoints is enough: another may be dead.
	answers := make(chan error, len(subs))
	for _, sub := range subs {
		go func() { answers <- sub.Wait(ctx) }() // ends with ctx
	}
	var failed error
	empty := false // some name is known, but has no endpoints
	for range subs {
		switch err := <-answers; {
		case err == nil && len(c.balancer.Hosts()) > 0:
			return nil
		case err == nil:
			empty = true
		case failed == nil || errors.Is(failed, discovery.ErrUnknownService):
			failed = err
		}
	}
	if empty && errors.Is(failed, discovery.ErrUnknownService) {
		return nil
	}
	return failed
}

// first waits for the first answer of discovery.
func (c *cluster) first(ctx context.Context) error {
	if c.failover == nil && c.balancer.Healthy() == balancer.ErrNoEndpoints {
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	c.answered.Store(true)
	return nil
}

// noEndpoints returns the error of a cluster without endpoints. It says what discovery reported last.
func (c *cluster) noEndpoints() error {
	others, unserving := c.unselected.Load(), c.unserving.Load()
	wanted := c.wanted()
	switch {
	case unserving > 0 && wanted == "":
		return fmt.Errorf("%w: none of the %d that there are serves port %d", balancer.ErrNoEndpoints, unserving, c.target.Port)
	case unserving > 0:
		return fmt.Errorf("%w: none of the %d that there are %s and serves port %d", balancer.ErrNoEndpoints, others+unserving, wanted, c.target.Port)
	case others > 0:
		return fmt.Errorf("%w: none of the %d that there are %s", balancer.ErrNoEndpoints, others, wanted)
	}
	c.mu.Lock()
	subs := c.subs
	c.mu.Unlock()
	for _, sub := range subs {
		if err := sub.Err(); err != nil {
			return fmt.Errorf("%w: %v", balancer.ErrNoEndpoints, err)
		}
	}
	if n := len(c.balancer.Hosts()); n > 0 {
		return fmt.Errorf("%w: all %d that there are drain", balancer.ErrNoEndpoints, n)
	}
	if len(subs) > 0 {
		return fmt.Errorf("%w: discovery knows the service, and none that takes calls", balancer.ErrNoEndpoints)
	}
	return balancer.ErrNoEndpoints
}

// multiplexed says that attempts share the connections.
func (c *cluster) multiplexed() {
	if shared := &c.sockets.Multiplexed; !shared.Load() {
		shared.Store(true)
	}
}

var errDiscoverySlow = errors.New("discovery has not answered in time")

// wanted describes the endpoints of the subset. It returns "" if all endpoints are in it.
func (c *cluster) wanted() string {
	var conditions []string
	if labels := c.config.Subset; len(labels) > 0 {
		conditions = append(conditions, "has the labels "+labelText(labels))
	}
	if filter := c.config.Filter.Text; filter != "" {
		conditions = append(conditions, "matches "+strconv.Quote(filter))
	}
	return strings.Join(conditions, " and ")
}

// labelText returns labels as readable text, sorted by name.
func labelText(labels map[string]string) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, name+"="+labels[name])
	}
	return strings.Join(list, ",")
}
