package policy

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/cors"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// claim has the documents about requests to a host.
type claim struct {
	virtual  *virtual   // the document that claims the host; nil if none does
	at       place      // the place of that document
	whole    *expansion // the expansion of virtual; nil if it has no delegates
	attached *attached  // the routes of the Gateway API that claim the host, instead of virtual
	joint    *joint     // virtual joined with splits and profiles; nil if there are none for the host

	otherwise *claim // the claim for ports that the document does not apply to; nil if there is none

	// done has the compiled routes. They are compiled for the first request.
	done atomic.Pointer[built]
}

// unit has everything that determines the routes of a host. If it is unchanged, a plan takes over the routes of the last plan.
type unit struct {
	virtual  *virtual
	whole    *expansion
	ports    []int      // for each service that requests go to: its only port, or 0
	profiles []*profile // those of the host and of these services
	splits   []*split
}

func (u *unit) equal(other *unit) bool {
	return u.virtual == other.virtual && u.whole == other.whole && slices.Equal(u.ports, other.ports) &&
		slices.Equal(u.profiles, other.profiles) && slices.EqualFunc(u.splits, other.splits, (*split).equal)
}

// parts returns the contents of the documents of the unit, as compiler.of takes them.
func (u *unit) parts() (parts []any) {
	if u.virtual != nil {
		parts = append(parts, u.virtual)
	}
	if u.whole != nil {
		for _, leaf := range u.whole.delegates {
			if leaf != nil {
				parts = append(parts, leaf)
			}
		}
	}
	for _, profile := range u.profiles {
		if profile != nil {
			parts = append(parts, profile)
		}
	}
	for _, split := range u.splits {
		if split != nil {
			parts = append(parts, split.by)
		}
	}
	return parts
}

// joint is a unit with splits and profiles, with the result of combining them.
type joint struct {
	unit
	host    string
	changed bool // the routes differ from those of the VirtualService alone
	size    int  // the number of routes and matches, if the routes differ; otherwise 0
	budgets []hostBudget
	done    atomic.Pointer[built] // the compiled routes, if they differ; nil until they are needed

	err  error  // why the routes cannot be enforced; nil if they can
	name string // the name of the document that they begin with
	last any    // the content of the latest document that changed something
}

// built has the compiled routes of a unit.
type built struct {
	unit
	name    string // the kind and name of the document
	routes  *route.Table
	origins []origin // one for each route
}

// origin is where a route comes from.
type origin struct {
	document string // empty for the defaults of the mesh
	by       any    // the split, profile or route of the Gateway API that the route comes from, as in compiler.of; nil for the VirtualService
	index    int    // the index of the route in the document, or -1
	matches  []int  // the index of each match in the document
}

// place is the place where a document begins.
type place struct {
	file string
	line int
}

// step is a route that is being combined from documents, before it is compiled.
type step struct {
	route.Route

	origin

	service        string // the only service that the route leads to, which may be the host of the request; "*" for several
	timed, retried bool   // a VirtualService sets the timeout, and the retries

	cors *cors.Config // of a route of the Gateway API; nil if it has none
}

// Origin is where a route comes from.
type Origin struct {
	// Document names the document, as in "VirtualService default/user-service". Empty means that no document contributes to the route,
	// which has the mesh's defaults.
	Document string

	// File is the [Source.Name] of the document. Line is the line of the route in it, or that of the document if it has no routes or is
	// neither a VirtualService nor a route of the Gateway API.
	File string
	Line int

	// Route and Match are indices in the document, counted from 0. Route is -1 if the document has no routes, and Match is -1 if the
	// route has no matches.
	Route, Match int
}

// Origin returns where a route of h.Routes and one of its matches come from. The indices differ from those in the table if documents of
// several kinds are combined.
func (h HostPlan) Origin(e *route.Rule, match int) Origin {
	if h.from == nil {
		return Origin{Route: -1, Match: -1}
	}
	from := &h.from.origins[e.Index]
	o := Origin{Document: from.document, Route: from.index, Match: -1}
	if from.by != nil {
		at := h.plan.placeOf(h.claim, from.by)
		o.File, o.Line = at.file, at.line
		if r, ok := from.by.(*gatewayRoute); ok && o.Route >= 0 {
			o.Line += int(r.lines[o.Route])
		}
	} else if h.claim == nil { // a service without entries of its own
	} else if v := h.claim.virtual; from.document != "" && v != nil {
		o.File, o.Line = h.claim.at.file, h.claim.at.line
		if o.Route >= 0 {
			o.Line += int(v.lines[o.Route])
		}
	}
	if match >= 0 {
		o.Match = from.matches[match]
	}
	return o
}

// placeOf returns the place of a document, as in compiler.of, from which a route of a claim comes.
func (p *Plan) placeOf(c *claim, by any) place {
	if r, ok := by.(*gatewayRoute); ok {
		return c.attached.placeOf(r)
	}
	return p.places[by]
}

// of returns the claim that applies to requests to a port.
func (c *claim) of(port int) *claim {
	for c != nil {
		if ports := c.ports(); ports == nil || slices.Contains(ports, port) {
			break
		}
		c = c.otherwise
	}
	return c
}

// ports returns the ports that the document applies to, or nil for all.
func (c *claim) ports() []int {
	if c.attached != nil {
		return c.attached.ports
	}
	if _, s := c.scopes(); s != nil {
		return s.calls
	}
	return nil
}

// scopes returns to which requests the VirtualService of a claim applies, and whether there are such calls. There may be no VirtualService.
func (c *claim) scopes() (some bool, s *scopes) {
	switch {
	case c.whole != nil:
		return c.whole.some, c.whole.scopes
	case c.virtual != nil:
		return c.virtual.some, c.virtual.scopes
	}
	return false, nil
}

