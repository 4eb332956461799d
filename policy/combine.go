package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/nosidecar/mesh/policy/internal/conjunction"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// combine applies TrafficSplits and ServiceProfiles to the claims.
func (c *compiler) combine() {
	if len(c.splits) == 0 && len(c.profiles) == 0 || c.failed() {
		return
	}
	p := c.plan
	for host, profile := range c.profiles {
		if !profile.budget.Off {
			p.budgets[host] = &profile.budget
		}
	}
	hosts := make(map[string]*claim)
	for host, split := range c.splits {
		hosts[host], p.places[split.by] = p.claims.find(host), c.of(split.by).place()
	}
	for host, profile := range c.profiles {
		hosts[host], p.places[profile] = p.claims.find(host), c.of(profile).place()
	}
	for host, claim := range p.claims.all() {
		for own := claim; own != nil; own = own.otherwise {
			if c.joins(own) {
				hosts[host] = claim
			}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		if both := c.combined(host, hosts[host], c.last.claims.plain(host)); both != hosts[host] {
			p.claims.set(host, both)
		}
	}
	for _, end := range slices.Sorted(maps.Keys(p.claims.wild)) {
		p.claims.wild[end] = c.combined("*"+end, p.claims.wild[end], c.last.claims.wild[end])
	}
}

// maxRoutes bounds the routes of a host that result from several documents.
const maxRoutes = 10_000

// combined returns the claim on a host together with its splits and profiles, or the claim itself if there are none for the host and the
// services that it leads to. last is the corresponding claim of the last plan. Its unchanged parts are kept.
func (c *compiler) combined(host string, own, last *claim) *claim {
	for own != nil && own.attached != nil && c.divided(host) != nil { // they are attached to a wildcard
		own = own.otherwise
	}
	with := c.joint(host, own, last)
	var otherwise, lastOtherwise *claim
	if own != nil && own.ports() != nil {
		if last != nil {
			lastOtherwise = last.otherwise
		}
		otherwise = c.combined(host, own.otherwise, lastOtherwise)
	}
	if with == nil && (own == nil || own.otherwise == otherwise) {
		return own
	}
	both := &claim{joint: with, otherwise: otherwise}
	if own != nil {
		both.virtual, both.at, both.whole, both.attached = own.virtual, own.at, own.whole, own.attached
	}
	if with == nil {
		return both
	}
	for _, b := range with.budgets {
		if _, has := c.plan.budgets[b.host]; !has {
			c.plan.budgets[b.host] = b.budget
		}
	}
	return both
}

// joint returns the joint of a claim with its splits and profiles, or nil if it has none.
func (c *compiler) joint(host string, own, last *claim) *joint {
	of, divided := c.profiles[host], c.splits[host]
	if own != nil && own.attached != nil { // which have the settings of the Service
		of = nil
	}
	if of == nil && divided == nil && !c.joins(own) {
		return nil
	}
	composer := c.composer(own, divided)
	if composer != nil && c.joined[composer.namespace] > mostJoined {
		composer.Errorf("spec", "cannot be enforced for calls to %s: with ServiceProfiles and TrafficSplits, the documents of namespace %s make "+
			"more than %d routes and matches: use fewer routes", host, composer.namespace, mostJoined)
		return nil
	}
	u, leads := c.plan.unit(own), own.leads()
	u.profiles, u.splits = append(make([]*profile, 0, 1+len(leads)), of), append(make([]*split, 0, 1+len(leads)), divided)
	for _, name := range leads {
		full := c.plan.canonical(name)
		u.profiles, u.splits = append(u.profiles, c.profiles[full]), append(u.splits, c.splits[full])
	}
	with := c.known(host, &u, last)
	if with == nil {
		with = c.plan.try(host, own, u)
		c.joints[host] = append(c.joints[host], with)
	}
	if composer != nil {
		c.joined[composer.namespace] += max(0, with.size-freeJoined)
	}
	if with.err != nil {
		c.refuseJoint(with, composer)
		return nil
	}
	return with
}

// mostJoined bounds the number of routes that result from documents of several kinds, valid or not. It applies per namespace of the document
// that leads to the others. A few documents can lead to many routes, and one namespace must not slow down all others.
var mostJoined = 5 * maxRoutes // only tests change it

// freeJoined is the number of them that do not count for each host: a namespace may have any number of services with documents of usual size.
const freeJoined = 64

// known returns the joint of a unit if the last plan or an earlier round has it, even if it cannot be enforced: documents that are refused
// for that reason are read again whenever other documents change.
func (c *compiler) known(host string, u *unit, last *claim) *joint {
	if last != nil && last.joint != nil && last.joint.unit.equal(u) {
		return last.joint
	}
	of := func(j *joint) bool { return j.unit.equal(u) }
	if i := slices.IndexFunc(c.joints[host], of); i >= 0 {
		return c.joints[host][i]
	}
	if i := slices.IndexFunc(c.last.unenforceable[host], of); i >= 0 {
		with := c.last.unenforceable[host][i]
		c.joints[host] = append(c.joints[host], with)
		return with
	}
	return nil
}

// try compiles the routes of a unit to find out whether they can be enforced. They are compiled again when they are needed.
func (p *Plan) try(host string, own *claim, u unit) *joint {
	j := p.join(host, own, &u, (*virtual).peek)
	with := &joint{unit: u, host: host, changed: own == nil || j.changed, name: j.name, last: j.last, size: j.matches}
	if !with.changed {
		with.size = 0
		return with
	}
	if with.err = j.err; with.err == nil {
		_, with.err = compileSteps(j.name, j.out)
	}
	with.budgets = slices.Clip(j.budgets)
	return with
}

// refuseJoint reports in one of its documents that a joint cannot be enforced.
func (c *compiler) refuseJoint(with *joint, composer *document) {
	last, name := c.of(with.last), with.name
	for _, part := range with.parts() {
		if d := c.of(part); c.newer(d, last) {
			last = d
		}
	}
	if composer != nil {
		if to := c.blame(composer, last); to != last {
			last, name = to, last.identity.String()
		}
	}
	err := with.err
	if name != last.identity.String() {
		err = fmt.Errorf("with %s: %w", name, err)
	}
	last.Errorf("spec", "cannot be enforced for calls to %s: %v", with.host, err)
}

// composer returns the document that leads to the services whose documents are joined with it: the VirtualService of a claim, or otherwise
// the split of its host.
func (c *compiler) composer(own *claim, divided *split) *document {
	switch {
	case own != nil && own.virtual != nil:
		return c.of(own.virtual)
	case divided != nil:
		return c.of(divided.by)
	}
	return nil
}

// leads identifies the services that the requests of a claim go to. They are the same for all hosts of a document.
type leads struct {
	virtual *virtual
	whole   *expansion
}

// joins reports whether there is a profile or a split for any of the services that the requests of a claim go to.
func (c *compiler) joins(own *claim) bool {
	if own == nil || own.virtual == nil {
		return false
	}
	of := leads{own.virtual, own.whole}
	joins, known := c.leading[of]
	if !known {
		joins = slices.ContainsFunc(own.leads(), func(name string) bool {
			full := c.plan.canonical(name)
			return c.profiles[full] != nil || c.splits[full] != nil
		})
		c.leading[of] = joins
	}
	return joins
}

// join makes the routes of a unit. own is the claim of its VirtualService; it may be nil, or have no VirtualService.
func (p *Plan) join(host string, own *claim, u *unit, read func(*virtual) *istio.VirtualService) *joiner {
	j := &joiner{plan: p, unit: u, host: host}
	steps := []step{{
		Route:   route.Route{Destinations: []route.Destination{{Target: route.Target{Host: host}}}, Retry: istio.DefaultRetry()},
		origin:  origin{index: -1},
		service: host,
	}}
	switch profile, split := u.profiles[0], u.splits[0]; {
	case u.virtual != nil:
		j.leads = own.leads()
		j.name, steps = u.virtual.identity.String(), p.steps(own, read)
	case profile != nil:
		j.name = profile.identity.String()
	case split != nil:
		j.name = split.from.String()
	}
	for i := range steps {
		j.split(steps[i], 0)
	}
	parts := j.out
	j.out = nil
	for i := range parts {
		j.profile(parts[i])
	}
	return j
}

// joiner combines the documents about one host.
type joiner struct {
	plan    *Plan
	unit    *unit
	host    string
	leads   []string // the services of the profiles and splits in unit, after the first one, which is that of host
	name    string   // the name of the document that the routes begin with
	out     []step
	matches int // the number of routes and matches in out
	budgets []hostBudget

	changed bool
	last    any // the content of the latest document that changed something
	err     error
}

// hostBudget bounds the retries of calls to a host.
type hostBudget struct {
	host   string
	budget *retry.BudgetConfig
}

// splitOf returns the split of a destination, or nil if it has none.
func (j *joiner) splitOf(host string) *split {
	if j.unit.virtual == nil {
		return j.unit.splits[0]
	}
	if i := slices.Index(j.leads, host); i >= 0 {
		return j.unit.splits[i+1]
	}
	return nil
}

// profileOf returns the profile of a service, or otherwise that of the host. It returns nil if there is none.
func (j *joiner) profileOf(service string) *profile {
	if i := slices.Index(j.leads, service); i >= 0 && j.unit.profiles[i+1] != nil {
		return j.unit.profiles[i+1]
	}
	return j.unit.profiles[0]
}

func (j *joiner) add(s step) {
	j.matches += 1 + len(s.Matches)
	if j.matches > maxRoutes {
		j.err = fmt.Errorf("the documents make more than %d routes and matches together", maxRoutes)
		return
	}
	j.out = append(j.out, s)
}

// split adds a step whose destinations, from the given index on, are divided by their TrafficSplits.
func (j *joiner) split(s step, from int) {
	for i := from; i < len(s.Destinations) && j.err == nil; i++ {
		d := s.Destinations[i]
		split := j.splitOf(d.Target.Host)
		if split == nil || d.Target.Subset != "" {
			continue
		}
		for _, part := range split.parts {
			if part.port != 0 && d.Target.Port != 0 && part.port != d.Target.Port {
				continue
			}
			j.changed, j.last = true, split.by
			divided := s
			divided.Destinations = divide(s.Destinations, i, part.backends)
			if j.unit.virtual == nil {
				divided.document, divided.by = split.from.String(), split.by
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

// profile adds a step with the settings of its ServiceProfile.
func (j *joiner) profile(s step) {
	profile := j.profileOf(s.service)
	if profile == nil || len(s.Destinations) == 0 {
		j.add(s)
		return
	}
	j.changed, j.last = true, profile
	for _, d := range s.Destinations {
		if b := (hostBudget{j.plan.canonical(d.Target.Host), &profile.budget}); !profile.budget.Off && !slices.Contains(j.budgets, b) {
			j.budgets = append(j.budgets, b)
		}
	}
	if s.timed && s.retried {
		j.add(s)
		return
	}
	if profile.service != nil {
		j.add(profile.annotate(s, j.unit.virtual == nil))
		return
	}
	for i, r := range profile.routes() {
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
		if j.unit.virtual == nil {
			part.Name, part.document, part.by, part.index = r.Name, profile.identity.String(), profile, i
		}
		j.add(part)
	}
	j.add(s)
}

// narrow returns a step for the requests that also match one of matches. It reports false if there can be no such requests.
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
