// Package gateway reads the routes of the Gateway API that are attached to services (GAMMA) or to Servers of Linkerd. It declares their fields, validates them as the
// Kubernetes schema of the API (v1.5) does, and translates them into the settings of the layers of this library.
//
// HTTPRoutes of Linkerd (policy.linkerd.io) are an older copy of those of the Gateway API.
//
// The mesh tag of a field says what this library does with it; see [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the
// tag are enforced.
package gateway

import "github.com/nosidecar/mesh/internal/yamldoc"

// The API groups of the documents.
const (
	Group        = "gateway.networking.k8s.io"
	TrialGroup   = "gateway.networking.x-k8s.io" // for what is on trial
	LinkerdGroup = "policy.linkerd.io"
)

// Document is a *[HTTPRoute] or a *[GRPCRoute].
type Document interface {
	// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
	Check(*yamldoc.Document)

	// Parents returns the Services and ServiceEntries that the document is attached to.
	Parents() []Parent

	// Servers returns the Servers of Linkerd that the document is attached to.
	Servers() []Parent

	// Inbound translates the document, which must have passed Check, for the Servers that it is attached to.
	Inbound() []Inbound

	// HasCORS reports whether the document says what pages of other origins may do.
	HasCORS() bool

	// Routes translates the document, which must have passed Check. Services have names in the domain of the cluster. service has the settings of
	// the Service that it is attached to, which apply where the document has none. It may be nil.
	Routes(domain string, service *Settings) []Route
}

// HTTPRoute routes requests to services.
type HTTPRoute struct {
	yamldoc.Object
	Spec   HTTPRouteSpec `yaml:"spec,required"`
	Status yamldoc.Any   `yaml:"status" mesh:"unused: written by the control plane"`
}

// GRPCRoute routes calls of gRPC to services.
type GRPCRoute struct {
	yamldoc.Object
	Spec   GRPCRouteSpec `yaml:"spec,required"`
	Status yamldoc.Any   `yaml:"status" mesh:"unused: written by the control plane"`
}

// RouteSpec is what the specs of all routes have.
type RouteSpec struct {
	ParentRefs         []ParentReference `yaml:"parentRefs"`
	UseDefaultGateways string            `yaml:"useDefaultGateways" mesh:"meaningless: gateways do not exist in-process"`
	Hostnames          []string          `yaml:"hostnames"`
}

// HTTPRouteSpec is the spec of an [HTTPRoute].
type HTTPRouteSpec struct {
	RouteSpec
	Rules []HTTPRouteRule `yaml:"rules"`
}

// GRPCRouteSpec is the spec of a [GRPCRoute].
type GRPCRouteSpec struct {
	RouteSpec
	Rules []GRPCRouteRule `yaml:"rules"`
}

// ParentReference names what a route is attached to.
type ParentReference struct {
	Group       *string `yaml:"group"`
	Kind        *string `yaml:"kind"`
	Namespace   string  `yaml:"namespace"`
	Name        string  `yaml:"name,required"`
	SectionName string  `yaml:"sectionName"`
	Port        *int32  `yaml:"port"`
}

// HTTPRouteRule says what becomes of the requests that match it.
type HTTPRouteRule struct {
	Name               string             `yaml:"name"`
	Matches            []HTTPRouteMatch   `yaml:"matches"`
	Filters            []HTTPRouteFilter  `yaml:"filters"`
	BackendRefs        []HTTPBackendRef   `yaml:"backendRefs"`
	Timeouts           *HTTPRouteTimeouts `yaml:"timeouts"`
	Retry              *HTTPRouteRetry    `yaml:"retry"`
	SessionPersistence yamldoc.Any        `yaml:"sessionPersistence" mesh:"refused: session persistence is not enforced: set trafficPolicy.loadBalancer.consistentHash of a DestinationRule"`
}

// GRPCRouteRule says what becomes of the calls that match it.
type GRPCRouteRule struct {
	Name               string            `yaml:"name"`
	Matches            []GRPCRouteMatch  `yaml:"matches"`
	Filters            []GRPCRouteFilter `yaml:"filters"`
	BackendRefs        []GRPCBackendRef  `yaml:"backendRefs"`
	SessionPersistence yamldoc.Any       `yaml:"sessionPersistence" mesh:"refused: session persistence is not enforced: set trafficPolicy.loadBalancer.consistentHash of a DestinationRule"`
}

// HTTPRouteMatch is a condition on a request. All of its fields must match.
type HTTPRouteMatch struct {
	Path        *HTTPPathMatch `yaml:"path"`
	Headers     []ValueMatch   `yaml:"headers"`
	QueryParams []ValueMatch   `yaml:"queryParams"`
	Method      string         `yaml:"method" enum:"GET,HEAD,POST,PUT,DELETE,CONNECT,OPTIONS,TRACE,PATCH"`
}

// HTTPPathMatch is a condition on a path.
type HTTPPathMatch struct {
	Type  string  `yaml:"type" enum:"Exact,PathPrefix,RegularExpression"`
	Value *string `yaml:"value"`
}

// ValueMatch is a condition on a header or a query parameter.
type ValueMatch struct {
	Type  string `yaml:"type" enum:"Exact,RegularExpression"`
	Name  string `yaml:"name,required"`
	Value string `yaml:"value,required"`
}

// GRPCRouteMatch is a condition on a call. All of its fields must match.
type GRPCRouteMatch struct {
	Method  *GRPCMethodMatch `yaml:"method"`
	Headers []ValueMatch     `yaml:"headers"`
}

