package policy

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/route"
)

// gatewayRoute is an HTTPRoute or a GRPCRoute that is attached to something in the mesh.
type gatewayRoute struct {
	*reading
	source interface {
		pack(*yamldoc.Words, *yamldoc.Document)
	}
	peek    func() gateway.Document
	parents []gateway.Parent // those that matter to the workload
	leads   []string         // the hosts that requests are sent to
	lines   []int32          // the lines of its rules, relative to that of the document
}

func (r *gatewayRoute) pack(words *yamldoc.Words, d *yamldoc.Document) { r.source.pack(words, d) }

// readRoute returns the content of a route. It is nil if the route is attached to nothing, or only to gateways.
func readRoute[T any, P interface {
	*T
	gateway.Document
}](c *compiler, doc *yamldoc.Document, r *reading, is P) any {
	all := is.Parents()
	switch {
	case len(all) > 0:
	case doc.Failed():
		return notEnforced{}
	default:
		return nil
	}
	from := new(lazy[T])
	from.keep((*T)(is))
	g := &gatewayRoute{reading: r, source: from, peek: func() gateway.Document { return P(from.peek()) }}
	for _, p := range all {
		if p.Namespace == r.namespace || r.namespace == c.plan.workload.Namespace {
			g.parents = append(g.parents, p)
		}
	}
	if doc.Failed() {
		return g
	}
	routes := is.Routes(c.plan.workload.ClusterDomain)
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
// the routes stay the same.
type attached struct {
	attachment
	members []member
	ports   []int // the ports that they apply to; nil for all
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
}

// attach groups the routes that are attached to something, the ones that count first.
func (c *compiler) attach() []*attached {
	if len(c.gatewayRoutes) == 0 {
		return nil
	}
	slices.SortStableFunc(c.gatewayRoutes, func(a, b decoded[gatewayRoute]) int {
		switch byAge := a.created.Compare(b.created); {
		case byAge != 0:
			return byAge
		case a.namespace == b.namespace: // without the strings below
			return cmp.Compare(a.name, b.name)
		}
		return cmp.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name)
	})
	p, byKey := c.plan, make(map[attachment]*attached)
	var groups []*attached
	for _, d := range c.gatewayRoutes {
		if d.Failed() {
			continue
		}
		for _, parent := range d.is.parents {
			at := yamldoc.Index("spec.parentRefs", parent.Index)
			for _, host := range c.hostsOf(d, parent, at) {
				port, ok := c.portOf(d, host, parent, at)
				if by := c.divided(host); by != nil && ok {
					d.Warnf(at, "has no effect: %s is about %s (%s:%d), and with it routes do not apply", by.identity, host, by.file, by.Line)
					continue
				}
				if !ok {
					continue
				}
				key := attachment{host, parent.Namespace != d.namespace, d.kind == "GRPCRoute"}
				group := byKey[key]
				if group == nil {
					group = &attached{attachment: key}
					byKey[key] = group
					groups = append(groups, group)
				}
				group.members = append(group.members, member{d.is, port})
			}
		}
		p.places[d.is] = d.place()
	}
	p.attached = byKey
	for i, group := range groups {
		if last := c.last.attached[group.attachment]; last != nil && slices.Equal(last.members, group.members) {
			groups[i], byKey[group.attachment] = last, last
			continue
		}
		group.complete()
	}
	slices.SortStableFunc(groups, func(a, b *attached) int {
		return cmp.Or(bit(b.consumer)-bit(a.consumer), bit(b.grpc)-bit(a.grpc))
	})
	return groups
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// hostsOf returns the hosts that a route is attached to by one of its parents.
func (c *compiler) hostsOf(d decoded[gatewayRoute], parent gateway.Parent, at string) []string {
	if !parent.Entry {
		return []string{gateway.ServiceHost(parent.Name, parent.Namespace, c.plan.workload.ClusterDomain)}
	}
	for _, se := range c.entries {
		if se.namespace != parent.Namespace || se.name != parent.Name {
			continue
		}
		if se.Failed() || !se.is.visible {
			return nil
		}
		return se.is.hosts
	}
	if !c.unread(parent.Namespace, parent.Name) {
		d.Warnf(at+".name", "%s: the route has no effect there", c.absent("ServiceEntry", parent.Namespace, parent.Name))
	}
	return nil
}

// portOf returns the port of a host that a route is attached to, or 0 for all.
func (c *compiler) portOf(d decoded[gatewayRoute], host string, parent gateway.Parent, at string) (port int, ok bool) {
	if parent.Section == "" {
		return parent.Port, true
	}
	s := c.plan.ports.plain(host)
	if s == nil {
		d.Errorf(at+".sectionName", "no document has the Service %s, so that the number of its port %q is unknown: write port", host, parent.Section)
		return 0, false
	}
	for _, has := range s.ports {
		if has.name == parent.Section {
			return has.number, true
		}
	}
	d.Warnf(at+".sectionName", "the Service %s has no port %q: the route has no effect there", host, parent.Section)
	return 0, false
}

// divided returns the ServiceProfile or the TrafficSplit for a host, or nil. As in Linkerd, routes have no effect on services with one.
func (c *compiler) divided(host string) *document {
	if profile := c.profiles[host]; profile != nil {
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

// before reports whether the oldest member is older than a document. HTTPRoutes and GRPCRoutes that share a port are as old as the oldest of both, so
// that no document parts them.
func (c *compiler) before(a *attached, created time.Time) bool {
	oldest, other := a.members[0].created, a.attachment
	other.grpc = !a.grpc
	if b := c.plan.attached[other]; b != nil && a.shares(b) && b.members[0].created.Before(oldest) {
		oldest = b.members[0].created
	}
	return !oldest.IsZero() && oldest.Before(created)
}

// shares reports whether some port is one of both.
func (a *attached) shares(b *attached) bool {
	return a.ports == nil || b.ports == nil || slices.ContainsFunc(a.ports, func(port int) bool { return slices.Contains(b.ports, port) })
}

// claimSome assigns the hosts of groups to them, if chosen returns true, and returns the others.
func (c *compiler) claimSome(groups []*attached, chosen func(*attached) bool) []*attached {
	return slices.DeleteFunc(groups, func(a *attached) bool {
		if !chosen(a) {
			return false
		}
		c.claimAttached(a)
		return true
	})
}

// claimAttached assigns a host to its routes.
func (c *compiler) claimAttached(a *attached) {
	p := c.plan
	if !p.seesRoutes(a) {
		return
	}
	p.name(a.host)
	for _, host := range a.leads {
		p.name(host)
	}
	before := c.claimHost(a.host, &claim{attached: a})
	if before == nil || !a.consumer && before.attached != nil && before.attached.consumer { // which is what those of a caller are for
		return
	}
	first := c.claimer(before)
	for i, m := range a.members {
		if i > 0 && a.members[i-1].gatewayRoute == m.gatewayRoute {
			continue
		}
		c.of(m.gatewayRoute).Warnf("spec.parentRefs", "has no effect on %s: %s claims it already (%s:%d), and the first one counts",
			a.host, first.identity, first.file, first.Line)
	}
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
		for _, r := range m.peek().Routes(domain) {
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
		steps[i] = step{Route: r.Route.Route, origin: origin{document: r.by.identity.String(), by: r.by, index: r.Rule, matches: slices.Repeat([]int{r.Match}, len(r.Matches))}}
	}
	return steps
}
