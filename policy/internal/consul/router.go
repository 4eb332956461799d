package consul

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Router is a service-router entry. The first route that matches a request counts. Requests that match none are treated as if there was
// no router.
type Router struct {
	Routes []Route `yaml:"Routes"`
}

// Route is one route of a [Router].
type Route struct {
	Match       *Match       `yaml:"Match"`
	Destination *Destination `yaml:"Destination"`

	matches route.Match
}

// Match says which requests a route applies to.
type Match struct {
	HTTP *HTTPMatch `yaml:"HTTP"`
}

// HTTPMatch is a condition on a request. All of its fields must match.
type HTTPMatch struct {
	PathExact       string        `yaml:"PathExact"`
	PathPrefix      string        `yaml:"PathPrefix"`
	PathRegex       string        `yaml:"PathRegex"`
	CaseInsensitive bool          `yaml:"CaseInsensitive"`
	Header          []HeaderMatch `yaml:"Header"`
	QueryParam      []QueryMatch  `yaml:"QueryParam"`
	Methods         []string      `yaml:"Methods"`
}

// HeaderMatch is a condition on a header.
type HeaderMatch struct {
	Name    string `yaml:"Name"`
	Present bool   `yaml:"Present"`
	Exact   string `yaml:"Exact"`
	Prefix  string `yaml:"Prefix"`
	Suffix  string `yaml:"Suffix"`
	Regex   string `yaml:"Regex"`
	Invert  bool   `yaml:"Invert"`
}

// QueryMatch is a condition on a query parameter.
type QueryMatch struct {
	Name    string `yaml:"Name"`
	Present bool   `yaml:"Present"`
	Exact   string `yaml:"Exact"`
	Regex   string `yaml:"Regex"`
}

// Destination says where the requests of a route go, and how.
type Destination struct {
	Service       string `yaml:"Service"`
	ServiceSubset string `yaml:"ServiceSubset"`
	Scope

	PrefixRewrite         string           `yaml:"PrefixRewrite"`
	RequestTimeout        yamldoc.Duration `yaml:"RequestTimeout"`
	IdleTimeout           yamldoc.Duration `yaml:"IdleTimeout" mesh:"meaningless: no timeout ends a stream that is silent between its messages; mesh.Protection.BodyIdle does"`
	NumRetries            uint32           `yaml:"NumRetries"`
	RetryOnConnectFailure bool             `yaml:"RetryOnConnectFailure"`
	RetryOn               []string         `yaml:"RetryOn"`
	RetryOnStatusCodes    []uint32         `yaml:"RetryOnStatusCodes"`
	RequestHeaders        *Modifiers       `yaml:"RequestHeaders"`
	ResponseHeaders       *Modifiers       `yaml:"ResponseHeaders"`
}

// Modifiers change headers.
type Modifiers struct {
	Add    map[string]string `yaml:"Add"`
	Set    map[string]string `yaml:"Set"`
	Remove []string          `yaml:"Remove"`
}

func (r *Router) check(doc *yamldoc.Document, e *Entry, _ *Environment) {
	e.Lines = make([]int32, len(r.Routes))
	all := -1
	for i := range r.Routes {
		at := yamldoc.Index(e.At+"Routes", i)
		e.Lines[i] = int32(doc.LineOf(at) - doc.Line)
		rt := &r.Routes[i]
		rt.check(doc, at)
		switch {
		case all >= 0:
			doc.Warnf(at, "never reached: %s takes every request", yamldoc.Index(e.At+"Routes", all))
		case rt.takesAll():
			all = i
		}
	}
}

// takesAll reports whether the route applies to all requests.
func (r *Route) takesAll() bool {
	m := r.match()
	return len(m.Header) == 0 && len(m.QueryParam) == 0 && len(m.Methods) == 0 && m.PathExact == "" && m.PathRegex == "" &&
		(m.PathPrefix == "" || m.PathPrefix == "/")
}

// match returns the condition of the route, which is empty if it has none.
func (r *Route) match() *HTTPMatch {
	if r.Match == nil || r.Match.HTTP == nil {
		return new(HTTPMatch)
	}
	return r.Match.HTTP
}

func (r *Route) check(doc *yamldoc.Document, at string) {
	m := r.match()
	m.check(doc, at+".Match.HTTP")
	if r.Destination != nil {
		r.Destination.check(doc, at+".Destination", m)
	}
	r.matches = m.translate()
	if doc.Failed() {
		return
	}
	// Errors that only the route table detects must be found now, not with the first request.
	part := r.Route()
	part.Destinations = make([]route.Destination, 1)
	reportTable(doc, at, part, map[string]string{
		"Matches[0].URI": ".Match.HTTP.PathRegex", "Matches[0].Headers": ".Match.HTTP.Header", "Matches[0].WithoutHeaders": ".Match.HTTP.Header",
		"Matches[0].Query": ".Match.HTTP.QueryParam", "Rewrite": ".Destination.PrefixRewrite", "Headers.Request": ".Destination.RequestHeaders",
		"Headers.Response": ".Destination.ResponseHeaders", "Retry": ".Destination.RetryOn",
	})
}

