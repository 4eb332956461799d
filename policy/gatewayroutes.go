package policy

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
)

// gatewayRoute is an HTTPRoute or a GRPCRoute that is attached to something in the mesh.
type gatewayRoute struct {
	*reading
	source interface {
		pack(*yamldoc.Words, *yamldoc.Document)
	}
	peek    func() gateway.Document
	servers []gateway.Parent // the Servers of Linkerd that it is attached to
	parents []parent         // what else it is attached to and matters to the workload
	leads   []string         // the hosts that requests are sent to
	cors    bool             // some rule says what pages of other origins may do
	lines   []int32          // the lines of its rules, relative to that of the document
}

// parent is what a route is attached to.
type parent struct {
	namespace string
	name      string // the host of a Service, or the name of a ServiceEntry
	section   string // the name of the port; "" if that is not given
	port      int32  // 0 for all, unless section is set
	index     int32  // in spec.parentRefs
	entry     bool   // a ServiceEntry of Istio; otherwise a Service
}

// at returns the path of the reference to the parent.
func (p *parent) at() string { return yamldoc.Index("spec.parentRefs", int(p.index)) }

func (r *gatewayRoute) pack(words *yamldoc.Words, d *yamldoc.Document) { r.source.pack(words, d) }

// readRoute returns the content of a route. It is nil if the route is attached to nothing, or only to gateways.
func readRoute[T any, P interface {
	*T
	gateway.Document
}](c *compiler, doc *yamldoc.Document, r *reading, is P) any {
	all, servers := is.Parents(), is.Servers()
	switch {
	case len(all)+len(servers) > 0:
	case doc.Failed():
		return notEnforced{}
	default:
		return nil
	}
	from := new(lazy[T])
	from.keep((*T)(is))
	g := &gatewayRoute{reading: r, source: from, servers: servers, peek: func() gateway.Document { return P(from.peek()) }}
	for _, p := range all {
		if p.Namespace == r.namespace || r.namespace == c.plan.workload.Namespace {
			name := p.Name
			if !p.Entry {
				name = gateway.ServiceHost(p.Name, p.Namespace, c.plan.workload.ClusterDomain)
			}
			g.parents = append(g.parents, parent{c.word(p.Namespace), c.word(name), p.Section, int32(p.Port), int32(p.Index), p.Entry})
		}
	}
	g.parents = slices.Clip(g.parents)
	if doc.Failed() {
		return g
	}
	if len(servers) > 0 {
		c.checkInbound(doc, is)
	}
	if len(all) == 0 {
		return g
	}
	g.cors = is.HasCORS()
	routes := is.Routes(c.plan.workload.ClusterDomain, nil)
	plain := make([]route.Route, len(routes))
	for i := range routes {
		plain[i] = routes[i].Route
		for at := len(g.lines); at <= routes[i].Rule; at++ {
			g.lines = append(g.lines, int32(doc.LineOf(yamldoc.Index("spec.rules", at))-doc.Line))
		}
		for _, d := range plain[i].Destinations {
			if d.Target.Host == "" {
				continue // the service itself
			}
			g.leads = addTo(g.leads, c.word(d.Target.Host))
		}
		for _, m := range plain[i].Mirrors {
			g.leads = addTo(g.leads, c.word(m.Target.Host))
		}
	}
	if _, err := route.NewTable(plain); err != nil { // only for its errors
		reportRules(doc, err, routes)
	}
	g.leads = slices.Clip(g.leads)
	return g
}

// reportRules reports errors of a route table at the rules that the routes come from, once for each rule.
func reportRules(doc *yamldoc.Document, err error, routes []gateway.Route) {
	reported := make(map[string]bool)
	for _, err := range err.(interface{ Unwrap() []error }).Unwrap() {
		wrong := err.(*route.FieldError)
		at, text := yamldoc.Index("spec.rules", routes[wrong.Route].Rule), fmt.Sprintf("%s: %v", wrong.Field, wrong.Err)
		if !reported[at+text] {
			reported[at+text] = true
			doc.Errorf(at, "%s", text)
		}
	}
}

