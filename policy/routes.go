package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/conjunction"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
)

// claim is what documents say of the requests to a host.
type claim struct {
	document *document // that claims the host; nil if none does
	name     string    // of the document, with its kind
	routes   *route.Table
	steps    []step // one for each of routes

	// ports are those that the document speaks of, if it does not speak of all: requests to others are treated as if it
	// was not there.
	ports     []int
	otherwise *claim // what then counts; nil: nothing
}

// at returns the claim that counts for requests to a port.
func (c *claim) at(port int) *claim {
	for c != nil && c.ports != nil && !slices.Contains(c.ports, port) {
		c = c.otherwise
	}
	return c
}

// step is a route on its way from the documents to a table.
type step struct {
	route.Route

	document string // that the route comes from; empty for the defaults of the mesh
	index    int    // of the route in the document, or -1
	matches  []int  // the index of each match in the document

	service        string // the one service that the route leads to, or the host of the request
	timed, retried bool   // a VirtualService decides about timeout and retries
}

// Origin is where a route comes from.
type Origin struct {
	// Document names the document, as "VirtualService default/user-service". Empty means that none has a part in the
	// route: the requests meet the mesh's defaults.
	Document string

	// Route and Match are indices in the document, from 0. They are -1 if it has no routes, and if its route has no
	// matches.
	Route, Match int
}

// Origin says where a route of h.Routes, with one of its matches, comes from. It differs from the place in the table where
// documents of several kinds say something of the same host.
func (h Host) Origin(e *route.Entry, match int) Origin {
	if h.claim == nil {
		return Origin{Route: -1, Match: -1}
	}
	s := &h.claim.steps[e.Index]
	o := Origin{Document: s.document, Route: s.index, Match: -1}
	if match >= 0 {
		o.Match = s.matches[match]
	}
	return o
}

// newClaim compiles the routes of a claim.
func newClaim(document *document, name string, steps []step) (*claim, error) {
	routes := make([]route.Route, len(steps))
	for i := range steps {
		routes[i] = steps[i].Route
	}
	table, err := route.NewTable(routes)
	return &claim{document: document, name: name, routes: table, steps: steps}, err
}

// virtualServices gives every host to the first document that claims it. Documents that are exported to the workload's
// namespace by name come before those that are exported to all.
func (c *compiler) virtualServices() {
	client := istio.Client{
		Namespace:     c.plan.workload.Namespace,
		Labels:        c.plan.workload.Labels,
		ClusterDomain: c.plan.workload.ClusterDomain,
	}
	delegates := make(map[string]decoded[istio.VirtualService])
	named := make(map[string]bool)
	for _, vs := range c.virtual {
		if vs.is.IsDelegate() {
			delegates[vs.namespace+"/"+vs.name] = vs
		}
		for i := range vs.is.Spec.HTTP {
			if d := vs.is.Spec.HTTP[i].Delegate; d != nil {
				named[cmp.Or(d.Namespace, vs.namespace)+"/"+d.Name] = true
			}
		}
	}
	for _, publicly := range []bool{false, true} {
		for _, vs := range c.virtual {
			visible, public := istio.VisibleFrom(client.Namespace, vs.namespace, vs.is.Spec.ExportTo)
			switch {
			case vs.Failed() || public != publicly || vs.is.IsDelegate():
			case !vs.is.InMesh():
				vs.Warnf("spec.gateways", "applies to gateways only, which do not exist in-process: it is skipped")
			default:
				whole := expand(vs, delegates)
				table := whole.Table(vs.document.Document, client)
				ports, some := portsOf(whole.VirtualService, client)
				switch {
				case !visible || table == nil:
				case some:
					c.claim(vs, table, steps(vs, whole, table), ports)
				default: // Istio acts as if it was not there
					for _, host := range vs.is.Spec.Hosts {
						c.plan.name(istio.Resolve(host, vs.namespace, client.ClusterDomain))
					}
				}
			}
		}
	}
	for name, d := range delegates {
		if !named[name] && !d.Failed() {
			d.Warnf("", "has no hosts and no VirtualService delegates to it: it has no effect")
		}
	}
}

