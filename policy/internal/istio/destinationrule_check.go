package istio

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (dr *DestinationRule) Check(doc *yamldoc.Document) {
	c := check{Document: doc}
	c.metadata(&dr.Metadata)
	spec := &dr.Spec
	c.that(wrongHost(spec.Host), "spec.host", "")
	c.policy(spec.TrafficPolicy, "spec.trafficPolicy")
	seen := make(map[string]bool)
	for i := range spec.Subsets {
		s, at := &spec.Subsets[i], yamldoc.Index("spec.subsets", i)
		switch {
		case !isLabel(s.Name):
			c.Errorf(at+".name", "%q is not the name of a subset: use letters, digits and hyphens", s.Name)
		case seen[s.Name]:
			c.Errorf(at+".name", "there is a subset %q already", s.Name)
		}
		seen[s.Name] = true
		c.labels(s.Labels, at, ".labels")
		c.policy(s.TrafficPolicy, at+".trafficPolicy")
	}
	c.exportTo(spec.ExportTo, exporter{namespace: dr.Namespace(), selects: spec.WorkloadSelector != nil})
	c.selector(spec.WorkloadSelector, "spec.workloadSelector")
}

func (c check) policy(p *TrafficPolicy, at string) {
	if p == nil {
		return
	}
	if p.EndpointPolicy == (EndpointPolicy{}) && len(p.PortLevelSettings) == 0 && p.Tunnel == nil && p.ProxyProtocol == nil &&
		p.RetryBudget == nil {
		c.Errorf(at, "is empty: set a field or remove it")
	}
	if p.Tunnel != nil && p.ProxyProtocol != nil {
		c.Errorf(at, "tunnel and proxyProtocol exclude each other: set only one of them")
	}
	c.endpoints(&p.EndpointPolicy, at)
	if b := p.RetryBudget; b != nil {
		if b.Percent != nil {
			c.that(wrongPercentage(*b.Percent), at, ".retryBudget.percent")
			c.warn(smallPercentage(*b.Percent), at, ".retryBudget.percent")
		}
		if pool := p.ConnectionPool; pool != nil && pool.HTTP != nil && pool.HTTP.MaxRetries > 0 {
			c.Warnf(at+".connectionPool.http.maxRetries", "has no effect: retryBudget takes its place")
		}
	}
	if len(p.PortLevelSettings) > 4096 {
		c.Errorf(at+".portLevelSettings", "more than 4096 ports")
		return
	}
	ports := make(map[PortSelector]bool)
	for i := range p.PortLevelSettings {
		s, at := &p.PortLevelSettings[i], yamldoc.Index(at+".portLevelSettings", i)
		if s.Port == nil {
			c.Errorf(at+".port", "missing: it is required")
		} else {
			if message := wrongPort(s.Port.Number); message != "" {
				c.Warnf(at+".port.number", "has no effect: %s", message)
			}
			if ports[*s.Port] {
				c.Warnf(at+".port.number", "has no effect: there are settings for port %d already", s.Port.Number)
			}
			ports[*s.Port] = true
		}
		if s.EndpointPolicy == (EndpointPolicy{}) {
			c.Errorf(at, "has no settings: set a field or remove it")
		}
		c.endpoints(&s.EndpointPolicy, at)
	}
}

func (c check) endpoints(p *EndpointPolicy, at string) {
	c.loadBalancer(p.LoadBalancer, p.OutlierDetection != nil, at+".loadBalancer")
	c.connectionPool(p.ConnectionPool, at+".connectionPool")
	c.outliers(p.OutlierDetection, at+".outlierDetection")
	c.tls(p.TLS, at+".tls")
}

func (c check) loadBalancer(lb *LoadBalancerSettings, ejects bool, at string) {
	if lb == nil {
		return
	}
	if lb.Simple != nil && *lb.Simple == "LEAST_CONN" {
		c.Warnf(at+".simple", "LEAST_CONN is deprecated: write LEAST_REQUEST, which means the same")
	}
	c.consistentHash(lb.ConsistentHash, at+".consistentHash")
	c.warmup(lb, at)
	c.locality(lb.LocalityLbSetting, ejects, at+".localityLbSetting")
}

