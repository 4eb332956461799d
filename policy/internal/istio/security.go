package istio

import "github.com/nosidecar/mesh/internal/yamldoc"

// SecurityGroup is the API group of the documents about authentication and authorization.
const SecurityGroup = "security.istio.io"

// PeerAuthentication says which connections a workload accepts.
type PeerAuthentication struct {
	yamldoc.Object
	Spec   PeerAuthenticationSpec `yaml:"spec"`
	Status yamldoc.Any            `yaml:"status" mesh:"unused: written by the control plane"`
}

// PeerAuthenticationSpec is the spec of a [PeerAuthentication].
type PeerAuthenticationSpec struct {
	Selector      *WorkloadSelector    `yaml:"selector"`
	MTLS          *MutualTLS           `yaml:"mtls"`
	PortLevelMTLS map[string]MutualTLS `yaml:"portLevelMtls"`
}

// MutualTLS says whether mutual TLS is required, optional or disabled.
type MutualTLS struct {
	Mode string `yaml:"mode" enum:"UNSET,DISABLE,PERMISSIVE,STRICT"`
}

// AuthorizationPolicy says which requests a workload accepts.
type AuthorizationPolicy struct {
	yamldoc.Object
	Spec   AuthorizationPolicySpec `yaml:"spec"`
	Status yamldoc.Any             `yaml:"status" mesh:"unused: written by the control plane"`
}

// AuthorizationPolicySpec is the spec of an [AuthorizationPolicy].
type AuthorizationPolicySpec struct {
	Selector   *WorkloadSelector       `yaml:"selector"`
	TargetRef  *PolicyTargetReference  `yaml:"targetRef"`
	TargetRefs []PolicyTargetReference `yaml:"targetRefs"`
	Rules      []AuthorizationRule     `yaml:"rules"`
	Action     string                  `yaml:"action" enum:"ALLOW,DENY,AUDIT,CUSTOM"`
	Provider   *ExtensionProvider      `yaml:"provider"`
}

// PolicyTargetReference names what a policy is attached to.
type PolicyTargetReference struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind,required"`
	Name      string `yaml:"name,required"`
	Namespace string `yaml:"namespace"`
}

// ExtensionProvider names the authorizer of a CUSTOM policy.
type ExtensionProvider struct {
	Name string `yaml:"name"`
}

// AuthorizationRule matches a request if any of From, any of To and all of When match.
type AuthorizationRule struct {
	From []RuleFrom  `yaml:"from"`
	To   []RuleTo    `yaml:"to"`
	When []Condition `yaml:"when"`
}

// RuleFrom is an element of [AuthorizationRule.From].
type RuleFrom struct {
	Source *Source `yaml:"source"`
}

// RuleTo is an element of [AuthorizationRule.To].
type RuleTo struct {
	Operation *Operation `yaml:"operation"`
}

// Source matches the sender of a request. All fields must match. A field matches if any of its values does; a field that begins with Not
// matches if none does.
type Source struct {
	Principals           []string `yaml:"principals"`
	NotPrincipals        []string `yaml:"notPrincipals"`
	RequestPrincipals    []string `yaml:"requestPrincipals"`
	NotRequestPrincipals []string `yaml:"notRequestPrincipals"`
	Namespaces           []string `yaml:"namespaces"`
	NotNamespaces        []string `yaml:"notNamespaces"`
	ServiceAccounts      []string `yaml:"serviceAccounts"`
	NotServiceAccounts   []string `yaml:"notServiceAccounts"`
	TrustDomains         []string `yaml:"trustDomains"`
	NotTrustDomains      []string `yaml:"notTrustDomains"`
	IPBlocks             []string `yaml:"ipBlocks"`
	NotIPBlocks          []string `yaml:"notIpBlocks"`
	RemoteIPBlocks       []string `yaml:"remoteIpBlocks"`
	NotRemoteIPBlocks    []string `yaml:"notRemoteIpBlocks"`
}

// Operation matches the request itself. Its fields are combined like those of [Source].
type Operation struct {
	Hosts      []string `yaml:"hosts"`
	NotHosts   []string `yaml:"notHosts"`
	Ports      []string `yaml:"ports"`
	NotPorts   []string `yaml:"notPorts"`
	Methods    []string `yaml:"methods"`
	NotMethods []string `yaml:"notMethods"`
	Paths      []string `yaml:"paths"`
	NotPaths   []string `yaml:"notPaths"`
}

// Condition matches an attribute of a request.
type Condition struct {
	Key       string   `yaml:"key,required"`
	Values    []string `yaml:"values"`
	NotValues []string `yaml:"notValues"`
}

// RequestAuthentication says which tokens a workload accepts.
type RequestAuthentication struct {
	yamldoc.Object
	Spec   RequestAuthenticationSpec `yaml:"spec"`
	Status yamldoc.Any               `yaml:"status" mesh:"unused: written by the control plane"`
}

// RequestAuthenticationSpec is the spec of a [RequestAuthentication].
type RequestAuthenticationSpec struct {
	Selector   *WorkloadSelector       `yaml:"selector"`
	TargetRef  *PolicyTargetReference  `yaml:"targetRef"`
	TargetRefs []PolicyTargetReference `yaml:"targetRefs"`
	JWTRules   []JWTRule               `yaml:"jwtRules"`
}

// JWTRule says how the tokens of one issuer are found and verified.
type JWTRule struct {
	Issuer                string           `yaml:"issuer"`
	Audiences             []string         `yaml:"audiences"`
	JWKSURI               string           `yaml:"jwksUri" oneof:"keys"`
	JWKSURIOld            string           `yaml:"jwks_uri" oneof:"keys"`
	JWKS                  string           `yaml:"jwks" oneof:"keys"`
	FromHeaders           []JWTHeader      `yaml:"fromHeaders"`
	FromParams            []string         `yaml:"fromParams"`
	FromCookies           []string         `yaml:"fromCookies"`
	OutputPayloadToHeader string           `yaml:"outputPayloadToHeader"`
	OutputClaimToHeaders  []ClaimToHeader  `yaml:"outputClaimToHeaders"`
	ForwardOriginalToken  bool             `yaml:"forwardOriginalToken"`
	Timeout               yamldoc.Duration `yaml:"timeout"`
	SpaceDelimitedClaims  []string         `yaml:"spaceDelimitedClaims"`
}

// JWTHeader is a header that has a token after a prefix.
type JWTHeader struct {
	Name   string `yaml:"name,required"`
	Prefix string `yaml:"prefix"`
}

// ClaimToHeader copies a claim of a token into a header.
type ClaimToHeader struct {
	Header string `yaml:"header,required"`
	Claim  string `yaml:"claim,required"`
}
