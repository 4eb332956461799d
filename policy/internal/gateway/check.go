package gateway

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

// The limits of the API.
const (
	maxRules     = 16
	maxMatches   = 64
	maxTotal     = 128 // matches of all rules
	maxParents   = 32
	maxReferred  = 16 // filters, backends, headers, query parameters
	maxWeight    = 1_000_000
	maxPort      = 65535
	defaultWhole = 100 // the denominator of a fraction
)

// check reports problems of a document.
type check struct {
	*yamldoc.Document
	grpc    bool // the document routes calls of gRPC alone
	inbound bool // it is attached to a Server
	only    bool // to nothing else in the mesh
}

// Check implements [Document].
func (r *HTTPRoute) Check(doc *yamldoc.Document) {
	servers := len(r.Servers()) > 0
	c := check{doc, false, servers, servers && len(r.Parents()) == 0}
	c.document(&r.Object, &r.Spec.RouteSpec, len(r.Spec.Rules))
	names, total := make(map[string]int), 0
	for i := range r.Spec.Rules {
		rule, at := &r.Spec.Rules[i], yamldoc.Index("spec.rules", i)
		c.name(rule.Name, i, names)
		c.most(at+".matches", len(rule.Matches), maxMatches)
		total += len(rule.Matches)
		for j := range rule.Matches {
			c.httpMatch(&rule.Matches[j], yamldoc.Index(at+".matches", j))
		}
		c.action(rule, r.Spec.forLinkerd(&r.Object), at)
		c.atServer(rule, at)
		c.corsParents(r, rule, at+".filters")
		c.timeouts(rule.Timeouts, at+".timeouts")
		c.retry(rule.Retry, at+".retry")
		if rule.Retry != nil && r.Metadata.Annotations[retryHTTP] != "" {
			c.Errorf(at+".retry", "the annotation %s says what is retried, too: remove one of them", retryHTTP)
		}
	}
	c.most("spec.rules", total, maxTotal)
}

// Check implements [Document].
func (r *GRPCRoute) Check(doc *yamldoc.Document) {
	servers := len(r.Servers()) > 0
	c := check{doc, true, servers, servers && len(r.Parents()) == 0}
	c.document(&r.Object, &r.Spec.RouteSpec, len(r.Spec.Rules))
	names, total := make(map[string]int), 0
	for i := range r.Spec.Rules {
		rule, at := &r.Spec.Rules[i], yamldoc.Index("spec.rules", i)
		c.name(rule.Name, i, names)
		c.most(at+".matches", len(rule.Matches), maxMatches)
		total += len(rule.Matches)
		for j := range rule.Matches {
			m, at := &rule.Matches[j], yamldoc.Index(at+".matches", j)
			c.method(m.Method, at+".method")
			if c.inbound && m.Method != nil && m.Method.Type == "RegularExpression" {
				c.Errorf(at+".method.type", "is not enforced on requests to a Server, nor by Linkerd: write one match of type Exact for each method")
			}
			c.values(m.Headers, at+".headers", true)
		}
		c.action(rule.http(), r.Spec.forLinkerd(&r.Object), at)
		c.atServer(rule.http(), at)
	}
	if c.inbound && len(r.Spec.Rules) == 0 {
		c.Errorf("spec.rules", "missing: without rules, no request to the Server belongs to the route: write rules; one without matches is about all requests")
	}
	c.most("spec.rules", total, maxTotal)
}

