package smi

import (
	"maps"
	"slices"

	"github.com/nosidecar/mesh/policy/internal/conjunction"
	"github.com/nosidecar/mesh/policy/route"
)

// Weights returns the weights of the backends as whole numbers of the same proportion. It reports false if all are 0, so that requests go
// to the service itself.
func (ts *TrafficSplit) Weights() (weights []int, ok bool) {
	var divisor int64
	for _, b := range ts.Spec.Backends {
		divisor = gcd(divisor, b.Weight.Milli)
	}
	if divisor == 0 {
		return nil, false
	}
	// Keep whole weights as they are written.
	if divisor%1000 == 0 {
		divisor = 1000
	}
	for _, b := range ts.Spec.Backends {
		weights = append(weights, int(b.Weight.Milli/divisor))
	}
	return weights, true
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (g *HTTPRouteGroup) matches() []HTTPMatch {
	if g.Spec != nil {
		return g.Spec.Matches
	}
	return g.Matches
}

// Has reports whether the group has a match with a name.
func (g *HTTPRouteGroup) Has(name string) bool {
	return slices.ContainsFunc(g.matches(), func(m HTTPMatch) bool { return m.Name == name })
}

// path returns the regular expression for whole paths, or "" if all paths match. In the specification, the pattern is anchored only at the
// start of the path.
func (m *HTTPMatch) path() string {
	if m.PathRegex == "" {
		return ""
	}
	return "(?:" + m.PathRegex + ")(?s:.*)"
}

func (m *HTTPMatch) anyMethod() bool { return len(m.Methods) == 0 || slices.Contains(m.Methods, "*") }

// Routes translates the matches of a group, which must have passed Check. For a group without matches, it returns one that matches no
// request.
func (g *HTTPRouteGroup) Routes() []route.Match {
	var out []route.Match
	for _, m := range g.matches() {
		match := route.Match{Name: m.Name}
		if path := m.path(); path != "" {
			match.URI = route.StringMatch{Kind: route.Regex, Value: path}
		}
		for _, headers := range m.Headers {
			for _, name := range slices.Sorted(maps.Keys(headers)) {
				value := route.StringMatch{Kind: route.Regex, Value: headers[name]}
				match.Headers = append(match.Headers, route.KeyMatch{Key: name, Value: value})
			}
		}
		if m.anyMethod() {
			out = append(out, match)
			continue
		}
		for _, method := range m.Methods {
			match.Method = route.StringMatch{Kind: route.Exact, Value: method}
			out = append(out, match)
		}
	}
	if out == nil {
		return []route.Match{conjunction.Never}
	}
	return out
}