func (c check) consistentHash(h *ConsistentHashLB, at string) {
	if h == nil {
		return
	}
	empty := func(s *string) bool { return s != nil && *s == "" }
	switch {
	case h.HTTPHeaderName == nil && h.HTTPCookie == nil && h.UseSourceIP == nil && h.HTTPQueryParameterName == nil:
		c.Warnf(at, "names no key, so that requests go to random endpoints: set httpHeaderName, httpCookie or another")
	case empty(h.HTTPHeaderName):
		c.Errorf(at+".httpHeaderName", "must not be empty")
	case h.HTTPHeaderName != nil && (balancer.Config{Algorithm: balancer.RingHash, HashKey: h.key()}).Validate() != nil:
		c.Errorf(at+".httpHeaderName", "%q is not the name of a header, nor :authority, :path, :method or :scheme", *h.HTTPHeaderName)
	case empty(h.HTTPQueryParameterName):
		c.Errorf(at+".httpQueryParameterName", "must not be empty")
	case h.UseSourceIP != nil && !*h.UseSourceIP:
		c.Warnf(at+".useSourceIp", "false leaves requests without a key, so that they go to random endpoints")
	case h.UseSourceIP != nil:
		c.Warnf(at+".useSourceIp", "the source is the sender of a request that the process serves and passes on; "+
			"all requests of the process's own have its own address, and go to one endpoint")
	}
	if cookie := h.HTTPCookie; cookie != nil {
		c.cookie(cookie, at+".httpCookie")
	}
	if h.MinimumRingSize != 0 {
		c.Warnf(at+".minimumRingSize", "deprecated: use ringHash.minimumRingSize")
		if h.RingHash != nil || h.Maglev != nil {
			c.Errorf(at+".minimumRingSize", "does not go with ringHash or maglev: use ringHash.minimumRingSize")
		}
	}
	for _, ring := range []struct {
		field string
		size  uint64
	}{{".minimumRingSize", h.MinimumRingSize}, {".ringHash.minimumRingSize", h.RingHash.size()}} {
		if ring.size > 8<<20 {
			c.Errorf(at+ring.field, "%d is out of range: the most is %d", ring.size, 8<<20)
		}
	}
	if m := h.Maglev; m != nil && (m.TableSize >= 5000011 || !prime(m.TableSize)) {
		c.Errorf(at+".maglev.tableSize", "%d is not a prime below 5000011: 65537 is usual", m.TableSize)
	}
}

func (r *RingHash) size() uint64 {
	if r == nil {
		return 0
	}
	return r.MinimumRingSize
}

// prime reports whether n is a prime number or 1, which Envoy accepts too.
func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 0
}

