package consul

import (
	"cmp"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/route"
)

// requestTimeout is Envoy's default, which Consul does not change.
const requestTimeout = 15 * time.Second

// translate translates the condition. An empty condition matches every request.
func (m *HTTPMatch) translate() route.Match {
	var out route.Match
	switch {
	case m.PathExact != "":
		out.URI = route.StringMatch{Kind: route.Exact, Value: m.PathExact, IgnoreCase: m.CaseInsensitive}
	case m.PathRegex != "":
		out.URI = route.StringMatch{Kind: route.Regex, Value: m.PathRegex}
	case m.PathPrefix != "":
		out.URI = route.StringMatch{Kind: route.Prefix, Value: m.PathPrefix, IgnoreCase: m.CaseInsensitive}
	}
	for i := range m.Header {
		h := &m.Header[i]
		key := route.KeyMatch{Key: h.Name}
		switch {
		case h.Present:
			key.Value.Kind = route.Present
		case h.Exact != "":
			key.Value = route.StringMatch{Kind: route.Exact, Value: h.Exact}
		case h.Prefix != "":
			key.Value = route.StringMatch{Kind: route.Prefix, Value: h.Prefix}
		case h.Suffix != "":
			key.Value = route.StringMatch{Kind: route.Regex, Value: "(?s:.*)" + regexp.QuoteMeta(h.Suffix)}
		default:
			key.Value = route.StringMatch{Kind: route.Regex, Value: h.Regex}
		}
		if !h.Invert {
			out.Headers = append(out.Headers, key)
			continue
		}
		out.WithoutHeaders = append(out.WithoutHeaders, key)
		if !h.Present { // Envoy inverts the condition on the value, and an absent header has no value
			out.Headers = append(out.Headers, route.KeyMatch{Key: h.Name, Value: route.StringMatch{Kind: route.Present}})
		}
	}
	for i := range m.QueryParam {
		q := &m.QueryParam[i]
		key := route.KeyMatch{Key: q.Name}
		switch {
		case q.Present:
			key.Value.Kind = route.Present
		case q.Exact != "":
			key.Value = route.StringMatch{Kind: route.Exact, Value: q.Exact}
		default:
			key.Value = route.StringMatch{Kind: route.Regex, Value: q.Regex}
		}
		out.Query = append(out.Query, key)
	}
	if len(m.Methods) > 0 {
		out.Method = route.StringMatch{Kind: route.Regex, Value: strings.ToUpper(strings.Join(m.Methods, "|"))}
	}
	return out
}

// Route translates the route, except for its destinations.
func (r *Route) Route() route.Route {
	out := route.Route{Timeout: requestTimeout, RetryTried: true}
	if r.matches.URI != (route.StringMatch{}) || r.matches.Method != (route.StringMatch{}) || r.matches.Headers != nil ||
		r.matches.WithoutHeaders != nil || r.matches.Query != nil {
		out.Matches = []route.Match{r.matches}
	}
	d := r.Destination
	if d == nil {
		return out
	}
	out.Rewrite = d.rewrite(r.match())
	if d.RequestTimeout.Duration != 0 {
		out.Timeout = max(0, d.RequestTimeout.Duration)
	}
	out.Retry = d.retries()
	out.Headers = route.Headers{Request: d.RequestHeaders.translate(), Response: d.ResponseHeaders.translate()}
	return out
}

// rewrite returns the rewrite of the path. A PrefixRewrite of "/" also removes a slash after the prefix, so that /v1 and /v1/x become / and
// /x.
func (d *Destination) rewrite(m *HTTPMatch) route.Rewrite {
	switch {
	case d.PrefixRewrite == "/" && m.PathExact != "":
		return route.Rewrite{}
	case d.PrefixRewrite != "/":
		return route.Rewrite{URI: d.PrefixRewrite}
	}
	pattern := "^" + regexp.QuoteMeta(m.PathPrefix) + "(/?)(.*)"
	if m.CaseInsensitive {
		pattern = "(?i)" + pattern
	}
	return route.Rewrite{Pattern: pattern, Substitution: `/\2`}
}

// translate returns the operations on headers, sorted by name.
func (m *Modifiers) translate() route.HeaderOps {
	var ops route.HeaderOps
	if m == nil {
		return ops
	}
	for _, name := range slices.Sorted(maps.Keys(m.Set)) {
		ops.Set = append(ops.Set, route.Header{Name: name, Value: m.Set[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(m.Add)) {
		if !slices.ContainsFunc(ops.Set, func(h route.Header) bool { return strings.EqualFold(h.Name, name) }) {
			ops.Add = append(ops.Add, route.Header{Name: name, Value: m.Add[name]})
		}
	}
	ops.Remove = m.Remove
	return ops
}

// merge returns the modifiers together with those in over, which take precedence.
func (m *Modifiers) merge(over *Modifiers) *Modifiers {
	if m == nil || over == nil {
		return cmp.Or(m, over)
	}
	out := &Modifiers{Add: make(map[string]string), Set: make(map[string]string), Remove: slices.Clone(m.Remove)}
	for _, part := range []*Modifiers{m, over} {
		maps.Copy(out.Add, part.Add)
		maps.Copy(out.Set, part.Set)
	}
	for _, name := range over.Remove {
		if !slices.Contains(out.Remove, name) {
			out.Remove = append(out.Remove, name)
		}
	}
	return out
}

// checkRegex reports an invalid regular expression. Consul does not validate them.
func checkRegex(doc *yamldoc.Document, at, expr string) {
	if expr == "" {
		return
	}
	if _, err := regexp.Compile(expr); err != nil {
		doc.Errorf(at, "%v; the syntax is RE2, https://github.com/google/re2/wiki/Syntax", err)
	}
}

// checkTarget reports a name of a service that cannot be called by it.
func checkTarget(doc *yamldoc.Document, at, service string) {
	if service != "" && !isService(service) {
		doc.Errorf(at+".Service", "%q cannot be the name of a service in a URL: use letters, digits, hyphens and underscores", service)
	}
}

// reportTable reports the errors of a route table about a route. fields maps prefixes of the route's fields to the fields of the entry that
// they come from.
func reportTable(doc *yamldoc.Document, at string, r route.Route, fields map[string]string) {
	_, err := route.NewTable([]route.Route{r})
	if err == nil {
		return
	}
	errs := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		errs = joined.Unwrap()
	}
	for _, err := range errs {
		path := at
		var wrong *route.FieldError
		if errors.As(err, &wrong) {
			err = wrong.Err
			longest := ""
			for prefix, field := range fields {
				if strings.HasPrefix(wrong.Field, prefix) && len(prefix) > len(longest) {
					longest, path = prefix, at+field
				}
			}
		}
		doc.Errorf(path, "cannot be enforced: %v", err)
	}
}
