package route

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/retry"
)

// Table is a compiled list of routes. It is immutable and safe for concurrent use. A nil *Table matches nothing.
type Table struct {
	rules   []Rule
	matches int // how many the rules have together

	indexing sync.Once
	index    *index // of a table with many matches, once it was used
}

// Rule is a compiled [Route]. It is immutable, and its address identifies it within its table.
type Rule struct {
	// Route is what the rule was compiled from. It must not be changed.
	Route *Route

	// Index is the position of the rule in the table, counted from 0.
	Index int

	// Retry is Route.Retry, compiled.
	Retry *retry.Policy

	matches  []matcher
	path     *pathRewrite // nil if it stays
	response *HeaderEdits // of the route alone, for its own responses
	backends []Backend
	total    uint32 // the sum of the weights
}

// Backend is a compiled [Destination]: where a request goes, and how the request and its response are edited.
type Backend struct {
	// Target is where requests go.
	Target Target

	// Index is the position of the destination in its route, counted from 0.
	Index int

	// Authority replaces the request's Host header, unless it is empty.
	Authority string

	// Request and Response edit the headers. They are nil if there is nothing to edit.
	Request, Response *HeaderEdits

	rule           *Rule
	upTo           uint32 // the sum of the weights up to and including this one
	dropsUserAgent bool
}

// NewTable checks and compiles routes. The error joins a [FieldError] for each invalid field. The table shares the slices that
// the routes contain, so they must not be changed afterwards.
//
// A header value is a format string. It may contain:
//
//	%%                      a percent sign
//	%REQ(NAME)%             a header of the request; also :authority, :method, :path (with the query) and :scheme
//	%RESP(NAME)%            a header of the response, in response headers
//	%REQ(NAME?OTHER):20%    the other header if the first is absent or empty; at most 20 bytes
//
// A header whose value is empty after evaluation is neither set nor added.
func NewTable(routes []Route) (*Table, error) {
	t := &Table{rules: make([]Rule, len(routes))}
	routes = slices.Clone(routes)
	var errs []error
	known := make(expressions)
	for i := range routes {
		t.rules[i].compile(&routes[i], i, known, func(field string, err error) {
			errs = append(errs, &FieldError{Route: i, Field: field, Err: err})
		})
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	for i := range t.rules {
		t.matches += len(t.rules[i].matches)
	}
	return t, nil
}

// FieldError describes an invalid field of a [Route].
type FieldError struct {
	Route int    // the index of the route
	Field string // the path of the field in the route, in the syntax of Go: "Matches[1].Headers[0]"
	Err   error  // what is wrong
}

// Error returns the route, the field and the problem.
func (e *FieldError) Error() string {
	return fmt.Sprintf("route: routes[%d].%s: %v", e.Route, e.Field, e.Err)
}

// Unwrap returns Err.
func (e *FieldError) Unwrap() error { return e.Err }

// Len returns the number of routes.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return len(t.rules)
}

// Rule returns the compiled route at index i.
func (t *Table) Rule(i int) *Rule {
	return &t.rules[i]
}

// Match returns the first route that applies to the request, and which of its matches matched: an index into [Route.Matches], or
// -1 if the route has none. It allocates only to join several values of a header that a route matches on, and an index for the first
// request to a large table.
func (t *Table) Match(r *Request) (rule *Rule, match int, ok bool) {
	if t == nil {
		return nil, -1, false
	}
	if t.matches < indexedFrom {
		return t.search(r)
	}
	t.indexing.Do(func() { t.index = newIndex(t) })
	return t.index.find(t, r)
}

// search is Match without an index.
func (t *Table) search(r *Request) (rule *Rule, match int, ok bool) {
	for i := range t.rules {
		rule := &t.rules[i]
		if len(rule.matches) == 0 {
			return rule, -1, true
		}
		for j := range rule.matches {
			if rule.matches[j].match(r) {
				return rule, j, true
			}
		}
	}
	return nil, -1, false
}

