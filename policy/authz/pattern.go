package authz

import (
	"errors"
	"regexp"
	"slices"
	"strings"
)

// pattern is one value of a field.
type pattern struct {
	kind    kind
	text    string
	decoded string         // text with all escapes decoded, to compare with decoded readings of a path
	re      *regexp.Regexp // of a regex
}

type kind uint8

const (
	exact    kind = iota
	prefix        // text*
	suffix        // *text
	nonEmpty      // *
	glob          // a trust domain, or a namespace as a pattern of the whole principal; * matches any text
	serviceAccount
	template // a path with {*} or {**}, or an identity with {*}
	substring
	regex // matches the whole text

	foldedBit kind = 0x80 // ignore case; text is in lower case
)

func textPattern(v string) pattern {
	p := pattern{kind: exact, text: v}
	switch {
	case v == "*":
		p.kind, p.text = nonEmpty, ""
	case v[0] == '*':
		p.kind, p.text = suffix, v[1:]
	case v[len(v)-1] == '*':
		p.kind, p.text = prefix, v[:len(v)-1]
	}
	p.decoded = p.text
	return p
}

func principalPattern(v string) (pattern, error) {
	if strings.HasPrefix(v, "spiffe://") {
		return pattern{}, errors.New("write the identity without spiffe://")
	}
	p := textPattern(v)
	return p, checkPrincipal(p)
}

// hostPattern parses a host. "*" matches any host, even the empty one that a peer may send.
func hostPattern(v string) (pattern, error) {
	if v == "*" {
		return pattern{kind: prefix}, nil
	}
	return foldedPattern(v)
}

// foldedPattern parses a host or a server name (SNI), both of which ignore case.
func foldedPattern(v string) (pattern, error) {
	p := textPattern(lower(v))
	err := checkHost(p)
	p.kind |= foldedBit
	return p, err
}

func methodPattern(v string) (pattern, error) {
	p := textPattern(v)
	return p, checkMethod(p)
}

func claimPattern(v string) (pattern, error) { return textPattern(v), nil }

func headerPattern(v string) (pattern, error) {
	p := textPattern(v)
	return p, checkHeader(p)
}

func trustDomainPattern(v string) (pattern, error) {
	if lower(v) != v {
		return pattern{}, errors.New("a trust domain is in lower case")
	}
	return pattern{kind: glob, text: v}, checkIdentityPart(v, "")
}

func namespacePattern(v string) (pattern, error) {
	return pattern{kind: glob, text: "*/ns/" + v + "/*"}, checkIdentityPart(v, "/")
}

// namespaceOf returns the value that namespacePattern was called with.
func namespaceOf(p pattern) string { return p.text[len("*/ns/") : len(p.text)-len("/*")] }

func accountPattern(v string) (pattern, error) {
	ns, name, ok := strings.Cut(v, "/")
	if !ok || ns == "" || name == "" || strings.ContainsAny(v, "*") || strings.Contains(name, "/") {
		return pattern{}, errors.New("want namespace/name, without stars")
	}
	return pattern{kind: serviceAccount, text: v}, checkIdentityPart(v, "/")
}

// pathPattern returns the parser of paths for a mode.
func pathPattern(mode Normalization) func(v string) (pattern, error) {
	return func(v string) (pattern, error) {
		p := textPattern(v)
		if strings.Contains(v, "{*}") || strings.Contains(v, "{**}") {
			p = pattern{kind: template, text: v}
			if err := checkTemplate(v); err != nil {
				return p, err
			}
		}
		p.text = decodeNone.apply(p.text)
		p.decoded = decodeEvery.apply(p.text)
		return p, checkPath(p, mode)
	}
}

// checkTemplate returns an error if v is not a valid path template.
func checkTemplate(v string) error {
	if v[0] != '/' {
		return errors.New("a template begins with a slash")
	}
	last := false
	for segment := range strings.SplitSeq(v, "/") {
		switch {
		case segment == "{*}" && !last:
		case segment == "{**}" && !last:
			last = true
		case segment == "{*}", segment == "{**}":
			return errors.New("{**} must be the last operator")
		case strings.ContainsAny(decodeEvery.apply(segment), "{}*"):
			return errors.New("a segment of a template is {*}, {**} or plain text")
		}
	}
	return nil
}

// list is the values of a field, any of which may match.
type list struct {
	all    []pattern
	exact  map[string]struct{} // values that match only themselves; nil if there are few
	others []pattern           // values that are not in exact
}

// manyExact is the number of texts from which a map is faster than comparing them all.
const manyExact = 9

func newList(all []pattern) list {
	l := list{all: all, others: all}
	plain := func(p pattern) bool { return p.kind == exact && p.text == p.decoded }
	var texts map[string]struct{}
	var others []pattern
	for _, p := range all {
		if !plain(p) {
			others = append(others, p)
			continue
		}
		if texts == nil {
			texts = make(map[string]struct{})
		}
		texts[p.text] = struct{}{}
	}
	if len(texts) >= manyExact {
		l.exact, l.others = texts, others
	}
	return l
}