func (m *HTTPMatch) check(doc *yamldoc.Document, at string) {
	for _, path := range []struct{ name, value string }{{"PathExact", m.PathExact}, {"PathPrefix", m.PathPrefix}} {
		if path.value != "" && path.value[0] != '/' {
			doc.Errorf(at+"."+path.name, "%q does not start with a slash", path.value)
		}
	}
	if count(m.PathExact != "", m.PathPrefix != "", m.PathRegex != "") > 1 {
		doc.Errorf(at, "PathExact, PathPrefix and PathRegex exclude each other: set only one of them")
	}
	if m.CaseInsensitive && m.PathRegex != "" {
		doc.Warnf(at+".CaseInsensitive", "has no effect on PathRegex: begin the expression with (?i)")
	}
	for i := range m.Header {
		h := &m.Header[i]
		at := yamldoc.Index(at+".Header", i)
		if h.Name == "" {
			doc.Errorf(at+".Name", "missing: name the header")
		}
		if count(h.Present, h.Exact != "", h.Prefix != "", h.Suffix != "", h.Regex != "") != 1 {
			doc.Errorf(at, "must have exactly one of Present, Exact, Prefix, Suffix and Regex")
		}
		checkRegex(doc, at+".Regex", h.Regex)
	}
	for i := range m.QueryParam {
		q := &m.QueryParam[i]
		at := yamldoc.Index(at+".QueryParam", i)
		if q.Name == "" {
			doc.Errorf(at+".Name", "missing: name the parameter")
		}
		if count(q.Present, q.Exact != "", q.Regex != "") != 1 {
			doc.Errorf(at, "must have exactly one of Present, Exact and Regex")
		}
		checkRegex(doc, at+".Regex", q.Regex)
	}
	checkRegex(doc, at+".PathRegex", m.PathRegex)
	checkMethods(doc, at+".Methods", m.Methods)
}

// checkMethods reports unknown and duplicate methods, and returns whether all are valid. Methods may be written in any case.
func checkMethods(doc *yamldoc.Document, at string, list []string) (ok bool) {
	ok = true
	for i, method := range list {
		at, upper := yamldoc.Index(at, i), strings.ToUpper(method)
		switch {
		case !slices.Contains(methods, upper):
			doc.Errorf(at, "%q is not a method: use one of %s", method, strings.Join(methods, ", "))
		case slices.ContainsFunc(list[:i], func(other string) bool { return strings.EqualFold(other, method) }):
			doc.Errorf(at, "%s is there twice: remove one", upper)
		default:
			continue
		}
		ok = false
	}
	return ok
}

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
	http.MethodConnect, http.MethodOptions, http.MethodTrace}

func count(conditions ...bool) (n int) {
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}

func (d *Destination) check(doc *yamldoc.Document, at string, m *HTTPMatch) {
	d.Scope.check(doc, at+".")
	checkTarget(doc, at, d.Service)
	switch {
	case d.PrefixRewrite == "":
	case m.PathExact == "" && m.PathPrefix == "":
		doc.Errorf(at+".PrefixRewrite", "needs PathPrefix or PathExact in the match, whose part of the path it replaces")
	case m.PathExact != "" && d.PrefixRewrite == "/":
		doc.Warnf(at+".PrefixRewrite", `has no effect: with PathExact, Consul 1.22 sends the path on as it is; use PathPrefix`)
	}
	if d.NumRetries > 1_000_000 {
		doc.Errorf(at+".NumRetries", "%d is out of range", d.NumRetries)
	}
	for i, on := range d.RetryOn {
		if !slices.Contains(conditions, on) {
			doc.Errorf(yamldoc.Index(at+".RetryOn", i), "%q is not a condition: use some of %s", on, strings.Join(conditions, ", "))
		}
	}
	for i, code := range d.RetryOnStatusCodes {
		if code < 100 || code > 599 {
			doc.Errorf(yamldoc.Index(at+".RetryOnStatusCodes", i), "%d is not a status code: it must be from 100 to 599", code)
		}
	}
	if d.NumRetries > 0 && !d.conditional() {
		doc.Warnf(at+".NumRetries", "has no effect: nothing says what is retried; set RetryOn, RetryOnConnectFailure or RetryOnStatusCodes")
	}
	d.RequestHeaders.check(doc, at+".RequestHeaders")
	d.ResponseHeaders.check(doc, at+".ResponseHeaders")
}

var conditions = []string{"5xx", "gateway-error", "reset", "connect-failure", "envoy-ratelimited", "retriable-4xx", "refused-stream",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}

// conditional reports whether the destination has a condition for retries.
func (d *Destination) conditional() bool {
	return d.RetryOnConnectFailure || len(d.RetryOn) > 0 || len(d.RetryOnStatusCodes) > 0
}

func (d *Destination) retries() retry.Config {
	if d == nil || !d.conditional() {
		return retry.Config{}
	}
	list := slices.Clone(d.RetryOn)
	if d.RetryOnConnectFailure {
		list = append(list, "connect-failure")
	}
	var on retry.On
	if len(list) > 0 {
		var err error
		if on, err = retry.ParseOn(strings.Join(list, ",")); err != nil {
			return retry.Config{} // check has reported the error
		}
	}
	codes := make([]int, len(d.RetryOnStatusCodes))
	for i, code := range d.RetryOnStatusCodes {
		codes[i] = int(code)
	}
	if len(codes) > 0 {
		on.Status = retry.Codes(codes...)
	}
	// Settings that no entry can express are off: Envoy ignores Retry-After, retries all methods, and does not detect nested retries.
	return retry.Config{Retries: max(1, int(d.NumRetries)), On: on, MaxRetryAfter: -1, AnyMethod: true, NestedRetries: true}
}

func (m *Modifiers) check(doc *yamldoc.Document, at string) {
	if m == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(m.Add)) {
		if _, both := m.Set[name]; both {
			doc.Warnf(yamldoc.Key(at+".Add", name), "has no effect: Set replaces what it adds")
		}
	}
}
