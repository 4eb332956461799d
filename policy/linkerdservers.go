package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
)

// guards are Linkerd's documents about who may call workloads.
type guards struct {
	servers         []decoded[linkerd.Server]
	authorizations  []decoded[linkerd.ServerAuthorization]
	policies        []decoded[linkerd.AuthorizationPolicy]
	authentications []decoded[linkerd.MeshTLSAuthentication]
	networks        []decoded[linkerd.NetworkAuthentication]
}

// add adds a document if it is one of them.
func (g *guards) add(d *document) {
	switch is := d.is.(type) {
	case *linkerd.Server:
		g.servers = append(g.servers, decoded[linkerd.Server]{d, is})
	case *linkerd.ServerAuthorization:
		g.authorizations = append(g.authorizations, decoded[linkerd.ServerAuthorization]{d, is})
	case *linkerd.AuthorizationPolicy:
		g.policies = append(g.policies, decoded[linkerd.AuthorizationPolicy]{d, is})
	case *linkerd.MeshTLSAuthentication:
		g.authentications = append(g.authentications, decoded[linkerd.MeshTLSAuthentication]{d, is})
	case *linkerd.NetworkAuthentication:
		g.networks = append(g.networks, decoded[linkerd.NetworkAuthentication]{d, is})
	}
}

// strangers warns of the identities in a document of Linkerd that no client has. They are authorized in no form.
func (c *compiler) strangers(doc *yamldoc.Document, is any) {
	var strangers []linkerd.Stranger
	at := "spec.identities"
	switch is := is.(type) {
	case *linkerd.ServerAuthorization:
		_, strangers = is.Clients(c.plan.workload.TrustDomain)
		at = "spec.client.meshTLS.identities"
	case *linkerd.MeshTLSAuthentication:
		_, strangers = is.Clients(c.plan.workload.TrustDomain)
	}
	for _, s := range strangers {
		doc.Warnf(yamldoc.Index(at, s.Index), "%s", s.Why)
	}
}

// guardedPort is a server that is about the workload.
type guardedPort struct {
	decoded[linkerd.Server]
	port uint16 // 0 if it is not known which one it is
}

// linkerdServers adds the decisions of the servers that are about the workload. A port without a server is open. A server whose port is not
// known could be about any port.
func (c *compiler) linkerdServers() {
	all := c.authentications()
	c.aimless(all)
	c.unserved()
	for _, s := range c.guardedPorts() {
		from := c.authorizing(s, all)
		if c.keepAllowlist(from) {
			continue
		}
		name := s.namespace + "/" + s.name
		own := authz.Policy{Name: fmt.Sprintf("%s (accessPolicy %s)", name, cmp.Or(s.is.Spec.AccessPolicy, "deny"))}
		s.authorize(&own, s.is.Spec.Default(), nil)
		var of map[*gatewayRoute][]int
		own.Routes, of = routesIn(from)
		l := allowlist{from: slices.Clone(from), port: s.port, denied: "no authorization for the Server " + name + " of Linkerd matched"}
		l.unrouted = "no route of the Server " + name + " of Linkerd matched"
		if s.is.Spec.AccessPolicy == "audit" {
			l.audited = own.Name
		}
		policies := append(s.policies(from, of, c.plan.workload.TrustDomain, all), own)
		if err := c.plan.inbound.require(l, policies, authz.Config{Normalization: c.plan.workload.Paths}); err != nil {
			s.Errorf("", "cannot be enforced: %v", err)
		}
	}
}

// authorizing returns the contents of the documents that say whom a server admits, itself first, in the room.
func (c *compiler) authorizing(s guardedPort, all linkerd.Authentications) []any {
	from := append(empty(&c.room.from, 0), s.is)
	routes := c.routesOf(s)
	for _, r := range routes {
		from = append(from, r)
	}
	for _, sa := range c.guards.authorizations {
		if sa.namespace == s.namespace && !sa.Failed() && sa.is.Spec.Server.Selects(s.is) {
			from = append(from, sa.is)
		}
	}
	for _, ap := range c.guards.policies {
		if ap.namespace == s.namespace && !ap.Failed() && (ap.is.Targets(s.is) || targeted(ap.is, routes) != nil) {
			from = append(from, ap.is)
			for _, is := range ap.is.Required(all) {
				from = append(from, is)
			}
		}
	}
	c.room.from = from
	return from
}

// policies translates those of these documents that authorize somebody.
func (s guardedPort) policies(from []any, of map[*gatewayRoute][]int, trustDomain string, all linkerd.Authentications) (policies []authz.Policy) {
	for _, is := range from {
		var p authz.Policy
		switch is := is.(type) {
		case *linkerd.ServerAuthorization:
			clients, _ := is.Clients(trustDomain)
			p.Name = s.namespace + "/" + is.Metadata.Name
			s.authorize(&p, clients, nil)
		case *linkerd.AuthorizationPolicy:
			p.Name = s.namespace + "/" + is.Metadata.Name
			r := targeted(is, slices.Collect(maps.Keys(of)))
			if _, route := is.TargetRoute(); r != nil || route == "" {
				s.authorize(&p, is.Clients(trustDomain, all), of[r])
			}
		}
		if len(p.Rules) > 0 {
			policies = append(policies, p)
		}
	}
	return policies
}

