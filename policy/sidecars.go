package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/policy/internal/istio"
)

// sidecar is a Sidecar.
type sidecar struct {
	*reading
	is      *istio.Sidecar
	called  string // its kind and name
	labels  string // the labels that it selects workloads by, as text; "" for all workloads of its namespace
	reach   reach
	imports *imports // nil if it imports everything, or is not about the workload
}

// reach says which workloads a Sidecar is about. Of those that are about the process, the one with the greatest reach counts.
type reach uint8

const (
	ofOthers    reach = iota // it is not about this workload
	ofMesh                   // it is about all workloads without a Sidecar in their own namespace
	ofNamespace              // it is about all workloads of this namespace
	ofWorkload               // it selects this workload
)

// imports are the hosts that a Sidecar imports, by the namespace of what is imported. "*" is every namespace. They do not change.
type imports struct {
	hosts map[string]*hostMap[struct{}]
	lists map[string][]string
}

// closedSidecar is a Sidecar that cannot be used, and may refuse calls to hosts outside the mesh.
type closedSidecar struct {
	reach reach
	by    string
}

func (c *compiler) readSidecar(r *reading, is *istio.Sidecar) *sidecar {
	w, s := &c.plan.workload, &sidecar{reading: r, is: is, called: r.identity.String()}
	labels, selects := is.Labels()
	if selects {
		s.labels = "labels " + labelKey(labels) // no labels select all workloads, and count before no selector, as in Istio
	}
	switch {
	case selects && r.namespace == w.Namespace && istio.Within(labels, w.Labels):
		s.reach = ofWorkload
	case selects:
	case r.namespace == w.Namespace:
		s.reach = ofNamespace
	case r.namespace == w.RootNamespace:
		s.reach = ofMesh
	}
	if s.reach == ofOthers {
		return s // nobody asks what it imports
	}
	in := &imports{make(map[string]*hostMap[struct{}]), make(map[string][]string)}
	for namespace, host := range is.Imported() {
		switch namespace {
		case "*":
			if host == "*" {
				return s
			}
		case ".":
			namespace = w.Namespace
		case "~":
			continue // no namespace
		}
		if in.hosts[namespace] == nil {
			in.hosts[namespace] = new(hostMap[struct{}])
		}
		if _, added := in.hosts[namespace].add(host, &isNamed); added {
			in.lists[namespace] = append(in.lists[namespace], host)
		}
	}
	s.imports = in
	return s
}

// cover reports whether a host of a namespace, which may begin with a wildcard, is imported as a whole. The namespace is empty if it is unknown.
func (in *imports) cover(namespace, host string) bool {
	return in == nil || in.hosts[namespace].find(host) != nil || in.hosts["*"].find(host) != nil
}

// touch reports whether any host is imported that a host of a namespace, which may begin with a wildcard, covers or is covered by.
func (in *imports) touch(namespace, host string) bool {
	covered := func(other string) bool { return istio.Matches(host, other) }
	return in.cover(namespace, host) ||
		strings.HasPrefix(host, "*") && (slices.ContainsFunc(in.lists[namespace], covered) || slices.ContainsFunc(in.lists["*"], covered))
}

// sees reports whether a VirtualService is visible to the workload, and imported. It is imported as a whole if one of its hosts is.
func (p *Plan) sees(v *virtual) bool {
	return v.visible && (p.imports == nil || v.leaf || slices.ContainsFunc(v.hosts, func(host string) bool { return p.imports.touch(v.namespace, host) }))
}

// seesRoutes reports whether routes of the Gateway API are imported, like a VirtualService of their namespace.
func (p *Plan) seesRoutes(a *attached) bool { return p.imports.cover(a.members[0].namespace, a.host) }

// importing returns a function that reports whether one of the names of a ServiceEntry is imported. Its addresses are if any of its hosts is.
func (p *Plan) importing(e *entry) func(name int) bool {
	hosts := e.hosts[:len(e.is.Spec.Hosts)]
	is := func(host string) bool { return p.imports.cover(e.namespace, host) }
	return func(name int) bool {
		if name < len(hosts) {
			return is(hosts[name])
		}
		return slices.ContainsFunc(hosts, is)
	}
}

// hides returns the Sidecar that does not import a host, given by its full name, or "" if the host is imported. It is if it may be a service of a
// namespace from which it is imported, if a ServiceEntry is that has it, or if a VirtualService is that routes it.
func (p *Plan) hides(name string, port int) string {
	switch {
	case p.imports.cover(p.service(name).Namespace, name):
		return ""
	case p.shown.find(name) != nil && (p.entry(name) != nil || p.entries.find(name) == nil): // see entry
		return ""
	}
	if c := p.claims.find(name).of(port); c != nil && (c.virtual != nil || c.attached != nil) {
		return ""
	}
	return p.sidecar.called
}

// limited returns the plan for a host, given by its full name, with what the Sidecar of the workload says of it.
func (p *Plan) limited(h HostPlan, name string, port int) HostPlan {
	if h.RegistryOnly = p.outside != ""; h.Document == "" {
		h.Document = p.outside
	}
	if p.imports == nil {
		return h
	}
	if by := p.hides(name, port); by != "" {
		hidden := HostPlan{Service: h.Service, Entry: h.Entry, Hidden: true, RegistryOnly: h.RegistryOnly, Document: by}
		if e := p.entry(name); e != nil {
			hidden.Entry = e.of(name)
		}
		return hidden
	}
	return h
}

