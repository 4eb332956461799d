package istio

import (
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

func (c check) match(m *HTTPMatchRequest, mesh bool, at string) {
	for _, s := range []struct {
		field string
		match *StringMatch
	}{{".uri", m.URI}, {".scheme", m.Scheme}, {".method", m.Method}, {".authority", m.Authority}} {
		if s.match != nil && (s.match != m.URI || s.match.Prefix == nil) {
			c.stringMatch(s.match, at+s.field)
		}
	}
	if m.Method != nil && m.Method.Exact != nil {
		c.warn(idleMethod(*m.Method.Exact), at, ".method.exact")
	}
	if u := m.URI; u != nil && (u.Exact != nil && isNoPath(*u.Exact) || u.Prefix != nil && isNoPath(*u.Prefix)) {
		c.Warnf(at+".uri", "matches no request: a path begins with a slash")
	}
	if m.IgnoreURICase && (m.URI == nil || m.URI.Exact == nil && m.URI.Prefix == nil) {
		c.Warnf(at+".ignoreUriCase", "has no effect: it concerns uri.exact and uri.prefix only")
	}
	c.headerMatches(m.Headers, mesh, at+".headers", false)
	c.headerMatches(m.WithoutHeaders, mesh, at+".withoutHeaders", true)
	for _, name := range slices.Sorted(maps.Keys(m.QueryParams)) {
		s := m.QueryParams[name]
		c.stringMatch(&s, yamldoc.Key(at+".queryParams", name))
	}
	if m.Port != nil && *m.Port != 0 {
		c.that(wrongPort(*m.Port), at, ".port")
	}
	c.labels(m.SourceLabels, at, ".sourceLabels")
	if m.SourceNamespace != "" && !isLabel(m.SourceNamespace) {
		c.Errorf(at+".sourceNamespace", "%q is not a namespace", m.SourceNamespace)
	}
	for i, gateway := range m.Gateways {
		c.gateway(gateway, yamldoc.Index(at+".gateways", i))
	}
	if len(m.Gateways) > 0 && (len(m.SourceLabels) > 0 || m.SourceNamespace != "") {
		c.Warnf(at+".gateways", "Istio ignores sourceLabels and sourceNamespace of a match with gateways, and so do we")
	}
}

// isNoPath reports whether no path begins with text. That of an OPTIONS request may be "*".
func isNoPath(text string) bool {
	return text != "" && text != "*" && text[0] != '/'
}

// stringMatch checks a match of anything but a path. Only a path may have an empty prefix.
func (c check) stringMatch(s *StringMatch, at string) {
	switch {
	case s.Prefix != nil && *s.Prefix == "":
		c.Errorf(at+".prefix", "must not be empty")
	case s.Regex != nil:
		c.that(wrongRegex(*s.Regex), at, ".regex")
	}
}

// headerMatches checks matches of headers. In an inverted match, the regex "*" is allowed although it is invalid: it means presence.
func (c check) headerMatches(matches map[string]StringMatch, mesh bool, at string, inverted bool) {
	for _, name := range slices.Sorted(maps.Keys(matches)) {
		at, s := yamldoc.Key(at, name), matches[name]
		switch {
		case isClaim(name):
			if mesh {
				c.Errorf(at, "matching JWT claims works at gateways only")
			}
		case !field.IsToken(name) && !slices.Contains(pseudoHeaders, name):
			c.Errorf(at, "%q is not a header name", name)
		}
		if !inverted || s.Regex == nil || *s.Regex != "*" {
			c.stringMatch(&s, at)
		}
	}
}

var pseudoHeaders = []string{":method", ":scheme", ":authority", ":path", ":status"}

// isClaim reports whether the name of a header means a claim of a token: @request.auth.claims.name or, for names with dots and for claims
// in claims, @request.auth.claims[name][name].
func isClaim(name string) bool {
	const prefix = "@request.auth.claims"
	if len(name) <= len(prefix) || !strings.EqualFold(name[:len(prefix)], prefix) {
		return false
	}
	rest := name[len(prefix):]
	return rest[0] == '.' || rest[0] == '[' && strings.HasSuffix(rest, "]")
}
