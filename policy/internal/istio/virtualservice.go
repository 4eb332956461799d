package istio

import "github.com/nosidecar/mesh/internal/yamldoc"

// VirtualService routes requests.
type VirtualService struct {
	yamldoc.Object
	Spec   VirtualServiceSpec `yaml:"spec,required"`
	Status yamldoc.Any        `yaml:"status" mesh:"unused: written by the control plane"`
}

// VirtualServiceSpec is the spec of a [VirtualService].
type VirtualServiceSpec struct {
	Hosts    []string    `yaml:"hosts"`
	Gateways []string    `yaml:"gateways"`
	HTTP     []HTTPRoute `yaml:"http"`
	TLS      []TLSRoute  `yaml:"tls" mesh:"refused: routes for TLS connections are not enforced in-process: a client library sees requests, not connections passing through: remove it"`
	TCP      []TCPRoute  `yaml:"tcp" mesh:"refused: routes for TCP connections are not enforced in-process: a client library sees requests, not connections passing through: remove it"`
	ExportTo []string    `yaml:"exportTo"`
}

// HTTPRoute says what happens to the requests that match it.
type HTTPRoute struct {
	Name             string                 `yaml:"name"`
	Match            []HTTPMatchRequest     `yaml:"match"`
	Route            []HTTPRouteDestination `yaml:"route"`
	Redirect         *HTTPRedirect          `yaml:"redirect"`
	DirectResponse   *HTTPDirectResponse    `yaml:"directResponse"`
	Delegate         *Delegate              `yaml:"delegate"`
	Rewrite          *HTTPRewrite           `yaml:"rewrite"`
	Timeout          yamldoc.Duration       `yaml:"timeout"`
	Retries          *HTTPRetry             `yaml:"retries"`
	Fault            *HTTPFaultInjection    `yaml:"fault"`
	Mirror           *Destination           `yaml:"mirror"`
	Mirrors          []HTTPMirrorPolicy     `yaml:"mirrors"`
	MirrorPercent    *uint32                `yaml:"mirrorPercent,nullable" oneof:"mirrorPercent"`
	MirrorPercentOld *uint32                `yaml:"mirror_percent,nullable" oneof:"mirrorPercent"`
	MirrorPercentage *Percent               `yaml:"mirrorPercentage"`
	CorsPolicy       *CorsPolicy            `yaml:"corsPolicy"`
	Headers          *Headers               `yaml:"headers"`
}

// HTTPMatchRequest is a set of conditions, all of which must match.
type HTTPMatchRequest struct {
	Name            string                 `yaml:"name"`
	URI             *StringMatch           `yaml:"uri"`
	IgnoreURICase   bool                   `yaml:"ignoreUriCase"`
	Scheme          *StringMatch           `yaml:"scheme"`
	Method          *StringMatch           `yaml:"method"`
	Authority       *StringMatch           `yaml:"authority"`
	Headers         map[string]StringMatch `yaml:"headers"`
	WithoutHeaders  map[string]StringMatch `yaml:"withoutHeaders"`
	QueryParams     map[string]StringMatch `yaml:"queryParams"`
	Port            *uint32                `yaml:"port"`
	SourceLabels    map[string]string      `yaml:"sourceLabels"`
	SourceNamespace string                 `yaml:"sourceNamespace"`
	Gateways        []string               `yaml:"gateways"`
	StatPrefix      string                 `yaml:"statPrefix" mesh:"meaningless: statPrefix names metrics of Envoy, which do not exist here"`
}

// StringMatch is a condition on a string. Without a field, it matches any value that is present.
type StringMatch struct {
	Exact  *string `yaml:"exact" oneof:"match"`
	Prefix *string `yaml:"prefix" oneof:"match"`
	Regex  *string `yaml:"regex" oneof:"match"`
}

// HTTPRouteDestination is a destination with its share of the requests.
type HTTPRouteDestination struct {
	Destination *Destination `yaml:"destination,required"`
	Weight      int32        `yaml:"weight"`
	Headers     *Headers     `yaml:"headers"`
}

// Destination names a service, and optionally a subset of its endpoints.
type Destination struct {
	Host   string        `yaml:"host,required"`
	Subset *string       `yaml:"subset"`
	Port   *PortSelector `yaml:"port"`

	namespace string // resolves a short host; empty means that of the document
}

// PortSelector names a port.
type PortSelector struct {
	Number uint32 `yaml:"number"`
}

// Headers are operations on headers.
type Headers struct {
	Request  HeaderOperations `yaml:"request"`
	Response HeaderOperations `yaml:"response"`
}

// HeaderOperations are operations on the headers of a request or response.
type HeaderOperations struct {
	Set    map[string]string `yaml:"set"`
	Add    map[string]string `yaml:"add"`
	Remove []string          `yaml:"remove"`
}

// HTTPRedirect answers with a redirect.
type HTTPRedirect struct {
	URI           string  `yaml:"uri"`
	PrefixRewrite string  `yaml:"prefixRewrite"`
	Authority     string  `yaml:"authority"`
	Port          *uint32 `yaml:"port" oneof:"port"`
	DerivePort    *string `yaml:"derivePort" oneof:"port" enum:"FROM_PROTOCOL_DEFAULT,FROM_REQUEST_PORT"`
	Scheme        string  `yaml:"scheme"`
	RedirectCode  uint32  `yaml:"redirectCode"`
}

