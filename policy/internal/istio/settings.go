package istio

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
)

// Settings has the settings of the layers for one target of a DestinationRule.
type Settings struct {
	Balancer     balancer.Config
	Passthrough  bool
	Eject        bool
	Outlier      breaker.OutlierConfig
	Pool         limit.PoolConfig
	RetryLimit   retry.LimiterConfig
	UpgradeHTTP2 bool
}

// Merge returns the policy for one port of a subset. Blocks of the subset replace those of the rule, and the settings of the port replace
// both. Blocks are replaced as a whole. Both policies may be nil.
func Merge(rule, subset *TrafficPolicy, port int) TrafficPolicy {
	var merged TrafficPolicy
	for _, p := range []*TrafficPolicy{rule, subset} {
		if p == nil {
			continue
		}
		override(&merged.LoadBalancer, p.LoadBalancer)
		override(&merged.ConnectionPool, p.ConnectionPool)
		override(&merged.OutlierDetection, p.OutlierDetection)
		override(&merged.TLS, p.TLS)
		override(&merged.RetryBudget, p.RetryBudget)
		for i := range p.PortLevelSettings {
			// Fields that the settings of a port do not set have their defaults. They are not inherited.
			if s := &p.PortLevelSettings[i]; s.Port != nil && int(s.Port.Number) == port {
				merged.EndpointPolicy = s.EndpointPolicy
				break
			}
		}
	}
	return merged
}

// Policies yields the policies in the document, that for all endpoints and those of the subsets, with their field paths.
func (spec *DestinationRuleSpec) Policies() iter.Seq2[string, *TrafficPolicy] {
	return func(yield func(string, *TrafficPolicy) bool) {
		if p := spec.TrafficPolicy; p != nil && !yield("spec.trafficPolicy", p) {
			return
		}
		for i := range spec.Subsets {
			if p := spec.Subsets[i].TrafficPolicy; p != nil && !yield(yamldoc.Index("spec.subsets", i)+".trafficPolicy", p) {
				return
			}
		}
	}
}

func override[T any](block **T, by *T) {
	if by != nil {
		*block = by
	}
}

// Settings translates a policy, which must have passed Check, for callers with the given locality and labels.
func (p *TrafficPolicy) Settings(own discovery.Locality, labels map[string]string) Settings {
	var s Settings
	s.balancer(p.LoadBalancer)
	s.outliers(p.OutlierDetection)
	if p.OutlierDetection != nil && own != (discovery.Locality{}) {
		var setting *LocalityLoadBalancerSetting
		if p.LoadBalancer != nil {
			setting = p.LoadBalancer.LocalityLbSetting
		}
		s.Balancer.Locality = setting.translate(own, labels)
	}
	s.pool(p.ConnectionPool)
	s.retries(p)
	return s
}

func (s *Settings) balancer(lb *LoadBalancerSettings) {
	if lb == nil {
		return
	}
	b := &s.Balancer
	if lb.Simple != nil {
		switch *lb.Simple {
		case "ROUND_ROBIN":
			b.Algorithm = balancer.RoundRobin
		case "RANDOM":
			b.Algorithm = balancer.Random
		case "PASSTHROUGH":
			s.Passthrough = true
		}
	}
	if h := lb.ConsistentHash; h != nil {
		b.Algorithm = balancer.RingHash
		b.MinRingSize = int(max(h.MinimumRingSize, h.RingHash.size()))
		if h.Maglev != nil {
			b.Algorithm, b.MinRingSize, b.TableSize = balancer.Maglev, 0, int(h.Maglev.TableSize)
		}
		b.HashKey = h.key()
	}
	if !lb.warmsUp() {
		return
	}
	b.SlowStart.Window = lb.WarmupDurationSecs.Duration
	if w := lb.Warmup; w != nil {
		b.SlowStart.Window = w.Duration.Duration
		if w.MinimumPercent != nil {
			b.SlowStart.MinFraction = *w.MinimumPercent / 100
			if *w.MinimumPercent == 0 {
				b.SlowStart.MinFraction = -1 // for the balancer, 0 means its default
			}
		}
		if w.Aggression != nil {
			b.SlowStart.Aggression = *w.Aggression
		}
	}
}