// authorize adds a rule for clients to a policy for the server, or for some of its routes, unless they are nobody.
func (s guardedPort) authorize(policy *authz.Policy, clients linkerd.Clients, of []int) {
	from, anybody := clients.Sources()
	if !anybody {
		return
	}
	rule := authz.Rule{From: from, Of: of}
	if s.is.Spec.HTTP() {
		rule.To = []authz.Operation{{Methods: []string{"*"}}} // which no raw connection has
	}
	policy.Rules = append(policy.Rules, rule)
}

// guardedPorts returns the servers that are about the workload: of several for one port, the oldest.
func (c *compiler) guardedPorts() []guardedPort {
	w := &c.plan.workload
	var ports []guardedPort
	for _, s := range c.guards.servers {
		if s.Failed() || s.namespace != w.Namespace || !s.is.Spec.Selects(w.Labels) {
			continue
		}
		port, name := s.is.Spec.PortOf()
		if name != "" {
			n, known := w.Ports[name]
			switch {
			case known && n == 0:
				continue
			case known && n > 0 && n < 1<<16:
				port = uint16(n)
			case name == "linkerd-admin" || name == "linkerd-proxy":
				s.Warnf("spec.port", "has no meaning in-process: it is a port of the proxy")
				continue
			default:
				s.Warnf("spec.port", "it is not known which port of the workload %s is, so every port needs the authorizations of this Server: "+
					"set Ports[%q] in mesh.WithWorkload, or write the number here", name, name)
			}
		}
		ports = append(ports, guardedPort{s, port})
	}
	timed := !slices.ContainsFunc(ports, func(s guardedPort) bool { return s.created.IsZero() })
	if timed {
		slices.SortStableFunc(ports, func(a, b guardedPort) int { return byAge(a.document, b.document) })
	}
	first := make(map[uint16]*document)
	return slices.DeleteFunc(ports, func(s guardedPort) bool {
		before := first[s.port]
		switch {
		case s.port == 0:
		case before == nil:
			first[s.port] = s.document
		case timed:
			s.Warnf("spec.port", "has no effect: %s is about the same port of this workload and is older (%s:%d)", before.identity, before.file, before.Line)
		default:
			blamed, other := s.document, before
			if c.newer(before, s.document) {
				blamed, other = before, s.document
			}
			blamed.Errorf("spec.port", "%s is about the same port of this workload (%s:%d), and which one is older is unknown: remove one of them",
				other.identity, other.file, other.Line)
		}
		return before != nil && s.port != 0
	})
}

// authentications finds the authentications that policies can require.
func (c *compiler) authentications() linkerd.Authentications {
	return linkerd.Authentications{
		MeshTLS: func(namespace, name string) *linkerd.MeshTLSAuthentication {
			return found[linkerd.MeshTLSAuthentication](c, linkerd.PolicyGroup, "MeshTLSAuthentication", namespace, name)
		},
		Network: func(namespace, name string) *linkerd.NetworkAuthentication {
			return found[linkerd.NetworkAuthentication](c, linkerd.PolicyGroup, "NetworkAuthentication", namespace, name)
		},
	}
}

// aimless warns of what authorizes nobody because what it refers to is not there.
func (c *compiler) aimless(all linkerd.Authentications) {
	there := func(namespace, name string) bool {
		_, known := documentOf[linkerd.Server](c, linkerd.PolicyGroup, "Server", namespace, name)
		return known || c.unread(namespace, name)
	}
	for _, sa := range c.guards.authorizations {
		if name := sa.is.Spec.Server.Name; !sa.Failed() && name != "" && !there(sa.namespace, name) {
			sa.Warnf("spec.server.name", "has no effect: %s", c.absent("Server", sa.namespace, name))
		}
	}
	for _, ap := range c.guards.policies {
		if ap.Failed() {
			continue
		}
		if name := ap.is.TargetServer(); name != "" && !there(ap.namespace, name) {
			ap.Warnf("spec.targetRef.name", "has no effect: %s", c.absent("Server", ap.namespace, name))
		}
		c.aimlessRoute(ap)
		for i, is := range ap.is.Required(all) {
			if is == nil {
				r := &ap.is.Spec.RequiredAuthenticationRefs[i]
				ap.Warnf(yamldoc.Index("spec.requiredAuthenticationRefs", i), "authorizes nobody: %s", c.absent(r.Kind, cmp.Or(r.Namespace, ap.namespace), r.Name))
				break
			}
		}
	}
}
