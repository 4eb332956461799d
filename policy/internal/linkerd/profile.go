package linkerd

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/policy/internal/conjunction"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

const (
	minStatus = 100
	maxStatus = 599
)

// Profile is a translated [ServiceProfile].
type Profile struct {
	Routes []ProfileRoute

	// Budget bounds the retries of the service. It is Off if the document has none and no route needs one.
	Budget retry.BudgetConfig

	// Destinations share the requests to the service, whatever route matches. Empty means the service itself.
	Destinations []route.Destination
}

// ProfileRoute has the settings for the requests that match it. Requests that match no route have the mesh's defaults.
type ProfileRoute struct {
	Name    string
	Matches []route.Match // alternatives; never empty
	Timeout time.Duration // 0 means none
	Retry   retry.Config
}

// Profile translates the document, which must have passed Check.
func (sp *ServiceProfile) Profile() Profile {
	p := Profile{Budget: retry.BudgetConfig{Off: true}}
	for i := range sp.Spec.Routes {
		r := &sp.Spec.Routes[i]
		matches, err := r.Condition.matches()
		if err != nil {
			panic(err) // Check has reported errors
		}
		p.Routes = append(p.Routes, ProfileRoute{
			Name:    r.Name,
			Matches: matches,
			Timeout: max(0, r.Timeout.Duration),
			Retry:   r.retry(),
		})
		if r.limit() == unlimited {
			p.Budget = retry.BudgetConfig{} // Linkerd's default: 20%, 10 per second, 10 s
		}
	}
	if b := sp.Spec.RetryBudget; b != nil {
		p.Budget = retry.BudgetConfig{Ratio: b.RetryRatio, MinPerSecond: float64(b.MinRetriesPerSecond), Window: b.TTL.Duration}
		// For the budget, 0 means its default. In the document, it means none.
		if b.RetryRatio == 0 {
			p.Budget.Ratio = -1
		}
		if b.MinRetriesPerSecond == 0 {
			p.Budget.MinPerSecond = -1
		}
	}
	sum := 0
	for _, d := range sp.Spec.DstOverrides {
		if d.Weight.Milli == 0 {
			continue
		}
		host, port, _ := net.SplitHostPort(d.Authority)
		n, _ := strconv.Atoi(port)
		sum += int(d.Weight.Milli)
		p.Destinations = append(p.Destinations, route.Destination{
			Target: route.Target{Host: strings.TrimSuffix(strings.ToLower(host), "."), Port: n},
			Weight: int(d.Weight.Milli),
		})
	}
	if sum == 0 {
		p.Destinations = nil
	}
	return p
}

// unlimited is the maximum number of retries of a call that only a budget limits.
const unlimited = 100

// limit returns the maximum number of retries of a call.
func (r *Route) limit() int {
	switch retryable := r.IsRetryable != nil && *r.IsRetryable; {
	case r.Retries != nil && r.Retries.Limit != nil:
		return int(*r.Retries.Limit)
	case retryable:
		return unlimited
	}
	return 0
}

// retry returns the retry settings. Like Linkerd's proxy, it retries immediately, whatever the method is.
func (r *Route) retry() retry.Config {
	if r.limit() == 0 || !r.canFail() {
		return retry.Config{}
	}
	c := retry.Config{
		Retries:       r.limit(),
		On:            r.on(),
		Backoff:       -1,
		MaxRetryAfter: -1,
		AnyMethod:     true,
		NestedRetries: true,
	}
	if r.Retries != nil {
		c.PerTryTimeout = r.Retries.Timeout.Duration
	}
	return c
}

// canFail reports whether any outcome is a failure.
func (r *Route) canFail() bool {
	return r.on() != retry.On{}
}

// on returns which outcomes are failures. A call without a response counts as the response of Linkerd's proxy: 502, 503 or 504.
func (r *Route) on() retry.On {
	const grpc = retry.DeadlineExceeded | retry.Internal | retry.Unavailable
	if len(r.ResponseClasses) == 0 {
		return retry.On{Conditions: retry.ServerError | grpc}
	}
	var failures []int
	server, gateway := true, false
	for status := minStatus; status <= maxStatus; status++ {
		_, failed := r.classify(status)
		switch {
		case failed:
			failures = append(failures, status)
		case status >= 500:
			server = false
		}
		gateway = gateway || failed && status >= 502 && status <= 504
	}
	on := retry.On{Status: retry.Codes(failures...)}
	switch {
	case server:
		on.Conditions = retry.ServerError
		rest := failures[:len(failures)-100]
		on.Status = retry.Codes(rest...)
	case gateway:
		on.Conditions = retry.Reset
	}
	if classified, _ := r.classify(200); !classified {
		on.Conditions |= grpc
	}
	return on
}

