package policy

import (
	"cmp"
	"fmt"
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
	c.aimless()
	for _, s := range c.guardedPorts() {
		w := &c.plan.workload
		name := s.namespace + "/" + s.name
		own := authz.Policy{Name: fmt.Sprintf("%s (accessPolicy %s)", name, cmp.Or(s.is.Spec.AccessPolicy, "deny"))}
		authorize := func(rules *authz.Policy, clients linkerd.Clients) {
			from, anybody := clients.Sources()
			if !anybody {
				return
			}
			rule := authz.Rule{From: from}
			if s.is.Spec.HTTP() {
				rule.To = []authz.Operation{{Methods: []string{"*"}}} // which no raw connection has
			}
			rules.Rules = append(rules.Rules, rule)
		}
		var policies []authz.Policy
		add := func(d *document, clients linkerd.Clients) {
			p := authz.Policy{Name: d.namespace + "/" + d.name}
			if authorize(&p, clients); len(p.Rules) > 0 {
				policies = append(policies, p)
			}
		}
		for _, sa := range c.guards.authorizations {
			if !sa.Failed() && sa.namespace == s.namespace && sa.is.Spec.Server.Selects(s.is) {
				clients, _ := sa.is.Clients(w.TrustDomain)
				add(sa.document, clients)
			}
		}
		for _, ap := range c.guards.policies {
			if !ap.Failed() && ap.namespace == s.namespace && ap.is.Targets(s.is) {
				clients, _ := ap.is.Clients(w.TrustDomain, c.listed())
				add(ap.document, clients)
			}
		}
		authorize(&own, s.is.Spec.Default())
		more := allowlist{port: s.port, denied: "no authorization for the Server " + name + " of Linkerd matched"}
		if s.is.Spec.AccessPolicy == "audit" {
			more.audited = own.Name
		}
		if err := c.plan.inbound.require(more, append(policies, own), authz.Config{Normalization: w.Paths}); err != nil {
			s.Errorf("", "cannot be enforced: %v", err)
		}
	}
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

// listed returns the authentications that policies can require.
func (c *compiler) listed() linkerd.Authentications {
	return linkerd.Authentications{
		MeshTLS: func(namespace, name string) (linkerd.Clients, bool) {
			for _, a := range c.guards.authentications {
				if !a.Failed() && a.namespace == namespace && a.name == name {
					clients, _ := a.is.Clients(c.plan.workload.TrustDomain)
					return clients, true
				}
			}
			return linkerd.Clients{}, false
		},
		Network: func(namespace, name string) (*linkerd.NetworkAuthentication, bool) {
			for _, a := range c.guards.networks {
				if !a.Failed() && a.namespace == namespace && a.name == name {
					return a.is, true
				}
			}
			return nil, false
		},
	}
}

// aimless warns of what authorizes nobody because what it refers to is not there.
func (c *compiler) aimless() {
	there := func(namespace, name string) bool {
		return c.unread(namespace, name) || slices.ContainsFunc(c.guards.servers, func(s decoded[linkerd.Server]) bool {
			return s.namespace == namespace && s.name == name
		})
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
		if _, i := ap.is.Clients(c.plan.workload.TrustDomain, c.listed()); i >= 0 {
			r := &ap.is.Spec.RequiredAuthenticationRefs[i]
			ap.Warnf(yamldoc.Index("spec.requiredAuthenticationRefs", i), "authorizes nobody: %s",
				c.absent(r.Kind, cmp.Or(r.Namespace, ap.namespace), r.Name))
		}
	}
}
