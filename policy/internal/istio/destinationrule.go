package istio

import "github.com/nosidecar/mesh/internal/yamldoc"

// DestinationRule says how the endpoints of a service are chosen, connected to and monitored.
type DestinationRule struct {
	yamldoc.Object
	Spec   DestinationRuleSpec `yaml:"spec,required"`
	Status yamldoc.Any         `yaml:"status" mesh:"unused: written by the control plane"`
}

// DestinationRuleSpec is the spec of a [DestinationRule].
type DestinationRuleSpec struct {
	Host             string            `yaml:"host,required"`
	TrafficPolicy    *TrafficPolicy    `yaml:"trafficPolicy"`
	Subsets          []Subset          `yaml:"subsets"`
	ExportTo         []string          `yaml:"exportTo"`
	WorkloadSelector *WorkloadSelector `yaml:"workloadSelector"`
}

// WorkloadSelector selects workloads by their labels.
type WorkloadSelector struct {
	MatchLabels map[string]string `yaml:"matchLabels"`
}

// Subset is a named part of a service's endpoints.
type Subset struct {
	Name          string            `yaml:"name,required"`
	Labels        map[string]string `yaml:"labels"`
	TrafficPolicy *TrafficPolicy    `yaml:"trafficPolicy"`
}

// TrafficPolicy is the policy of a service or subset.
type TrafficPolicy struct {
	EndpointPolicy
	PortLevelSettings []PortTrafficPolicy `yaml:"portLevelSettings"`
	Tunnel            *TunnelSettings     `yaml:"tunnel" mesh:"refused: tunnels carry TCP connections and are not enforced in-process: remove it"`
	ProxyProtocol     *ProxyProtocol      `yaml:"proxyProtocol" mesh:"refused: the PROXY protocol is not enforced in-process: remove it"`
	RetryBudget       *RetryBudget        `yaml:"retryBudget"`
}

// PortTrafficPolicy is the policy of one port. It replaces the policy of the service: fields that it does not set have their defaults.
type PortTrafficPolicy struct {
	Port *PortSelector `yaml:"port"`
	EndpointPolicy
}

// EndpointPolicy says how endpoints are chosen, connected to, monitored and secured.
type EndpointPolicy struct {
	LoadBalancer     *LoadBalancerSettings   `yaml:"loadBalancer"`
	ConnectionPool   *ConnectionPoolSettings `yaml:"connectionPool"`
	OutlierDetection *OutlierDetection       `yaml:"outlierDetection"`
	TLS              *ClientTLSSettings      `yaml:"tls"`
}

// TunnelSettings says how connections are tunnelled.
type TunnelSettings struct {
	Protocol   string `yaml:"protocol"`
	TargetHost string `yaml:"targetHost,required"`
	TargetPort uint32 `yaml:"targetPort,required"`
}

// ProxyProtocol prefixes connections with the PROXY protocol.
type ProxyProtocol struct {
	Version string `yaml:"version" enum:"V1,V2"`
}

// RetryBudget bounds the retries in flight to a percentage of the requests.
type RetryBudget struct {
	Percent             *float64         `yaml:"percent,nullable"`
	MinRetryConcurrency uint32           `yaml:"minRetryConcurrency"`
	BudgetInterval      yamldoc.Duration `yaml:"budgetInterval" mesh:"refused: retries are counted while they are under way, not over an interval: remove budgetInterval"`
}

// LoadBalancerSettings say how an endpoint is chosen.
type LoadBalancerSettings struct {
	Simple             *string                       `yaml:"simple" oneof:"policy" enum:"UNSPECIFIED,LEAST_CONN,RANDOM,PASSTHROUGH,ROUND_ROBIN,LEAST_REQUEST"`
	ConsistentHash     *ConsistentHashLB             `yaml:"consistentHash" oneof:"policy"`
	LocalityLbSetting  *LocalityLoadBalancerSetting  `yaml:"localityLbSetting"`
	ZoneAwareLbSetting *ZoneAwareLoadBalancerSetting `yaml:"zoneAwareLbSetting" mesh:"refused: zone-aware balancing is not enforced yet: use localityLbSetting"`
	WarmupDurationSecs yamldoc.Duration              `yaml:"warmupDurationSecs" oneof:"warmup"`
	Warmup             *WarmupConfiguration          `yaml:"warmup" oneof:"warmup"`
}

// ConsistentHashLB sends equal keys to the same endpoint.
type ConsistentHashLB struct {
	HTTPHeaderName         *string     `yaml:"httpHeaderName" oneof:"key"`
	HTTPCookie             *HTTPCookie `yaml:"httpCookie" oneof:"key"`
	UseSourceIP            *bool       `yaml:"useSourceIp" oneof:"key"`
	HTTPQueryParameterName *string     `yaml:"httpQueryParameterName" oneof:"key"`
	RingHash               *RingHash   `yaml:"ringHash" oneof:"algorithm"`
	Maglev                 *Maglev     `yaml:"maglev" oneof:"algorithm"`
	MinimumRingSize        uint64      `yaml:"minimumRingSize"`
}

// RingHash is ring hashing.
type RingHash struct {
	MinimumRingSize uint64 `yaml:"minimumRingSize"`
}

// Maglev is Maglev hashing.
type Maglev struct {
	TableSize uint64 `yaml:"tableSize"`
}

// HTTPCookie is a cookie that holds a hash key.
type HTTPCookie struct {
	Name       string            `yaml:"name,required"`
	Path       string            `yaml:"path"`
	TTL        yamldoc.Duration  `yaml:"ttl"`
	Attributes []CookieAttribute `yaml:"attributes"`
}

// CookieAttribute is an attribute of a cookie.
type CookieAttribute struct {
	Name  string `yaml:"name,required"`
	Value string `yaml:"value"`
}