// Pick chooses the destination of one request by weight. Retries of the request go to the same destination. The function random
// returns an integer in [0, n). Nil means [rand.Uint32N]. Pick returns nil if the route has no destinations; see [Rule.Respond].
func (rule *Rule) Pick(random func(n uint32) uint32) *Backend {
	switch len(rule.backends) {
	case 0:
		return nil
	case 1:
		return &rule.backends[0]
	}
	var n uint32
	if random == nil {
		n = rand.Uint32N(rule.total)
	} else {
		n = random(rule.total)
	}
	for i := range rule.backends {
		if n < rule.backends[i].upTo {
			return &rule.backends[i]
		}
	}
	panic(fmt.Sprintf("route: random returned %d, want less than %d", n, rule.total))
}

// Backends returns the number of destinations of the route.
func (rule *Rule) Backends() int {
	return len(rule.backends)
}

// Backend returns the compiled destination at index i.
func (rule *Rule) Backend(i int) *Backend {
	return &rule.backends[i]
}

// span returns the length of the prefix of the path that the match covers, or whole.
func (rule *Rule) span(match int) int32 {
	if match < 0 {
		return defaultSpan
	}
	return rule.matches[match].span
}

// reporter is called for each invalid field.
type reporter func(field string, err error)

// within returns a reporter for the fields of the field prefix.
func (report reporter) within(prefix string) reporter {
	return func(field string, err error) { report(prefix+"."+field, err) }
}

func (rule *Rule) compile(r *Route, index int, known expressions, report reporter) {
	rule.Route, rule.Index = r, index
	if len(r.Matches) > 0 {
		rule.matches = make([]matcher, len(r.Matches))
	}
	for i := range r.Matches {
		rule.matches[i] = compileMatch(&r.Matches[i], known, report.within(fmt.Sprintf("Matches[%d]", i)))
	}
	rule.path = compileRewrite(&r.Rewrite, report.within("Rewrite"))
	request, authority := compileLevel(&r.Headers.Request, false, report.within("Headers.Request"))
	response, _ := compileLevel(&r.Headers.Response, true, report.within("Headers.Response"))
	rule.response = newHeaderEdits(response)
	r.checkAction(report)
	rule.compileBackends(request, response, cmp.Or(r.Rewrite.Authority, authority), report)

	if r.Timeout < 0 {
		report("Timeout", fmt.Errorf("%v is negative", r.Timeout))
	}
	if err := r.Fault.Validate(); err != nil {
		report("Fault", err)
	}
	var err error
	if rule.Retry, err = retry.NewPolicy(r.Retry); err != nil {
		report("Retry", err)
	}
	for i := range r.Mirrors {
		in := report.within(fmt.Sprintf("Mirrors[%d]", i))
		r.Mirrors[i].Target.check(in)
		if err := fraction.CheckSample(r.Mirrors[i].Fraction); err != nil {
			in("Fraction", err)
		}
	}
}

// checkAction checks that the route has exactly one of Redirect, Direct and Destinations, and nothing that excludes it.
func (r *Route) checkAction(report reporter) {
	switch answers := r.Redirect != nil || r.Direct != nil; {
	case r.Redirect != nil && r.Direct != nil:
		report("Direct", errors.New("Redirect is set too"))
	case answers && len(r.Destinations) > 0:
		report("Destinations", errors.New("Redirect or Direct is set too"))
	case answers && r.Rewrite != Rewrite{}:
		report("Rewrite", errors.New("nothing is sent that could be rewritten"))
	case answers && r.Fault.Validate() == nil && (r.Fault.Delay.Fraction > 0 || r.Fault.Abort.Fraction > 0):
		report("Fault", errors.New("nothing is sent that could fail"))
	case !answers && len(r.Destinations) == 0:
		report("Destinations", errors.New("neither Destinations nor Redirect nor Direct is set"))
	}
	if r.Redirect != nil {
		r.Redirect.check(report.within("Redirect"))
	}
	if r.Direct != nil {
		r.Direct.check(report.within("Direct"))
	}
}

