package linkerd

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/policy/authz"
)

// LocalTrustDomain is what documents call the trust domain of the workload.
const LocalTrustDomain = "cluster.local"

// Clients are the clients that something authorizes. The zero value is nobody.
type Clients struct {
	anybody    bool           // even clients without an identity
	principals []string       // of clients with an identity, as in an [authz.Source]
	networks   []authz.Source // the networks that they must be in; none for any network
}

// Sources returns the clients as the sources of a rule. It returns false if they are nobody. No sources mean everybody.
func (c Clients) Sources() ([]authz.Source, bool) {
	switch {
	case !c.anybody && len(c.principals) == 0:
		return nil, false
	case c.anybody && len(c.networks) == 0:
		return nil, true
	}
	sources := slices.Clone(c.networks)
	if len(sources) == 0 {
		sources = make([]authz.Source, 1)
	}
	if !c.anybody {
		for i := range sources {
			sources[i].Principals = c.principals
		}
	}
	return sources, true
}

// within returns the clients that are in a network of the cluster. By default that is each private network; Linkerd's installation may say
// otherwise, which no document does. Linkerd's proxy never sees a client from the same pod, so the loopback addresses count, too.
func (c Clients) within() Clients {
	for _, network := range []string{"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8", "127.0.0.0/8", "::1/128"} {
		c.networks = append(c.networks, authz.Source{IPBlocks: []netip.Prefix{netip.MustParsePrefix(network)}})
	}
	return c
}

// Default returns the clients that the access policy of a server authorizes.
func (s *ServerSpec) Default() Clients {
	kind, who, _ := strings.Cut(s.AccessPolicy, "-")
	var c Clients
	switch {
	case s.AccessPolicy == "" || s.AccessPolicy == "deny":
		return c
	case who == "authenticated":
		c.principals = []string{"*"}
	default:
		c.anybody = true
	}
	if kind == "cluster" {
		return c.within()
	}
	return c
}

// Clients returns the clients that the document authorizes, if the workload is in a trust domain, and the identities that no client has.
func (sa *ServerAuthorization) Clients(trustDomain string) (Clients, []Stranger) {
	client := &sa.Spec.Client
	c := Clients{anybody: client.Unauthenticated, networks: networksOf(client.Networks)}
	var strangers []Stranger
	if tls := client.MeshTLS; tls != nil && tls.UnauthenticatedTLS {
		c.principals = []string{"*"}
	} else if tls != nil {
		c.principals, strangers = principals(tls.Identities, trustDomain)
		for _, a := range tls.ServiceAccounts {
			c.principals = append(c.principals, account(trustDomain, cmp.Or(a.Namespace, sa.Namespace()), a.Name))
		}
	}
	if len(c.networks) == 0 {
		c = c.within()
	}
	return c, strangers
}

// Clients returns the clients that the document lists, if the workload is in a trust domain, and the identities that no client has.
func (a *MeshTLSAuthentication) Clients(trustDomain string) (Clients, []Stranger) {
	var c Clients
	var strangers []Stranger
	c.principals, strangers = principals(a.Spec.Identities, trustDomain)
	for _, r := range a.Spec.IdentityRefs {
		if isKind(r.Group, r.Kind, "", "Namespace") {
			c.principals = append(c.principals, account(trustDomain, r.Name, "*"))
		} else {
			c.principals = append(c.principals, account(trustDomain, cmp.Or(r.Namespace, a.Namespace()), r.Name))
		}
	}
	return c, strangers
}

// Authentications are the documents that AuthorizationPolicies refer to. They return nil for one that is not there.
type Authentications struct {
	MeshTLS func(namespace, name string) *MeshTLSAuthentication
	Network func(namespace, name string) *NetworkAuthentication
}

// Required yields the authentications that the policy requires, with the indices of their references: a *[MeshTLSAuthentication], a
// *[NetworkAuthentication], or nil for one that is not there. Service accounts need no document.
func (ap *AuthorizationPolicy) Required(all Authentications) iter.Seq2[int, any] {
	return func(yield func(int, any) bool) {
		for i := range ap.Spec.RequiredAuthenticationRefs {
			r := &ap.Spec.RequiredAuthenticationRefs[i]
			namespace := cmp.Or(r.Namespace, ap.Namespace())
			var is any
			if isKind(r.Group, r.Kind, "", "ServiceAccount") {
				continue
			} else if isKind(r.Group, r.Kind, PolicyGroup, "MeshTLSAuthentication") {
				if a := all.MeshTLS(namespace, r.Name); a != nil {
					is = a
				}
			} else if a := all.Network(namespace, r.Name); a != nil {
				is = a
			}
			if !yield(i, is) {
				return
			}
		}
	}
}