// WarmupConfiguration sends fewer requests to new endpoints.
type WarmupConfiguration struct {
	Duration       yamldoc.Duration `yaml:"duration,required"`
	MinimumPercent *float64         `yaml:"minimumPercent,nullable"`
	Aggression     *float64         `yaml:"aggression,nullable"`
}

// LocalityLoadBalancerSetting prefers near endpoints.
type LocalityLoadBalancerSetting struct {
	Distribute       []LocalityDistribute `yaml:"distribute"`
	Failover         []LocalityFailover   `yaml:"failover"`
	FailoverPriority []string             `yaml:"failoverPriority"`
	Enabled          *bool                `yaml:"enabled,nullable"`
}

// LocalityDistribute divides requests between localities.
type LocalityDistribute struct {
	From string            `yaml:"from"`
	To   map[string]uint32 `yaml:"to"`
}

// LocalityFailover names the region to which another one fails over.
type LocalityFailover struct {
	From string `yaml:"from"`
	To   string `yaml:"to"`
}

// ZoneAwareLoadBalancerSetting prefers endpoints of the same zone.
type ZoneAwareLoadBalancerSetting struct {
	Enabled          *bool              `yaml:"enabled,nullable"`
	Failover         []LocalityFailover `yaml:"failover"`
	FailoverPriority []string           `yaml:"failoverPriority"`
	MinClusterSize   *uint32            `yaml:"minClusterSize,nullable"`
}

// ConnectionPoolSettings bound connections and requests.
type ConnectionPoolSettings struct {
	TCP  *TCPSettings  `yaml:"tcp"`
	HTTP *HTTPSettings `yaml:"http"`
}

// TCPSettings has the settings of connections.
type TCPSettings struct {
	MaxConnections        int32            `yaml:"maxConnections"`
	ConnectTimeout        yamldoc.Duration `yaml:"connectTimeout"`
	TCPKeepalive          *TCPKeepalive    `yaml:"tcpKeepalive"`
	MaxConnectionDuration yamldoc.Duration `yaml:"maxConnectionDuration"`
	IdleTimeout           yamldoc.Duration `yaml:"idleTimeout"`
}

// TCPKeepalive says how silent connections are probed.
type TCPKeepalive struct {
	Probes   uint32           `yaml:"probes"`
	Time     yamldoc.Duration `yaml:"time"`
	Interval yamldoc.Duration `yaml:"interval"`
}

// HTTPSettings has the settings of requests.
type HTTPSettings struct {
	HTTP1MaxPendingRequests  int32                `yaml:"http1MaxPendingRequests"`
	HTTP2MaxRequests         int32                `yaml:"http2MaxRequests"`
	MaxRequestsPerConnection int32                `yaml:"maxRequestsPerConnection"`
	MaxRetries               int32                `yaml:"maxRetries"`
	IdleTimeout              yamldoc.Duration     `yaml:"idleTimeout"`
	H2UpgradePolicy          string               `yaml:"h2UpgradePolicy" enum:"DEFAULT,DO_NOT_UPGRADE,UPGRADE"`
	UseClientProtocol        bool                 `yaml:"useClientProtocol"`
	MaxConcurrentStreams     int32                `yaml:"maxConcurrentStreams"`
	HTTP2KeepAlive           *ConnectionKeepalive `yaml:"http2KeepAlive" mesh:"refused: HTTP/2 pings at a set pace are not enforced yet: dead connections are noticed by pings of the library's own"`
}

// ConnectionKeepalive says how silent HTTP/2 connections are probed.
type ConnectionKeepalive struct {
	Interval yamldoc.Duration `yaml:"interval"`
	Timeout  yamldoc.Duration `yaml:"timeout"`
}

// OutlierDetection ejects endpoints that fail.
type OutlierDetection struct {
	ConsecutiveErrors              int32            `yaml:"consecutiveErrors"`
	SplitExternalLocalOriginErrors bool             `yaml:"splitExternalLocalOriginErrors"`
	ConsecutiveLocalOriginFailures *uint32          `yaml:"consecutiveLocalOriginFailures,nullable"`
	ConsecutiveGatewayErrors       *uint32          `yaml:"consecutiveGatewayErrors,nullable"`
	Consecutive5xxErrors           *uint32          `yaml:"consecutive5xxErrors,nullable"`
	Interval                       yamldoc.Duration `yaml:"interval"`
	BaseEjectionTime               yamldoc.Duration `yaml:"baseEjectionTime"`
	MaxEjectionPercent             int32            `yaml:"maxEjectionPercent"`
	MinHealthPercent               int32            `yaml:"minHealthPercent"`
	HTTPErrorCodes                 []uint32         `yaml:"outlierDetectionHttpErrorCodes"`
}

// ClientTLSSettings say how connections are secured.
type ClientTLSSettings struct {
	Mode               string   `yaml:"mode" enum:"DISABLE,SIMPLE,MUTUAL,ISTIO_MUTUAL"`
	ClientCertificate  string   `yaml:"clientCertificate"`
	PrivateKey         string   `yaml:"privateKey"`
	CaCertificates     string   `yaml:"caCertificates"`
	CredentialName     string   `yaml:"credentialName" mesh:"refused: credentialName is a Secret of Kubernetes, which needs an API server: mount it and name its files"`
	SubjectAltNames    []string `yaml:"subjectAltNames"`
	SNI                string   `yaml:"sni"`
	InsecureSkipVerify *bool    `yaml:"insecureSkipVerify,nullable"`
	CaCRL              string   `yaml:"caCrl" mesh:"refused: certificate revocation lists are not enforced yet: remove it, and issue certificates with short lives"`
}

// SystemRoots is the value of caCertificates that means the roots of the system.
const SystemRoots = "system"
