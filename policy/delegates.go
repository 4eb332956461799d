package policy

import (
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// delegation is a route that hands requests to another document.
type delegation struct {
	route      int    // the index of the route
	to         string // the document, as namespace/name
	atGateways bool   // the route is only about gateways
}

// expansion is the result of inserting the routes of delegates into a VirtualService.
type expansion struct {
	delegates []*virtual // one for each delegation; nil if the delegate does not exist

	leads   []string   // the hosts that requests are sent to
	scopes  *scopes    // to which requests it applies; nil for all
	some    bool       // some route applies to the workload
	cors    bool       // some route has a CORS policy
	without *omissions // nil if nothing is left out
}

// omissions are what an expansion lacks. There are warnings about it.
type omissions struct {
	missing []delegation // those whose delegate does not exist, or is not visible
	dropped []droppedRoute
}

// droppedRoute is a route of a delegate that matches none of the requests that the root's route hands to the delegate.
type droppedRoute struct {
	delegate         string
	index, ofTheRoot int
}

// delegates returns the documents without hosts, by name. Errors that only matter in use are reported only if a route in the mesh hands
// requests to the document.
func (c *compiler) delegates() map[string]decoded[virtual] {
	delegates, named := make(map[string]decoded[virtual]), make(map[string]bool) // named: true by a route in the mesh
	for _, vs := range c.virtual {
		if vs.is.leaf {
			delegates[vs.namespace+"/"+vs.name] = vs
		}
		for _, d := range vs.is.delegates {
			named[d.to] = named[d.to] || vs.is.inMesh && !d.atGateways
		}
	}
	for name, d := range delegates {
		inMesh, named := named[name]
		d.idle = !inMesh
		switch {
		case d.Failed():
		case inMesh:
			d.Report(d.is.inUse)
		case !named:
			d.Warnf("", "has no hosts and no VirtualService delegates to it: it has no effect")
		}
	}
	c.broken = nil // more documents may have failed
	return delegates
}

// whole returns the expansion of a document, which is that of the last plan if the delegates are the same. It warns about routes that are
// left out. It returns nil if the result cannot be compiled.
func (c *compiler) whole(vs decoded[virtual], delegates map[string]decoded[virtual]) *expansion {
	v := vs.is
	found := make([]*virtual, len(v.delegates))
	for i, d := range v.delegates {
		if leaf, ok := delegates[d.to]; ok && !leaf.Failed() {
			found[i] = leaf.is
		}
	}
	e := v.whole.Load()
	if e == nil || !slices.Equal(e.delegates, found) {
		if e = c.expand(vs, found); e == nil {
			return nil
		}
		v.whole.Store(e)
	}
	if e.without == nil {
		return e
	}
	for _, d := range e.without.missing {
		namespace, name, _ := strings.Cut(d.to, "/")
		if d.atGateways || c.unread(namespace, name) { // the unread document has a finding of its own
			continue
		}
		vs.Warnf(yamldoc.Index("spec.http", d.route)+".delegate",
			"there is no VirtualService without hosts of this name that %s sees: the route is left out", vs.namespace)
	}
	for _, r := range e.without.dropped {
		delegates[r.delegate].Warnf(yamldoc.Index("spec.http", r.index), "never reached from %s: it matches nothing that spec.http[%d] does "+
			"(%s:%d)", vs.identity, r.ofTheRoot, vs.file, vs.LineOf(yamldoc.Index("spec.http", r.ofTheRoot)))
	}
	return e
}

// expand compiles a document with its delegates. If that fails, it reports the errors and returns nil.
func (c *compiler) expand(vs decoded[virtual], delegates []*virtual) *expansion {
	e, client := &expansion{delegates: delegates}, c.plan.client()
	whole := e.of(vs.is, (*virtual).peek)
	to := vs.document
	for _, leaf := range delegates {
		if leaf == nil {
			continue
		}
		if d := c.of(leaf); c.newer(d, to) {
			to = d
		}
	}
	to = c.blame(vs.document, to)
	report := vs.document.Document
	if to != vs.document {
		report = report.Again()
	}
	table := whole.Table(report, client)
	if table == nil {
		if to != vs.document {
			for _, p := range report.Problems {
				to.Errorf("", "cannot be enforced as a delegate of %s: %s: %s", vs.identity, p.Path, p.Message)
			}
		}
		return nil
	}
	for i := range table.Len() {
		r := table.Rule(i).Route
		for _, d := range r.Destinations {
			e.leads = addTo(e.leads, c.word(d.Target.Host))
		}
		for _, m := range r.Mirrors {
			e.leads = addTo(e.leads, c.word(m.Target.Host))
		}
	}
	e.cors = whole.HasCORS()
	e.some, e.scopes = c.plan.scopesOf(whole.VirtualService)
	if len(whole.Missing)+len(whole.Dropped) == 0 {
		return e
	}
	e.without = new(omissions)
	for _, d := range vs.is.delegates {
		if slices.Contains(whole.Missing, d.route) {
			e.without.missing = append(e.without.missing, d)
		}
	}
	for _, o := range whole.Dropped {
		name := o.Delegate.Namespace() + "/" + o.Delegate.Metadata.Name
		e.without.dropped = append(e.without.dropped, droppedRoute{name, o.DelegateRoute, o.Route})
	}
	return e
}

// of returns the document with the routes of its delegates, which read returns. A nil expansion is that of a document without delegates.
func (e *expansion) of(v *virtual, read func(*virtual) *istio.VirtualService) istio.Expansion {
	return read(v).Expand(func(namespace, name string) (*istio.VirtualService, bool) {
		i := slices.IndexFunc(v.delegates, func(d delegation) bool { return d.to == namespace+"/"+name })
		if i < 0 || e.delegates[i] == nil {
			return nil, false
		}
		return read(e.delegates[i]), true
	})
}