// HTTPDirectResponse answers with a fixed response.
type HTTPDirectResponse struct {
	Status uint32    `yaml:"status,required"`
	Body   *HTTPBody `yaml:"body"`
}

// HTTPBody is the body of a fixed response.
type HTTPBody struct {
	String *string `yaml:"string" oneof:"body"`
	Bytes  *[]byte `yaml:"bytes" oneof:"body"`
}

// Delegate hands the requests of a route to another VirtualService.
type Delegate struct {
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace"`
}

// HTTPRewrite changes the path and the authority of a request.
type HTTPRewrite struct {
	URI             string        `yaml:"uri"`
	Authority       string        `yaml:"authority"`
	URIRegexRewrite *RegexRewrite `yaml:"uriRegexRewrite"`
}

// RegexRewrite replaces the parts of the path that an expression matches.
type RegexRewrite struct {
	Match   string `yaml:"match"`
	Rewrite string `yaml:"rewrite"`
}

// HTTPRetry says when and how often to retry.
type HTTPRetry struct {
	Attempts                int32            `yaml:"attempts"`
	PerTryTimeout           yamldoc.Duration `yaml:"perTryTimeout"`
	RetryOn                 string           `yaml:"retryOn"`
	RetryRemoteLocalities   *bool            `yaml:"retryRemoteLocalities,nullable"`
	RetryIgnorePreviousHost *bool            `yaml:"retryIgnorePreviousHosts,nullable"`
	Backoff                 yamldoc.Duration `yaml:"backoff"`
}

// HTTPFaultInjection delays and aborts requests.
type HTTPFaultInjection struct {
	Delay *FaultDelay `yaml:"delay"`
	Abort *FaultAbort `yaml:"abort"`
}

// FaultDelay delays requests.
type FaultDelay struct {
	Percent          int32            `yaml:"percent"`
	Percentage       *Percent         `yaml:"percentage"`
	FixedDelay       yamldoc.Duration `yaml:"fixedDelay" oneof:"delay"`
	ExponentialDelay yamldoc.Duration `yaml:"exponentialDelay" oneof:"delay" mesh:"refused: Istio does not implement exponentialDelay: use fixedDelay"`
}

// FaultAbort aborts requests.
type FaultAbort struct {
	Percentage *Percent `yaml:"percentage"`
	HTTPStatus *int32   `yaml:"httpStatus" oneof:"error"`
	GRPCStatus *string  `yaml:"grpcStatus" oneof:"error"`
	HTTP2Error *string  `yaml:"http2Error" oneof:"error" mesh:"refused: Istio does not implement http2Error: use httpStatus or grpcStatus"`
}

// Percent is a number from 0 to 100.
type Percent struct {
	Value float64 `yaml:"value"`
}

// HTTPMirrorPolicy copies requests.
type HTTPMirrorPolicy struct {
	Destination *Destination `yaml:"destination,required"`
	Percentage  *Percent     `yaml:"percentage"`
}

// CorsPolicy is a policy for cross-origin requests.
type CorsPolicy struct {
	AllowOrigin         []string         `yaml:"allowOrigin"`
	AllowOrigins        []StringMatch    `yaml:"allowOrigins"`
	AllowMethods        []string         `yaml:"allowMethods"`
	AllowHeaders        []string         `yaml:"allowHeaders"`
	ExposeHeaders       []string         `yaml:"exposeHeaders"`
	MaxAge              yamldoc.Duration `yaml:"maxAge"`
	AllowCredentials    *bool            `yaml:"allowCredentials,nullable"`
	UnmatchedPreflights string           `yaml:"unmatchedPreflights" enum:"UNSPECIFIED,FORWARD,IGNORE"`
}

// TLSRoute routes TLS connections.
type TLSRoute struct {
	Match []TLSMatchAttributes `yaml:"match,required"`
	Route []RouteDestination   `yaml:"route"`
}

// TLSMatchAttributes are conditions on TLS connections.
type TLSMatchAttributes struct {
	SNIHosts           []string          `yaml:"sniHosts,required"`
	DestinationSubnets []string          `yaml:"destinationSubnets"`
	Port               uint32            `yaml:"port"`
	SourceLabels       map[string]string `yaml:"sourceLabels"`
	Gateways           []string          `yaml:"gateways"`
	SourceNamespace    string            `yaml:"sourceNamespace"`
}

// TCPRoute routes TCP connections.
type TCPRoute struct {
	Match []L4MatchAttributes `yaml:"match"`
	Route []RouteDestination  `yaml:"route"`
}

// L4MatchAttributes are conditions on TCP connections.
type L4MatchAttributes struct {
	DestinationSubnets []string          `yaml:"destinationSubnets"`
	Port               uint32            `yaml:"port"`
	SourceSubnet       string            `yaml:"sourceSubnet"`
	SourceLabels       map[string]string `yaml:"sourceLabels"`
	Gateways           []string          `yaml:"gateways"`
	SourceNamespace    string            `yaml:"sourceNamespace"`
}

// RouteDestination is a destination of connections with its share.
type RouteDestination struct {
	Destination *Destination `yaml:"destination,required"`
	Weight      int32        `yaml:"weight"`
}
