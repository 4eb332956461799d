package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/policy/route"
)

// A cluster with failover stands for an ordered list of targets, as an aggregate cluster of Envoy does. Each attempt goes to
// the first that has a healthy endpoint, under the settings of that target's own cluster: limits, circuit, ejections,
// security. Only what belongs to the call as a whole is that of the cluster with the list: the rate limit, the retries and
// their budget, the key of consistent hashing, and the time between parts of a body.

// wakeAfter is how often the targets of a list are kept from being dropped as idle, in seconds.
const wakeAfter = 60

// failoverTargets returns the list of a target, with what it leaves to the target filled in; nil if there is none.
func failoverTargets(config *clusterConfig, of route.Target) []route.Target {
	if len(config.Failover) == 0 {
		return nil
	}
	targets := slices.Clone(config.Failover)
	for i := range targets {
		t := &targets[i]
		if t.Host == "" {
			t.Host = of.Host
		}
		if t.Port == 0 {
			t.Port = of.Port
		}
	}
	return targets
}

// acquireFirst takes what the attempt needs from the first target that has a healthy endpoint. If none has, it takes the first
// target that ignores ejections when there are too many.
func (a *Attempt) acquireFirst(ctx context.Context, n int) error {
	c := a.call
	list := c.cluster.failover
	c.target = &c.cluster.target
	c.late = true // it may wait for discovery of any of them
	c.wake()
	errs := make([]error, 0, 4) // on the stack
	for _, target := range list {
		done, err := a.acquireOf(ctx, target, n, (*cluster).healthy)
		if done {
			return err
		}
		errs = append(errs, err)
	}
	for _, target := range list {
		if done, err := a.acquireOf(ctx, target, n, (*cluster).panics); done {
			return err
		}
	}
	return refuse(LayerBalancer, FlagNoHealthyUpstream, &failoverError{slices.Clone(list), slices.Clone(errs)})
}

// acquireOf takes what the attempt needs from a target, if that is usable. If it is not, done is false and err says why.
func (a *Attempt) acquireOf(ctx context.Context, target route.Target, n int, usable func(*cluster, context.Context) error) (done bool, err error) {
	c := a.call
	member, err := c.enterTarget(target)
	if err != nil {
		return errors.Is(err, ErrClosed), err
	}
	entered := false
	defer func() {
		if !entered {
			c.exit(member)
			a.cluster = c.cluster // so that it is not left again
		}
	}()
	if err = usable(member, ctx); err != nil {
		return ctx.Err() != nil, err
	}
	if c.shares {
		member.multiplexed()
	}
	if err = a.acquire(ctx, member, n); err != nil {
		if isUnhealthy(err) { // the last healthy endpoint has gone meanwhile
			return false, err
		}
	}
	c.target = &member.target
	entered = err == nil
	return true, err
}

// enterTarget counts the call in the cluster of a target in the list. The caller undoes that with exit.
func (c *Call) enterTarget(target route.Target) (*cluster, error) {
	if target == c.cluster.target {
		return c.cluster, nil
	}
	for {
		member, current, err := c.engine.enter(c.engine.view.Load(), target, c.engine.clock.now().read)
		if err != nil || current {
			return member, err
		}
	}
}

// exit undoes enterTarget.
func (c *Call) exit(member *cluster) {
	if member != c.cluster {
		member.leave()
	}
}

// wake starts discovery for all targets of the list, and keeps it going: a target must be known before it is needed.
func (c *Call) wake() {
	now, last := time.Now().Unix(), c.cluster.woken.Load()
	if now-last < wakeAfter || !c.cluster.woken.CompareAndSwap(last, now) {
		return
	}
	for _, target := range c.cluster.failover {
		if member, err := c.enterTarget(target); err == nil {
			c.exit(member)
		}
	}
}

// healthy returns nil if the cluster has a healthy endpoint, and else why it has none. It waits for the first answer of
// discovery, once.
func (c *cluster) healthy(ctx context.Context) error {
	if err := c.shut(); err != nil {
		return err
	}
	if c.config.Missing {
		return ErrUnknownSubset
	}
	c.sweep(time.Now())
	err := c.balancer.Healthy()
	if err == balancer.ErrNoEndpoints && !c.heard.Load() {
		if err := c.wait(ctx); err != nil {
			if errors.Is(err, errDiscoverySlow) {
				c.heard.Store(true)
			}
			return undiscovered(ctx, err)
		}
		c.heard.Store(true)
		err = c.balancer.Healthy()
	}
	if err == balancer.ErrNoEndpoints {
		return c.noEndpoints()
	}
	return err
}

// panics returns nil if the cluster may ignore ejections and has endpoints. It does not wait for discovery again.
func (c *cluster) panics(context.Context) error {
	if c.config.Balancer.PanicFraction > 0 && len(c.balancer.Hosts()) > 0 {
		return nil
	}
	return balancer.ErrNoHealthy
}

// isUnhealthy reports whether a pick failed because there is no healthy endpoint.
func isUnhealthy(err error) bool {
	return errors.Is(err, balancer.ErrNoHealthy) || errors.Is(err, balancer.ErrNoEndpoints)
}

// failoverError says of each target why it could not be used.
type failoverError struct {
	targets []route.Target
	errs    []error
}

// Error implements error.
func (e *failoverError) Error() string {
	var b strings.Builder
	b.WriteString("no target has a healthy endpoint")
	separator := ": "
	for i, target := range e.targets {
		fmt.Fprintf(&b, "%s%v: %v", separator, target, e.errs[i])
		separator = "; "
	}
	return b.String()
}

// Unwrap returns the reasons.
func (e *failoverError) Unwrap() []error { return e.errs }