func (h *ConsistentHashLB) key() balancer.HashKey {
	switch {
	case h.HTTPHeaderName != nil:
		return balancer.HashKey{Source: balancer.HeaderKey, Name: *h.HTTPHeaderName}
	case h.HTTPQueryParameterName != nil:
		return balancer.HashKey{Source: balancer.QueryKey, Name: *h.HTTPQueryParameterName}
	case h.UseSourceIP != nil && *h.UseSourceIP:
		return balancer.HashKey{Source: balancer.SourceIPKey}
	case h.HTTPCookie == nil:
		return balancer.HashKey{}
	}
	cookie := h.HTTPCookie
	key := balancer.HashKey{Source: balancer.CookieKey, Name: cookie.Name}
	if cookie.TTL.Set {
		key.Generate, key.TTL, key.Path = true, cookie.TTL.Truncate(time.Second), cookie.Path
		for _, a := range cookie.Attributes {
			attribute := a.Name
			if a.Value != "" {
				attribute += "=" + a.Value
			}
			key.Attributes = append(key.Attributes, attribute)
		}
	}
	return key
}

// translate returns the preference for near endpoints. It is enabled by default.
func (l *LocalityLoadBalancerSetting) translate(own discovery.Locality, labels map[string]string) balancer.Locality {
	out := balancer.Locality{Enabled: true, Own: own}
	if l == nil {
		return out
	}
	if l.Enabled != nil && !*l.Enabled {
		return balancer.Locality{}
	}
	for _, d := range l.Distribute {
		rule := balancer.Distribution{From: d.From}
		for _, place := range slices.Sorted(maps.Keys(d.To)) {
			rule.To = append(rule.To, balancer.Portion{Place: place, Weight: uint32(d.To[place])})
		}
		out.Distribute = append(out.Distribute, rule)
	}
	for _, f := range l.Failover {
		out.Failover = append(out.Failover, balancer.Failover{From: f.From, To: f.To})
	}
	for _, label := range l.FailoverPriority {
		name, value, given := strings.Cut(label, "=")
		if !given {
			if value = ownLabel(name, own, labels); value == "" {
				// Endpoints cannot be compared by a label that the caller lacks, nor by later ones.
				break
			}
		}
		out.FailoverPriority = append(out.FailoverPriority, balancer.Label{Name: name, Value: value})
	}
	if len(l.FailoverPriority) > 0 && len(out.FailoverPriority) == 0 {
		return balancer.Locality{}
	}
	return out
}

// The labels with the locality of an endpoint.
const (
	regionLabel  = "topology.kubernetes.io/region"
	zoneLabel    = "topology.kubernetes.io/zone"
	subZoneLabel = "topology.istio.io/subzone"
)

func ownLabel(name string, own discovery.Locality, labels map[string]string) string {
	if value := labels[name]; value != "" {
		return value
	}
	switch name {
	case regionLabel:
		return own.Region
	case zoneLabel:
		return own.Zone
	case subZoneLabel:
		return own.SubZone
	}
	return ""
}

func (s *Settings) outliers(o *OutlierDetection) {
	if o == nil {
		return
	}
	// In the layer, a count of 0 means a default, and a negative one means never.
	count := func(n *uint32) int {
		switch {
		case n == nil:
			return 0
		case *n == 0:
			return -1
		}
		return clamp(*n)
	}
	s.Eject = true
	s.Outlier = breaker.OutlierConfig{
		Consecutive5xx:     max(0, int(o.ConsecutiveErrors)),
		ConsecutiveGateway: max(0, count(o.ConsecutiveGatewayErrors)),
		SplitLocalOrigin:   o.SplitExternalLocalOriginErrors,
		Interval:           o.Interval.Duration,
		BaseEjection:       o.BaseEjectionTime.Duration,
		MaxEjectedFraction: float64(o.MaxEjectionPercent) / 100,
	}
	if o.Consecutive5xxErrors != nil {
		s.Outlier.Consecutive5xx = count(o.Consecutive5xxErrors)
	}
	if s.Outlier.SplitLocalOrigin {
		s.Outlier.ConsecutiveLocalOrigin = count(o.ConsecutiveLocalOriginFailures)
	}
	codes := make([]int, len(o.HTTPErrorCodes))
	for i, code := range o.HTTPErrorCodes {
		codes[i] = int(code)
	}
	s.Outlier.ErrorCodes = breaker.Codes(codes...)
	s.Balancer.PanicFraction = float64(o.MinHealthPercent) / 100
}

