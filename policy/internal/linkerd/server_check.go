package linkerd

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
)

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors. It reads the port.
func (s *Server) Check(doc *yamldoc.Document) {
	s.Metadata.Check(doc)
	spec := &s.Spec
	_, version, _ := strings.Cut(s.APIVersion, "/")
	first := version == "v1alpha1"
	switch {
	case spec.PodSelector == nil && spec.ExternalWorkloadSelector == nil:
		doc.Errorf("spec.podSelector", "missing: say which pods it is about; {} means all of its namespace")
	case spec.ExternalWorkloadSelector != nil && (first || version == "v1beta1"):
		doc.Errorf("spec.externalWorkloadSelector", "%s has no such field: use v1beta2 or later", version)
	case first && (spec.PodSelector.MatchLabels == nil) == (spec.PodSelector.MatchExpressions == nil):
		doc.Errorf("spec.podSelector", "v1alpha1 takes either matchLabels or matchExpressions: use v1beta1 or later")
	}
	if spec.AccessPolicy != "" && version != "v1beta3" {
		doc.Errorf("spec.accessPolicy", "%s has no such field: use v1beta3", version)
	}
	spec.PodSelector.check(doc, "spec.podSelector")
	spec.ExternalWorkloadSelector.check(doc, "spec.externalWorkloadSelector")
	spec.checkPort(doc)
}

// checkPort reads the port, which is a number or a name.
func (s *ServerSpec) checkPort(doc *yamldoc.Document) {
	const at = "spec.port"
	text := doc.Text(at)
	n, err := strconv.ParseUint(text, 10, 16)
	switch {
	case !doc.IsText(at) && (err != nil || strings.HasPrefix(text, "0")): // kubectl takes 0120 for 80, as YAML 1.1 does
		doc.Errorf(at, "must be a number from 1 to 65535, or the name of a port")
	case !doc.IsText(at):
		s.number = uint16(n)
	case err == nil:
		doc.Errorf(at, "%q is a name in quotes, and no port has it: write the number without quotes", text)
	case !yamldoc.IsLabel(text):
		doc.Errorf(at, "%q is not the name of a port: use lower-case letters, digits and hyphens", text)
	default:
		s.name = text
	}
}

