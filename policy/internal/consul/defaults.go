package consul

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
)

// ServiceDefaults is a service-defaults entry. It has the protocol of a service and, for instances of the service, the settings of their
// calls to other services.
type ServiceDefaults struct {
	Protocol       string                 `yaml:"Protocol"`
	UpstreamConfig *UpstreamConfiguration `yaml:"UpstreamConfig"`

	MaxInboundConnections int64  `yaml:"MaxInboundConnections"`
	LocalConnectTimeoutMs int64  `yaml:"LocalConnectTimeoutMs" mesh:"meaningless: there is no proxy that would connect to the service"`
	LocalRequestTimeoutMs int64  `yaml:"LocalRequestTimeoutMs"`
	MutualTLSMode         string `yaml:"MutualTLSMode"`

	RateLimits      yamldoc.Any `yaml:"RateLimits" mesh:"refused: needs Consul Enterprise: bound the requests to the process with policy/limit"`
	Destination     yamldoc.Any `yaml:"Destination" mesh:"refused: destinations outside of Consul are not enforced: remove it"`
	ExternalSNI     yamldoc.Any `yaml:"ExternalSNI" mesh:"refused: services behind a terminating gateway are not enforced: remove it"`
	EnvoyExtensions yamldoc.Any `yaml:"EnvoyExtensions" mesh:"refused: there is no Envoy to extend: remove it"`

	Mode                      yamldoc.Any `yaml:"Mode" mesh:"meaningless: there is no proxy to send traffic through"`
	TransparentProxy          yamldoc.Any `yaml:"TransparentProxy" mesh:"meaningless: there is no proxy to send traffic through"`
	MeshGateway               yamldoc.Any `yaml:"MeshGateway" mesh:"meaningless: calls go to the instances, not through gateways"`
	Expose                    yamldoc.Any `yaml:"Expose" mesh:"meaningless: there is no proxy in front of the paths"`
	BalanceInboundConnections yamldoc.Any `yaml:"BalanceInboundConnections" mesh:"meaningless: there are no threads of a proxy"`
	MaxRequestHeadersKB       yamldoc.Any `yaml:"MaxRequestHeadersKB" mesh:"meaningless: the server of the process bounds headers (http.Server.MaxHeaderBytes)"`
}

// UpstreamConfiguration has the settings of the calls that a service makes.
type UpstreamConfiguration struct {
	Defaults  *Upstream  `yaml:"Defaults"`
	Overrides []Upstream `yaml:"Overrides"`
}

// Upstream has the settings of the calls to one service, or to all services.
type Upstream struct {
	Name string `yaml:"Name"`
	Scope
	Peer               string              `yaml:"Peer" mesh:"refused: peers are not enforced yet: remove it"`
	ConnectTimeoutMs   int64               `yaml:"ConnectTimeoutMs"`
	Limits             *Limits             `yaml:"Limits"`
	PassiveHealthCheck *PassiveHealthCheck `yaml:"PassiveHealthCheck"`
	Protocol           string              `yaml:"Protocol" mesh:"refused: an upstream has the protocol of its own service-defaults: set it there"`

	EnvoyListenerJSON          yamldoc.Any `yaml:"EnvoyListenerJSON" mesh:"refused: there is no Envoy that would have a listener: remove it"`
	EnvoyClusterJSON           yamldoc.Any `yaml:"EnvoyClusterJSON" mesh:"refused: there is no Envoy that would have a cluster: remove it"`
	MeshGateway                yamldoc.Any `yaml:"MeshGateway" mesh:"meaningless: calls go to the instances, not through gateways"`
	BalanceOutboundConnections yamldoc.Any `yaml:"BalanceOutboundConnections" mesh:"meaningless: there are no threads of a proxy"`
}

// Limits bound the calls to a service.
type Limits struct {
	MaxConnections        *int64      `yaml:"MaxConnections"`
	MaxPendingRequests    *int64      `yaml:"MaxPendingRequests"`
	MaxConcurrentRequests *int64      `yaml:"MaxConcurrentRequests"`
	PassiveHealthCheck    yamldoc.Any `yaml:"PassiveHealthCheck" mesh:"refused: it is for API gateways: move it out of Limits"`
}