// document checks what all kinds have.
func (c check) document(object *yamldoc.Object, spec *RouteSpec, rules int) {
	object.Metadata.Check(c.Document)
	group := groupOf(object)
	c.most("spec.parentRefs", len(spec.ParentRefs), maxParents)
	c.most("spec.rules", rules, maxRules)
	if len(spec.ParentRefs) == 0 {
		c.Warnf("spec.parentRefs", "missing: the route is attached to nothing and has no effect")
	}
	said := Annotated(object, func(key, format string, args ...any) {
		c.Errorf(yamldoc.Key("metadata.annotations", key), format, args...)
	})
	if c.only && said != (Settings{}) {
		c.Warnf("metadata.annotations", "those for retries and timeouts have no effect: "+unsentAtServer)
	}
	for key := range object.Metadata.Annotations {
		if IsSetting(key) && strings.HasPrefix(key, "balancer.") {
			c.Warnf(yamldoc.Key("metadata.annotations", key), "has no effect on a route: write it on the Service")
		}
	}
	c.hostnames(spec.Hostnames)
	seen := make(map[Parent]int)
	for i := range spec.ParentRefs {
		p, at := &spec.ParentRefs[i], yamldoc.Index("spec.parentRefs", i)
		c.parent(p, group, object.Namespace(), at)
		if !p.atMesh(group) && !p.atServer(group) {
			continue
		}
		to := p.parent(object, 0)
		if first, twice := seen[to]; twice {
			c.Errorf(at, "is the same as spec.parentRefs[%d]: remove one", first)
		}
		seen[to] = i
	}
}

func (c check) parent(p *ParentReference, own, namespace, at string) {
	group, kind := p.of(own)
	switch {
	case IsGateway(group, kind):
		return
	case kind == "Service" && p.Group == nil:
		c.Errorf(at+".group", `missing, which means %s, and that has no Services: write group: ""`, own)
	case p.atService():
		if !yamldoc.IsLabel(p.Name) {
			c.Errorf(at+".name", "%q is not the name of a Service", p.Name)
		}
		if p.SectionName != "" && p.Port != nil {
			c.Errorf(at+".sectionName", "port says which port is meant: remove one of them")
		}
	case p.atEntry():
		if !yamldoc.IsName(p.Name) {
			c.Errorf(at+".name", "%q is not the name of a ServiceEntry", p.Name)
		}
		if p.SectionName != "" {
			c.Errorf(at+".sectionName", "a port of a ServiceEntry is not found by its name: write port")
		}
	case p.atServer(own):
		c.server(p, namespace, at)
		return
	default:
		c.Errorf(at, `a route cannot be attached to %s of %q here: write group: "", kind: Service`, kind, group)
	}
	if p.Namespace != "" && !yamldoc.IsLabel(p.Namespace) {
		c.Errorf(at+".namespace", "%q is not a namespace", p.Namespace)
	}
	c.port(p.Port, at+".port")
}

// most reports a list that is too long.
func (c check) most(at string, n, limit int) {
	if n > limit {
		c.Errorf(at, "there are %d, and the API allows %d: use several documents", n, limit)
	}
}

// name checks the name of a rule.
func (c check) name(name string, rule int, names map[string]int) {
	if name == "" {
		return
	}
	at := yamldoc.Index("spec.rules", rule) + ".name"
	if !yamldoc.IsName(name) {
		c.Errorf(at, "%q is not a name: use lower-case letters, digits, hyphens and dots", name)
	}
	if first, twice := names[name]; twice {
		c.Errorf(at, "%q is the name of spec.rules[%d] too", name, first)
	}
	names[name] = rule
}

func (c check) httpMatch(m *HTTPRouteMatch, at string) {
	if p := m.Path; p != nil && p.Value != nil {
		if p.Type == "RegularExpression" {
			c.expression(*p.Value, at+".path.value")
		} else if message := wrongPath(*p.Value); message != "" {
			c.Errorf(at+".path.value", "%s", message)
		}
	} else if p != nil && (p.Type == "Exact" || p.Type == "RegularExpression") {
		c.Warnf(at+".path.value", `missing, which means "/"`)
	}
	c.values(m.Headers, at+".headers", true)
	c.values(m.QueryParams, at+".queryParams", false)
}

var pathCharacters = regexp.MustCompile(`^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+$`)