func (l *list) empty() bool { return len(l.all) == 0 }

// has reports whether s is in exact.
func (l *list) has(s string) bool {
	_, ok := l.exact[s]
	return ok
}

func (l *list) match(s string) bool {
	if l.has(s) {
		return true
	}
	for i := range l.others {
		if l.others[i].match(s) {
			return true
		}
	}
	return false
}

// matchPresent is match for the value of a header that is present. "*" matches such a value even if it is empty.
func (l *list) matchPresent(s string) bool {
	if l.match(s) {
		return true
	}
	return s == "" && slices.ContainsFunc(l.others, func(p pattern) bool { return p.kind == nonEmpty })
}

// names reports whether one of the values is exactly s.
func (l *list) names(s string) bool {
	return l.has(s) || slices.ContainsFunc(l.others, func(p pattern) bool { return p.kind == exact && p.text == s })
}

func (l *list) matchPath(r *reading) bool {
	if !r.decoded {
		return l.match(r.path)
	}
	if l.has(r.path) {
		return true
	}
	for i := range l.others {
		if l.others[i].matchReading(r) {
			return true
		}
	}
	return false
}

// matchReading compares the decoded text with a decoded reading, and the text as written with any other.
func (p *pattern) matchReading(r *reading) bool {
	if r.decoded && p.kind != regex {
		return match(p.kind, p.decoded, r.path)
	}
	return p.match(r.path)
}

func (p *pattern) match(s string) bool {
	if p.kind == regex {
		return p.re.MatchString(s)
	}
	return match(p.kind, p.text, s)
}

func match(kind kind, text, s string) bool {
	switch kind {
	case exact:
		return s == text
	case prefix:
		return strings.HasPrefix(s, text)
	case suffix:
		return strings.HasSuffix(s, text)
	case nonEmpty, nonEmpty | foldedBit:
		return s != ""
	case glob:
		return s != "" && matchGlob(text, s)
	case serviceAccount:
		return matchAccount(text, s)
	case template:
		return matchTemplate(text, s)
	case substring:
		return strings.Contains(s, text)
	case substring | foldedBit:
		return strings.Contains(lower(s), text)
	case exact | foldedBit:
		return len(s) == len(text) && equalFold(s, text)
	case prefix | foldedBit:
		return len(s) >= len(text) && equalFold(s[:len(text)], text)
	case suffix | foldedBit:
		return len(s) >= len(text) && equalFold(s[len(s)-len(text):], text)
	}
	return false
}

func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// equalFold reports whether s equals lowercase, ignoring the case of ASCII letters. Unlike strings.EqualFold, it does not fold
// other letters. Both must have the same length.
func equalFold(s, lowercase string) bool {
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lowercase[i] {
			return false
		}
	}
	return true
}

// matchGlob reports whether s matches pattern, in which a star matches any text.
func matchGlob(pattern, s string) bool {
	literal, pattern, star := strings.Cut(pattern, "*")
	if !star {
		return s == literal
	}
	s, ok := strings.CutPrefix(s, literal)
	for ok {
		if literal, pattern, star = strings.Cut(pattern, "*"); !star {
			return strings.HasSuffix(s, literal)
		}
		_, s, ok = strings.Cut(s, literal)
	}
	return false
}

// matchAccount reports whether principal has ".../ns/NAMESPACE/[.../]sa/NAME[/...]" for account NAMESPACE/NAME.
func matchAccount(account, principal string) bool {
	ns, name, _ := strings.Cut(account, "/")
	for i := range len(principal) {
		rest, ok := strings.CutPrefix(principal[i:], "/ns/")
		if !ok || i == 0 {
			continue
		}
		if rest, ok = strings.CutPrefix(rest, ns); !ok || !strings.HasPrefix(rest, "/") {
			continue
		}
		for {
			j := strings.Index(rest, "/sa/")
			if j < 0 {
				break
			}
			rest = rest[j:]
			after, ok := strings.CutPrefix(rest[len("/sa/"):], name)
			if ok && (after == "" || len(after) > 1 && after[0] == '/') {
				return true
			}
			rest = rest[1:]
		}
	}
	return false
}

// matchTemplate reports whether path matches a template that checkTemplate has accepted.
func matchTemplate(template, path string) bool {
	for {
		i := strings.IndexByte(template, '{')
		if i < 0 {
			return path == template
		}
		if !strings.HasPrefix(path, template[:i]) {
			return false
		}
		path, template = path[i:], template[i:]
		if after, ok := strings.CutPrefix(template, "{**}"); ok {
			return strings.HasSuffix(path, after)
		}
		template = template[len("{*}"):]
		n := strings.IndexByte(path, '/')
		if n < 0 {
			n = len(path)
		}
		if n == 0 {
			return false
		}
		path = path[n:]
	}
}