// Clients returns the clients that have all authentications that the policy requires. If one of these is not there, that is nobody.
func (ap *AuthorizationPolicy) Clients(trustDomain string, all Authentications) Clients {
	c := Clients{anybody: true}
	for _, r := range ap.Spec.RequiredAuthenticationRefs {
		if isKind(r.Group, r.Kind, "", "ServiceAccount") {
			c.anybody, c.principals = false, []string{account(trustDomain, cmp.Or(r.Namespace, ap.Namespace()), r.Name)}
		}
	}
	for _, is := range ap.Required(all) {
		switch is := is.(type) {
		case *MeshTLSAuthentication:
			listed, _ := is.Clients(trustDomain)
			c.anybody, c.principals = false, listed.principals
		case *NetworkAuthentication:
			c.networks = networksOf(is.Spec.Networks)
		default:
			return Clients{}
		}
	}
	return c
}

// Targets reports whether the policy is about a server of its namespace.
func (ap *AuthorizationPolicy) Targets(server *Server) bool {
	t := &ap.Spec.TargetRef
	return isKind(t.Group, t.Kind, "", "Namespace") || isKind(t.Group, t.Kind, PolicyGroup, "Server") && t.Name == server.Metadata.Name
}

// TargetServer returns the name of the server that the policy is about; "" if it is about all of its namespace.
func (ap *AuthorizationPolicy) TargetServer() string {
	if t := &ap.Spec.TargetRef; isKind(t.Group, t.Kind, PolicyGroup, "Server") {
		return t.Name
	}
	return ""
}

// TargetsRoute reports whether the policy is about a route of its namespace.
func (ap *AuthorizationPolicy) TargetsRoute(group, kind, name string) bool {
	t := &ap.Spec.TargetRef
	return isKind(t.Group, t.Kind, group, kind) && t.Name == name
}

// TargetRoute returns the kind and the name of the route that the policy is about; "" if it is not about a route.
func (ap *AuthorizationPolicy) TargetRoute() (kind, name string) {
	if t := &ap.Spec.TargetRef; t.ofRoute() {
		return t.Kind, t.Name
	}
	return "", ""
}

// Stranger is an identity, in its place in a list, that no client has here, and why.
type Stranger struct {
	Index int
	Why   string
}

// principals translates the names of identities. Those that no client has are left out.
func principals(identities []string, trustDomain string) (known []string, strangers []Stranger) {
	for i, id := range identities {
		if p, why := principal(id, trustDomain); why == "" {
			known = append(known, p)
		} else {
			strangers = append(strangers, Stranger{i, why})
		}
	}
	return known, strangers
}

// account returns the SPIFFE ID of a service account, without its scheme.
func account(trustDomain, namespace, name string) string {
	return trustDomain + "/ns/" + namespace + "/sa/" + name
}

// principal translates the name of an identity to a pattern of SPIFFE IDs without their scheme, or says why no client has it. Linkerd names
// service accounts in the form ACCOUNT.NAMESPACE.serviceaccount.identity.CONTROL-PLANE.TRUST-DOMAIN, where the control plane's namespace is
// not a part of a SPIFFE ID. A star stands for any labels before the others.
func principal(id, trustDomain string) (pattern, why string) {
	if name, ok := strings.CutPrefix(id, "spiffe://"); ok && strings.Contains(name, "/") {
		return name, ""
	}
	if id == "*" {
		return "*", ""
	}
	name, star := strings.CutPrefix(id, "*.")
	whose, rest, ok := strings.Cut(name, "serviceaccount.identity.")
	if star && !ok {
		return allOf(name, trustDomain)
	}
	_, domain, has := strings.Cut(rest, ".")
	whose, dot := strings.CutSuffix(whose, ".")
	if !ok || !has || strings.Contains(rest, "serviceaccount.identity.") || !dot && whose != "" {
		return "", "no client has it: an identity here is that of a service account, as in web.shop.serviceaccount.identity.linkerd." + LocalTrustDomain
	}
	if domain == LocalTrustDomain {
		domain = trustDomain
	}
	last := strings.LastIndexByte(whose, '.')
	switch {
	case star && whose == "":
		return domain + "/ns/*", ""
	case star && last < 0:
		return account(domain, whose, "*"), ""
	case star:
		return "", "is not enforced: a star stands for a whole service account: write *.NAMESPACE.serviceaccount.identity.linkerd." + LocalTrustDomain
	case last < 1:
		return "", "no client has it: an identity begins with the names of a service account and its namespace"
	}
	return account(domain, whose[last+1:], whose[:last]), ""
}

// allOf is principal for a star before a trust domain, before which may stand what the names of all identities have there.
func allOf(name, trustDomain string) (pattern, why string) {
	rest, identity := strings.CutPrefix(name, "identity.")
	for _, domain := range []string{LocalTrustDomain, trustDomain} {
		before, ok := strings.CutSuffix(rest, domain)
		if ok && (before == "" && !identity || before == "linkerd." || identity && before != "" && strings.Index(before, ".") == len(before)-1) {
			return trustDomain + "/ns/*", ""
		}
	}
	return "", "is not enforced: it is not known which part of it is a trust domain: write *.serviceaccount.identity.linkerd.TRUST-DOMAIN"
}