// PassiveHealthCheck says when failing instances are ejected.
type PassiveHealthCheck struct {
	Interval                yamldoc.Duration `yaml:"Interval"`
	MaxFailures             uint32           `yaml:"MaxFailures"`
	EnforcingConsecutive5xx *uint32          `yaml:"EnforcingConsecutive5xx"`
	MaxEjectionPercent      *uint32          `yaml:"MaxEjectionPercent"`
	BaseEjectionTime        yamldoc.Duration `yaml:"BaseEjectionTime"`

	EnforcingConsecutiveGatewayFailure yamldoc.Any `yaml:"EnforcingConsecutiveGatewayFailure" mesh:"refused: not in Consul 1.22, and not enforced: remove it"`
	Consecutive5xx                     yamldoc.Any `yaml:"Consecutive5xx" mesh:"refused: not in Consul 1.22, and not enforced: use MaxFailures"`
	ConsecutiveGatewayFailure          yamldoc.Any `yaml:"ConsecutiveGatewayFailure" mesh:"refused: not in Consul 1.22, and not enforced: remove it"`
}

func (s *ServiceDefaults) check(doc *yamldoc.Document, e *Entry, env *Environment) {
	at := e.At
	s.Protocol = checkProtocol(doc, at+"Protocol", s.Protocol)
	checkTLSMode(doc, at+"MutualTLSMode", s.MutualTLSMode)
	if env.Service == "" || e.Name == env.Service { // otherwise, these settings are about the instances of another service
		own := inbound{doc, env.Service != ""}
		own.checkLimit(at+"MaxInboundConnections", s.MaxInboundConnections, boundConnections)
		own.checkLimit(at+"LocalRequestTimeoutMs", s.LocalRequestTimeoutMs, boundTime)
		if s.MutualTLSMode == "permissive" {
			own.report(at+"MutualTLSMode", "permissive is not enforced: remove it, and make the listener with tlsid.Permissive")
		}
	}
	if u := s.UpstreamConfig; u != nil {
		if u.Defaults != nil {
			if u.Defaults.Name != "" {
				doc.Errorf(at+"UpstreamConfig.Defaults.Name", "must not be set: Defaults are for all upstreams")
			}
			u.Defaults.check(doc, at+"UpstreamConfig.Defaults")
		}
		first := make(map[string]int)
		for i := range u.Overrides {
			o := &u.Overrides[i]
			all := at + "UpstreamConfig.Overrides"
			at := yamldoc.Index(all, i)
			if o.Name == "" || o.Name == "*" {
				doc.Errorf(at+".Name", "missing: name the upstream")
			} else if other, twice := first[o.Name]; twice {
				doc.Errorf(at+".Name", "%q is there twice, first in %s: remove one", o.Name, yamldoc.Index(all, other))
			}
			first[o.Name] = i
			o.check(doc, at)
		}
	}
}

// What to do in place of settings that are not enforced for requests to a service.
const (
	boundConnections = "is not enforced: remove it, and bound the connections of the server's listener"
	boundTime        = "is not enforced: remove it, and wrap the handler in http.TimeoutHandler"
)

// inbound reports settings that are not enforced for connections and requests to a service.
type inbound struct {
	doc   *yamldoc.Document
	known bool // it is known that the process is an instance of the service
}

func (in inbound) report(at, text string) {
	if in.known {
		in.doc.Errorf(at, "%s", text)
		return
	}
	in.doc.Warnf(at, "%s. It is not known whether this process is an instance of the service: set Service in mesh.WithWorkload", text)
}

func (in inbound) checkLimit(at string, n int64, text string) {
	if n > 0 {
		in.report(at, text)
	}
}

func checkProtocol(doc *yamldoc.Document, at, protocol string) string {
	switch lower := strings.ToLower(protocol); lower {
	case "", "tcp", "http", "http2", "grpc":
		return lower
	}
	doc.Errorf(at, "%q is not a protocol: use one of tcp, http, http2, grpc", protocol)
	return ""
}

func checkTLSMode(doc *yamldoc.Document, at, mode string) {
	switch mode {
	case "", "strict", "permissive":
	default:
		doc.Errorf(at, "%q is not a mode: use strict or permissive", mode)
	}
}

