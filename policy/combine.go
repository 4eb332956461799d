package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/nosidecar/mesh/policy/internal/conjunction"
	"github.com/nosidecar/mesh/policy/route"
)

// combine joins what TrafficSplits and ServiceProfiles say with the claims.
func (c *compiler) combine() {
	if len(c.splits) == 0 && len(c.profiles) == 0 || c.failed() {
		return
	}
	p := c.plan
	for host, profile := range c.profiles {
		if !profile.Budget.Off {
			p.budgets[host] = profile.Budget
		}
	}
	hosts := make(map[string]*claim)
	for host := range c.splits {
		hosts[host] = p.claims.find(host)
	}
	for host := range c.profiles {
		hosts[host] = p.claims.find(host)
	}
	for host, claim := range p.claims.exact {
		hosts[host] = claim
	}
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		if both := c.combined(host, hosts[host]); both != hosts[host] {
			p.claims.set(host, both)
		}
	}
	for i := range p.claims.wild {
		w := &p.claims.wild[i]
		if w.value != nil {
			w.value = c.combined(w.host, w.value)
		}
	}
}

// maxRoutes bounds the routes of a host that several documents make together.
const maxRoutes = 10_000

// concerns says that a split or a profile may be about the calls to a host that a claim leads elsewhere.
func (c *compiler) concerns(host string, own *claim) bool {
	if c.profiles[host] != nil || c.splits[host] != nil {
		return true
	}
	for ; own != nil; own = own.otherwise {
		for _, name := range own.leadsTo() {
			if c.profiles[name] != nil || c.splits[c.plan.canonical(name)] != nil {
				return true
			}
		}
	}
	return false
}

// combined returns the claim on a host with what splits and profiles add to it. That is the claim itself if they do not.
func (c *compiler) combined(host string, own *claim) *claim {
	if !c.concerns(host, own) {
		return own
	}
	name, steps := "", []step{{
		Route:   route.Route{Destinations: []route.Destination{{Target: route.Target{Host: host}}}, Retry: c.plan.retries},
		index:   -1,
		service: host,
	}}
	if own != nil {
		name, steps = own.virtual.identity.String(), own.steps
		if steps == nil {
			steps, _ = c.plan.steps(own.virtual)
		}
	} else if profile := c.profiles[host]; profile != nil {
		name = profile.identity.String()
	} else if split := c.splits[host]; split != nil {
		name = split.identity.String()
	}

	j := joiner{compiler: c, host: host, virtual: own != nil}
	for i := range steps {
		j.split(steps[i], 0)
	}
	parts := j.out
	j.out = nil
	for i := range parts {
		j.profile(parts[i])
	}
	var both claim
	if own != nil {
		both.virtual, both.at, both.ports = own.virtual, own.at, own.ports
		if own.ports != nil {
			both.otherwise = c.combined(host, own.otherwise)
		}
		if !j.changed && own.otherwise == both.otherwise {
			return own
		}
	}
	b, err := compileSteps(name, j.out)
	if j.err != nil {
		err = j.err
	}
	if err != nil {
		if name != j.last.identity.String() {
			err = fmt.Errorf("with %s: %w", name, err)
		}
		j.last.Errorf("spec", "cannot be enforced for calls to %s: %v", host, err)
		return own
	}
	both.done.Store(b)
	return &both
}

// joiner combines what is said of one host.
type joiner struct {
	*compiler
	host    string
	virtual bool // a VirtualService claims the host
	out     []step
	matches int // of out

	changed bool
	last    *document // that changed something
	err     error
}

func (j *joiner) add(s step) {
	j.matches += 1 + len(s.Matches)
	if j.matches > maxRoutes {
		j.err = fmt.Errorf("the documents make more than %d routes and matches together", maxRoutes)
		return
	}
	j.out = append(j.out, s)
}

// split adds a step with its destinations, from the given one on, divided by their TrafficSplits.
func (j *joiner) split(s step, from int) {
	for i := from; i < len(s.Destinations) && j.err == nil; i++ {
		d := s.Destinations[i]
		split := j.splits[j.plan.canonical(d.Target.Host)]
		if split == nil || d.Target.Subset != "" {
			continue
		}
		for _, part := range split.parts {
			if part.port != 0 && d.Target.Port != 0 && part.port != d.Target.Port {
				continue
			}
			j.changed, j.last = true, split.document
			divided := s
			divided.Destinations = divide(s.Destinations, i, part.backends)
			if !j.virtual {
				divided.document, divided.at = split.identity.String(), split.place()
			}
			next := i + len(part.backends)
			matches := part.when
			if part.port != 0 && d.Target.Port == 0 {
				matches = atPort(matches, part.port)
			}
			if matches == nil {
				j.split(divided, next)
				return
			}
			if divided, ok := j.narrow(divided, matches); ok {
				j.split(divided, next)
			}
		}
	}
	j.add(s)
}

// profile adds a step with what a ServiceProfile says about it.
func (j *joiner) profile(s step) {
	profile := j.profiles[s.service]
	if profile == nil {
		profile = j.profiles[j.host]
	}
	if profile == nil || len(s.Destinations) == 0 {
		j.add(s)
		return
	}
	j.changed, j.last = true, profile.document
	for _, d := range s.Destinations {
		if _, has := j.plan.budgets[d.Target.Host]; !has && !profile.Budget.Off {
			j.plan.budgets[d.Target.Host] = profile.Budget
		}
	}
	if s.timed && s.retried {
		j.add(s)
		return
	}
	for i, r := range profile.Routes {
		if j.err != nil {
			return
		}
		part, ok := j.narrow(s, r.Matches)
		if !ok {
			continue
		}
		if !s.timed {
			part.Timeout = r.Timeout
		}
		if !s.retried {
			part.Retry = r.Retry
		}
		if !j.virtual {
			part.Name, part.document, part.at, part.index = r.Name, profile.identity.String(), profile.place(), i
		}
		j.add(part)
	}
	j.add(s)
}

// narrow returns a step for the requests that meet one of a list of matches too, and false if there are none.
func (j *joiner) narrow(s step, matches []route.Match) (step, bool) {
	own := s.Matches
	if len(own) == 0 {
		own = []route.Match{{}}
	}
	if len(own)*len(matches) > maxRoutes {
		j.err = fmt.Errorf("the documents make more than %d routes and matches together", maxRoutes)
		return s, false
	}
	narrow := s
	narrow.Matches, narrow.matches = nil, nil
	for i := range own {
		for _, m := range matches {
			both, ok, err := conjunction.And(own[i], m, s.Rewrite.URI != "")
			if err != nil {
				j.err = err
				return s, false
			}
			if !ok {
				continue
			}
			at := -1
			if len(s.Matches) > 0 {
				at = s.matches[i]
			}
			narrow.Matches, narrow.matches = append(narrow.Matches, both), append(narrow.matches, at)
		}
	}
	return narrow, len(narrow.Matches) > 0
}