// GRPCMethodMatch is a condition on a method.
type GRPCMethodMatch struct {
	Type    string `yaml:"type" enum:"Exact,RegularExpression"`
	Service string `yaml:"service"`
	Method  string `yaml:"method"`
}

// HTTPRouteFilter changes requests or responses, or answers requests.
type HTTPRouteFilter struct {
	Type                   string                     `yaml:"type,required" enum:"RequestHeaderModifier,ResponseHeaderModifier,RequestMirror,RequestRedirect,URLRewrite,CORS,ExternalAuth,ExtensionRef"`
	RequestHeaderModifier  *HTTPHeaderFilter          `yaml:"requestHeaderModifier"`
	ResponseHeaderModifier *HTTPHeaderFilter          `yaml:"responseHeaderModifier"`
	RequestMirror          *HTTPRequestMirrorFilter   `yaml:"requestMirror"`
	RequestRedirect        *HTTPRequestRedirectFilter `yaml:"requestRedirect"`
	URLRewrite             *HTTPURLRewriteFilter      `yaml:"urlRewrite"`
	CORS                   *HTTPCORSFilter            `yaml:"cors"`
	ExternalAuth           *yamldoc.Any               `yaml:"externalAuth" mesh:"refused: authorization by another server is not enforced: write an AuthorizationPolicy of security.istio.io"`
	ExtensionRef           *yamldoc.Any               `yaml:"extensionRef" mesh:"refused: extensions are not enforced: do it in the program, around its client or handler"`
}

// GRPCRouteFilter changes calls or their responses.
type GRPCRouteFilter struct {
	Type                   string                   `yaml:"type,required" enum:"RequestHeaderModifier,ResponseHeaderModifier,RequestMirror,ExtensionRef"`
	RequestHeaderModifier  *HTTPHeaderFilter        `yaml:"requestHeaderModifier"`
	ResponseHeaderModifier *HTTPHeaderFilter        `yaml:"responseHeaderModifier"`
	RequestMirror          *HTTPRequestMirrorFilter `yaml:"requestMirror"`
	ExtensionRef           *yamldoc.Any             `yaml:"extensionRef" mesh:"refused: extensions are not enforced: do it in the program, around its client or handler"`
}

// HTTPHeaderFilter edits headers.
type HTTPHeaderFilter struct {
	Set    []HTTPHeader `yaml:"set"`
	Add    []HTTPHeader `yaml:"add"`
	Remove []string     `yaml:"remove"`
}

// HTTPHeader is a header with a value.
type HTTPHeader struct {
	Name  string `yaml:"name,required"`
	Value string `yaml:"value,required"`
}

// HTTPRequestMirrorFilter copies requests.
type HTTPRequestMirrorFilter struct {
	BackendRef BackendRef `yaml:"backendRef,required"`
	Percent    *int32     `yaml:"percent" oneof:"share"`
	Fraction   *Fraction  `yaml:"fraction" oneof:"share"`
}

// Fraction is a part of a whole.
type Fraction struct {
	Numerator   int32  `yaml:"numerator,required"`
	Denominator *int32 `yaml:"denominator"`
}

// HTTPRequestRedirectFilter answers with a redirect.
type HTTPRequestRedirectFilter struct {
	Scheme     string            `yaml:"scheme" enum:"http,https"`
	Hostname   string            `yaml:"hostname"`
	Path       *HTTPPathModifier `yaml:"path"`
	Port       *int32            `yaml:"port"`
	StatusCode *int              `yaml:"statusCode"`
}

// HTTPCORSFilter answers requests of web pages of other origins.
type HTTPCORSFilter struct {
	AllowOrigins     []string `yaml:"allowOrigins"`
	AllowCredentials *bool    `yaml:"allowCredentials"`
	AllowMethods     []string `yaml:"allowMethods"`
	AllowHeaders     []string `yaml:"allowHeaders"`
	ExposeHeaders    []string `yaml:"exposeHeaders"`
	MaxAge           *int32   `yaml:"maxAge"`
}

// HTTPURLRewriteFilter changes what the backend sees.
type HTTPURLRewriteFilter struct {
	Hostname string            `yaml:"hostname"`
	Path     *HTTPPathModifier `yaml:"path"`
}

// HTTPPathModifier changes a path.
type HTTPPathModifier struct {
	Type               string  `yaml:"type,required" enum:"ReplaceFullPath,ReplacePrefixMatch"`
	ReplaceFullPath    *string `yaml:"replaceFullPath"`
	ReplacePrefixMatch *string `yaml:"replacePrefixMatch"`
}

// BackendRef names a service.
type BackendRef struct {
	Group     string  `yaml:"group"`
	Kind      *string `yaml:"kind"`
	Namespace string  `yaml:"namespace"`
	Name      string  `yaml:"name,required"`
	Port      *int32  `yaml:"port"`
}

// HTTPBackendRef is a service with its share of the requests.
type HTTPBackendRef struct {
	BackendRef
	Weight  *int32            `yaml:"weight"`
	Filters []HTTPRouteFilter `yaml:"filters"`
}

// GRPCBackendRef is a service with its share of the calls.
type GRPCBackendRef struct {
	BackendRef
	Weight  *int32            `yaml:"weight"`
	Filters []GRPCRouteFilter `yaml:"filters"`
}

// HTTPRouteTimeouts bounds requests in time.
type HTTPRouteTimeouts struct {
	Request        *string `yaml:"request"`
	BackendRequest *string `yaml:"backendRequest"`
}

// HTTPRouteRetry says what is retried.
type HTTPRouteRetry struct {
	Codes    []int   `yaml:"codes"`
	Attempts *int    `yaml:"attempts"`
	Backoff  *string `yaml:"backoff"`
}
