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
	lazy[istio.VirtualService]
	*reading
	hosts     []string // the full names of its hosts
	visible   bool     // it is visible to the workload
	from      distance
	inMesh    bool // it is not only about gateways
	leaf      bool // it has no hosts: other documents hand requests to it
	some      bool // some route applies to the workload; for a document with delegates, see whole
	cors      bool // some route has a CORS policy; for a document with delegates, see whole
	delegates []delegation

	inUse *yamldoc.Digest // the additional findings of a leaf to which a route in the mesh hands requests

	leads   []string       // the hosts that its own routes send requests to
	targets []route.Target // the subsets and the ports that it names: each has a port, or else a subset
	lines   []int32        // the lines of its routes, relative to that of the document
	scopes  *scopes        // to which requests it applies; nil for all, as mostly; those of a document with delegates are in whole

	// The results of the last plan, for the next one.
	whole atomic.Pointer[expansion]
	last  atomic.Pointer[built]
}

func (c *compiler) readVirtual(doc *yamldoc.Document, r *reading, is *istio.VirtualService) *virtual {
	client := c.plan.client()
	v := &virtual{reading: r, inMesh: is.InMesh(), leaf: is.IsDelegate()}
	v.visible, v.from = visibleFrom(client.Namespace, r.namespace, is.Spec.ExportTo)
	for _, host := range is.Spec.Hosts {
		v.hosts = append(v.hosts, c.word(istio.Resolve(host, r.namespace, client.ClusterDomain)))
	}
	for i := range is.Spec.HTTP {
		if d := is.Spec.HTTP[i].Delegate; d != nil {
			name := cmp.Or(d.Namespace, r.namespace) + "/" + d.Name
			v.delegates = append(v.delegates, delegation{i, name, is.Spec.HTTP[i].AtGateways()})
		}
	}
	v.leads, v.targets = c.destinations(is)
	if v.inMesh && !v.leaf {
		v.lines = make([]int32, len(is.Spec.HTTP))
		for i := range v.lines {
			v.lines[i] = int32(doc.LineOf(yamldoc.Index("spec.http", i)) - doc.Line)
		}
	}
	if !doc.Failed() && v.inMesh && !v.leaf {
		is.Table(doc, client) // only for its errors
	}
	if !doc.Failed() && v.inMesh && v.delegates == nil {
		v.cors = is.HasCORS()
		v.some, v.scopes = c.plan.scopesOf(is)
	}
	v.hosts = slices.Clip(v.hosts)
	v.keep(is)
	return v
}

// destinations returns the hosts that a document names as destinations, and the subsets and ports of these hosts that it names.
func (c *compiler) destinations(is *istio.VirtualService) (leads []string, targets []route.Target) {
	for d := range is.Destinations() {
		host := c.word(istio.Resolve(d.Host, is.Namespace(), c.plan.workload.ClusterDomain))
		leads = addTo(leads, host)
		if d.Port != nil {
			targets = addTo(targets, route.Target{Host: host, Port: int(d.Port.Number)})
		}
		if d.Subset != nil {
			targets = addTo(targets, route.Target{Host: host, Subset: c.word(*d.Subset)})
		}
	}
	return slices.Clip(leads), slices.Clip(targets)
}

// addTo appends a value to a list, unless the list already has it.
func addTo[T comparable](list []T, value T) []T {
	if slices.Contains(list, value) {
		return list
	}
	return append(list, value)
}

// distance says how a document has come to be visible to the workload. Where several claim a host, the nearest counts, as in Istio.
type distance uint8

const (
	atHome   distance = iota // it is in the workload's namespace, and not exported to all
	nearby                   // it is exported to that namespace by name
	anywhere                 // it is exported to all namespaces
)

// visibleFrom reports whether a document that is exported to a list of namespaces is visible to the client's namespace, and from where.
func visibleFrom(client, namespace string, exportTo []string) (visible bool, from distance) {
	visible, public := istio.VisibleFrom(client, namespace, exportTo)
	switch {
	case public:
		return visible, anywhere
	case namespace == client:
		return visible, atHome
	}
	return visible, nearby
}

// client returns the workload in the terms of package istio.
func (p *Plan) client() istio.Client {
	return istio.Client{Namespace: p.workload.Namespace, Labels: p.workload.Labels, ClusterDomain: p.workload.ClusterDomain}
}

// portsOf returns the ports that a document applies to, or nil for all. It reports false if no route of it applies to the workload.
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

// virtualServices assigns each host to the first VirtualService, or group of routes of the Gateway API, that claims it: the nearest first, as in
// Istio. Routes of the workload's namespace come after the VirtualServices that are not exported to all namespaces, and other routes among those that
// are, by age. If a VirtualService has no creation time, it comes before them.
func (c *compiler) virtualServices() {
	delegates := c.delegates()
	claims := zeroed(&c.room.claims, len(c.virtual))
	groups := c.attach()
	for _, from := range []distance{atHome, nearby, anywhere} {
		if from == anywhere {
			groups = c.claimOwn(groups)
		}
		for i, vs := range c.virtual {
			if from == anywhere {
				groups = c.claimOlder(groups, vs.created)
			}
			switch {
			case vs.Failed() || vs.is.from != from || vs.is.leaf:
			case !vs.is.inMesh:
				vs.Warnf("spec.gateways", "applies to gateways only, which do not exist in-process: it is skipped")
			default:
				c.claim(vs, &claims[i], delegates)
			}
		}
	}
	c.claimRoutes(groups)
}