// classify reports whether a class matches the status, and whether the status is a failure.
func (r *Route) classify(status int) (classified, failed bool) {
	for i := range r.ResponseClasses {
		c := &r.ResponseClasses[i]
		if holds, counts := c.Condition.holds(status); holds && counts {
			return true, c.IsFailure
		}
	}
	return false, status >= 500
}

// holds reports whether the condition matches a status. A condition without content does not count: the proxy removes it from the
// condition around it.
func (m *ResponseMatch) holds(status int) (holds, counts bool) {
	holds = true
	and := func(part, partCounts bool) {
		if partCounts {
			holds, counts = holds && part, true
		}
	}
	if s := m.Status; s != nil && (s.Min != 0 || s.Max != 0) {
		low, high := int(s.Min), int(s.Max)
		if low == 0 {
			low = high
		}
		if high == 0 {
			high = low
		}
		and(low <= status && status <= high, true)
	}
	for i := range m.All {
		and(m.All[i].holds(status))
	}
	some, someCounts := false, false
	for i := range m.Any {
		part, partCounts := m.Any[i].holds(status)
		some, someCounts = some || part && partCounts, someCounts || partCounts
	}
	and(some, someCounts)
	if m.Not != nil {
		part, partCounts := m.Not.holds(status)
		and(!part, partCounts)
	}
	return holds, counts
}

// matches returns the condition as alternatives.
func (m *RequestMatch) matches() ([]route.Match, error) {
	terms, err := m.terms(false)
	if err != nil {
		return nil, err
	}
	if len(terms) == 0 {
		return []route.Match{conjunction.Never}, nil
	}
	return terms, nil
}

// maxTerms bounds the number of alternatives of a condition.
const maxTerms = 256

var errTerms = errors.New("too complex: written out it has more than " + strconv.Itoa(maxTerms) + " alternatives")

// terms returns the alternatives under which the condition or, if negated is set, its negation holds. It never holds if there are none.
func (m *RequestMatch) terms(negated bool) ([]route.Match, error) {
	t := newTerms(negated) // all parts must hold; for the negation, it is enough that one does not
	if m.Method != "" {
		t.add(methodTerm(m.Method, negated))
	}
	if m.PathRegex != "" {
		t.add(pathTerm(m.PathRegex, negated))
	}
	for i := range m.All {
		t.add(m.All[i].terms(negated))
	}
	if m.Any != nil {
		some := newTerms(!negated)
		for i := range m.Any {
			some.add(m.Any[i].terms(negated))
		}
		t.add(some.list, some.err)
	}
	if m.Not != nil {
		t.add(m.Not.terms(!negated))
	}
	return t.list, t.err
}

// terms has the alternatives under which all of several parts hold or, if any is set, any of them does.
type terms struct {
	any  bool
	list []route.Match
	err  error
}

func newTerms(any bool) *terms {
	if any {
		return &terms{any: true}
	}
	return &terms{list: []route.Match{{}}} // one alternative without conditions, which always holds
}

// add adds a part.
func (t *terms) add(part []route.Match, err error) {
	switch {
	case t.err != nil:
	case err != nil:
		t.err = err
	case !t.any:
		t.list, t.err = and(t.list, part)
	default:
		if t.list = append(t.list, part...); len(t.list) > maxTerms {
			t.err = errTerms
		}
	}
}

func methodTerm(method string, negated bool) ([]route.Match, error) {
	value := route.StringMatch{Kind: route.Exact, Value: strings.ToUpper(method)}
	if negated {
		return []route.Match{{WithoutHeaders: []route.KeyMatch{{Key: ":method", Value: value}}}}, nil
	}
	return []route.Match{{Method: value}}, nil
}

