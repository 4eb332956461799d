package istio

import (
	"net/http"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/grpccode"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/retry"
)

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (vs *VirtualService) Check(doc *yamldoc.Document) { vs.check(doc, vs.InMesh()) }

// CheckDelegate is Check for a delegate to which possibly only gateways hand requests. It does not report valid settings that are not
// enforced.
func (vs *VirtualService) CheckDelegate(doc *yamldoc.Document) { vs.check(doc, false) }

// check is Check. If inMesh is not set, it does not report valid settings that are not enforced.
func (vs *VirtualService) check(doc *yamldoc.Document, inMesh bool) {
	c := check{Document: doc}
	c.metadata(&vs.Metadata)
	spec := &vs.Spec
	if vs.IsDelegate() {
		c.delegate(spec)
	}
	for i, gateway := range spec.Gateways {
		c.gateway(gateway, yamldoc.Index("spec.gateways", i))
	}
	c.hosts(spec)
	c.exportTo(spec.ExportTo, exporter{namespace: vs.Namespace()})

	if len(spec.HTTP) == 0 && len(spec.TLS) == 0 && len(spec.TCP) == 0 {
		c.Errorf("spec.http", "missing: a VirtualService needs at least one route")
	}
	catchAll := -1
	for i := range spec.HTTP {
		at := yamldoc.Index("spec.http", i)
		c.idle = !inMesh || spec.HTTP[i].AtGateways()
		c.route(&spec.HTTP[i], at)
		for j := range spec.HTTP[i].Match {
			m := &spec.HTTP[i].Match[j]
			c.match(m, inMesh && !m.atGateways(), yamldoc.Index(at+".match", j))
		}
		if catchAll >= 0 {
			c.Warnf(at, "never reached: spec.http[%d] takes every request", catchAll)
		} else if spec.HTTP[i].takesAll() {
			catchAll = i
		}
	}
}

// delegate reports fields that a delegate must not have.
func (c check) delegate(spec *VirtualServiceSpec) {
	refuse := func(field string, set bool) {
		if set {
			c.Errorf(field, "a VirtualService without hosts is a delegate, which cannot have it: remove it or name hosts")
		}
	}
	refuse("spec.gateways", len(spec.Gateways) > 0)
	refuse("spec.tls", len(spec.TLS) > 0)
	refuse("spec.tcp", len(spec.TCP) > 0)
	for i := range spec.HTTP {
		if spec.HTTP[i].Delegate != nil {
			c.Errorf(yamldoc.Index("spec.http", i)+".delegate", "a delegate cannot delegate further")
		}
	}
}

func (c check) gateway(name, at string) {
	namespace, gateway, ok := strings.Cut(name, "/")
	switch {
	case !ok && (wrongHost(name) != "" || strings.HasPrefix(name, "*")), ok && (!isLabel(namespace) || !isLabel(gateway)):
		c.Errorf(at, `%q is not the name of a gateway: write namespace/name, or "mesh"`, name)
	}
}

func (c check) hosts(spec *VirtualServiceSpec) {
	earlier := overlaps(spec.Hosts)
	for i, host := range spec.Hosts {
		at := yamldoc.Index("spec.hosts", i)
		if !isIP(host) && !c.that(wrongHost(host), at, "") {
			continue
		}
		if host == "*" && spec.inMesh() {
			c.Errorf(at, `"*" is for gateways only: name the hosts`)
			continue
		}
		for _, other := range earlier[i] {
			c.Errorf(at, "%s and %s overlap: remove one", spec.Hosts[other], host)
		}
	}
}

// overlaps returns, for each host, the indices of earlier hosts that cover it or that it covers, as Matches says.
func overlaps(hosts []string) [][]int {
	names := make([]covering, len(hosts))
	for i, host := range hosts {
		end, wild := strings.CutPrefix(host, "*")
		letters := []byte(end)
		slices.Reverse(letters) // a wildcard covers the names that end in its text
		names[i] = covering{string(letters), wild, i}
	}
	return nested(names, func(outer, inner int) bool { return true })
}