// same reports whether two claims are about the same documents at the same places. Either may be nil.
func (c *claim) same(other *claim) bool {
	if c == nil || other == nil || c == other {
		return c == other
	}
	return c.virtual == other.virtual && c.at == other.at && c.whole == other.whole && c.attached == other.attached && c.joint == other.joint && c.otherwise.same(other.otherwise)
}

// kept returns a copy of the claim, which may be nil, to keep in a plan.
func (c *claim) kept() *claim {
	if c == nil {
		return nil
	}
	kept := c.own()
	kept.joint, kept.otherwise = c.joint, c.otherwise.kept()
	return kept
}

// own returns a copy of the claim for one of the hosts of its documents.
func (c *claim) own() *claim {
	return &claim{virtual: c.virtual, at: c.at, whole: c.whole, attached: c.attached}
}

// leads returns the hosts that requests are sent to. The claim may be nil.
func (c *claim) leads() []string {
	switch {
	case c == nil:
		return nil
	case c.whole != nil:
		return c.whole.leads
	case c.attached != nil:
		return c.attached.leads
	}
	return c.virtual.leads
}

// unit returns the unit of a claim, without splits and profiles. The claim may be nil.
func (p *Plan) unit(c *claim) unit {
	if c == nil {
		return unit{}
	}
	leads := c.leads()
	u := unit{virtual: c.virtual, whole: c.whole, ports: make([]int, len(leads))}
	for i, host := range leads {
		u.ports[i] = p.onlyPort(p.canonical(host))
	}
	return u
}

// built returns the compiled routes of a claim.
func (p *Plan) built(c *claim) *built {
	if b := c.done.Load(); b != nil {
		return b
	}
	if c.attached != nil {
		return p.routesOf(c.attached)
	}
	if c.joint != nil && c.joint.changed {
		c.done.CompareAndSwap(nil, p.joined(c))
		return c.done.Load()
	}
	u := p.unit(c)
	b := c.virtual.last.Load()
	if b == nil || !b.unit.equal(&u) {
		b = p.mustCompile(c.virtual.identity.String(), p.steps(c, (*virtual).peek))
		b.unit = u
	}
	if !c.done.CompareAndSwap(nil, b) {
		return c.done.Load() // rules are identified by their address, so all requests must see the same ones
	}
	c.virtual.last.Store(b)
	return b
}

// joined returns the routes of a claim with its splits and profiles.
func (p *Plan) joined(c *claim) *built {
	if b := c.joint.done.Load(); b != nil {
		return b
	}
	j := p.join(c.joint.host, c, &c.joint.unit, (*virtual).peek)
	c.joint.done.CompareAndSwap(nil, p.mustCompile(j.name, j.out)) // the addresses of routes identify them
	return c.joint.done.Load()
}

// mustCompile compiles routes that were compiled before, when the documents were loaded.
func (p *Plan) mustCompile(name string, steps []step) *built {
	b, err := compileSteps(name, steps)
	if err != nil {
		panic("policy: routes that were compiled before are refused: " + err.Error())
	}
	for i := range b.routes.Len() {
		rule := b.routes.Rule(i)
		rule.Retry = p.retrying.share(rule.Retry)
	}
	return b
}

// retrying has the latest retry policies, because thousands of routes have only a few different ones. The zero value is ready for use.
type retrying struct {
	mu     sync.Mutex
	latest [8]*retry.Policy
	next   int
}

// share returns a policy that routes already use, if it is equal.
func (r *retrying) share(p *retry.Policy) *retry.Policy {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, other := range r.latest {
		if other != nil && other.Config().Equal(p.Config()) {
			return other
		}
	}
	r.latest[r.next%len(r.latest)] = p
	r.next++
	return p
}

// compileSteps compiles routes.
func compileSteps(name string, steps []step) (*built, error) {
	b := &built{name: name, origins: make([]origin, len(steps))}
	routes := make([]route.Route, len(steps))
	for i := range steps {
		routes[i], b.origins[i] = steps[i].Route, steps[i].origin
		if b.origins[i].document == name {
			b.origins[i].document = name // so that only one copy of the string is kept
		}
	}
	var err error
	b.routes, err = route.NewTable(routes)
	return b, err
}

// steps returns the routes of a VirtualService with its delegates, which read returns.
func (p *Plan) steps(c *claim, read func(*virtual) *istio.VirtualService) []step {
	whole := c.whole.of(c.virtual, read)
	document := c.virtual.identity.String()
	steps := make([]step, len(whole.Spec.HTTP))
	for i, r := range whole.Routes(p.client()) {
		spec, from := &whole.Spec.HTTP[i], whole.Origins[i]
		s := step{
			Route:   r,
			origin:  origin{document: document, index: from.Route, matches: from.Matches},
			timed:   spec.Timeout.Set,
			retried: spec.Retries != nil,
		}
		p.fill(&s)
		steps[i] = s
	}
	return steps
}

// fill sets the port of targets without one to the port of their service, if it has exactly one.
func (p *Plan) fill(s *step) {
	fill := func(t *route.Target) {
		if t.Port == 0 {
			t.Port = p.onlyPort(p.canonical(t.Host))
		}
	}
	for i := range s.Destinations {
		d := &s.Destinations[i]
		fill(&d.Target)
		switch s.service {
		case "":
			s.service = d.Target.Host
		case d.Target.Host:
		default:
			s.service = "*" // several
		}
	}
	for i := range s.Mirrors {
		fill(&s.Mirrors[i].Target)
	}
}