func (s *Settings) pool(p *ConnectionPoolSettings) {
	if p == nil {
		return
	}
	if t := p.TCP; t != nil {
		s.Pool.MaxConnections = int(t.MaxConnections)
		s.Pool.ConnectTimeout = t.ConnectTimeout.Duration
		s.Pool.MaxConnectionDuration = t.MaxConnectionDuration.Duration
		s.Pool.IdleTimeout = t.IdleTimeout.Duration
		if t.IdleTimeout.Set && t.IdleTimeout.Duration == 0 {
			s.Pool.IdleTimeout = -1
		}
		if k := t.TCPKeepalive; k != nil {
			s.Pool.Keepalive = limit.Keepalive{
				Probes: clamp(k.Probes), Time: k.Time.Duration, Interval: k.Interval.Duration,
			}
		}
	}
	if h := p.HTTP; h != nil {
		s.Pool.MaxPendingRequests = int(h.HTTP1MaxPendingRequests)
		s.Pool.MaxRequests = int(h.HTTP2MaxRequests)
		s.Pool.MaxRequestsPerConnection = int(h.MaxRequestsPerConnection)
		s.Pool.IdleTimeout = h.IdleTimeout.Or(s.Pool.IdleTimeout)
		s.UpgradeHTTP2 = h.H2UpgradePolicy == "UPGRADE"
	}
}

func (s *Settings) retries(p *TrafficPolicy) {
	if b := p.RetryBudget; b != nil {
		s.RetryLimit = retry.LimiterConfig{Fraction: 0.2, MinConcurrency: clamp(b.MinRetryConcurrency)}
		switch {
		case b.Percent == nil:
		case *b.Percent == 0: // only the minimum remains
			s.RetryLimit = retry.LimiterConfig{MaxRetries: cmp.Or(s.RetryLimit.MinConcurrency, leastRetries)}
		default:
			s.RetryLimit.Fraction = *b.Percent / 100
		}
	} else if p.ConnectionPool != nil && p.ConnectionPool.HTTP != nil {
		s.RetryLimit.MaxRetries = int(p.ConnectionPool.HTTP.MaxRetries)
	}
}

// leastRetries is the default of minRetryConcurrency.
const leastRetries = 3

// clamp converts a count to an int. Counts that a 32-bit int cannot represent are never reached.
func clamp(n uint32) int {
	return int(min(n, math.MaxInt32))
}

// Labels returns the labels of the selector, or nil if there are none. The selector may be nil.
func (s *WorkloadSelector) Labels() map[string]string {
	if s == nil || len(s.MatchLabels) == 0 {
		return nil
	}
	return s.MatchLabels
}

// Selects reports whether the selector selects a workload with the given labels. A nil selector selects all workloads.
func (s *WorkloadSelector) Selects(labels map[string]string) bool {
	return Within(s.Labels(), labels)
}

// OfGateway reports whether the selector selects gateways alone, by the labels that those have which Istio installs or makes.
func (s *WorkloadSelector) OfGateway() bool {
	labels := s.Labels()
	app, installed := strings.CutPrefix(labels["app"], "istio-")
	return labels["gateway.networking.k8s.io/gateway-name"] != "" || strings.HasSuffix(labels["istio"], "gateway") || installed && strings.HasSuffix(app, "gateway")
}
