package route

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
)

// Request is a [Table]'s view of a request. [NewRequest] returns that of an HTTP request. The view shares memory with the request
// it was made from, and is valid until that request changes.
type Request struct {
	Method string // in upper case, as sent
	Scheme string // http or https

	// Authority is the Host header or :authority. It has a port only if the caller sends one.
	Authority string

	// Path is the escaped path as sent, without the query. It starts with a slash.
	Path string

	// RawQuery is the encoded query as sent, without the question mark.
	RawQuery string

	// Header has the request's headers. Its keys are canonical (http.Header) or lower-case (gRPC metadata).
	Header map[string][]string

	// Port is the port the caller dialled.
	Port int
}

// NewRequest returns the view of an outgoing request. It allocates only if the path must be escaped.
func NewRequest(req *http.Request) Request {
	r := Request{Method: req.Method, Authority: req.Host, Path: "/", Header: req.Header}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	if u := req.URL; u != nil {
		r.Scheme, r.Path, r.RawQuery, r.Port = u.Scheme, field.SentPath(u), u.RawQuery, dialledPort(u)
		if r.Authority == "" {
			r.Authority = u.Host
		}
	}
	return r
}

func dialledPort(u *url.URL) int {
	if port := u.Port(); port != "" {
		n, err := strconv.Atoi(port)
		if err == nil {
			return n
		}
	}
	return defaultPort(u.Scheme)
}

func defaultPort(scheme string) int {
	switch scheme {
	case "http":
		return 80
	case "https":
		return 443
	}
	return 0
}

// target returns the path with the query, which is :path in Envoy.
func (r *Request) target() string {
	if r.RawQuery == "" {
		return r.Path
	}
	return r.Path + "?" + r.RawQuery
}

// headerKey is the name of a header in the spellings under which it is looked up.
type headerKey struct {
	canonical string // or the name of a pseudo-header
	lower     string
}

// newHeaderKey returns the key of a header. If pseudo is set, name may also be a pseudo-header of requests.
func newHeaderKey(name string, pseudo bool) (headerKey, error) {
	lower := strings.ToLower(name)
	if pseudo {
		switch lower {
		case "host":
			lower = ":authority"
			fallthrough
		case ":authority", ":method", ":path", ":scheme":
			return headerKey{canonical: lower, lower: lower}, nil
		}
	}
	if !field.IsToken(name) {
		return headerKey{}, fmt.Errorf("%q is not a header name", name)
	}
	return headerKey{canonical: textproto.CanonicalMIMEHeaderKey(name), lower: lower}, nil
}

// in returns the values of the header in h, whose keys are canonical or lower-case.
func (k *headerKey) in(h map[string][]string) []string {
	if values, ok := h[k.canonical]; ok {
		return values
	}
	return h[k.lower]
}

// of returns the value of the header in r and reports whether it is present. Several values are joined, as Envoy does; only then
// does matching allocate.
func (k *headerKey) of(r *Request) (value string, present bool) {
	if k.canonical[0] == ':' {
		switch k.canonical {
		case ":authority":
			return r.Authority, r.Authority != ""
		case ":method":
			return r.Method, true
		case ":path":
			return r.target(), true
		case ":scheme":
			return r.Scheme, r.Scheme != ""
		}
	}
	switch values := k.in(r.Header); len(values) {
	case 0:
		return "", false
	case 1:
		return values[0], true
	default:
		return strings.Join(values, ","), true
	}
}

// matcher is a compiled [Match]. Most have a condition on the path and no other, and there may be thousands of them.
type matcher struct {
	uri      stringMatcher
	prefixed bool // uri only compares the start of the path, as most do
	port     uint16
	span     int32     // the length of the prefix of the path that a rewrite replaces, or whole
	more     *matchers // the other conditions; nil if there are none
}

// matchers are the conditions of a [Match] besides those on the path and the port.
type matchers struct {
	method, scheme, authority stringMatcher
	headers                   []headerMatcher
	query                     []queryMatcher
}

const whole = -1

// defaultSpan is the span of a match without a condition on the path. Istio treats it as a match of the prefix "/".
const defaultSpan = int32(len("/"))

func (m *matcher) match(r *Request) bool {
	switch {
	case !m.prefixed:
		if !m.uri.match(r.Path) {
			return false
		}
	case !strings.HasPrefix(r.Path, m.uri.value):
		return false
	}
	return (m.port == 0 || int(m.port) == r.Port) && (m.more == nil || m.more.match(r))
}

func (m *matchers) match(r *Request) bool {
	if !m.method.match(r.Method) || !m.authority.match(r.Authority) || !m.scheme.match(r.Scheme) {
		return false
	}
	for i := range m.headers {
		if !m.headers[i].match(r) {
			return false
		}
	}
	for i := range m.query {
		if !m.query[i].match(r.RawQuery) {
			return false
		}
	}
	return true
}

func compileMatch(m *Match, known expressions, report reporter) matcher {
	c := matcher{port: uint16(m.Port)}
	if m.Port < 0 || m.Port > 65535 {
		report("Port", fmt.Errorf("%d is not a port", m.Port))
	}
	var more matchers
	for _, f := range []struct {
		name string
		from StringMatch
		to   *stringMatcher
	}{
		{"URI", m.URI, &c.uri}, {"Scheme", m.Scheme, &more.scheme},
		{"Method", m.Method, &more.method}, {"Authority", m.Authority, &more.authority},
	} {
		var err error
		if f.from.Kind == Present {
			err = errors.New("kind Present is for headers and query parameters")
		} else {
			*f.to, err = compileString(f.from, known)
		}
		if err != nil {
			report(f.name, err)
		}
	}
	c.prefixed = c.uri.kind == Prefix && !c.uri.fold && !c.uri.line
	switch m.URI.Kind {
	case Any:
		c.span = defaultSpan
	case Prefix:
		c.span = int32(len(m.URI.Value))
	default:
		c.span = whole
	}
	more.compile(m, known, report)
	if len(more.headers) > 0 || len(more.query) > 0 || more.method.kind != Any || more.scheme.kind != Any || more.authority.kind != Any {
		c.more = &more
	}
	return c
}