// expand puts the routes of delegates in their place.
func expand(vs decoded[istio.VirtualService], delegates map[string]decoded[istio.VirtualService]) istio.Expansion {
	whole := vs.is.Expand(func(namespace, name string) (*istio.VirtualService, bool) {
		d, ok := delegates[namespace+"/"+name]
		return d.is, ok && !d.Failed()
	})
	for _, i := range whole.Missing {
		vs.Warnf(yamldoc.Index("spec.http", i)+".delegate",
			"there is no VirtualService without hosts of this name that %s sees: the route is left out", vs.namespace)
	}
	for _, o := range whole.Dropped {
		d := delegates[o.Delegate.Namespace()+"/"+o.Delegate.Metadata.Name]
		d.Warnf(yamldoc.Index("spec.http", o.DelegateRoute), "never reached from %s: it matches nothing that spec.http[%d] does "+
			"(%s:%d)", vs.identity, o.Route, vs.file, vs.LineOf(yamldoc.Index("spec.http", o.Route)))
	}
	return whole
}

// steps returns the routes of a VirtualService.
func steps(vs decoded[istio.VirtualService], whole istio.Expansion, table *route.Table) []step {
	steps := make([]step, table.Len())
	for i := range steps {
		spec, origin := &whole.Spec.HTTP[i], whole.Origins[i]
		s := step{
			Route:    *table.Entry(i).Route,
			document: vs.identity.String(),
			index:    origin.Route,
			timed:    spec.Timeout.Set,
			retried:  spec.Retries != nil,
		}
		// Of a route with a delegate, what counts are the matches of the root.
		own, inner := len(vs.is.Spec.HTTP[origin.Route].Match), 0
		if origin.Delegate != nil {
			inner = len(origin.Delegate.Spec.HTTP[origin.DelegateRoute].Match)
		}
		for j := range s.Matches {
			at := -1
			switch {
			case own == 1:
				at = 0
			case own > 1 && (inner == 0 || len(s.Matches) == own*inner):
				at = j % own
			}
			s.matches = append(s.matches, at)
		}
		steps[i] = s
	}
	return steps
}

// portsOf returns the ports that a document speaks of, nil for all, and false if it does not concern the workload.
func portsOf(vs *istio.VirtualService, client istio.Client) (ports []int, some bool) {
	named := make(map[int]bool)
	for i := range vs.Spec.HTTP {
		for _, m := range vs.Spec.HTTP[i].Match {
			if m.Port != nil && *m.Port != 0 {
				named[int(*m.Port)] = true
			}
		}
	}
	other := 1
	for named[other] {
		other++
	}
	if len(named) == 0 || vs.Applies(client, other) {
		return nil, vs.Applies(client, 0)
	}
	for port := range named {
		if vs.Applies(client, port) {
			ports = append(ports, port)
		}
	}
	slices.Sort(ports)
	return ports, len(ports) > 0
}

// claim gives the hosts of a document to it, at the given ports.
func (c *compiler) claim(vs decoded[istio.VirtualService], table *route.Table, steps []step, ports []int) {
	p := c.plan
	changed := false
	for i := range steps {
		s := &steps[i]
		for j := range s.Destinations {
			changed = c.target(&s.Destinations[j].Target) || changed
			if s.service == "" {
				s.service = s.Destinations[j].Host
			} else if s.service != s.Destinations[j].Host {
				s.service = "*" // several
			}
		}
		for j := range s.Mirrors {
			changed = c.target(&s.Mirrors[j].Target) || changed
		}
	}
	own := &claim{document: vs.document, name: vs.identity.String(), routes: table, steps: steps}
	if changed {
		var err error
		if own, err = newClaim(vs.document, own.name, steps); err != nil {
			vs.Errorf("spec.http", "%v", err)
			return
		}
	}
	own.ports = ports
	for i, host := range vs.is.Spec.Hosts {
		host = istio.Resolve(host, vs.namespace, p.workload.ClusterDomain)
		has, added := p.claims.add(host, own)
		switch {
		case added || has.document == vs.document:
		case has.ports != nil:
			p.claims.set(host, has.before(own)) // for the ports that the first one leaves
		default:
			vs.Warnf(yamldoc.Index("spec.hosts", i), "has no effect: %s claims %s already (%s:%d), and the first one counts",
				has.name, host, has.document.file, has.document.Line)
		}
		p.name(host)
	}
}