// compileBackends compiles the destinations. request, response and authority are those that the route sets for all of them.
func (rule *Rule) compileBackends(request, response level, authority string, report reporter) {
	destinations := rule.Route.Destinations
	rule.backends = make([]Backend, len(destinations))
	var total uint64
	for i := range destinations {
		d := &destinations[i]
		in := report.within(fmt.Sprintf("Destinations[%d]", i))
		d.Target.check(in)
		if d.Weight < 0 {
			in("Weight", fmt.Errorf("%d is negative", d.Weight))
		}
		total += uint64(max(d.Weight, 0))
		ownRequest, ownAuthority := compileLevel(&d.Headers.Request, false, in.within("Headers.Request"))
		ownResponse, _ := compileLevel(&d.Headers.Response, true, in.within("Headers.Response"))
		b := Backend{
			Target:    d.Target,
			Index:     i,
			Authority: cmp.Or(authority, ownAuthority),
			Request:   newHeaderEdits(ownRequest, request),
			Response:  newHeaderEdits(ownResponse, response),
			rule:      rule,
			upTo:      uint32(min(total, math.MaxUint32)),
		}
		b.dropsUserAgent = b.Request.removes("User-Agent")
		rule.backends[i] = b
	}
	switch rule.total = uint32(min(total, math.MaxUint32)); {
	case total > math.MaxUint32:
		report("Destinations", errors.New("the sum of the weights is too large"))
	case total == 0 && len(destinations) > 1:
		report("Destinations", errors.New("the sum of the weights is 0"))
	}
}

func (t *Target) check(report reporter) {
	if strings.ContainsAny(t.Host, "/?#@[]% \t\r\n") {
		report("Host", fmt.Errorf("%q is not a host name", t.Host))
	}
	if t.Port < 0 || t.Port > math.MaxUint16 {
		report("Port", fmt.Errorf("%d is not a port", t.Port))
	}
}

func (d *Redirect) check(report reporter) {
	switch d.Status {
	case 0, http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		report("Status", fmt.Errorf("%d is not one of 301, 302, 303, 307 and 308", d.Status))
	}
	if d.Scheme != "" && d.Scheme != "http" && d.Scheme != "https" {
		report("Scheme", fmt.Errorf("%q is neither http nor https", d.Scheme))
	}
	if d.Authority != "" && !validAuthority(d.Authority) {
		report("Authority", fmt.Errorf("%q is not an authority", d.Authority))
	}
	if d.Port < 0 || d.Port > math.MaxUint16 {
		report("Port", fmt.Errorf("%d is not a port", d.Port))
	}
	if d.DerivePort > FromRequest {
		report("DerivePort", fmt.Errorf("%d is not a source of ports", d.DerivePort))
	}
	_, own := splitPort(d.Authority)
	switch {
	case d.Port != 0 && d.DerivePort != KeepPort:
		report("Port", errors.New("DerivePort is set too"))
	case own != "" && (d.Port != 0 || d.DerivePort != KeepPort):
		report("Authority", errors.New("it has a port, and Port or DerivePort is set too"))
	}
	path, _, _ := strings.Cut(d.URI, "?")
	switch {
	case d.URI != "" && d.PrefixRewrite != "":
		report("PrefixRewrite", errors.New("URI is set too"))
	case d.URI != "":
		if err := checkPath(path); err != nil {
			report("URI", err)
		}
	case d.PrefixRewrite != "":
		if err := checkPath(d.PrefixRewrite); err != nil {
			report("PrefixRewrite", err)
		}
	}
}

func (d *DirectResponse) check(report reporter) {
	if d.Status < 200 || d.Status > 599 {
		report("Status", fmt.Errorf("%d is not one of 200 to 599", d.Status))
	}
	if len(d.Body) > 0 && (d.Status == http.StatusNoContent || d.Status == http.StatusNotModified) {
		report("Body", fmt.Errorf("a response with status %d has none", d.Status))
	}
}

// removes reports whether the edits remove the header.
func (e *HeaderEdits) removes(canonical string) bool {
	if e == nil {
		return false
	}
	for i := range e.levels {
		for j := range e.levels[i].remove {
			if e.levels[i].remove[j].canonical == canonical {
				return true
			}
		}
	}
	return false
}