// takesAll reports whether the route applies to every request.
func (r *HTTPRoute) takesAll() bool {
	if r.Delegate != nil {
		return false // the delegate may
	}
	if len(r.Match) == 0 {
		return true
	}
	return slices.ContainsFunc(r.Match, func(m HTTPMatchRequest) bool {
		return m.URI.any() && m.Scheme.any() && m.Method.any() && m.Authority.any() && len(m.Headers) == 0 &&
			len(m.WithoutHeaders) == 0 && len(m.QueryParams) == 0 && m.Port == nil && len(m.SourceLabels) == 0 &&
			m.SourceNamespace == "" && len(m.Gateways) == 0
	})
}

func (s *StringMatch) any() bool {
	return s == nil || *s == StringMatch{}
}

func (c check) route(r *HTTPRoute, at string) {
	c.action(r, at)

	total := int64(0)
	for i := range r.Route {
		d, at := &r.Route[i], yamldoc.Index(at+".route", i)
		c.destination(d.Destination, at+".destination")
		if d.Weight < 0 {
			c.Errorf(at+".weight", "%d is negative", d.Weight)
		}
		if d.Weight == 0 && len(r.Route) > 1 && c.Text(at+".weight") == "" {
			c.Warnf(at+".weight", "a destination without weight gets no requests when there are several")
		}
		total += int64(d.Weight)
	}
	if len(r.Route) > 1 && total == 0 {
		c.Errorf(at+".route", "the weights add up to 0: give at least one destination a weight")
	}

	c.duration(r.Timeout, at, ".timeout")
	c.retries(r, at)
	c.fault(r.Fault, at+".fault")
	c.mirrors(r, at)
	c.redirect(r.Redirect, at+".redirect")
	// Istio's limit for a body, 1 MiB, is also the limit for a document.
	if d := r.DirectResponse; d != nil && (d.Status < 200 || d.Status > 599) {
		c.Errorf(at+".directResponse.status", "%d is not a status of a response: it must be from 200 to 599", d.Status)
	}
	c.rewrite(r, at)
	c.cors(r, at)
}

// action checks that the route does exactly one thing with a request.
func (c check) action(r *HTTPRoute, at string) {
	exclude := func(name, other string, set bool) {
		if set {
			c.Errorf(at+"."+other, "%s and %s exclude each other: set only one of them", name, other)
		}
	}
	name := ""
	switch {
	case r.Delegate != nil:
		exclude("delegate", "redirect", r.Redirect != nil)
		exclude("delegate", "route", r.Route != nil)
		return
	case r.Redirect != nil:
		name = "redirect"
		exclude(name, "directResponse", r.DirectResponse != nil)
	case r.DirectResponse != nil:
		name = "directResponse"
	case len(r.Route) == 0:
		c.Errorf(at, "no route, redirect or directResponse: set one of them")
		return
	default:
		return
	}
	exclude(name, "route", len(r.Route) > 0)
	exclude(name, "fault", r.Fault != nil)
	exclude(name, "rewrite", r.Rewrite != nil)
	pointless := func(field string, set bool) {
		if set {
			c.Warnf(at+"."+field, "has no effect: a route with %s sends no request on", name)
		}
	}
	pointless("timeout", r.Timeout.Set)
	pointless("retries", r.Retries != nil)
	pointless("mirror", r.Mirror != nil)
	pointless("mirrors", r.Mirrors != nil)
	pointless("headers.request", r.Headers != nil && !r.Headers.Request.empty())
}

func (o *HeaderOperations) empty() bool {
	return len(o.Set)+len(o.Add)+len(o.Remove) == 0
}

func (c check) destination(d *Destination, at string) {
	if d == nil {
		return
	}
	if c.that(wrongHost(d.Host), at, ".host") && strings.HasPrefix(d.Host, "*") {
		c.refuse(at+".host", "a destination is one service: %q has a wildcard, which cannot be enforced", d.Host)
	}
	if d.Subset != nil && *d.Subset != "" && !isLabel(*d.Subset) {
		c.Errorf(at+".subset", "%q is not the name of a subset: use letters, digits and hyphens", *d.Subset)
	}
	if d.Port != nil {
		c.that(wrongPort(d.Port.Number), at, ".port.number")
	}
}