// compile compiles the conditions on headers and parameters.
func (c *matchers) compile(m *Match, known expressions, report reporter) {
	c.headers = make([]headerMatcher, 0, len(m.Headers)+len(m.WithoutHeaders))
	for i, h := range m.Headers {
		hm, err := compileHeader(h, false, known)
		if err != nil {
			report(fmt.Sprintf("Headers[%d]", i), err)
		}
		c.headers = append(c.headers, hm)
	}
	for i, h := range m.WithoutHeaders {
		hm, err := compileHeader(h, true, known)
		if err != nil {
			report(fmt.Sprintf("WithoutHeaders[%d]", i), err)
		}
		c.headers = append(c.headers, hm)
	}
	for i, q := range m.Query {
		value, err := compileString(q.Value, known)
		if err == nil && q.Key == "" {
			err = errors.New("the Key is empty")
		}
		if err != nil {
			report(fmt.Sprintf("Query[%d]", i), err)
		}
		c.query = append(c.query, queryMatcher{key: q.Key, value: value})
	}
}

// headerMatcher is a compiled member of [Match.Headers] or, inverted, of [Match.WithoutHeaders].
type headerMatcher struct {
	key     headerKey
	value   stringMatcher
	without bool
}

func compileHeader(m KeyMatch, without bool, known expressions) (headerMatcher, error) {
	key, err := newHeaderKey(m.Key, true)
	if err != nil {
		return headerMatcher{}, err
	}
	value, err := compileString(m.Value, known)
	if err != nil {
		return headerMatcher{}, err
	}
	if without && value.kind == Any {
		return headerMatcher{}, errors.New("kind Any never fails to match; Present asks for the header to be absent")
	}
	return headerMatcher{key: key, value: value, without: without}, nil
}

func (m *headerMatcher) match(r *Request) bool {
	if m.value.kind == Any {
		return true
	}
	value, present := m.key.of(r)
	switch {
	case m.value.kind == Present:
		return present != m.without
	case m.without: // Envoy's treat_missing_header_as_empty
		return !m.value.match(value)
	}
	return present && m.value.match(value)
}

type queryMatcher struct {
	key   string
	value stringMatcher
}

// match compares the first parameter named key. Like Envoy, it compares keys and values in their encoded form.
func (m *queryMatcher) match(query string) bool {
	if m.value.kind == Any {
		return true
	}
	value, present := parameter(query, m.key)
	return present && m.value.match(value)
}

// parameter returns the first parameter of a name, as it is encoded.
func parameter(query, name string) (value string, present bool) {
	for query != "" {
		var param string
		param, query, _ = strings.Cut(query, "&")
		if key, value, _ := strings.Cut(param, "="); key == name {
			return value, true
		}
	}
	return "", false
}

// stringMatcher is a compiled [StringMatch].
type stringMatcher struct {
	kind  MatchKind
	fold  bool
	line  bool // of Prefix: no newline may follow, because "." does not match one
	value string
	re    *regexp.Regexp
}

func compileString(m StringMatch, known expressions) (stringMatcher, error) {
	switch m.Kind {
	case Any, Present:
		if m.Value != "" || m.IgnoreCase {
			//lint:ignore ST1005 Value is the name of a field.
			return stringMatcher{}, errors.New("Value or IgnoreCase is set, but Kind does not compare")
		}
		return stringMatcher{kind: m.Kind}, nil
	case Exact, Prefix:
		return stringMatcher{kind: m.Kind, fold: m.IgnoreCase, value: m.Value}, nil
	case Regex:
		return known.compile(m.Value)
	}
	return stringMatcher{}, fmt.Errorf("%d is not a kind of match", m.Kind)
}

// expressions has the regular expressions of a table, compiled. Routes that several documents make together have few, but often.
type expressions map[string]stringMatcher

func (known expressions) compile(expr string) (stringMatcher, error) {
	m, ok := known[expr]
	if ok {
		return m, nil
	}
	m, err := compileRegex(expr)
	if err == nil {
		known[expr] = m
	}
	return m, err
}

// compileRegex compiles a regular expression that must match the whole string. Many of those in documents are only a literal,
// or a literal followed by ".*". A string comparison is an order of magnitude cheaper for them.
func compileRegex(expr string) (stringMatcher, error) {
	re, err := regexp.Compile(expr) // without the group below, so that "a)|(b" is an error
	if err != nil {
		return stringMatcher{}, err
	}
	literal, complete := re.LiteralPrefix()
	switch {
	case complete:
		return stringMatcher{kind: Exact, value: literal}, nil
	case expr == regexp.QuoteMeta(literal)+".*":
		return stringMatcher{kind: Prefix, value: literal, line: true}, nil
	}
	re, err = regexp.Compile(`\A(?:` + expr + `)\z`)
	return stringMatcher{kind: Regex, re: re}, err
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// match reports whether m matches s. Present matches every string.
func (m *stringMatcher) match(s string) bool {
	switch m.kind {
	case Exact:
		return s == m.value || m.fold && strings.EqualFold(s, m.value)
	case Prefix:
		if !m.fold && !strings.HasPrefix(s, m.value) || m.fold && !hasPrefixFold(s, m.value) {
			return false
		}
		return !m.line || !strings.Contains(s[len(m.value):], "\n")
	case Regex:
		return m.re.MatchString(s)
	}
	return true
}
