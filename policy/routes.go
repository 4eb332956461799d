package policy

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
)

// virtual is a VirtualService.
type virtual struct {
	source[istio.VirtualService]
	*reading
	hosts           []string // their full names
	visible, public bool     // to the workload, and to all
	inMesh          bool     // it is not only about gateways
	leaf            bool     // it has no hosts: others hand requests to it
	delegates       []string // that it hands requests to, as namespace/name

	inUse *yamldoc.Digest // of a leaf: what is wrong with it if requests in the mesh are handed to it

	// What follows is not known of documents with delegates.
	leads   []string       // the hosts that requests are sent to
	subsets []route.Target // those that it names
	targets []route.Target // those that it names the port of
	lines   []int32        // of its routes, counted from that of the document
	ports   []int          // that it speaks of; nil: all
	some    bool           // it concerns the workload

	last atomic.Pointer[built]
}

func (c *compiler) readVirtual(doc *yamldoc.Document, r *reading, is *istio.VirtualService) *virtual {
	client := c.plan.client()
	v := &virtual{reading: r, inMesh: is.InMesh(), leaf: is.IsDelegate()}
	v.visible, v.public = istio.VisibleFrom(client.Namespace, r.namespace, is.Spec.ExportTo)
	for _, host := range is.Spec.Hosts {
		v.hosts = append(v.hosts, istio.Resolve(host, r.namespace, client.ClusterDomain))
	}
	for i := range is.Spec.HTTP {
		if d := is.Spec.HTTP[i].Delegate; d != nil && !is.Spec.HTTP[i].AtGateways() {
			v.delegates = append(v.delegates, cmp.Or(d.Namespace, r.namespace)+"/"+d.Name)
		}
	}
	for d := range is.Destinations() {
		host := istio.Resolve(d.Host, r.namespace, client.ClusterDomain)
		if i := slices.Index(v.hosts, host); i >= 0 {
			host = v.hosts[i]
		}
		if i := slices.Index(v.leads, host); i >= 0 {
			host = v.leads[i]
		} else {
			v.leads = append(v.leads, host)
		}
		if d.Port != nil {
			if t := (route.Target{Host: host, Port: int(d.Port.Number)}); !slices.Contains(v.targets, t) {
				v.targets = append(v.targets, t)
			}
		}
		if d.Subset != nil {
			if t := (route.Target{Host: host, Subset: c.word(*d.Subset)}); !slices.Contains(v.subsets, t) {
				v.subsets = append(v.subsets, t)
			}
		}
	}
	if v.inMesh && !v.leaf {
		v.lines = make([]int32, len(is.Spec.HTTP))
		for i := range v.lines {
			v.lines[i] = int32(doc.LineOf(yamldoc.Index("spec.http", i)) - doc.Line)
		}
	}
	if !doc.Failed() && v.inMesh && v.delegates == nil {
		if !v.leaf {
			is.Table(doc, client) // for its errors
		}
		v.ports, v.some = portsOf(is, client)
	}
	v.hosts, v.leads, v.subsets = slices.Clip(v.hosts), slices.Clip(v.leads), slices.Clip(v.subsets)
	v.targets = slices.Clip(v.targets)
	v.keep(is)
	return v
}

// client is the workload as the documents see it.
func (p *Plan) client() istio.Client {
	return istio.Client{Namespace: p.workload.Namespace, Labels: p.workload.Labels, ClusterDomain: p.workload.ClusterDomain}
}

// claim is what documents say of the requests to a host.
type claim struct {
	virtual *virtual // that claims the host; nil if none does
	at      place    // of that document
	steps   []step   // its routes, if they are not its own alone

	// ports are those that the document speaks of, if it does not speak of all: requests to others are treated as if it
	// was not there.
	ports     []int
	otherwise *claim // what then counts; nil: nothing

	// done are the routes, which are compiled for the first request. Where several documents make them, they are compiled
	// with the plan.
	done atomic.Pointer[built]
}

// built are the routes of a claim, compiled.
type built struct {
	name    string // of the document, with its kind
	routes  *route.Table
	origins []origin // one for each of routes
	ports   []int    // that were filled in
}

// origin is where a route comes from.
type origin struct {
	document string // empty for the defaults of the mesh
	at       place  // of a document that is not that of the claim
	index    int    // of the route in the document, or -1
	matches  []int  // the index of each match in the document
}

// place is where a document begins.
type place struct {
	file string
	line int
}

// of returns the claim that counts for requests to a port.
func (c *claim) of(port int) *claim {
	for c != nil && c.ports != nil && !slices.Contains(c.ports, port) {
		c = c.otherwise
	}
	return c
}