func (u *Upstream) check(doc *yamldoc.Document, at string) {
	u.Scope.check(doc, at+".")
	if l := u.Limits; l != nil {
		for _, field := range []struct {
			name string
			n    *int64
		}{{"MaxConnections", l.MaxConnections}, {"MaxPendingRequests", l.MaxPendingRequests}, {"MaxConcurrentRequests", l.MaxConcurrentRequests}} {
			switch {
			case field.n == nil:
			case *field.n == 0:
				doc.Errorf(at+".Limits."+field.name, "0 forbids everything: leave it out for 1024, or set a limit")
			case *field.n < 0 || *field.n > 1<<31-1:
				doc.Errorf(at+".Limits."+field.name, "%d is out of range", *field.n)
			}
		}
	}
	if p := u.PassiveHealthCheck; p != nil {
		at := at + ".PassiveHealthCheck"
		if n := p.EnforcingConsecutive5xx; n != nil && *n != 0 && *n != 100 {
			doc.Errorf(at+".EnforcingConsecutive5xx", "%d: a share of the ejections is not enforced: write 100, or 0 for none", *n)
		}
		if n := p.MaxEjectionPercent; n != nil && *n > 100 {
			doc.Errorf(at+".MaxEjectionPercent", "%d is out of range: it must be from 0 to 100", *n)
		}
		if p.Interval.Duration < 0 {
			doc.Errorf(at+".Interval", "must not be negative")
		}
		if p.BaseEjectionTime.Set && p.BaseEjectionTime.Duration <= 0 {
			doc.Errorf(at+".BaseEjectionTime", "must be more than 0")
		}
	}
	if doc.Failed() {
		return
	}
	s := u.settings(Settings{})
	if err := errors.Join(s.Pool.Validate(), s.Outlier.Validate()); err != nil {
		doc.Errorf(at, "cannot be enforced: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// ProxyDefaults is the proxy-defaults entry. It applies to services without a service-defaults entry.
type ProxyDefaults struct {
	Config map[string]yamldoc.Any `yaml:"Config"`

	MutualTLSMode        string      `yaml:"MutualTLSMode"`
	Mode                 yamldoc.Any `yaml:"Mode" mesh:"meaningless: there is no proxy to send traffic through"`
	TransparentProxy     yamldoc.Any `yaml:"TransparentProxy" mesh:"meaningless: there is no proxy to send traffic through"`
	MeshGateway          yamldoc.Any `yaml:"MeshGateway" mesh:"meaningless: calls go to the instances, not through gateways"`
	Expose               yamldoc.Any `yaml:"Expose" mesh:"meaningless: there is no proxy in front of the paths"`
	AccessLogs           yamldoc.Any `yaml:"AccessLogs" mesh:"meaningless: package accesslog writes access logs"`
	EnvoyExtensions      yamldoc.Any `yaml:"EnvoyExtensions" mesh:"refused: there is no Envoy to extend: remove it"`
	FailoverPolicy       yamldoc.Any `yaml:"FailoverPolicy" mesh:"refused: needs Consul Enterprise: remove it"`
	PrioritizeByLocality yamldoc.Any `yaml:"PrioritizeByLocality" mesh:"refused: needs Consul Enterprise: remove it"`

	Protocol string // from Config
}

func (p *ProxyDefaults) check(doc *yamldoc.Document, e *Entry, env *Environment) {
	own := inbound{doc, env.Service != ""}
	for _, key := range slices.Sorted(maps.Keys(p.Config)) {
		at := yamldoc.Key(e.At+"Config", key)
		name := strings.ToLower(key)
		switch instead := inPlaceOf[name]; {
		case name == "protocol":
			p.Protocol = checkProtocol(doc, at, doc.Text(at))
		case instead != "":
			if text := doc.Text(at); text != "0" && text != "" {
				own.report(at, instead)
			}
		default:
			doc.Warnf(at, "has no effect: it configures Envoy")
		}
	}
	checkTLSMode(doc, e.At+"MutualTLSMode", p.MutualTLSMode)
	if p.MutualTLSMode == "permissive" {
		doc.Errorf(e.At+"MutualTLSMode", "permissive is not enforced: remove it, and make listeners with tlsid.Permissive")
	}
}

// inPlaceOf has the keys of Config that limit requests to a service, with what to do instead.
var inPlaceOf = map[string]string{
	"max_inbound_connections":    boundConnections,
	"local_request_timeout_ms":   boundTime,
	"local_idle_timeout_ms":      "is not enforced: remove it, and set http.Server.IdleTimeout",
	"envoy_public_listener_json": "there is no Envoy that would have a listener: remove it",
	"envoy_local_cluster_json":   "there is no Envoy that would have a cluster: remove it",
}

// Mesh is the mesh entry.
type Mesh struct {
	TransparentProxy                 yamldoc.Any `yaml:"TransparentProxy" mesh:"meaningless: calls that leave the mesh are refused with mesh.WithRegistryOnly"`
	AllowEnablingPermissiveMutualTLS yamldoc.Any `yaml:"AllowEnablingPermissiveMutualTLS" mesh:"unused: it is about what Consul stores"`
	ValidateClusters                 yamldoc.Any `yaml:"ValidateClusters" mesh:"meaningless: there is no Envoy with clusters"`
	TLS                              yamldoc.Any `yaml:"TLS" mesh:"refused: versions and cipher suites are those of the program's TLS configuration: remove it"`
	HTTP                             *MeshHTTP   `yaml:"HTTP"`
	Peering                          yamldoc.Any `yaml:"Peering" mesh:"meaningless: calls go to the instances, not through gateways"`
}

// MeshHTTP has settings for requests to all services.
type MeshHTTP struct {
	SanitizeXForwardedClientCert yamldoc.Any   `yaml:"SanitizeXForwardedClientCert" mesh:"refused: x-forwarded-client-cert is appended to: remove it"`
	Incoming                     *MeshIncoming `yaml:"Incoming"`
}

// MeshIncoming has settings for inbound requests.
type MeshIncoming struct {
	RequestNormalization yamldoc.Any `yaml:"RequestNormalization" mesh:"refused: how paths are normalized is not enforced from entries: remove it, and set Paths of the workload"`
}

func (*Mesh) check(*yamldoc.Document, *Entry, *Environment) {}

// Settings has the settings of the calls to a service.
type Settings struct {
	Balancer   balancer.Config
	Pool       limit.PoolConfig
	RetryLimit retry.LimiterConfig
	Eject      bool
	Outlier    breaker.OutlierConfig
	HTTP2      bool
}

const (
	connectTimeout = 5 * time.Second // Consul's default
	circuitLimit   = 1024            // Envoy's defaults
	retryLimit     = 3
)

// settings returns s with the settings that a caller has for a service. u may be nil.
func (u *Upstream) settings(s Settings) Settings {
	s.Eject, s.Outlier = true, breaker.OutlierConfig{SuccessRate: true}
	s.Pool.MaxConnections, s.Pool.MaxPendingRequests, s.Pool.MaxRequests = circuitLimit, circuitLimit, circuitLimit
	s.RetryLimit.MaxRetries = retryLimit
	if u == nil {
		return s
	}
	if u.ConnectTimeoutMs > 0 {
		s.Pool.ConnectTimeout = time.Duration(u.ConnectTimeoutMs) * time.Millisecond
	}
	if l := u.Limits; l != nil {
		for _, field := range []struct {
			to   *int
			from *int64
		}{{&s.Pool.MaxConnections, l.MaxConnections}, {&s.Pool.MaxPendingRequests, l.MaxPendingRequests}, {&s.Pool.MaxRequests, l.MaxConcurrentRequests}} {
			if field.from != nil {
				*field.to = int(*field.from)
			}
		}
	}
	if p := u.PassiveHealthCheck; p != nil {
		s.Outlier.Interval, s.Outlier.BaseEjection = p.Interval.Duration, p.BaseEjectionTime.Duration
		s.Outlier.Consecutive5xx = int(p.MaxFailures)
		if n := p.EnforcingConsecutive5xx; n != nil && *n == 0 {
			s.Outlier.Consecutive5xx = -1
		}
		if n := p.MaxEjectionPercent; n != nil {
			// In the layer, 0 means its default. In an entry it means none, or as few as possible.
			s.Outlier.MaxEjectedFraction = max(float64(*n)/100, 1e-9)
		}
	}
	return s
}

// upstream returns the settings of the service for its calls to another one, or nil if there are none. An override replaces the defaults
// field by field. s may be nil.
func (s *ServiceDefaults) upstream(name string) *Upstream {
	if s == nil || s.UpstreamConfig == nil {
		return nil
	}
	config := s.UpstreamConfig
	for i := range config.Overrides {
		if config.Overrides[i].Name != name {
			continue
		}
		own := config.Overrides[i]
		if d := config.Defaults; d != nil {
			if own.Limits == nil {
				own.Limits = d.Limits
			}
			if own.PassiveHealthCheck == nil {
				own.PassiveHealthCheck = d.PassiveHealthCheck
			}
			if own.ConnectTimeoutMs <= 0 {
				own.ConnectTimeoutMs = d.ConnectTimeoutMs
			}
		}
		return &own
	}
	return config.Defaults
}
