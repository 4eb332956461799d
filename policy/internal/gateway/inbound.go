package gateway

import (
	"cmp"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/route"
)

// Inbound is a translated match of a rule for the Servers of Linkerd that its document is attached to.
type Inbound struct {
	authz.Rule // the requests that match

	At string // the path of the match in the document, or that of the rule if it has none

	host int // the length of the hostname, without its star
	rank rank
}

// CompareInbound is [Compare] for routes of Servers. A more specific hostname comes before everything else, as in Linkerd. Of those that match
// one host, that is the longer one: what a star stands for is not empty.
func CompareInbound(a, b *Inbound) int {
	return cmp.Or(b.host-a.host, Compare(&Route{rank: a.rank}, &Route{rank: b.rank}))
}

// Inbound implements [Document].
func (r *HTTPRoute) Inbound() []Inbound {
	all := inbound(r.Routes("", nil), r.Spec.Hostnames)
	for i := range all {
		switch of := &all[i].rank; of.kind { // Linkerd's order: an expression matches all of a path, and a prefix less
		case byExpression:
			of.kind, of.length = byPrefix, 0
		case byPrefix:
			of.kind = byExpression
		}
	}
	return all
}

// Inbound implements [Document]. A match is about calls of gRPC; a rule without matches is about all requests.
func (r *GRPCRoute) Inbound() []Inbound {
	routes := r.Routes("", nil)
	for i := range routes {
		if routes[i].Match < 0 {
			routes[i].Matches = make([]route.Match, 1)
			continue
		}
		for j := range routes[i].Matches {
			m := &routes[i].Matches[j]
			m.Method = route.StringMatch{Kind: route.Exact, Value: http.MethodPost}
			if m.URI.Kind == route.Any {
				m.URI = route.StringMatch{Kind: route.Regex, Value: "/[^/]*/.*"}
			}
		}
	}
	return inbound(routes, r.Spec.Hostnames)
}

// inbound translates routes for each of the hostnames.
func inbound(routes []Route, hostnames []string) (all []Inbound) {
	for i := range routes {
		r := &routes[i]
		one := Inbound{rank: r.rank, At: yamldoc.Index("spec.rules", max(0, r.Rule))}
		if r.Match >= 0 {
			one.At = yamldoc.Index(one.At+".matches", r.Match)
		}
		for _, m := range r.Matches {
			one.To = append(one.To, operation(&m))
		}
		for _, h := range r.Matches[0].Headers { // which all of them have
			one.When = append(one.When, condition(&h))
		}
		for _, name := range hostnames {
			of := one
			suffix, star := strings.CutPrefix(name, "*")
			of.host = len(suffix)
			pattern := regexp.QuoteMeta(suffix)
			if star {
				pattern = "[^:]+" + pattern
			}
			pattern = "(?i)" + pattern + `\.?(?::.*)?` // net/http takes anything for a port, and handlers cut it off
			of.When = append(slices.Clone(one.When), authz.Condition{Key: "request.headers[:authority]", Regexes: []string{pattern}})
			all = append(all, of)
		}
		if len(hostnames) == 0 {
			all = append(all, one)
		}
	}
	return all
}

// operation translates the conditions on the path and the method. No raw connection has a method.
func operation(m *route.Match) authz.Operation {
	out := authz.Operation{Methods: []string{"*"}}
	if m.Method.Kind != route.Any {
		out.Methods = []string{m.Method.Value}
	}
	switch path := m.URI.Value; {
	case m.URI.Kind == route.Regex:
		out.PathRegexes = []string{path}
	case m.URI.Kind == route.Prefix:
		out.Paths = []string{path + "*"}
	case m.URI.Kind == route.Any:
	case strings.HasSuffix(path, "*"): // which would not be compared literally
		out.Paths, out.PathRegexes = []string{strings.TrimSuffix(path, "*") + "%2A"}, []string{regexp.QuoteMeta(path)}
	default:
		out.Paths = []string{path}
	}
	return out
}

// condition translates a condition on a header.
func condition(h *route.KeyMatch) authz.Condition {
	out := authz.Condition{Key: "request.headers[" + h.Key + "]"}
	switch value := h.Value.Value; {
	case h.Value.Kind == route.Regex:
		out.Regexes = []string{value}
	case strings.HasPrefix(value, "*") || strings.HasSuffix(value, "*"):
		out.Regexes = []string{regexp.QuoteMeta(value)}
	default:
		out.Values = []string{value}
	}
	return out
}

const unsentAtServer = "a route of a Server sends no requests"

// server checks a reference to a Server in a document of a namespace.
func (c check) server(p *ParentReference, namespace, at string) {
	if !yamldoc.IsName(p.Name) {
		c.Errorf(at+".name", "%q is not the name of a Server", p.Name)
	}
	if p.Namespace != "" && p.Namespace != namespace {
		c.Errorf(at+".namespace", "is another namespace than that of the document, %s, and a route is attached to Servers of its own only: remove it or move the document", namespace)
	}
	if p.SectionName != "" {
		c.Errorf(at+".sectionName", "a Server is one port: remove it")
	}
	if p.Port != nil {
		c.Errorf(at+".port", "a Server is one port: remove it")
	}
}

// hostnames checks the hostnames, which count for Servers alone.
func (c check) hostnames(names []string) {
	if len(names) > 0 && !c.only {
		c.Warnf("spec.hostnames", "hostnames are for gateways and Servers: a route of a Service applies to all calls to the Service, whatever Host they have")
	}
	if !c.inbound {
		return
	}
	c.most("spec.hostnames", len(names), maxReferred)
	for i, name := range names {
		if !yamldoc.IsName(strings.TrimPrefix(strings.ToLower(name), "*.")) {
			c.Errorf(yamldoc.Index("spec.hostnames", i), "%q is not a host name without a port: write it like www.example.com or *.example.com", name)
		}
	}
}

// atServer checks what a rule says of requests to a Server.
func (c check) atServer(rule *HTTPRouteRule, at string) {
	if !c.inbound {
		return
	}
	for i := range rule.Filters {
		c.Errorf(yamldoc.Index(at+".filters", i), "%s is not enforced on requests to a Server: do it in the handler of the server; "+
			"for calls to a Service, write another document", rule.Filters[i].Type)
	}
	for i := range rule.Matches {
		if len(rule.Matches[i].QueryParams) > 0 {
			c.Errorf(yamldoc.Index(at+".matches", i)+".queryParams", "is not enforced on requests to a Server, since handlers read queries in several ways: "+
				"match by the path or headers, or authorize in the handler")
		}
	}
	if !c.only {
		return
	}
	for _, f := range []struct {
		field string
		set   bool
	}{{"backendRefs", len(rule.BackendRefs) > 0}, {"timeouts", rule.Timeouts != nil}, {"retry", rule.Retry != nil}} {
		if f.set {
			c.Warnf(at+"."+f.field, "has no effect: "+unsentAtServer)
		}
	}
}
