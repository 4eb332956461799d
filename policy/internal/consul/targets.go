package consul

import "fmt"

// end returns the target that calls to a target end up at. It adds that target, and those of its failover, to the chain.
func (c *chainer) end(to Target, from place) (Target, *Error) {
	target, err := c.resolve(to, from)
	if err != nil {
		return Target{}, err
	}
	if c.add(target) {
		return target, nil
	}
	others, err := c.failover(target)
	for _, other := range others {
		c.add(other)
	}
	return target, err
}

// add adds a target to the chain, and reports whether the chain already had it.
func (c *chainer) add(t Target) (has bool) {
	if has = c.seen[t]; !has {
		c.seen[t] = true
		c.chain.Targets = append(c.chain.Targets, t)
	}
	return has
}

// resolve follows redirects and default subsets.
func (c *chainer) resolve(t Target, from place) (Target, *Error) {
	visited := make(map[Target]bool)
	for {
		c.uses(ServiceResolverKind, t.Service)
		if err := c.speaks(t.Service, from); err != nil {
			return t, err
		}
		if visited[t] {
			return t, from.errorf("leads in a circle: the redirect of %s comes back to it", t.Service)
		}
		if visited[t] = true; len(visited) > maxDepth {
			return t, from.errorf("cannot be enforced: it leads through more than %d redirects, one after the other", maxDepth)
		}
		r := c.Resolvers[t.Service]
		if r != nil && r.Redirect != nil {
			d := r.Redirect
			if next := t.rewritten(d.Service, d.ServiceSubset, d.Datacenter); next != t {
				from = place{ServiceResolverKind, t.Service, "Redirect"}
				t = next
				continue
			}
		}
		if r != nil && t.Subset == "" && r.DefaultSubset != "" {
			t.Subset = r.DefaultSubset
			continue
		}
		if !r.has(t.Subset) {
			return t, from.errorf("cannot be enforced: no service-resolver entry of %s has the subset %s", t.Service, t.Subset)
		}
		return t, nil
	}
}

// rewritten returns a target with some parts replaced. A subset belongs to its service: another service does not keep it.
func (t Target) rewritten(service, subset, datacenter string) Target {
	if service != "" && service != t.Service {
		t.Service, t.Subset = service, ""
	}
	if subset != "" {
		t.Subset = subset
	}
	if datacenter != "" {
		t.Datacenter = datacenter
	}
	return t
}

// failover returns the targets that replace a resolved target while it has no healthy endpoint.
func (c *chainer) failover(t Target) ([]Target, *Error) {
	r := c.Resolvers[t.Service]
	if r == nil {
		return nil, nil
	}
	key := t.Subset
	f, ok := r.Failover[key]
	if !ok {
		key = "*"
		if f, ok = r.Failover[key]; !ok {
			return nil, nil
		}
	}
	var next []Target
	switch {
	case len(f.Datacenters) > 0:
		for _, dc := range f.Datacenters {
			next = append(next, t.rewritten(f.Service, f.ServiceSubset, dc))
		}
	case len(f.Targets) > 0:
		for _, to := range f.Targets {
			next = append(next, t.rewritten(to.Service, to.ServiceSubset, to.Datacenter))
		}
	default:
		next = append(next, t.rewritten(f.Service, f.ServiceSubset, ""))
	}
	from := place{ServiceResolverKind, t.Service, fmt.Sprintf("Failover[%q]", key)}
	var list []Target
	for _, to := range next {
		if to == t {
			continue
		}
		to, err := c.resolve(to, from)
		if err != nil {
			return nil, err
		}
		list = append(list, to)
	}
	return list, nil
}

// Ends returns the targets that calls to a target may go to: the first one with healthy endpoints gets them. The target must be one of a
// valid chain.
func (s *Set) Ends(t Target) []Target {
	c := s.chainer(t.Service)
	first, err := c.resolve(t, place{})
	if err != nil {
		return nil
	}
	others, err := c.failover(first)
	if err != nil {
		return nil
	}
	list := []Target{first}
	for _, to := range others {
		if !c.seen[to] && to != first {
			c.seen[to] = true
			list = append(list, to)
		}
	}
	return list
}

// Has reports whether the service of a target has the subset of the target.
func (s *Set) Has(t Target) bool { return s.Resolvers[t.Service].has(t.Subset) }