func (s *Selector) check(doc *yamldoc.Document, at string) {
	if s == nil {
		return
	}
	for i := range s.MatchExpressions {
		at, r := yamldoc.Index(at+".matchExpressions", i), &s.MatchExpressions[i]
		switch in := r.Operator == "In" || r.Operator == "NotIn"; {
		case r.Key == "":
			doc.Errorf(at+".key", "must not be empty")
		case in && len(r.Values) == 0:
			doc.Errorf(at+".values", "missing: %s needs values to compare with", r.Operator)
		case !in && r.Values != nil:
			doc.Errorf(at+".values", "%s takes no values: remove them", r.Operator)
		}
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (sa *ServerAuthorization) Check(doc *yamldoc.Document) {
	sa.Metadata.Check(doc)
	server, client := &sa.Spec.Server, &sa.Spec.Client
	switch {
	case server.Name == "" && server.Selector == nil:
		doc.Errorf("spec.server", "must say something: the name of a Server, or a selector; selector: {} means all of its namespace")
	case server.Name != "" && !yamldoc.IsName(server.Name):
		doc.Errorf("spec.server.name", "%q is not the name of a Server", server.Name)
	}
	server.Selector.check(doc, "spec.server.selector")
	const at = "spec.client"
	switch tls := client.MeshTLS; {
	case tls == nil && !client.Unauthenticated:
		doc.Errorf(at, "authorizes nobody: set meshTLS, or unauthenticated: true")
	case tls != nil && client.Unauthenticated:
		doc.Errorf(at+".unauthenticated", "goes without meshTLS only: remove one of them")
	case tls == nil:
	case tls.UnauthenticatedTLS && len(tls.Identities)+len(tls.ServiceAccounts) > 0:
		doc.Errorf(at+".meshTLS.unauthenticatedTLS", "goes without identities and serviceAccounts only: remove one of them")
	case !tls.UnauthenticatedTLS && len(tls.Identities)+len(tls.ServiceAccounts) == 0:
		doc.Errorf(at+".meshTLS", "authorizes nobody: set identities or serviceAccounts; identities: [\"*\"] means everybody with an identity")
	default:
		checkIdentities(doc, tls.Identities, at+".meshTLS.identities")
		for i := range tls.ServiceAccounts {
			a := &tls.ServiceAccounts[i]
			checkNames(doc, a.Name, a.Namespace, yamldoc.Index(at+".meshTLS.serviceAccounts", i))
		}
	}
	if doc.Has(at+".networks") && len(client.Networks) == 0 {
		doc.Errorf(at+".networks", "is empty: name a network, or remove the field for the networks of the cluster")
	}
	checkNetworks(doc, client.Networks, at+".networks")
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (ap *AuthorizationPolicy) Check(doc *yamldoc.Document) {
	ap.Metadata.Check(doc)
	const at = "spec.requiredAuthenticationRefs"
	switch t := &ap.Spec.TargetRef; {
	case isKind(t.Group, t.Kind, PolicyGroup, "Server"), t.ofRoute():
		checkNames(doc, t.Name, "", "spec.targetRef")
	case isKind(t.Group, t.Kind, "", "Namespace"):
		if t.Name != ap.Namespace() {
			doc.Errorf("spec.targetRef.name", "is another namespace than that of the document, %s: write that, or move the document", ap.Namespace())
		}
	default:
		doc.Errorf("spec.targetRef", "is neither a Server of %s, nor an HTTPRoute of it or of %s, nor a GRPCRoute of the latter, nor a Namespace of core: "+
			"correct group and kind", PolicyGroup, gatewayGroup)
	}
	if of := ap.Spec.TargetRef.Namespace; of != "" && of != ap.Namespace() {
		doc.Errorf("spec.targetRef.namespace", "is another namespace than that of the document, %s, and a policy is about its own only: remove it or move the document", ap.Namespace())
	}
	var identities, networks int
	for i := range ap.Spec.RequiredAuthenticationRefs {
		r, at := &ap.Spec.RequiredAuthenticationRefs[i], yamldoc.Index(at, i)
		switch {
		case isKind(r.Group, r.Kind, PolicyGroup, "MeshTLSAuthentication"), isKind(r.Group, r.Kind, "", "ServiceAccount"):
			identities++
		case isKind(r.Group, r.Kind, PolicyGroup, "NetworkAuthentication"):
			networks++
		default:
			doc.Errorf(at, "is neither a MeshTLSAuthentication or NetworkAuthentication of %s nor a ServiceAccount of core: correct group and kind", PolicyGroup)
			continue
		}
		checkNames(doc, r.Name, r.Namespace, at)
		if identities > 1 || networks > 1 {
			doc.Errorf(at, "only one MeshTLSAuthentication or ServiceAccount and one NetworkAuthentication can be required: "+
				"put what is alternative into one document")
		}
	}
	if len(ap.Spec.RequiredAuthenticationRefs) == 0 {
		doc.Warnf(at, "is empty: everybody is authorized")
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (a *MeshTLSAuthentication) Check(doc *yamldoc.Document) {
	a.Metadata.Check(doc)
	checkIdentities(doc, a.Spec.Identities, "spec.identities")
	for i := range a.Spec.IdentityRefs {
		r, at := &a.Spec.IdentityRefs[i], yamldoc.Index("spec.identityRefs", i)
		switch {
		case isKind(r.Group, r.Kind, "", "ServiceAccount"):
			checkNames(doc, r.Name, r.Namespace, at)
		case !isKind(r.Group, r.Kind, "", "Namespace"):
			doc.Errorf(at, "is neither a ServiceAccount nor a Namespace of core: correct group and kind")
		case r.Namespace != "":
			doc.Errorf(at+".namespace", "a Namespace is in no namespace: remove it")
		case !yamldoc.IsLabel(r.Name):
			doc.Errorf(at+".name", notNamespace, r.Name)
		}
	}
	if len(a.Spec.Identities)+len(a.Spec.IdentityRefs) == 0 {
		doc.Errorf("spec", "must say something: identities or identityRefs")
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (a *NetworkAuthentication) Check(doc *yamldoc.Document) {
	a.Metadata.Check(doc)
	if len(a.Spec.Networks) == 0 {
		doc.Errorf("spec.networks", "is empty: name a network")
	}
	checkNetworks(doc, a.Spec.Networks, "spec.networks")
}

// ofRoute reports whether the policy is about a route.
func (t *TargetRef) ofRoute() bool {
	return isKind(t.Group, t.Kind, PolicyGroup, "HTTPRoute") || isKind(t.Group, t.Kind, gatewayGroup, "HTTPRoute") || isKind(t.Group, t.Kind, gatewayGroup, "GRPCRoute")
}

const gatewayGroup = "gateway.networking.k8s.io"

// isKind reports whether a reference is to this kind, whose group is empty for a kind of Kubernetes itself. Case does not matter.
func isKind(group, kind, wantGroup, wantKind string) bool {
	if !strings.EqualFold(kind, wantKind) { // kinds differ sooner than groups
		return false
	}
	return strings.EqualFold(group, wantGroup) || wantGroup == "" && strings.EqualFold(group, "core")
}

// checkNames checks the names of an object and of its namespace, which may be empty.
func checkNames(doc *yamldoc.Document, name, namespace, at string) {
	if !yamldoc.IsName(name) {
		doc.Errorf(at+".name", "%q is not a name of Kubernetes: use lower-case letters, digits, hyphens and dots", name)
	}
	if namespace != "" && !yamldoc.IsLabel(namespace) {
		doc.Errorf(at, notNamespace, namespace)
	}
}

const notNamespace = "%q is not a namespace: use lower-case letters, digits and hyphens"

func checkIdentities(doc *yamldoc.Document, identities []string, at string) {
	for i, id := range identities {
		name, spiffe := strings.CutPrefix(id, "spiffe://")
		switch at := yamldoc.Index(at, i); {
		case spiffe:
			if why := wrongID(name); why != "" {
				doc.Errorf(at, "%q is not a SPIFFE ID: %s", id, why)
			}
		case id != "*" && !yamldoc.IsName(strings.TrimPrefix(id, "*.")):
			doc.Errorf(at, "%q is not an identity: write it like web.shop.serviceaccount.identity.linkerd.cluster.local, "+
				"*.shop.serviceaccount.identity.linkerd.cluster.local, * or spiffe://cluster.local/ns/shop/sa/web", id)
		}
	}
}

// wrongID returns what is wrong with a SPIFFE ID without its scheme.
func wrongID(name string) string {
	domain, path, has := strings.Cut(name, "/")
	in := func(text, also string) bool {
		return text != "" && !strings.ContainsFunc(text, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("-._"+also, c)
		})
	}
	if !in(domain, "") {
		return "a trust domain is lower-case letters, digits, dots, hyphens and underscores"
	}
	for segment := range strings.SplitSeq(path, "/") {
		if has && (!in(segment, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") || segment == "." || segment == "..") {
			return "each segment of its path is letters, digits, dots, hyphens and underscores"
		}
	}
	return ""
}

func checkNetworks(doc *yamldoc.Document, networks []Network, at string) {
	for i := range networks {
		n, at := &networks[i], yamldoc.Index(at, i)
		cidr, ok := parseNetwork(n.CIDR)
		if !ok {
			doc.Errorf(at+".cidr", notNetwork, n.CIDR)
			continue
		}
		for j, text := range n.Except {
			at := yamldoc.Index(at+".except", j)
			switch except, ok := parseNetwork(text); {
			case !ok:
				doc.Errorf(at, notNetwork, text)
			case contains(except, cidr):
				doc.Errorf(at, "nothing of %s is left: remove the network", n.CIDR)
			case !contains(cidr, except):
				doc.Errorf(at, "%s is not in %s: correct one of them", text, n.CIDR)
			}
		}
	}
}

const notNetwork = "%q is not a network: write it like 10.0.0.0/8, or an address"

// parseNetwork parses an address or a prefix.
func parseNetwork(text string) (netip.Prefix, bool) {
	p, err := authz.ParsePrefix(text)
	return p.Masked(), err == nil && !p.Addr().Is4In6()
}

// contains reports whether a network contains all of another one.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// networksOf returns networks that were checked as parts of sources.
func networksOf(networks []Network) []authz.Source {
	sources := make([]authz.Source, len(networks))
	for i, n := range networks {
		cidr, _ := parseNetwork(n.CIDR)
		sources[i].IPBlocks = []netip.Prefix{cidr}
		for _, text := range n.Except {
			except, _ := parseNetwork(text)
			sources[i].NotIPBlocks = append(sources[i].NotIPBlocks, except)
		}
	}
	return slices.Clip(sources)
}
