package policy

import (
	"cmp"
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
)

// checkInbound reports what a route says of requests to a Server that cannot be enforced.
func (c *compiler) checkInbound(doc *yamldoc.Document, is gateway.Document) {
	config, before := authz.Config{Normalization: c.plan.workload.Paths}, ""
	for _, r := range is.Inbound() {
		if why := unverifiable(r.Rule, config); why != "" && r.At != before {
			doc.Errorf(r.At, "cannot be enforced on requests to a Server: %s", why)
			before = r.At // those for other hostnames say the same
		}
	}
}

// routesOf returns the routes that are attached to a server, those that have precedence if their matches are equal first.
func (c *compiler) routesOf(s guardedPort) (routes []*gatewayRoute) {
	for _, d := range c.gatewayRoutes {
		if !d.Failed() && d.namespace == s.namespace && d.kind == s.is.Spec.Routed() && slices.ContainsFunc(d.is.servers, s.parent) {
			routes = append(routes, d.is)
		}
	}
	slices.SortStableFunc(routes, func(a, b *gatewayRoute) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.name, b.name)) })
	return routes
}

// parent reports whether a reference is to the server.
func (s guardedPort) parent(p gateway.Parent) bool { return p.Name == s.name }

// routesIn translates the routes among documents, in the order of their precedence. It also returns the indices of those of each document.
func routesIn(from []any) (rules []authz.Rule, of map[*gatewayRoute][]int) {
	type attached struct {
		gateway.Inbound
		by *gatewayRoute
	}
	var all []attached
	for _, is := range from {
		if r, ok := is.(*gatewayRoute); ok {
			for _, one := range r.peek().Inbound() {
				all = append(all, attached{one, r})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b attached) int { return gateway.CompareInbound(&a.Inbound, &b.Inbound) })
	of = make(map[*gatewayRoute][]int)
	for i := range all {
		rules, of[all[i].by] = append(rules, all[i].Rule), append(of[all[i].by], i)
	}
	return rules, of
}

// targeted returns the route that a policy of their namespace is about, or nil.
func targeted(ap *linkerd.AuthorizationPolicy, routes []*gatewayRoute) *gatewayRoute {
	for _, r := range routes {
		if ap.TargetsRoute(r.group, r.kind, r.name) {
			return r
		}
	}
	return nil
}

// aimlessRoute warns of a policy about a route if that is not there, or is attached to no server.
func (c *compiler) aimlessRoute(ap decoded[linkerd.AuthorizationPolicy]) {
	kind, name := ap.is.TargetRoute()
	if name == "" || c.unread(ap.namespace, name) {
		return
	}
	i := slices.IndexFunc(c.gatewayRoutes, func(d decoded[gatewayRoute]) bool {
		return d.namespace == ap.namespace && ap.is.TargetsRoute(d.group, d.kind, d.name)
	})
	if i < 0 {
		ap.Warnf("spec.targetRef.name", "has no effect: %s", c.absent(kind, ap.namespace, name))
	} else if len(c.gatewayRoutes[i].is.servers) == 0 {
		ap.Warnf("spec.targetRef.name", "has no effect: %s is attached to no Server", c.gatewayRoutes[i].identity)
	}
}

// unserved warns of routes that are attached to a server that is not there, or does not read routes of their kind.
func (c *compiler) unserved() {
	for _, d := range c.gatewayRoutes {
		if d.Failed() {
			continue
		}
		for _, p := range d.is.servers {
			at := yamldoc.Index("spec.parentRefs", p.Index)
			s, known := documentOf[linkerd.Server](c, linkerd.PolicyGroup, "Server", p.Namespace, p.Name)
			switch {
			case !known && !c.unread(p.Namespace, p.Name):
				d.Warnf(at+".name", "has no effect: %s", c.absent("Server", p.Namespace, p.Name))
			case known && s.is.Spec.Routed() != d.kind:
				d.Warnf(at, "has no effect: the proxyProtocol of the Server is %s, and requests to it are divided by %s only", cmp.Or(s.is.Spec.ProxyProtocol, "unknown"),
					cmp.Or(s.is.Spec.Routed(), "no kind of route"))
			}
		}
	}
}