// target names the host of a target, and fills in the only port of a service where the document names none. It reports
// whether it did.
func (c *compiler) target(t *route.Target) bool {
	c.plan.name(t.Host)
	if t.Port != 0 {
		return false
	}
	t.Port = c.plan.onlyPort(c.plan.canonical(t.Host))
	return t.Port != 0
}

// before returns the claim with another one behind it.
func (c *claim) before(other *claim) *claim {
	first := *c
	if first.otherwise = other; c.otherwise != nil {
		first.otherwise = c.otherwise.before(other)
	}
	return &first
}

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

// combined returns the claim on a host with what splits and profiles add to it. That is the claim itself if they do not.
func (c *compiler) combined(host string, own *claim) *claim {
	name, steps := "", []step{{
		Route:   route.Route{Destinations: []route.Destination{{Target: route.Target{Host: host}}}, Retry: c.plan.retries},
		index:   -1,
		service: host,
	}}
	var source *document
	if own != nil {
		name, steps, source = own.name, own.steps, own.document
	} else if profile := c.profiles[host]; profile != nil {
		name = profile.identity.String()
	} else if split := c.splits[host]; split != nil {
		name = split.identity.String()
	} else {
		return nil
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
	var otherwise *claim
	if own != nil && own.ports != nil {
		otherwise = c.combined(host, own.otherwise)
	}
	if !j.changed && (own == nil || own.otherwise == otherwise) {
		return own
	}
	both, err := newClaim(source, name, j.out)
	if own != nil {
		both.ports, both.otherwise = own.ports, otherwise
	}
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
	return both
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
		split := j.splits[j.plan.canonical(d.Host)]
		if split == nil || d.Subset != "" {
			continue
		}
		for _, part := range split.parts {
			if part.port != 0 && d.Port != 0 && part.port != d.Port {
				continue
			}
			j.changed, j.last = true, split.document
			divided := s
			divided.Destinations = divide(s.Destinations, i, part.backends)
			if !j.virtual {
				divided.document = split.identity.String()
			}
			next := i + len(part.backends)
			matches := part.when
			if part.port != 0 && d.Port == 0 {
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
		if _, has := j.plan.budgets[d.Host]; !has && !profile.Budget.Off {
			j.plan.budgets[d.Host] = profile.Budget
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
			part.Name, part.document, part.index = r.Name, profile.identity.String(), i
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

// subsets warns of destinations that have no endpoints, because no document defines their subset.
func (c *compiler) subsets() {
	if c.failed() {
		return // what the documents say together is not known
	}
	for _, vs := range c.virtual {
		visible, _ := istio.VisibleFrom(c.plan.workload.Namespace, vs.namespace, vs.is.Spec.ExportTo)
		if !visible || !vs.is.InMesh() {
			continue
		}
		missing := func(d *istio.Destination, at string) {
			if d == nil || d.Subset == nil {
				return
			}
			host := istio.Resolve(d.Host, vs.namespace, c.plan.workload.ClusterDomain)
			if r := c.plan.rule(c.plan.canonical(host)); r == nil || r.subsets[*d.Subset] == nil {
				vs.Warnf(at+".subset", "no DestinationRule defines the subset %s of %s: requests to it fail", *d.Subset, host)
			}
		}
		for i := range vs.is.Spec.HTTP {
			r, at := &vs.is.Spec.HTTP[i], yamldoc.Index("spec.http", i)
			for j := range r.Route {
				missing(r.Route[j].Destination, yamldoc.Index(at+".route", j)+".destination")
			}
			missing(r.Mirror, at+".mirror")
			for j := range r.Mirrors {
				missing(r.Mirrors[j].Destination, yamldoc.Index(at+".mirrors", j)+".destination")
			}
		}
	}
}