func pathTerm(pattern string, negated bool) ([]route.Match, error) {
	expr, err := fullPath(pattern)
	if err != nil {
		return nil, err
	}
	value := route.StringMatch{Kind: route.Regex, Value: expr.text}
	if !negated {
		return []route.Match{{URI: value}}, nil
	}
	key, err := conjunction.Path(value)
	return []route.Match{{WithoutHeaders: []route.KeyMatch{key}}}, err
}

// and returns the alternatives under which one of a and one of b both hold.
func and(a, b []route.Match) ([]route.Match, error) {
	if len(a)*len(b) > maxTerms {
		return nil, errTerms
	}
	out := []route.Match{}
	for _, x := range a {
		for _, y := range b {
			both, ok, err := conjunction.And(x, y, false)
			if err != nil {
				return nil, err
			}
			if ok && len(both.Headers)+len(both.WithoutHeaders) > maxTerms {
				return nil, errTerms
			}
			if ok {
				out = append(out, both)
			}
		}
	}
	return out, nil
}

// takesAll reports whether one of the alternatives has no conditions.
func takesAll(terms []route.Match) bool {
	for _, t := range terms {
		if t.URI.Kind == route.Any && t.Method.Kind == route.Any && len(t.Headers) == 0 && len(t.WithoutHeaders) == 0 {
			return true
		}
	}
	return false
}

// pathExpr is a pathRegex as a pattern for the whole path.
type pathExpr struct {
	text  string
	loose bool // some alternatives need not match the whole path
}

// fullPath returns the pattern that Linkerd's proxy makes of a pathRegex, which it puts between ^ and $. That anchors only the start of the
// first alternative and the end of the last one.
func fullPath(expr string) (pathExpr, error) {
	expr = strings.TrimSpace(expr)
	if _, err := syntax.Parse(expr, syntax.Perl); err != nil {
		return pathExpr{}, err
	}
	expr = strings.TrimPrefix(expr, "^")
	if strings.HasSuffix(expr, "$") && !escaped(expr[:len(expr)-1]) {
		expr = expr[:len(expr)-1]
	}
	parts := split(expr)
	if len(parts) == 1 {
		return pathExpr{text: expr}, nil
	}
	if flags.MatchString(expr) {
		return pathExpr{}, errors.New("flags beside alternatives: put both in parentheses, as (?i:a|b)")
	}
	const anything = "(?s:.*)"
	for i := range parts {
		before, after := anything, anything
		if i == 0 {
			before = ""
		}
		if i == len(parts)-1 {
			after = ""
		}
		parts[i] = fmt.Sprintf("%s(?:%s)%s", before, parts[i], after)
	}
	out := pathExpr{text: strings.Join(parts, "|"), loose: true}
	if _, err := syntax.Parse(out.text, syntax.Perl); err != nil {
		return pathExpr{}, fmt.Errorf("%q: put the alternatives in parentheses", expr)
	}
	return out, nil
}

// flags matches flags that apply to the rest of a pattern.
var flags = regexp.MustCompile(`\(\?[a-zA-Z-]+\)`)

// escaped reports whether a backslash at the end of s escapes the next character.
func escaped(s string) bool {
	return (len(s)-len(strings.TrimRight(s, `\`)))%2 == 1
}

// split splits a valid regular expression at the bars outside of parentheses and brackets.
func split(expr string) []string {
	var parts []string
	depth, start := 0, 0
	for i := 0; i < len(expr); i++ {
		switch expr[i] {
		case '\\':
			if strings.HasPrefix(expr[i:], `\Q`) {
				if end := strings.Index(expr[i:], `\E`); end >= 0 {
					i += end
				} else {
					i = len(expr)
				}
			}
			i++
		case '[':
			i = class(expr, i)
		case '(':
			depth++
		case ')':
			depth--
		case '|':
			if depth == 0 {
				parts = append(parts, expr[start:i])
				start = i + 1
			}
		}
	}
	return append(parts, expr[start:])
}

// class returns the index of the closing bracket of the character class at i.
func class(expr string, i int) int {
	i++
	if i < len(expr) && expr[i] == '^' {
		i++
	}
	for first := true; i < len(expr); i++ {
		switch {
		case expr[i] == ']' && !first:
			return i
		case expr[i] == '\\':
			i++
		case strings.HasPrefix(expr[i:], "[:"):
			if end := strings.Index(expr[i:], ":]"); end >= 0 {
				i += end + 1
			}
		}
		first = false
	}
	return i
}