// leadsTo returns the hosts that requests are sent to.
func (c *claim) leadsTo() []string {
	if c.steps == nil {
		return c.virtual.leads
	}
	var hosts []string
	for i := range c.steps {
		for _, d := range c.steps[i].Destinations {
			hosts = append(hosts, d.Target.Host)
		}
	}
	return hosts
}

// built returns the routes of a claim.
func (p *Plan) built(c *claim) *built {
	if b := c.done.Load(); b != nil {
		return b
	}
	steps, ports := p.steps(c.virtual)
	b := c.virtual.last.Load()
	if b == nil || !slices.Equal(b.ports, ports) {
		var err error
		if b, err = compileSteps(c.virtual.identity.String(), steps); err != nil {
			panic("policy: routes that were compiled before are refused: " + err.Error())
		}
		b.ports = ports
	}
	if !c.done.CompareAndSwap(nil, b) {
		return c.done.Load() // the addresses of routes identify them
	}
	c.virtual.last.Store(b)
	return b
}

// compileSteps compiles routes.
func compileSteps(name string, steps []step) (*built, error) {
	b := &built{name: name, origins: make([]origin, len(steps))}
	routes := make([]route.Route, len(steps))
	for i := range steps {
		s := &steps[i]
		routes[i], b.origins[i] = s.Route, origin{s.document, s.at, s.index, s.matches}
	}
	var err error
	b.routes, err = route.NewTable(routes)
	return b, err
}