func (c check) cookie(cookie *HTTPCookie, at string) {
	switch {
	case !field.IsToken(cookie.Name):
		c.Errorf(at+".name", "%q is not the name of a cookie", cookie.Name)
	case cookie.TTL.Duration < 0:
		c.Errorf(at+".ttl", "%v is negative, which cannot be enforced", cookie.TTL.Duration)
	case cookie.TTL.Duration%time.Second != 0:
		c.Warnf(at+".ttl", "counts as %v: cookies live for whole seconds", cookie.TTL.Truncate(time.Second))
	case !cookie.TTL.Set && (cookie.Path != "" || len(cookie.Attributes) > 0):
		c.Warnf(at, "path and attributes have no effect: without ttl no cookie is made. 0s makes one for the session")
	}
	if strings.Contains(cookie.Path, ";") || !printable(cookie.Path) {
		c.Errorf(at+".path", "%q is not the path of a cookie", cookie.Path)
	}
	first := make(map[string]int)
	for i, a := range cookie.Attributes {
		if !field.IsToken(a.Name) || strings.Contains(a.Value, ";") || !printable(a.Value) {
			c.Errorf(yamldoc.Index(at+".attributes", i), "%s=%s is not an attribute of a cookie", a.Name, a.Value)
		}
		name := strings.ToLower(a.Name)
		if j, twice := first[name]; twice {
			c.Errorf(yamldoc.Index(at+".attributes", i)+".name", "attributes[%d] is %s too: a cookie has an attribute once", j, cookie.Attributes[j].Name)
		} else {
			first[name] = i
		}
	}
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func (c check) warmup(lb *LoadBalancerSettings, at string) {
	field := ".warmup"
	switch w := lb.Warmup; {
	case w != nil:
		c.duration(w.Duration, at, ".warmup.duration")
		if p := w.MinimumPercent; p != nil {
			c.that(wrongPercentage(*p), at, ".warmup.minimumPercent")
		}
		if a := w.Aggression; a != nil && *a < 1 {
			c.Errorf(at+".warmup.aggression", "%v is less than 1", *a)
		}
	case lb.WarmupDurationSecs.Set:
		field = ".warmupDurationSecs"
		c.Warnf(at+field, "deprecated: use warmup")
		c.that(shortDuration(lb.WarmupDurationSecs), at, field)
	default:
		return
	}
	if !lb.warmsUp() {
		c.Warnf(at+field, "has no effect: it goes with LEAST_REQUEST and ROUND_ROBIN only")
	}
}

// warmsUp reports whether the algorithm supports slow start.
func (lb *LoadBalancerSettings) warmsUp() bool {
	return lb.ConsistentHash == nil && (lb.Simple == nil || *lb.Simple != "RANDOM" && *lb.Simple != "PASSTHROUGH")
}

func (c check) locality(l *LocalityLoadBalancerSetting, ejects bool, at string) {
	if l == nil {
		return
	}
	if len(l.Distribute) > 0 && len(l.Failover) > 0 {
		c.Errorf(at+".failover", "distribute and failover exclude each other: set only one of them")
	}
	if len(l.FailoverPriority) > 0 && len(l.Distribute)+len(l.Failover) > 0 {
		c.Errorf(at+".failoverPriority", "together with distribute or failover it is not enforced yet: set only one of them")
	}
	if enabled := l.Enabled == nil || *l.Enabled; enabled && !ejects {
		c.Warnf(at, "has no effect without outlierDetection beside it")
	}
	var from []string
	for i, d := range l.Distribute {
		at := yamldoc.Index(at+".distribute", i)
		c.place(d.From, at+".from")
		from = append(from, d.From)
		total := uint64(0)
		places := slices.Sorted(maps.Keys(d.To))
		for _, to := range places {
			at := yamldoc.Key(at+".to", to)
			c.place(to, at)
			if d.To[to] < 1 || d.To[to] > 100 {
				c.Errorf(at, "%d is not a weight: it must be from 1 to 100", d.To[to])
			}
			total += uint64(d.To[to])
		}
		if total != 100 {
			c.Errorf(at+".to", "the weights add up to %d, not to 100", total)
		}
		c.overlap(places, false, at+".to")
	}
	c.overlap(from, true, at+".distribute")
	regions := make(map[string]bool)
	for i, f := range l.Failover {
		at := yamldoc.Index(at+".failover", i)
		switch {
		case f.From == f.To:
			c.Errorf(at+".to", "a region cannot fail over to itself")
		case !placeName(f.From), !placeName(f.To):
			c.Errorf(at, "from and to must each name a region, without / and *")
		case regions[f.From]:
			c.Errorf(at+".from", "there is a failover for %s already, and a second one is not enforced", f.From)
		}
		regions[f.From] = true
	}
	for i, label := range l.FailoverPriority {
		name, value, _ := strings.Cut(label, "=")
		if key, message := wrongLabels(map[string]string{name: value}); key != "" {
			c.Errorf(yamldoc.Index(at+".failoverPriority", i), "%s", message)
		}
	}
}

// place checks a locality: region/zone/subzone. Parts at the end may be missing, and the last one may be "*".
func (c check) place(place, at string) {
	parts := strings.Split(place, "/")
	for i, part := range parts {
		if part == "*" && i == len(parts)-1 {
			continue
		}
		if !placeName(part) || len(parts) > 3 {
			c.Errorf(at, `%q is not a place: write region/zone/subzone, with "*" only at the end`, place)
			return
		}
	}
}

// placeName reports whether s can be a part of a locality. It must not contain the separators in the rules of the balancer.
func placeName(s string) bool {
	return s != "" && printable(s) && !strings.ContainsAny(s, "/*,;=> ")
}

// overlap checks that no locality covers another. If their order matters, one with a wildcard may cover those before it: it means the
// rest.
func (c check) overlap(places []string, ordered bool, at string) {
	for i, earlier := range overlapping(places, ordered) {
		for _, other := range earlier {
			c.Errorf(at, "the places %s and %s overlap", places[other], places[i])
		}
	}
}

// overlapping returns, for each place, the indices of earlier places with which it overlaps.
func overlapping(places []string, ordered bool) [][]int {
	names := make([]covering, len(places))
	for i, place := range places {
		text := strings.TrimSuffix(place, "/*") + "/"
		if place == "*" {
			text = ""
		}
		names[i] = covering{text, true, i}
	}
	return nested(names, func(outer, inner int) bool {
		rest := ordered && inner < outer && strings.HasSuffix(places[outer], "*") && places[outer] != places[inner]
		return !rest
	})
}

func (c check) connectionPool(p *ConnectionPoolSettings, at string) {
	if p == nil {
		return
	}
	if p.TCP == nil && p.HTTP == nil {
		c.Errorf(at, "is empty: set tcp or http")
	}
	natural := func(n int32, field string) {
		if n < 0 {
			c.Errorf(at+field, "%d is negative", n)
		}
	}
	if t := p.TCP; t != nil {
		natural(t.MaxConnections, ".tcp.maxConnections")
		c.duration(t.ConnectTimeout, at, ".tcp.connectTimeout")
		c.duration(t.MaxConnectionDuration, at, ".tcp.maxConnectionDuration")
		if t.IdleTimeout.Milliseconds() != 0 { // 0s has a meaning: never
			c.duration(t.IdleTimeout, at, ".tcp.idleTimeout")
		}
		if k := t.TCPKeepalive; k != nil {
			c.duration(k.Time, at, ".tcp.tcpKeepalive.time")
			c.duration(k.Interval, at, ".tcp.tcpKeepalive.interval")
		}
	}
	if h := p.HTTP; h != nil {
		natural(h.HTTP1MaxPendingRequests, ".http.http1MaxPendingRequests")
		natural(h.HTTP2MaxRequests, ".http.http2MaxRequests")
		natural(h.MaxRequestsPerConnection, ".http.maxRequestsPerConnection")
		natural(h.MaxRetries, ".http.maxRetries")
		natural(h.MaxConcurrentStreams, ".http.maxConcurrentStreams")
		c.duration(h.IdleTimeout, at, ".http.idleTimeout")
		if h.UseClientProtocol {
			if h.H2UpgradePolicy == "UPGRADE" {
				c.Errorf(at+".http.useClientProtocol", "does not go with h2UpgradePolicy UPGRADE")
			}
			c.Warnf(at+".http.useClientProtocol", "has no meaning in-process: between caller and library there is no "+
				"connection whose protocol could be kept")
		}
		if h.MaxConcurrentStreams > 0 {
			c.Errorf(at+".http.maxConcurrentStreams", "a limit of streams on a connection is not enforced yet: "+
				"use http2MaxRequests, which limits them in all")
		}
		if t := p.TCP; h.IdleTimeout.Set && t != nil && t.IdleTimeout.Set && t.IdleTimeout != h.IdleTimeout {
			c.Warnf(at+".tcp.idleTimeout", "has no effect: http.idleTimeout takes its place")
		}
	}
}

func (c check) outliers(o *OutlierDetection, at string) {
	if o == nil {
		return
	}
	switch n := o.ConsecutiveErrors; {
	case n < 0:
		c.Warnf(at+".consecutiveErrors", "deprecated, and without effect: %d is negative", n)
	case n > 0 && o.Consecutive5xxErrors != nil:
		c.Warnf(at+".consecutiveErrors", "deprecated, and without effect beside consecutive5xxErrors: remove it")
	case n > 0:
		c.Warnf(at+".consecutiveErrors", "deprecated, and ignored by current Istio, which ejects after 5 errors whatever it "+
			"says; here it ejects after %d consecutive responses of 500 and above or local errors: write consecutive5xxErrors", n)
	}
	if n := o.ConsecutiveLocalOriginFailures; n != nil && *n > 0 && !o.SplitExternalLocalOriginErrors {
		c.Errorf(at+".consecutiveLocalOriginFailures", "works only with splitExternalLocalOriginErrors: set that to true")
	}
	c.duration(o.Interval, at, ".interval")
	c.duration(o.BaseEjectionTime, at, ".baseEjectionTime")
	c.that(wrongPercentage(float64(o.MaxEjectionPercent)), at, ".maxEjectionPercent")
	c.that(wrongPercentage(float64(o.MinHealthPercent)), at, ".minHealthPercent")
	for i, code := range o.HTTPErrorCodes {
		if code < 100 || code > 599 {
			c.Errorf(yamldoc.Index(at+".outlierDetectionHttpErrorCodes", i), "%d is not a status: it must be from 100 to 599", code)
		}
	}
}

func (c check) tls(t *ClientTLSSettings, at string) {
	if t == nil {
		return
	}
	if t.InsecureSkipVerify != nil && *t.InsecureSkipVerify {
		c.Errorf(at+".insecureSkipVerify", "is not enforced: it accepts whoever answers; name what to trust in caCertificates "+
			"and subjectAltNames")
	}
	own := t.ClientCertificate != "" || t.PrivateKey != ""
	switch t.Mode {
	case "", "DISABLE":
		if own || t.CaCertificates != "" || len(t.SubjectAltNames) > 0 || t.SNI != "" {
			c.Warnf(at, "mode DISABLE, the default, sends plaintext: the other settings have no effect")
		}
		return
	case "ISTIO_MUTUAL":
		for _, f := range []struct{ field, value string }{
			{".clientCertificate", t.ClientCertificate}, {".privateKey", t.PrivateKey}, {".caCertificates", t.CaCertificates},
		} {
			if f.value != "" {
				c.Errorf(at+f.field, "does not go with mode ISTIO_MUTUAL, which uses the identity of the workload: "+
					"remove it or use mode MUTUAL")
			}
		}
	case "SIMPLE":
		if own {
			c.Warnf(at, "mode SIMPLE presents no certificate: clientCertificate and privateKey have no effect")
		}
	case "MUTUAL":
		if t.CredentialName == "" && (t.ClientCertificate == "" || t.PrivateKey == "") {
			c.Errorf(at, "mode MUTUAL needs clientCertificate and privateKey")
		}
	}
	if t.CredentialName != "" && t.Mode != "ISTIO_MUTUAL" && (own || t.CaCertificates != "" || t.CaCRL != "") {
		c.Errorf(at+".credentialName", "credentialName and files exclude each other: set only one of them")
	}
	c.certificateNames(t.SubjectAltNames, at+".subjectAltNames")
	if t.Mode != "ISTIO_MUTUAL" {
		return
	}
	for i, name := range t.SubjectAltNames {
		if len(SPIFFEIDs([]string{name})) == 0 {
			c.Errorf(yamldoc.Index(at+".subjectAltNames", i), "%q is not a SPIFFE ID, which is what workloads have: write it as "+
				"spiffe://cluster.local/ns/default/sa/name", name)
		}
	}
}

// SPIFFEIDs returns those of the names that are SPIFFE IDs.
func SPIFFEIDs(names []string) []string {
	var ids []string
	for _, name := range names {
		if _, err := spiffeid.FromString(name); err == nil {
			ids = append(ids, name)
		}
	}
	return ids
}

// certificateNames checks that a certificate can have the names.
func (c check) certificateNames(names []string, at string) {
	for i, name := range names {
		// Only a URI may contain a comma. In other names it separates two names.
		if name == "" || strings.Contains(name, ",") && !strings.Contains(name, "://") || !printable(name) {
			c.Errorf(yamldoc.Index(at, i), "%q is not a name in a certificate: use a DNS name, an IP address or a URI", name)
		}
	}
}
