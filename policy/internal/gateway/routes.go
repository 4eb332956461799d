package gateway

import (
	"cmp"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/cors"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Route is a translated match of a rule. Each match has a route of its own, because matches, and not rules, have precedence. If the matched prefix
// of a path is replaced, it has two.
type Route struct {
	route.Route

	Rule  int // the index of the rule in the document, or -1 if it has none
	Match int // the index of the match in the rule, or -1 if the rule has none

	CORS *cors.Config // nil if the rule says nothing about requests of other origins

	rank rank
}

// rank is the precedence of a match: the first field in which two matches differ decides, and the larger value wins.
type rank struct{ kind, length, method, headers, query int }

// Compare returns a negative number if a has precedence over b, because its match is more specific. Of equal ones, that of the older document
// has precedence, then that of the document whose namespace and name come first, then the one that comes first in it.
func Compare(a, b *Route) int {
	return cmp.Or(b.rank.kind-a.rank.kind, b.rank.length-a.rank.length, b.rank.method-a.rank.method,
		b.rank.headers-a.rank.headers, b.rank.query-a.rank.query)
}

// Kinds of paths, in the order of their precedence, which is Istio's. That of regular expressions is up to the implementation.
const (
	byExpression = iota
	byPrefix
	exactly
)

// Routes implements [Document].
func (r *HTTPRoute) Routes(domain string, service *Settings) []Route {
	rules := r.Spec.Rules
	if len(rules) == 0 {
		rules = make([]HTTPRouteRule, 1)
	}
	of := Annotated(&r.Object, func(string, string, ...any) {})
	var out []Route
	for i := range rules {
		rule := &rules[i]
		to := rule.translate(&r.Object, &r.Spec.RouteSpec, domain, http.StatusInternalServerError)
		of.apply(&to, rule, service)
		matches := rule.Matches
		if len(matches) == 0 {
			matches = make([]HTTPRouteMatch, 1)
		}
		for j := range matches {
			for _, one := range matches[j].routes(rule, to) {
				one.Rule, one.Match = min(i, len(r.Spec.Rules)-1), min(j, len(rule.Matches)-1)
				one.CORS = rule.cors()
				out = append(out, one)
			}
		}
	}
	return out
}

// Routes implements [Document].
func (r *GRPCRoute) Routes(domain string, service *Settings) []Route {
	rules := r.Spec.Rules
	if len(rules) == 0 {
		rules = make([]GRPCRouteRule, 1)
	}
	of := Annotated(&r.Object, func(string, string, ...any) {})
	var out []Route
	for i := range rules {
		to := rules[i].http().translate(&r.Object, &r.Spec.RouteSpec, domain, http.StatusServiceUnavailable) // UNAVAILABLE in gRPC
		of.apply(&to, nil, service)
		if len(rules[i].Matches) == 0 {
			out = append(out, Route{Route: to, Rule: min(i, len(r.Spec.Rules)-1), Match: -1})
		}
		for j := range rules[i].Matches {
			one := rules[i].Matches[j].route(to)
			one.Rule, one.Match = i, j
			out = append(out, one)
		}
	}
	return out
}

// http returns a rule with the same filters and backends.
func (r *GRPCRouteRule) http() *HTTPRouteRule {
	out := &HTTPRouteRule{Name: r.Name, Filters: filters(r.Filters)}
	for _, b := range r.BackendRefs {
		out.BackendRefs = append(out.BackendRefs, HTTPBackendRef{b.BackendRef, b.Weight, filters(b.Filters)})
	}
	return out
}

func filters(list []GRPCRouteFilter) (out []HTTPRouteFilter) {
	for _, f := range list {
		out = append(out, HTTPRouteFilter{
			Type: f.Type, RequestHeaderModifier: f.RequestHeaderModifier, ResponseHeaderModifier: f.ResponseHeaderModifier,
			RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		})
	}
	return out
}

// translate returns the rule without its matches. Requests that go to no backend get a response with the status none.
func (r *HTTPRouteRule) translate(object *yamldoc.Object, spec *RouteSpec, domain string, none int) route.Route {
	namespace := object.Namespace()
	out := route.Route{Name: r.Name}
	for i := range r.Filters {
		f := &r.Filters[i]
		f.edit(&out.Headers)
		if m := f.RequestMirror; m != nil {
			if share := m.share(); share > 0 {
				out.Mirrors = append(out.Mirrors, route.Mirror{Target: m.BackendRef.target(namespace, domain), Fraction: share})
			}
		}
	}
	if d := r.redirect(); d != nil {
		out.Redirect = d.translate()
		return out
	}
	if len(r.BackendRefs) == 0 && spec.forLinkerd(object) {
		out.Destinations = make([]route.Destination, 1) // the service that is called
	} else if r.weight() == 0 {
		out.Direct, out.Mirrors = &route.DirectResponse{Status: none}, nil
		return out
	}
	for i := range r.BackendRefs {
		b := &r.BackendRefs[i]
		d := route.Destination{Target: b.target(namespace, domain), Weight: b.weight()}
		for j := range b.Filters {
			b.Filters[j].edit(&d.Headers)
		}
		out.Destinations = append(out.Destinations, d)
	}
	if w := r.rewrite(); w != nil {
		out.Rewrite.Authority = w.Hostname
	}
	out.Retry = r.Retry.translate()
	if t := r.Timeouts; t != nil {
		out.Timeout, out.Retry.PerTryTimeout = parse(t.Request), parse(t.BackendRequest)
	}
	if r.Retry != nil && out.Retry.Retries > 0 && out.Retry.PerTryTimeout > 0 {
		out.Retry.On.Conditions |= retry.Reset // which includes that a try took too long
	}
	return out
}

// forLinkerd reports whether a route is written for Linkerd: its kind is Linkerd's own, it has annotations of Linkerd, or it names a Service in a way
// that only Linkerd takes. Then the requests of rules without backends go to what the route is attached to.
func (s *RouteSpec) forLinkerd(object *yamldoc.Object) bool {
	if groupOf(object) == LinkerdGroup {
		return true
	}
	for key := range object.Metadata.Annotations {
		if IsSetting(key) {
			return true
		}
	}
	return slices.ContainsFunc(s.ParentRefs, func(p ParentReference) bool { return p.atService() && *p.Group == "core" })
}

func (b *HTTPBackendRef) weight() int {
	if b.Weight == nil {
		return 1
	}
	return int(*b.Weight)
}

// weight returns the sum of the weights of the backends.
func (r *HTTPRouteRule) weight() int {
	sum := 0
	for i := range r.BackendRefs {
		sum += r.BackendRefs[i].weight()
	}
	return sum
}

func (b *BackendRef) kind() string {
	if b.Kind == nil {
		return "Service"
	}
	return *b.Kind
}

func (b *BackendRef) ofService() bool {
	return (b.Group == "" || b.Group == "core") && b.kind() == "Service"
}

// ofHost reports whether the backend is a host, which may be outside of the cluster, as in Istio.
func (b *BackendRef) ofHost() bool { return b.Group == istio.Group && b.kind() == "Hostname" }

func (b *BackendRef) target(namespace, domain string) route.Target {
	to := route.Target{Host: strings.ToLower(b.Name)}
	if !b.ofHost() {
		to.Host = ServiceHost(b.Name, cmp.Or(b.Namespace, namespace), domain)
	}
	if b.Port != nil {
		to.Port = int(*b.Port)
	}
	return to
}

// ServiceHost returns the full name of a Service.
func ServiceHost(name, namespace, domain string) string {
	return name + "." + namespace + ".svc." + domain
}

func (r *HTTPRouteRule) redirect() *HTTPRequestRedirectFilter {
	for i := range r.Filters {
		if d := r.Filters[i].RequestRedirect; d != nil {
			return d
		}
	}
	return nil
}

func (r *HTTPRouteRule) rewrite() *HTTPURLRewriteFilter {
	for i := range r.Filters {
		if w := r.Filters[i].URLRewrite; w != nil {
			return w
		}
	}
	return nil
}

// path returns how the path of requests is changed, or nil.
func (r *HTTPRouteRule) path() *HTTPPathModifier {
	if d := r.redirect(); d != nil {
		return d.Path
	}
	if w := r.rewrite(); w != nil {
		return w.Path
	}
	return nil
}

func (r *HTTPRouteRule) replacesPrefix() bool {
	p := r.path()
	return p != nil && p.ReplacePrefixMatch != nil
}

// edit adds what the filter does to headers. Values are not format strings.
func (f *HTTPRouteFilter) edit(h *route.Headers) {
	if r := f.RequestHeaderModifier; r != nil {
		h.Request = r.translate()
	}
	if r := f.ResponseHeaderModifier; r != nil {
		h.Response = r.translate()
	}
}

func (h *HTTPHeaderFilter) translate() route.HeaderOps {
	return route.HeaderOps{Set: headers(h.Set), Add: headers(h.Add), Remove: h.Remove}
}

func headers(list []HTTPHeader) (out []route.Header) {
	for _, h := range list {
		if !slices.ContainsFunc(out, func(before route.Header) bool { return strings.EqualFold(before.Name, h.Name) }) {
			out = append(out, route.Header{Name: h.Name, Value: strings.ReplaceAll(h.Value, "%", "%%")})
		}
	}
	return out
}

// share returns the part of the requests that is copied.
func (m *HTTPRequestMirrorFilter) share() float64 {
	switch {
	case m.Percent != nil:
		return float64(*m.Percent) / 100
	case m.Fraction != nil:
		return float64(m.Fraction.Numerator) / float64(m.Fraction.whole())
	}
	return 1
}

// translate returns the redirect, without its path. Its port is that of the scheme or, without one, that of the request.
func (d *HTTPRequestRedirectFilter) translate() *route.Redirect {
	out := &route.Redirect{Scheme: d.Scheme, Authority: d.Hostname, Status: http.StatusFound}
	if d.StatusCode != nil {
		out.Status = *d.StatusCode
	}
	switch {
	case d.Port != nil:
		out.Port = int(*d.Port)
	case d.Scheme != "":
		out.DerivePort = route.FromProtocol
	default:
		out.DerivePort = route.FromRequest
	}
	return out
}

// translate returns what is retried: what Istio retries, and the codes.
func (r *HTTPRouteRetry) translate() retry.Config {
	out := istio.DefaultRetry()
	if r == nil {
		return out
	}
	if r.Attempts != nil {
		out.Retries = *r.Attempts
	}
	if out.Retries == 0 {
		return retry.Config{}
	}
	out.On.Status = retry.Codes(r.Codes...)
	out.Backoff = parse(r.Backoff)
	return out
}

func (p *HTTPPathMatch) kind() string {
	if p == nil || p.Type == "" {
		return "PathPrefix"
	}
	return p.Type
}

func (p *HTTPPathMatch) value() string {
	if p == nil || p.Value == nil {
		return "/"
	}
	return *p.Value
}

// routes returns the routes of a match of a rule, which is translated to to.
func (m *HTTPRouteMatch) routes(rule *HTTPRouteRule, to route.Route) []Route {
	base := route.Match{Headers: values(m.Headers, true), Query: values(m.QueryParams, false)}
	of := rank{headers: len(base.Headers), query: len(base.Query)}
	if m.Method != "" {
		base.Method, of.method = route.StringMatch{Kind: route.Exact, Value: m.Method}, 1
	}
	match := func(kind route.MatchKind, path string) route.Match {
		one := base
		one.URI = route.StringMatch{Kind: kind, Value: path}
		return one
	}
	path := m.Path.value()
	replace := rule.path()
	switch m.Path.kind() {
	case "Exact":
		of.kind, of.length = exactly, len(path)
		to.Matches = []route.Match{match(route.Exact, path)}
	case "RegularExpression":
		of.kind, of.length = byExpression, len(path)
		to.Matches = []route.Match{match(route.Regex, path)}
	default: // by elements of the path; a slash at the end is ignored
		prefix := strings.TrimSuffix(path, "/")
		of.kind, of.length = byPrefix, max(1, len(prefix))
		below := match(route.Prefix, prefix+"/")
		if prefix == "" {
			below = base // any path
			to.Matches = []route.Match{below}
		} else {
			to.Matches = []route.Match{match(route.Exact, prefix), below}
		}
		if replace == nil || replace.ReplacePrefixMatch == nil {
			break
		}
		with, whole := strings.TrimSuffix(*replace.ReplacePrefixMatch, "/"), to
		to.Matches = []route.Match{below}
		to = replaced(to, with+"/", false)
		if prefix == "" {
			return []Route{{Route: to, rank: of}}
		}
		whole.Matches = whole.Matches[:1]
		whole = replaced(whole, cmp.Or(with, "/"), false)
		return []Route{{Route: whole, rank: of}, {Route: to, rank: of}}
	}
	if replace != nil && replace.ReplaceFullPath != nil {
		to = replaced(to, cmp.Or(*replace.ReplaceFullPath, "/"), true)
	}
	return []Route{{Route: to, rank: of}}
}

// replaced returns a route that replaces what its match covers of the path, or the whole path.
func replaced(r route.Route, with string, whole bool) route.Route {
	switch {
	case r.Redirect != nil:
		d := *r.Redirect
		if d.PrefixRewrite = with; whole {
			d.PrefixRewrite, d.URI = "", with
		}
		r.Redirect = &d
	case r.Direct != nil: // nothing is sent
	case whole:
		r.Rewrite.Pattern, r.Rewrite.Substitution = `(?s)\A.*\z`, strings.ReplaceAll(with, `\`, `\\`)
	default:
		r.Rewrite.URI = with
	}
	return r
}

// values translates conditions. Of those with the same name, the first one counts.
func values(list []ValueMatch, headers bool) (out []route.KeyMatch) {
	for _, v := range list {
		if slices.ContainsFunc(out, func(before route.KeyMatch) bool {
			return before.Key == v.Name || headers && strings.EqualFold(before.Key, v.Name)
		}) {
			continue
		}
		value := route.StringMatch{Kind: route.Exact, Value: v.Value}
		if v.Type == "RegularExpression" {
			value.Kind = route.Regex
		}
		out = append(out, route.KeyMatch{Key: v.Name, Value: value})
	}
	return out
}

// route returns the route of a match of a rule, which is translated to to.
func (m *GRPCRouteMatch) route(to route.Route) Route {
	match := route.Match{Headers: values(m.Headers, true)}
	of := rank{headers: len(match.Headers)}
	if by := m.Method; by != nil {
		service := strings.TrimPrefix(by.Service, ".")
		of.length, of.method = len(service), len(by.Method)
		const any = "[^/]+"
		switch {
		case by.Type == "RegularExpression":
			match.URI = route.StringMatch{Kind: route.Regex, Value: "/(?:" + cmp.Or(by.Service, any) + ")/(?:" + cmp.Or(by.Method, any) + ")"}
		case by.Service == "":
			match.URI = route.StringMatch{Kind: route.Regex, Value: "/" + any + "/" + regexp.QuoteMeta(by.Method)}
		case by.Method == "":
			match.URI = route.StringMatch{Kind: route.Prefix, Value: "/" + service + "/"}
		default:
			match.URI = route.StringMatch{Kind: route.Exact, Value: "/" + service + "/" + by.Method}
		}
	}
	to.Matches = []route.Match{match}
	return Route{Route: to, rank: of}
}
