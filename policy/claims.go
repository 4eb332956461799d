package policy

import (
	"slices"
	"sync/atomic"

	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
)

// claim is what documents say about the requests to a host.
type claim struct {
	virtual *virtual   // that claims the host; nil if none does
	at      place      // of that document
	whole   *expansion // of virtual; nil if it has no delegates
	joint   *joint     // of virtual with splits and profiles; nil if none is about the host

	// ports are the ports that the document applies to; nil: all. Requests to other ports are treated as if the document were
	// not there.
	ports     []int
	otherwise *claim // what then counts; nil: nothing

	// done are the compiled routes. They are compiled for the first request.
	done atomic.Pointer[built]
}

// unit lists what routes are made of. While it stays the same, so do the routes: a plan takes them over from the plan before.
type unit struct {
	virtual  *virtual
	whole    *expansion
	ports    []int      // of each service that requests go to: its only port, or 0
	profiles []*profile // of the host and of those services
	splits   []*split
}

func (u *unit) equal(other *unit) bool {
	return u.virtual == other.virtual && u.whole == other.whole && slices.Equal(u.ports, other.ports) &&
		slices.Equal(u.profiles, other.profiles) && slices.EqualFunc(u.splits, other.splits, (*split).equal)
}

// joint is a unit with the splits and profiles that apply to it.
type joint struct {
	unit
	host    string
	changed bool // they make other routes than the VirtualService alone
	budgets []hostBudget
	done    atomic.Pointer[built] // the routes, if they are changed, once they were needed
}

// built are the routes of a unit, compiled.
type built struct {
	unit
	name    string // of the document, with its kind
	routes  *route.Table
	origins []origin // one for each of routes
}

// origin is where a route comes from.
type origin struct {
	document string // empty for the defaults of the mesh
	by       any    // the split or profile that the route comes from, as compiler.of takes it; nil for the VirtualService
	index    int    // of the route in the document, or -1
	matches  []int  // the index of each match in the document
}

// place is where a document begins.
type place struct {
	file string
	line int
}

// step is a route on its way from the documents to a table.
type step struct {
	route.Route

	origin

	service        string // the one service that the route leads to, or the host of the request
	timed, retried bool   // a VirtualService decides about timeout and retries
}

// Origin is where a route comes from.
type Origin struct {
	// Document names the document, as "VirtualService default/user-service". Empty means that none has a part in the
	// route: the requests meet the mesh's defaults.
	Document string

	// File is the [Source.Name] of the document, and Line the line of the route in it or, where the document has no routes or is no
	// VirtualService, of the document.
	File string
	Line int

	// Route and Match are indices in the document, from 0. They are -1 if it has no routes, and if its route has no
	// matches.
	Route, Match int
}

// Origin says where a route of h.Routes, with one of its matches, comes from. It differs from the place in the table where
// documents of several kinds say something of the same host.
func (h HostPlan) Origin(e *route.Rule, match int) Origin {
	if h.from == nil {
		return Origin{Route: -1, Match: -1}
	}
	from := &h.from.origins[e.Index]
	o := Origin{Document: from.document, Route: from.index, Match: -1}
	if from.by != nil {
		at := h.plan.places[from.by]
		o.File, o.Line = at.file, at.line
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

// of returns the claim that applies to requests to a port.
func (c *claim) of(port int) *claim {
	for c != nil && c.ports != nil && !slices.Contains(c.ports, port) {
		c = c.otherwise
	}
	return c
}

// before returns the claim with another one behind it.
func (c *claim) before(other *claim) *claim {
	first := &claim{virtual: c.virtual, at: c.at, whole: c.whole, ports: c.ports, otherwise: other}
	if c.otherwise != nil {
		first.otherwise = c.otherwise.before(other)
	}
	return first
}

// leads returns the hosts that requests are sent to. The claim may be nil.
func (c *claim) leads() []string {
	switch {
	case c == nil:
		return nil
	case c.whole != nil:
		return c.whole.leads
	}
	return c.virtual.leads
}

// unit returns what the routes of a claim are made of, without splits and profiles. The claim may be nil.
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

// built returns the routes of a claim.
func (p *Plan) built(c *claim) *built {
	if b := c.done.Load(); b != nil {
		return b
	}
	if c.joint != nil && c.joint.changed {
		c.done.CompareAndSwap(nil, p.joined(c))
		return c.done.Load()
	}
	u := p.unit(c)
	b := c.virtual.last.Load()
	if b == nil || !b.unit.equal(&u) {
		b = mustCompile(c.virtual.identity.String(), p.steps(c, (*virtual).get))
		b.unit = u
	}
	if !c.done.CompareAndSwap(nil, b) {
		return c.done.Load() // the addresses of routes identify them
	}
	c.virtual.last.Store(b)
	return b
}

// joined returns the routes of a claim with its splits and profiles.
func (p *Plan) joined(c *claim) *built {
	if b := c.joint.done.Load(); b != nil {
		return b
	}
	j := p.join(c.joint.host, c, &c.joint.unit, (*virtual).get)
	c.joint.done.CompareAndSwap(nil, mustCompile(j.name, j.out)) // the addresses of routes identify them
	return c.joint.done.Load()
}

// mustCompile compiles routes that were compiled before, when the documents were loaded.
func mustCompile(name string, steps []step) *built {
	b, err := compileSteps(name, steps)
	if err != nil {
		panic("policy: routes that were compiled before are refused: " + err.Error())
	}
	return b
}

// compileSteps compiles routes.
func compileSteps(name string, steps []step) (*built, error) {
	b := &built{name: name, origins: make([]origin, len(steps))}
	routes := make([]route.Route, len(steps))
	for i := range steps {
		routes[i], b.origins[i] = steps[i].Route, steps[i].origin
	}
	var err error
	b.routes, err = route.NewTable(routes)
	return b, err
}

// steps returns the routes of a VirtualService with its delegates, which read returns.
func (p *Plan) steps(c *claim, read func(*virtual) *istio.VirtualService) []step {
	whole := c.whole.of(c.virtual, read)
	steps := make([]step, len(whole.Spec.HTTP))
	for i, r := range whole.Routes(p.client()) {
		spec, from := &whole.Spec.HTTP[i], whole.Origins[i]
		s := step{
			Route:   r,
			origin:  origin{document: c.virtual.identity.String(), index: from.Route, matches: from.Matches},
			timed:   spec.Timeout.Set,
			retried: spec.Retries != nil,
		}
		p.fill(&s)
		steps[i] = s
	}
	return steps
}

// fill gives targets without a port the port of their service, if it has exactly one.
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