// attached has the HTTPRoutes or the GRPCRoutes that are attached to a host and whose rules are merged. It does not change: plans share it as long as
// the routes and their places stay the same.
type attached struct {
	attachment
	members []member
	service *gateway.Settings // what the Service says where they do not; nil if it says nothing
	ports   []int             // the ports that they apply to; nil for all
	leads   []string
	done    atomic.Pointer[built] // the compiled routes; nil until they are needed
}

// attachment says which routes are merged. Those of the caller's namespace for a service of another one replace those of its own namespace.
type attachment struct {
	host     string
	consumer bool // they are not in the namespace of the host
	grpc     bool
}

// member is a route that is attached to a port of a host; 0 means all ports.
type member struct {
	*gatewayRoute
	port int
	at   place
}

// grouping is a group of routes that is being made.
type grouping struct {
	attachment
	last   *attached // the group of the last plan; nil if it has none
	same   int       // as long as own is nil, the members are that many of last
	own    *attached
	said   *gateway.Settings // by the Service
	oldest time.Time         // see [compiler.oldest]
	claim  claim
}

// add adds a member. It takes no memory if the last plan has it in the same place.
func (g *grouping) add(m member) {
	if g.own == nil && g.last != nil && g.same < len(g.last.members) && g.last.members[g.same] == m {
		g.same++
		return
	}
	g.part()
	g.own.members = append(g.own.members, m)
}

// part gives the group members of its own.
func (g *grouping) part() {
	if g.own != nil {
		return
	}
	g.own = &attached{attachment: g.attachment, service: g.said}
	if g.same > 0 {
		g.own.members = slices.Clone(g.last.members[:g.same])
	}
}

// of returns the group, with the members that count first in front. All of them are in the same namespace. It is that of the last plan if that is the
// same.
func (g *grouping) of() *attached {
	last := g.last
	if g.own == nil && g.same == len(last.members) && g.said == last.service {
		return last
	}
	g.part()
	slices.SortStableFunc(g.own.members, func(a, b member) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.name, b.name)) })
	alike := last != nil && g.said == last.service
	if alike && slices.Equal(last.members, g.own.members) {
		return last
	}
	g.own.complete()
	if alike && slices.EqualFunc(last.members, g.own.members, func(a, b member) bool { return a.gatewayRoute == b.gatewayRoute && a.port == b.port }) {
		g.own.done.Store(last.done.Load())
	}
	return g.own
}

// attach groups the routes that are attached to something.
func (c *compiler) attach() []*grouping {
	p := c.plan
	groups := newGroups(c)
	for _, d := range c.gatewayRoutes {
		if d.Failed() {
			continue
		}
		for i := range d.is.parents {
			parent := &d.is.parents[i]
			if !parent.entry {
				c.attachTo(parent.name, d, parent, &groups)
				continue
			}
			for _, host := range c.hostsOf(d, parent) {
				c.attachTo(host, d, parent, &groups)
			}
		}
	}
	p.attached = table[attachment, attached]{index: groups.index, more: groups.more, exact: zeroed(&c.room.attached, len(groups.exact))}
	for i, g := range groups.exact {
		if g != nil {
			p.attached.exact[i] = g.of()
			g.claim.attached = p.attached.exact[i]
		}
	}
	return groups.order
}

// attachTo adds a route to the group of a host.
func (c *compiler) attachTo(host string, d decoded[gatewayRoute], parent *parent, groups *groups) {
	port, ok := c.portOf(d, host, parent)
	if !ok {
		return
	}
	if by := c.divided(host); by != nil {
		d.Warnf(parent.at(), "has no effect: %s is about %s (%s:%d), and with it routes do not apply", by.identity, host, by.file, by.Line)
		return
	}
	group := groups.of(attachment{host, parent.namespace != d.namespace, d.kind == "GRPCRoute"})
	if like := c.profiles[host]; like != nil {
		group.said = like.service.said
	}
	group.add(member{d.is, port, d.place()})
}

// groups are the groups that are being made, in memory of a room.
type groups struct {
	table[attachment, grouping]
	last   *table[attachment, attached]
	order  []*grouping // in the order of the documents
	unused []grouping
}

