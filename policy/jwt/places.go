package jwt

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// place is where a token may be: a header, a parameter or a cookie.
type place struct {
	kind   placeKind
	name   string // of a header, canonical
	prefix string
}

type placeKind uint8

const (
	inHeader placeKind = iota
	inParam
	inCookie
)

// places returns where a rule looks for tokens, in that order.
func (r *Rule) places() []place {
	headers, params := r.Headers, r.Params
	if len(headers)+len(params)+len(r.Cookies) == 0 {
		headers, params = []Header{{Name: "Authorization", Prefix: "Bearer "}}, []string{"access_token"}
	}
	var all []place
	for _, h := range headers {
		all = append(all, place{inHeader, http.CanonicalHeaderKey(h.Name), h.Prefix})
	}
	for _, name := range params {
		all = append(all, place{inParam, name, ""})
	}
	for _, name := range r.Cookies {
		all = append(all, place{inCookie, name, ""})
	}
	slices.SortStableFunc(all, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), strings.Compare(a.name+a.prefix, b.name+b.prefix))
	})
	return slices.Compact(all)
}

// tokens appends the tokens of a request at this place.
func (p *place) tokens(all []string, r *http.Request) []string {
	switch p.kind {
	case inHeader:
		for _, line := range r.Header[p.name] {
			if p.prefix == "" {
				all = append(all, line)
			} else if i := strings.Index(line, p.prefix); i >= 0 {
				all = append(all, strings.TrimLeftFunc(line[i+len(p.prefix):], notOfToken))
			}
		}
	case inParam:
		if r.URL.RawQuery == "" {
			break
		}
		for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
			if name, value, _ := strings.Cut(pair, "="); unescaped(name) == p.name {
				return append(all, unescaped(value)) // only the first one counts, as in Envoy
			}
		}
	case inCookie:
		for _, line := range r.Header["Cookie"] {
			for pair := range strings.SplitSeq(line, ";") {
				if name, value, ok := strings.Cut(strings.Trim(pair, " \t"), "="); ok && strings.TrimRight(name, " \t") == p.name {
					return append(all, unquoted(value))
				}
			}
		}
	}
	return all
}

// unquoted returns the value of a cookie without its quotes (RFC 6265, section 4.1.1), as Envoy and net/http have it. A token with anything
// else around it is none: net/http would pass over the cookie, and a handler would take the next one of that name for the verified one.
func unquoted(value string) string {
	if last := len(value) - 1; last > 0 && value[0] == '"' && value[last] == '"' {
		return value[1:last]
	}
	return value
}

func notOfToken(r rune) bool {
	return !('A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.')
}

// unescaped decodes a name or value of a query. It returns text that cannot be decoded unchanged.
func unescaped(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}

// withoutParam returns a query without the parameters that have the given name. The rest stays as it was sent.
func withoutParam(query, name string) string {
	var kept []byte // each pair with a "&" before it
	removed := false
	for pair := range strings.SplitSeq(query, "&") {
		if n, _, _ := strings.Cut(pair, "="); unescaped(n) == name {
			removed = true
		} else {
			kept = append(append(kept, '&'), pair...)
		}
	}
	if !removed {
		return query
	}
	return strings.TrimPrefix(string(kept), "&")
}

// withoutCookie returns the lines of a Cookie header without a cookie.
func withoutCookie(lines []string, name string) []string {
	var all []string
	for _, line := range lines {
		var kept []byte // each pair with a "; " before it
		for pair := range strings.SplitSeq(line, ";") {
			pair = strings.Trim(pair, " \t")
			if n, _, _ := strings.Cut(pair, "="); strings.TrimRight(n, " \t") != name && pair != "" {
				kept = append(append(kept, "; "...), pair...)
			}
		}
		if len(kept) > 0 {
			all = append(all, strings.TrimPrefix(string(kept), "; "))
		}
	}
	return all
}