// claim assigns the hosts of a document to it by a claim, if it is visible to the workload and some route applies to it.
func (c *compiler) claim(vs decoded[virtual], own *claim, delegates map[string]decoded[virtual]) {
	p, v, some := c.plan, vs.is, vs.is.some
	own.virtual, own.at = v, vs.place()
	if v.delegates != nil {
		if own.whole = c.whole(vs, delegates); own.whole == nil {
			return
		}
		some = own.whole.some
	}
	c.arrives(own)
	if !p.sees(v) {
		return
	}
	if !some { // Istio ignores such a document
		for _, host := range v.hosts {
			p.name(host)
		}
		return
	}
	for _, host := range own.leads() {
		p.name(host)
	}
	for _, host := range v.leads {
		p.name(host)
	}
	for i, host := range v.hosts {
		if before := c.claimHost(host, own); before != nil {
			first := c.claimer(before)
			vs.Warnf(yamldoc.Index("spec.hosts", i), "has no effect: %s claims %s already (%s:%d), and the first one counts",
				first.identity, host, first.file, first.Line)
		}
		p.name(host)
	}
}

// claimHost assigns a host to a claim or, if there are claims for some ports before it, the other ports. It returns the claim that leaves none.
func (c *compiler) claimHost(host string, own *claim) (before *claim) {
	has, added := c.plan.claims.add(host, own)
	last := cmp.Or(c.lastClaims[host], has)
	switch {
	case added || last.virtual == own.virtual && last.attached == own.attached:
	case last.ports() != nil: // this one is for the ports that those before it do not claim
		if last == has {
			last = has.own()
			c.plan.claims.set(host, last)
		}
		last.otherwise = own.own()
		c.lastClaims[host] = last.otherwise
	default:
		return last
	}
	return nil
}

// claimer returns the first document of a claim.
func (c *compiler) claimer(of *claim) *document {
	if of.attached != nil {
		return c.of(of.attached.members[0].gatewayRoute)
	}
	return c.of(of.virtual)
}

// subsets warns about destinations without endpoints, because no document defines their subset or their ServiceEntry lacks the port.
func (c *compiler) subsets() {
	if c.failed() {
		return // the documents are incomplete
	}
	p := c.plan
	lacks := func(t route.Target) bool {
		host := p.canonical(t.Host)
		if of, ok := p.governs(host); ok {
			of.Subset = t.Subset
			return !p.consul.set.Has(of)
		}
		return !p.rule(host).defines(t.Subset)
	}
	port := func(t route.Target) error {
		if e := p.entry(p.canonical(t.Host)); e != nil {
			return e.of(t.Host).CheckPort(t.Port)
		}
		return nil
	}
	for _, vs := range c.virtual {
		if !p.sees(vs.is) || vs.atGateways() {
			continue
		}
		c.withoutPort(vs)
		if !slices.ContainsFunc(vs.is.targets, func(t route.Target) bool {
			return t.Port == 0 && lacks(t) || t.Port != 0 && port(t) != nil
		}) {
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

// withoutPort warns about destinations without a port, to whose ServiceEntry some requests go with a port that it does not have. Such a destination
// gets requests with the port that the caller dialled, unless the entry has a single one.
func (c *compiler) withoutPort(vs decoded[virtual]) {
	p := c.plan
	several := func(host string) *entry {
		host = p.canonical(host)
		if e := p.entry(host); e != nil && p.onlyPort(host) == 0 && len(e.numbers) > 0 {
			return e
		}
		return nil
	}
	if vs.is.leaf || !slices.ContainsFunc(vs.is.leads, func(host string) bool { return several(host) != nil }) {
		return
	}
	spec := &vs.is.get().Spec
	for i := range spec.HTTP {
		r := &spec.HTTP[i]
		if r.AtGateways() {
			continue
		}
		matched := r.Ports()
		for d, at := range r.Destinations(yamldoc.Index("spec.http", i)) {
			host := istio.Resolve(d.Host, vs.namespace, p.workload.ClusterDomain)
			e := several(host)
			if d.Port != nil || e == nil || slices.Contains(vs.is.hosts, host) && matched == nil {
				continue
			}
			ports := matched
			if ports == nil {
				ports = p.portsOf(vs.is.hosts)
			}
			for _, port := range ports {
				if err := e.of(host).CheckPort(port); err != nil {
					vs.Warnf(at+".port", "missing, so that it is the port of the request: %v: requests to port %d fail", err, port)
					break
				}
			}
		}
	}
}

// portsOf returns the ports that requests to some hosts may have. It is that of HTTP if no document has the ports of any.
func (p *Plan) portsOf(hosts []string) (ports []int) {
	for _, host := range hosts {
		for _, port := range p.servicePorts(p.canonical(host)) {
			ports = addTo(ports, port.number)
		}
	}
	if ports == nil {
		return []int{80}
	}
	return ports
}
