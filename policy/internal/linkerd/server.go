package linkerd

import (
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// PolicyGroup is the API group of the documents about who may call whom.
const PolicyGroup = "policy.linkerd.io"

// New returns an empty document of a kind of [PolicyGroup] that is enforced.
func New(kind string) interface{ Check(*yamldoc.Document) } {
	switch kind {
	case "Server":
		return new(Server)
	case "ServerAuthorization":
		return new(ServerAuthorization)
	case "AuthorizationPolicy":
		return new(AuthorizationPolicy)
	case "MeshTLSAuthentication":
		return new(MeshTLSAuthentication)
	case "NetworkAuthentication":
		return new(NetworkAuthentication)
	}
	return nil
}

// Server is a port of workloads. Requests to it are denied unless something authorizes them.
type Server struct {
	yamldoc.Object
	Spec ServerSpec `yaml:"spec,required"`
}

// ServerSpec is the spec of a [Server].
type ServerSpec struct {
	PodSelector              *Selector   `yaml:"podSelector" oneof:"selector"`
	ExternalWorkloadSelector *Selector   `yaml:"externalWorkloadSelector" oneof:"selector"`
	Port                     yamldoc.Any `yaml:"port,required"`
	ProxyProtocol            string      `yaml:"proxyProtocol" enum:"unknown,HTTP/1,HTTP/2,gRPC,opaque,TLS"`
	AccessPolicy             string      `yaml:"accessPolicy" enum:"deny,all-unauthenticated,all-authenticated,cluster-unauthenticated,cluster-authenticated,audit"`

	number uint16 // of the port; 0 if the port is named
	name   string // of the port
}

// PortOf returns the number of the port or, if the number is 0, its name.
func (s *ServerSpec) PortOf() (number uint16, name string) { return s.number, s.name }

// HTTP reports whether the port takes nothing but HTTP, so that other connections to it are denied.
func (s *ServerSpec) HTTP() bool {
	return slices.Contains([]string{"HTTP/1", "HTTP/2", "gRPC"}, s.ProxyProtocol)
}

// Routed returns the kind of routes that divide the requests at the port; "" if none do. Linkerd's proxies read routes of one kind, by the
// protocol that they expect.
func (s *ServerSpec) Routed() string {
	switch s.ProxyProtocol {
	case "gRPC":
		return "GRPCRoute"
	case "opaque", "TLS":
		return ""
	}
	return "HTTPRoute"
}

// Selects reports whether the server is a port of workloads with these labels in its namespace.
func (s *ServerSpec) Selects(labels map[string]string) bool {
	if s.PodSelector != nil {
		return s.PodSelector.Selects(labels)
	}
	return s.ExternalWorkloadSelector != nil && s.ExternalWorkloadSelector.Selects(labels)
}

// ByLabels reports whether the server selects by labels, rather than everything.
func (s *ServerSpec) ByLabels() bool {
	return s.PodSelector.byLabels() || s.ExternalWorkloadSelector.byLabels()
}

// Selector selects by labels. All conditions must match.
type Selector struct {
	MatchLabels      map[string]string `yaml:"matchLabels"`
	MatchExpressions []Requirement     `yaml:"matchExpressions"`
}

// Requirement is a condition on one label.
type Requirement struct {
	Key      string   `yaml:"key,required"`
	Operator string   `yaml:"operator,required" enum:"In,NotIn,Exists,DoesNotExist"`
	Values   []string `yaml:"values"`
}

// Selects reports whether the selector selects something with these labels.
func (s *Selector) Selects(labels map[string]string) bool {
	for key, want := range s.MatchLabels {
		if value, has := labels[key]; !has || value != want {
			return false
		}
	}
	return !slices.ContainsFunc(s.MatchExpressions, func(r Requirement) bool {
		value, has := labels[r.Key]
		switch r.Operator {
		case "In":
			return !has || !slices.Contains(r.Values, value)
		case "NotIn":
			return has && slices.Contains(r.Values, value)
		case "Exists":
			return !has
		}
		return has
	})
}

func (s *Selector) byLabels() bool { return s != nil && len(s.MatchLabels)+len(s.MatchExpressions) > 0 }

// ServerAuthorization authorizes clients of servers in its namespace.
type ServerAuthorization struct {
	yamldoc.Object
	Spec ServerAuthorizationSpec `yaml:"spec,required"`
}

// ServerAuthorizationSpec is the spec of a [ServerAuthorization].
type ServerAuthorizationSpec struct {
	Server ServerSelector `yaml:"server,required"`
	Client Client         `yaml:"client,required"`
}

// ServerSelector selects servers by name or by labels.
type ServerSelector struct {
	Name     string    `yaml:"name" oneof:"server"`
	Selector *Selector `yaml:"selector" oneof:"server"`
}

// Selects reports whether it selects a server of the same namespace.
func (s *ServerSelector) Selects(server *Server) bool {
	if s.Selector != nil {
		return s.Selector.Selects(server.Metadata.Labels)
	}
	return s.Name == server.Metadata.Name
}

// Client describes the clients of a [ServerAuthorization].
type Client struct {
	Networks        []Network `yaml:"networks"`
	Unauthenticated bool      `yaml:"unauthenticated"`
	MeshTLS         *MeshTLS  `yaml:"meshTLS"`
}

// MeshTLS describes clients with an identity.
type MeshTLS struct {
	UnauthenticatedTLS bool             `yaml:"unauthenticatedTLS"`
	Identities         []string         `yaml:"identities"`
	ServiceAccounts    []ServiceAccount `yaml:"serviceAccounts"`
}

// ServiceAccount names a service account. Without a namespace it is one of the document's own.
type ServiceAccount struct {
	Name      string `yaml:"name,required"`
	Namespace string `yaml:"namespace"`
}

// Network is a network without parts of it.
type Network struct {
	CIDR   string   `yaml:"cidr,required"`
	Except []string `yaml:"except"`
}

// AuthorizationPolicy authorizes clients that have all of the required authentications.
type AuthorizationPolicy struct {
	yamldoc.Object
	Spec AuthorizationPolicySpec `yaml:"spec,required"`
}

// AuthorizationPolicySpec is the spec of an [AuthorizationPolicy].
type AuthorizationPolicySpec struct {
	TargetRef                  TargetRef   `yaml:"targetRef,required"`
	RequiredAuthenticationRefs []Reference `yaml:"requiredAuthenticationRefs,required"`
}

// TargetRef names what an [AuthorizationPolicy] is about, in its own namespace.
type TargetRef struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind,required"`
	Name      string `yaml:"name,required"`
	Namespace string `yaml:"namespace"`
}

// Reference names an object. Without a namespace it is one of the document's own.
type Reference struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind,required"`
	Name      string `yaml:"name,required"`
	Namespace string `yaml:"namespace"`
}

// MeshTLSAuthentication lists identities, for AuthorizationPolicies.
type MeshTLSAuthentication struct {
	yamldoc.Object
	Spec MeshTLSAuthenticationSpec `yaml:"spec,required"`
}

// MeshTLSAuthenticationSpec is the spec of a [MeshTLSAuthentication].
type MeshTLSAuthenticationSpec struct {
	Identities   []string    `yaml:"identities"`
	IdentityRefs []Reference `yaml:"identityRefs"`
}

// NetworkAuthentication lists networks, for AuthorizationPolicies.
type NetworkAuthentication struct {
	yamldoc.Object
	Spec NetworkAuthenticationSpec `yaml:"spec,required"`
}

// NetworkAuthenticationSpec is the spec of a [NetworkAuthentication].
type NetworkAuthenticationSpec struct {
	Networks []Network `yaml:"networks,required"`
}