func newGroups(c *compiler) groups {
	last := &c.last.attached
	return groups{
		table:  table[attachment, grouping]{index: last.index, exact: zeroed(&c.room.groups, len(last.index))},
		last:   last,
		order:  empty(&c.room.order, len(c.gatewayRoutes)),
		unused: zeroed(&c.room.groupings, len(c.gatewayRoutes)),
	}
}

// of returns the group of an attachment.
func (g *groups) of(a attachment) *grouping {
	if known := g.plain(a); known != nil {
		return known
	}
	if len(g.unused) == 0 { // routes that are attached to several hosts
		g.unused = make([]grouping, 64)
	}
	one := &g.unused[0]
	g.unused = g.unused[1:]
	one.attachment, one.last = a, g.last.plain(a)
	g.put(a, one)
	g.order = append(g.order, one)
	return one
}

// hostsOf returns the hosts of a ServiceEntry that a route is attached to.
func (c *compiler) hostsOf(d decoded[gatewayRoute], parent *parent) []string {
	se, known := documentOf[entry](c, istio.Group, "ServiceEntry", parent.namespace, parent.name)
	switch {
	case known && (se.Failed() || !se.is.visible):
		return nil
	case known:
		return se.is.hosts
	case !c.unread(parent.namespace, parent.name):
		d.Warnf(parent.at()+".name", "%s: the route has no effect there", c.absent("ServiceEntry", parent.namespace, parent.name))
	}
	return nil
}

// portOf returns the port of a host that a route is attached to, or 0 for all.
func (c *compiler) portOf(d decoded[gatewayRoute], host string, parent *parent) (port int, ok bool) {
	if parent.section == "" {
		return int(parent.port), true
	}
	s := c.plan.ports.plain(host)
	if s == nil {
		d.Errorf(parent.at()+".sectionName", "no document has the Service %s, so that the number of its port %q is unknown: write port", host, parent.section)
		return 0, false
	}
	for _, has := range s.ports {
		if has.name == parent.section {
			return has.number, true
		}
	}
	d.Warnf(parent.at()+".sectionName", "the Service %s has no port %q: the route has no effect there", host, parent.section)
	return 0, false
}

// divided returns the ServiceProfile or the TrafficSplit for a host, or nil. As in Linkerd, routes have no effect on services with one.
func (c *compiler) divided(host string) *document {
	if profile := c.profiles[host]; profile != nil && profile.service == nil {
		return c.of(profile)
	}
	if split := c.splits[host]; split != nil {
		return c.of(split.by)
	}
	return nil
}

// complete sets what follows from the members.
func (a *attached) complete() {
	all := false
	for _, m := range a.members {
		for _, host := range m.leads {
			a.leads = addTo(a.leads, host)
		}
		a.ports = addTo(a.ports, m.port)
		all = all || m.port == 0
	}
	if all {
		a.ports = nil
	}
}

// placeOf returns the place of a member.
func (a *attached) placeOf(r *gatewayRoute) place {
	i := slices.IndexFunc(a.members, func(m member) bool { return m.gatewayRoute == r })
	return a.members[i].at
}

// routesOf returns the compiled routes that are attached to a host.
func (p *Plan) routesOf(a *attached) *built {
	if b := a.done.Load(); b != nil {
		return b
	}
	a.done.CompareAndSwap(nil, p.mustCompile(a.members[0].identity.String(), a.steps(p.workload.ClusterDomain)))
	return a.done.Load() // the addresses of routes identify them
}

// steps merges the rules of the members, in the order of their precedence.
func (a *attached) steps(domain string) []step {
	type merged struct {
		gateway.Route
		by *gatewayRoute
	}
	var all []merged
	for _, m := range a.members {
		for _, r := range m.peek().Routes(domain, a.service) {
			if m.port != 0 {
				r.Matches = atPort(r.Matches, m.port)
			}
			all = append(all, merged{r, m.gatewayRoute})
		}
	}
	slices.SortStableFunc(all, func(a, b merged) int { return gateway.Compare(&a.Route, &b.Route) })
	steps := make([]step, len(all))
	for i := range all {
		r := &all[i]
		steps[i] = step{Route: r.Route.Route, cors: r.CORS, origin: origin{document: r.by.identity.String(), by: r.by, index: r.Rule, matches: slices.Repeat([]int{r.Match}, len(r.Matches))}}
	}
	return steps
}