func (c check) retries(route *HTTPRoute, at string) {
	r := route.Retries
	if r == nil {
		return
	}
	at += ".retries"
	if r.Attempts < 0 {
		c.Errorf(at+".attempts", "%d is negative", r.Attempts)
	}
	if r.Attempts == 0 && (r.PerTryTimeout.Set || r.RetryOn != "" || r.RetryRemoteLocalities != nil) {
		c.Errorf(at+".attempts", "missing or 0, which means no retries, but retries are configured: "+
			"set attempts, or remove the other fields")
	}
	c.duration(r.PerTryTimeout, at, ".perTryTimeout")
	c.duration(r.Backoff, at, ".backoff")
	if route.Timeout.Duration > 0 && r.PerTryTimeout.Duration >= route.Timeout.Duration {
		c.Warnf(at+".perTryTimeout", "has no effect: the timeout of the route, %v, is not longer", route.Timeout.Duration)
	}
	c.retryOn(r.RetryOn, at+".retryOn")
	if remote := r.RetryRemoteLocalities; remote != nil && *remote {
		c.refuse(at+".retryRemoteLocalities", "preferring other localities for retries is not enforced yet: remove it")
	}
}

func (c check) retryOn(list, at string) {
	if list == "" {
		return
	}
	for item := range strings.SplitSeq(list, ",") {
		switch _, err := retry.ParseOn(item); {
		case item == "":
			c.Errorf(at, "%q has an empty item", list)
		case strings.TrimSpace(item) != item:
			c.Errorf(at, "%q has spaces, which Istio rejects: write the items joined by commas alone", list)
		case err != nil:
			c.Errorf(at, "%s", strings.TrimPrefix(err.Error(), "retry: "))
		case item == "retriable-headers":
			c.Warnf(at, "retriable-headers has no effect: a VirtualService cannot name the headers")
		}
	}
}

func (c check) fault(f *HTTPFaultInjection, at string) {
	if f == nil {
		return
	}
	if f.Delay == nil && f.Abort == nil {
		c.Errorf(at, "neither delay nor abort: set one or both")
	}
	if d := f.Delay; d != nil {
		at := at + ".delay"
		c.duration(d.FixedDelay, at, ".fixedDelay")
		if !d.FixedDelay.Set && !d.ExponentialDelay.Set {
			c.Warnf(at, "has no effect: set fixedDelay")
		}
		if d.Percent != 0 {
			c.Warnf(at+".percent", "deprecated: use percentage")
			switch {
			case d.Percent < 0:
				c.refuse(at+".percent", "%d is negative, which cannot be enforced", d.Percent)
			case d.Percent > 100:
				c.Warnf(at+".percent", "%d is more than 100, and counts as that", d.Percent)
			}
		}
		if d.Percent == 0 || d.Percentage != nil {
			c.faultPercentage(d.Percentage, at)
		}
	}
	if a := f.Abort; a != nil {
		at := at + ".abort"
		switch {
		case a.HTTPStatus != nil && (*a.HTTPStatus < 200 || *a.HTTPStatus > 599):
			c.Errorf(at+".httpStatus", "%d is not a status of a response: it must be from 200 to 599", *a.HTTPStatus)
		case a.GRPCStatus != nil && grpccode.Of(*a.GRPCStatus) < 0:
			c.Errorf(at+".grpcStatus", "%q is not the name of a gRPC status such as UNAVAILABLE", *a.GRPCStatus)
		case a.HTTPStatus == nil && a.GRPCStatus == nil && a.HTTP2Error == nil:
			c.Warnf(at, "has no effect: set httpStatus or grpcStatus")
		}
		c.faultPercentage(a.Percentage, at)
	}
}

func (c check) faultPercentage(p *Percent, at string) {
	switch {
	case p == nil:
		c.Warnf(at+".percentage", "missing, which means 0: no request meets this fault")
	case p.Value > 0 && p.Value < 0.0001:
		c.refuse(at+".percentage.value", "%v is too small: the least percentage is 0.0001", p.Value)
	case c.that(wrongPercentage(p.Value), at, ".percentage.value"):
		c.warn(smallPercentage(p.Value), at, ".percentage.value")
	}
}