// wrongPath returns what is wrong with a path that is compared with that of requests, or "".
func wrongPath(path string) string {
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Sprintf("%q does not start with a slash", path)
	case len(path) > 1024:
		return "a path has at most 1024 characters"
	case !pathCharacters.MatchString(path):
		return fmt.Sprintf("%q has characters that a path must not have unless they are escaped, as in %%20", path)
	}
	for _, part := range []string{"//", "/./", "/../", "%2f", "%2F"} {
		if strings.Contains(path, part) {
			return fmt.Sprintf("%q must not contain %s", path, part)
		}
	}
	if strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..") {
		return fmt.Sprintf("%q must not end with a dot", path)
	}
	return ""
}

func (c check) expression(expr, at string) {
	if _, err := regexp.Compile(expr); err != nil {
		c.Errorf(at, "%v; the syntax is RE2, https://github.com/google/re2/wiki/Syntax", err)
	}
}

// values checks conditions on headers or query parameters.
func (c check) values(list []ValueMatch, at string, headers bool) {
	c.most(at, len(list), maxReferred)
	seen := make(map[string]int)
	for i := range list {
		v, at := &list[i], yamldoc.Index(at, i)
		key := v.Name
		if headers {
			key = strings.ToLower(key)
		}
		switch first, twice := seen[key]; {
		case headers && !field.IsToken(v.Name):
			c.Errorf(at+".name", "%q is not the name of a header", v.Name)
		case v.Name == "":
			c.Errorf(at+".name", "must not be empty")
		case c.grpc && field.OwnedByGRPC(key) && key != "content-type" && key != "te": // which are known before
			c.Errorf(at+".name", "is not enforced: gRPC sets %s after a call is routed: match other metadata", v.Name)
		case twice:
			c.Warnf(at+".name", "has no effect: %s is there before, in element %d, and the first one counts", v.Name, first)
		default:
			seen[key] = i
		}
		if v.Value == "" {
			c.Errorf(at+".value", "must not be empty")
		} else if v.Type == "RegularExpression" {
			c.expression(v.Value, at+".value")
		}
	}
}