// chooseSidecar finds the Sidecar of the workload: the oldest one that selects it, otherwise the oldest one for its namespace, otherwise that
// for the mesh.
func (c *compiler) chooseSidecar() {
	oldestFirst(c.sidecars)
	p, root := c.plan, c.plan.workload.RootNamespace
	type place struct{ namespace, labels string }
	first := make(map[place]decoded[sidecar])
	var own decoded[sidecar]
	for _, s := range c.sidecars {
		if s.Failed() {
			continue
		}
		at := "spec.workloadSelector"
		if s.is.labels == "" {
			at = "spec"
		} else if s.namespace == root && p.workload.Namespace != root {
			s.Warnf(at, "selects workloads of the namespace %s only: what is about all of the mesh has no workloadSelector", root)
		}
		before, twice := first[place{s.namespace, s.is.labels}]
		if !twice {
			first[place{s.namespace, s.is.labels}] = s
		}
		switch {
		case s.is.reach == ofWorkload && own.is != nil && own.is.reach == ofWorkload:
			before, twice = own, true
		case s.is.reach > ofOthers && (own.is == nil || s.is.reach > own.is.reach):
			own = s
		}
		if twice {
			s.Warnf(at, "has no effect: %s is about the same workloads and is older or stands before it (%s:%d)", before.identity, before.file, before.Line)
		}
	}
	reach := ofOthers
	if own.is != nil {
		p.sidecar, p.imports, reach = own.is, own.is.imports, own.is.reach
		if own.is.is.RegistryOnly() {
			p.outside = own.is.called
		}
	}
	for _, shut := range c.shutOutside { // what would have counted, or may have
		if shut.reach >= reach {
			p.outside = cmp.Or(p.outside, shut.by+", which is refused and has no last good version")
		}
	}
}

// unimported warns about DestinationRules of the workload's own namespace that apply to no call, since the Sidecar imports nothing that leads to
// their host: its calls go out as they are, or not at all. There may be thousands of them, so the first one gets the warning.
func (c *compiler) unimported() {
	p := c.plan
	if p.imports == nil || c.failed() {
		return
	}
	var leads map[string]bool // where imported VirtualServices lead to
	var first decoded[destination]
	others := 0
	for _, dr := range c.rules {
		host := dr.is.host
		if dr.namespace != p.workload.Namespace || dr.is.selector != nil && !dr.is.selects || strings.HasPrefix(host, "*") ||
			p.claims.find(host) != nil || p.hides(host, 0) == "" {
			continue
		}
		if leads == nil {
			leads = c.leadsTo()
		}
		switch {
		case leads[host]:
		case first.is == nil:
			first = dr
		default:
			others++
		}
	}
	if first.is == nil {
		return
	}
	more := ""
	if others > 0 {
		more = fmt.Sprintf(". The same goes for %d more", others)
	}
	first.Warnf("spec.host", "has no effect on calls of this workload: %s does not import %s, so that no policy applies to them%s", p.sidecar.called, first.is.host, more)
}

// leadsTo returns the hosts that imported VirtualServices, and routes of the Gateway API, lead to.
func (c *compiler) leadsTo() map[string]bool {
	leads := make(map[string]bool)
	for i, vs := range c.virtual {
		claim := &c.room.claims[i]
		if claim.virtual == nil || !c.plan.sees(vs.is) { // it may be a delegate, or for gateways
			continue
		}
		for _, host := range claim.leads() {
			leads[c.plan.canonical(host)] = true
		}
	}
	for a := range c.plan.attached.values() {
		if !c.plan.seesRoutes(a) {
			continue
		}
		for _, host := range a.leads {
			leads[host] = true
		}
	}
	return leads
}

// shutsOutside returns the reach of a Sidecar that cannot be used, if it may refuse calls to hosts outside the mesh; otherwise ofOthers.
func (c *compiler) shutsOutside(p *piece) reach {
	w := &c.plan.workload
	switch {
	case c.elsewhere(p):
		return ofOthers
	case p.kind == "" || p.list() || !p.clear("") || c.unheardOf(p) && p.kind != "Sidecar":
		text := c.text(p)
		if bytes.Contains(text, []byte("Sidecar")) && bytes.Contains(text, []byte("outboundTrafficPolicy")) {
			return ofWorkload
		}
		return ofOthers
	case p.kind != "Sidecar":
		return ofOthers
	case !p.clear("spec"), p.nowhere:
		return ofWorkload
	}
	const policy = "spec.outboundTrafficPolicy"
	if !p.Has(policy) || p.clear(policy) && p.IsText(policy+".mode") && p.Text(policy+".mode") == "ALLOW_ANY" {
		return ofOthers
	}
	const selector = "spec.workloadSelector"
	labels, readable := selected(p.Document, selector, "labels")
	switch {
	case !readable:
		return ofWorkload
	case p.Has(selector) && (p.namespace != w.Namespace || !istio.Within(labels, w.Labels)):
		return ofOthers
	case p.Has(selector):
		return ofWorkload
	case p.namespace == w.Namespace:
		return ofNamespace
	}
	return ofMesh
}