func (c check) mirrors(r *HTTPRoute, at string) {
	if r.Mirror != nil && len(r.Mirrors) > 0 && r.Delegate == nil {
		c.Errorf(at+".mirrors", "mirror and mirrors exclude each other: set only one of them")
	}
	c.destination(r.Mirror, at+".mirror")
	if p := r.MirrorPercentage; p != nil {
		c.mirrorPercentage(p, at+".mirrorPercentage")
		if r.Mirror == nil {
			c.Warnf(at+".mirrorPercentage", "has no effect without mirror")
		}
	}
	if p := r.mirrorPercent(); p != nil {
		at := at + ".mirrorPercent"
		if r.MirrorPercent == nil {
			at = strings.TrimSuffix(at, "Percent") + "_percent"
		}
		c.Warnf(at, "deprecated: use mirrorPercentage")
		c.that(wrongPercentage(float64(*p)), at, "")
		switch {
		case r.Mirror == nil:
			c.Warnf(at, "has no effect without mirror")
		case r.MirrorPercentage != nil:
			c.Warnf(at, "has no effect: mirrorPercentage takes its place")
		}
	}
	for i, m := range r.Mirrors {
		at := yamldoc.Index(at+".mirrors", i)
		c.destination(m.Destination, at+".destination")
		if m.Percentage != nil {
			c.mirrorPercentage(m.Percentage, at+".percentage")
		}
	}
}

func (c check) mirrorPercentage(p *Percent, at string) {
	if c.that(wrongPercentage(p.Value), at, ".value") {
		c.warn(smallPercentage(p.Value), at, ".value")
	}
}

func (c check) redirect(r *HTTPRedirect, at string) {
	if r == nil {
		return
	}
	if r.URI == "" && r.PrefixRewrite == "" && r.Authority == "" && r.Port == nil && r.DerivePort == nil && r.Scheme == "" {
		c.Errorf(at, "must set uri, prefixRewrite, authority, port, derivePort or scheme")
	}
	if r.URI != "" && r.PrefixRewrite != "" {
		c.Errorf(at+".prefixRewrite", "uri and prefixRewrite exclude each other: set only one of them")
	}
	switch r.RedirectCode {
	case 0, http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect:
	default:
		c.refuse(at+".redirectCode", "%d cannot be enforced, nor does Envoy: use 301, 302, 303, 307 or 308", r.RedirectCode)
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		c.Errorf(at+".scheme", "%q is neither http nor https", r.Scheme)
	}
	if r.Port != nil && *r.Port != 0 { // 0 keeps the port
		c.that(wrongPort(*r.Port), at, ".port")
	}
}

// mirrorPercent returns the deprecated field for the percentage to mirror, which has two spellings.
func (r *HTTPRoute) mirrorPercent() *uint32 {
	if r.MirrorPercent == nil {
		return r.MirrorPercentOld
	}
	return r.MirrorPercent
}

func (c check) rewrite(r *HTTPRoute, at string) {
	authorities := 0
	if w := r.Rewrite; w != nil {
		at := at + ".rewrite"
		if w.URI != "" && w.URIRegexRewrite != nil {
			c.Errorf(at+".uriRegexRewrite", "uri and uriRegexRewrite exclude each other: set only one of them")
		}
		if w.URI == "" && w.URIRegexRewrite == nil && w.Authority == "" {
			c.Errorf(at, "must set uri, uriRegexRewrite or authority")
		}
		if x := w.URIRegexRewrite; x != nil {
			if x.Match == "" || x.Rewrite == "" {
				c.Errorf(at+".uriRegexRewrite", "must set both match and rewrite")
			} else {
				c.that(wrongRegex(x.Match), at, ".uriRegexRewrite.match")
			}
		}
		if w.Authority != "" {
			authorities++
		}
	}
	if h := r.Headers; h != nil {
		for _, values := range []map[string]string{h.Request.Set, h.Request.Add} {
			for name := range values {
				if strings.EqualFold(name, "host") || strings.EqualFold(name, ":authority") {
					authorities++
				}
			}
		}
	}
	if authorities > 1 {
		c.Errorf(at, "the authority is rewritten %d times: do it once, in rewrite.authority", authorities)
	}
}