var (
	serviceName = regexp.MustCompile(`^(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*$`)
	methodName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z_0-9]*$`)
)

func (c check) method(m *GRPCMethodMatch, at string) {
	switch {
	case m == nil:
	case m.Service == "" && m.Method == "":
		c.Errorf(at, "must name a service, a method or both")
	case m.Type == "RegularExpression":
		c.expression(m.Service, at+".service")
		c.expression(m.Method, at+".method")
	default:
		if m.Service != "" && !serviceName.MatchString(m.Service) {
			c.Errorf(at+".service", "%q is not the full name of a service of gRPC", m.Service)
		}
		if m.Method != "" && !methodName.MatchString(m.Method) {
			c.Errorf(at+".method", "%q is not the name of a method of gRPC", m.Method)
		}
	}
}

// action checks what a rule does with the requests that match it. Without backends, they go to the parent if the route is written for Linkerd.
func (c check) action(rule *HTTPRouteRule, linkerd bool, at string) {
	c.filters(rule.Filters, at+".filters")
	redirect, rewrite := rule.redirect(), rule.rewrite()
	if redirect != nil && len(rule.BackendRefs) > 0 {
		c.Errorf(at+".backendRefs", "a rule with a redirect sends no requests: remove the backends or the redirect")
	}
	if redirect != nil {
		c.unsent(rule, at)
	}
	if redirect != nil && rewrite != nil {
		c.Errorf(at+".filters", "URLRewrite and RequestRedirect exclude each other")
	}
	if rule.replacesPrefix() && (len(rule.Matches) > 1 || len(rule.Matches) == 1 && rule.Matches[0].Path.kind() != "PathPrefix") {
		c.Errorf(at+".matches", "with replacePrefixMatch, there must be exactly one match, with a path of type PathPrefix")
	}
	c.most(at+".backendRefs", len(rule.BackendRefs), maxReferred)
	for i := range rule.BackendRefs {
		b, at := &rule.BackendRefs[i], yamldoc.Index(at+".backendRefs", i)
		c.backend(&b.BackendRef, at)
		if b.Weight != nil && (*b.Weight < 0 || *b.Weight > maxWeight) {
			c.Errorf(at+".weight", "%d is not a weight: it must be from 0 to %d", *b.Weight, maxWeight)
		}
		c.filters(b.Filters, at+".filters")
		for j := range b.Filters {
			if f := &b.Filters[j]; f.RequestMirror != nil || f.RequestRedirect != nil || f.URLRewrite != nil || f.CORS != nil {
				c.Errorf(yamldoc.Index(at+".filters", j), "%s is not enforced for a single backend: write it in the filters of the rule, or make two rules", f.Type)
			}
		}
	}
	if redirect == nil && rule.weight() == 0 && (len(rule.BackendRefs) > 0 || !linkerd) && !c.only {
		c.Warnf(at+".backendRefs", "no backend gets requests, so that they fail: name the Service itself if it is meant")
	}
}

// unsent warns about what a rule with a redirect says of requests that are sent.
func (c check) unsent(rule *HTTPRouteRule, at string) {
	const message = "has no effect: a rule with a redirect sends no requests"
	if rule.Timeouts != nil {
		c.Warnf(at+".timeouts", message)
	}
	if rule.Retry != nil {
		c.Warnf(at+".retry", message)
	}
	for i := range rule.Filters {
		if f := &rule.Filters[i]; f.RequestMirror != nil || f.RequestHeaderModifier != nil || f.CORS != nil {
			c.Warnf(yamldoc.Index(at+".filters", i), message)
		}
	}
}

func (c check) backend(b *BackendRef, at string) {
	switch {
	case b.ofHost():
		if !yamldoc.IsName(strings.ToLower(b.Name)) {
			c.Errorf(at+".name", "%q is not a host name", b.Name)
		}
	case !b.ofService():
		c.Errorf(at+".kind", "%s of %q cannot get requests: name a Service", b.kind(), b.Group)
	case !yamldoc.IsLabel(b.Name):
		c.Errorf(at+".name", "%q is not the name of a Service", b.Name)
	}
	if b.Namespace != "" && !yamldoc.IsLabel(b.Namespace) {
		c.Errorf(at+".namespace", "%q is not a namespace", b.Namespace)
	}
	if b.Port == nil {
		c.Errorf(at+".port", "missing: it is required")
	}
	c.port(b.Port, at+".port")
}

func (c check) port(port *int32, at string) {
	if port != nil && (*port < 1 || *port > maxPort) {
		c.Errorf(at, "%d is not a port: it must be from 1 to %d", *port, maxPort)
	}
}

func (c check) timeouts(t *HTTPRouteTimeouts, at string) {
	if t == nil {
		return
	}
	whole, each := c.duration(t.Request, at+".request"), c.duration(t.BackendRequest, at+".backendRequest")
	if whole > 0 && each > whole {
		c.Errorf(at+".backendRequest", "%v is longer than request, %v", each, whole)
	}
}

func (c check) retry(r *HTTPRouteRetry, at string) {
	if r == nil {
		return
	}
	for i, code := range r.Codes {
		if code < 400 || code > 599 {
			c.Errorf(yamldoc.Index(at+".codes", i), "%d is not a status that can be retried: it must be from 400 to 599", code)
		}
	}
	if r.Attempts != nil && (*r.Attempts < 0 || *r.Attempts > 1<<20) {
		c.Errorf(at+".attempts", "%d is out of range", *r.Attempts)
	}
	c.duration(r.Backoff, at+".backoff")
}

var durations = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)

// duration returns a duration, or 0 if there is none or it is invalid.
func (c check) duration(s *string, at string) time.Duration {
	if s != nil && !durations.MatchString(*s) {
		c.Errorf(at, "%q is not a duration: write up to four whole numbers with a unit, h, m, s or ms, such as 1s500ms", *s)
		return 0
	}
	return parse(s)
}

// parse returns a duration that was checked. It is 0 without one.
func parse(s *string) time.Duration {
	if s == nil {
		return 0
	}
	d, _ := time.ParseDuration(*s)
	return d
}