// step is a route on its way from the documents to a table.
type step struct {
	route.Route

	document string // that the route comes from; empty for the defaults of the mesh
	at       place  // of that document, if it is not the VirtualService
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
	if from.at != (place{}) {
		o.File, o.Line = from.at.file, from.at.line
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

// virtualServices gives every host to the first document that claims it. Documents that are exported to the workload's
// namespace by name come before those that are exported to all.
func (c *compiler) virtualServices() {
	delegates := make(map[string]decoded[virtual])
	named, used := make(map[string]bool), make(map[string]bool) // used: by calls in the mesh
	for _, vs := range c.virtual {
		if vs.is.leaf {
			delegates[vs.namespace+"/"+vs.name] = vs
		}
		for _, name := range vs.is.delegates {
			named[name] = true
		}
	}
	for _, vs := range c.virtual {
		if !vs.is.inMesh {
			continue
		}
		for _, name := range vs.is.delegates {
			if d, ok := delegates[name]; ok && !used[name] {
				if used[name] = true; !d.Failed() {
					d.Report(d.is.inUse)
				}
			}
		}
	}
	c.broken = nil // there may be more now
	for name, d := range delegates {
		d.idle = !used[name]
	}
	for _, publicly := range []bool{false, true} {
		for _, vs := range c.virtual {
			v := vs.is
			switch {
			case vs.Failed() || v.public != publicly || v.leaf:
			case !v.inMesh:
				vs.Warnf("spec.gateways", "applies to gateways only, which do not exist in-process: it is skipped")
			default:
				own := &claim{virtual: v, at: vs.place(), ports: v.ports}
				some := v.some
				if v.delegates != nil {
					if some = c.whole(vs, own, delegates); vs.Failed() {
						continue
					}
				}
				switch {
				case !v.visible:
				case some:
					c.claim(vs, own)
				default: // Istio acts as if it was not there
					for _, host := range v.hosts {
						c.plan.name(host)
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

// whole completes the claim of a document with delegates. It reports whether that concerns the workload.
func (c *compiler) whole(vs decoded[virtual], own *claim, delegates map[string]decoded[virtual]) (some bool) {
	client := c.plan.client()
	whole := c.expand(vs, delegates)
	table := whole.Table(vs.document.Document, client)
	if own.ports, some = portsOf(whole.VirtualService, client); table == nil {
		return false
	}
	own.steps = stepsOf(vs.is, &whole, func(i int) route.Route { return *table.Rule(i).Route })
	c.plan.fill(own.steps)
	b, err := compileSteps(vs.identity.String(), own.steps)
	if err != nil {
		vs.Errorf("spec.http", "%v", err)
		return false
	}
	own.done.Store(b)
	return some
}

// expand puts the routes of delegates in their place.
func (c *compiler) expand(vs decoded[virtual], delegates map[string]decoded[virtual]) istio.Expansion {
	whole := vs.is.get().Expand(func(namespace, name string) (*istio.VirtualService, bool) {
		d, ok := delegates[namespace+"/"+name]
		if !ok || d.Failed() {
			return nil, false
		}
		return d.is.get(), true
	})
	for _, i := range whole.Missing {
		r := &vs.is.get().Spec.HTTP[i]
		if r.AtGateways() {
			continue
		}
		if ref := r.Delegate; ref != nil && c.unread(cmp.Or(ref.Namespace, vs.namespace), ref.Name) {
			continue // it says itself what is wrong
		}
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

// steps returns the routes of a VirtualService without delegates, and the ports that it leaves to the services.
func (p *Plan) steps(v *virtual) ([]step, []int) {
	whole := v.get().Expand(func(string, string) (*istio.VirtualService, bool) { return nil, false }) // but for gateways
	routes := whole.Routes(p.client())
	steps := stepsOf(v, &whole, func(i int) route.Route { return routes[i] })
	return steps, p.fill(steps)
}

// stepsOf returns the routes of a VirtualService.
func stepsOf(v *virtual, whole *istio.Expansion, compiled func(i int) route.Route) []step {
	root := v.get()
	steps := make([]step, len(whole.Spec.HTTP))
	for i := range steps {
		spec, origin := &whole.Spec.HTTP[i], whole.Origins[i]
		s := step{
			Route:    compiled(i),
			document: v.identity.String(),
			index:    origin.Route,
			timed:    spec.Timeout.Set,
			retried:  spec.Retries != nil,
		}
		// Of a route with a delegate, what counts are the matches of the root.
		own, inner := len(root.Spec.HTTP[origin.Route].Match), 0
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

// fill gives targets without a port the only one of their service, if it has one. It returns what it gave, in order.
func (p *Plan) fill(steps []step) (ports []int) {
	fill := func(t *route.Target) {
		if t.Port == 0 {
			t.Port = p.onlyPort(p.canonical(t.Host))
			ports = append(ports, t.Port)
		}
	}
	for i := range steps {
		s := &steps[i]
		s.Destinations, s.Mirrors = slices.Clone(s.Destinations), slices.Clone(s.Mirrors)
		for j := range s.Destinations {
			fill(&s.Destinations[j].Target)
			if s.service == "" {
				s.service = s.Destinations[j].Target.Host
			} else if s.service != s.Destinations[j].Target.Host {
				s.service = "*" // several
			}
		}
		for j := range s.Mirrors {
			fill(&s.Mirrors[j].Target)
		}
	}
	return ports
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

// claim gives the hosts of a document to it.
func (c *compiler) claim(vs decoded[virtual], own *claim) {
	p := c.plan
	for i := range own.steps {
		for _, d := range own.steps[i].Destinations {
			p.name(d.Target.Host)
		}
		for _, m := range own.steps[i].Mirrors {
			p.name(m.Target.Host)
		}
	}
	for _, host := range vs.is.leads {
		p.name(host)
	}
	for i, host := range vs.is.hosts {
		has, added := p.claims.add(host, own)
		switch {
		case added || has.virtual == vs.is:
		case has.ports != nil:
			p.claims.set(host, has.before(own)) // for the ports that the first one leaves
		default:
			first := c.of(has.virtual)
			vs.Warnf(yamldoc.Index("spec.hosts", i), "has no effect: %s claims %s already (%s:%d), and the first one counts",
				first.identity, host, first.file, first.Line)
		}
		p.name(host)
	}
}

// before returns the claim with another one behind it.
func (c *claim) before(other *claim) *claim {
	first := &claim{virtual: c.virtual, at: c.at, steps: c.steps, ports: c.ports, otherwise: other}
	first.done.Store(c.done.Load())
	if c.otherwise != nil {
		first.otherwise = c.otherwise.before(other)
	}
	return first
}

// subsets warns of destinations that have no endpoints, because no document defines their subset or their entry lacks the port.
func (c *compiler) subsets() {
	if c.failed() {
		return // what the documents say together is not known
	}
	p := c.plan
	lacks := func(t route.Target) bool { return !p.rule(p.canonical(t.Host)).defines(t.Subset) }
	port := func(t route.Target) error {
		if e := p.entries.find(p.canonical(t.Host)); e != nil {
			return e.of(t.Host).CheckPort(t.Port)
		}
		return nil
	}
	for _, vs := range c.virtual {
		if !vs.is.visible || vs.atGateways() || !slices.ContainsFunc(vs.is.subsets, lacks) &&
			!slices.ContainsFunc(vs.is.targets, func(t route.Target) bool { return port(t) != nil }) {
			continue
		}
		for d, at := range vs.is.get().Destinations() {
			host := istio.Resolve(d.Host, vs.namespace, p.workload.ClusterDomain)
			if d.Subset != nil && lacks(route.Target{Host: host, Subset: *d.Subset}) {
				vs.Warnf(at+".subset", "no DestinationRule defines the subset %s of %s: requests to it fail", *d.Subset, host)
			}
			if d.Port == nil {
				continue
			}
			if err := port(route.Target{Host: host, Port: int(d.Port.Number)}); err != nil {
				vs.Warnf(at+".port", "%v: requests to it fail", err)
			}
		}
	}
}
