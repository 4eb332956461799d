package jwt

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
)

// Claims are the claims of a verified token. They are immutable and safe for concurrent use.
type Claims struct {
	payload
	rule    *rule    // the rule that accepted the token
	keys    digest   // of the keys that verified it
	headers []string // the values of the headers that the rule sets, in the order of ClaimHeaders; "" for none
	unfit   bool     // a claim cannot be the value of its header
}

// payload is what a token says.
type payload struct {
	text    string // encoded, as in the token
	members []value

	issuer, subject string
	audience        value // a string, a list of strings, or absent
	notBefore       uint64
	expiry          uint64
	expires         bool
}

// newClaims returns the claims of a token that a rule accepts and that keys have verified. text is a copy of the token, so that the claims do
// not keep the whole header line in memory.
func newClaims(text string, t *token, r *rule, keys *Keys) *Claims {
	c := &Claims{payload: t.payload, rule: r, keys: keys.digest}
	c.text = text[len(t.signed)-len(t.text) : len(t.signed)]
	c.headers, c.unfit = c.headersFor(r)
	return c
}

// bytes returns roughly how much memory the claims take.
func (c *Claims) bytes() int {
	const claims, member, header = 240, 40, 16
	n := claims + 2*len(c.text) + member*cap(c.members) // twice: the decoded payload, and copies of its strings with escapes
	for _, value := range c.headers {
		n += header + len(value)
	}
	return n
}

// headersFor returns the values of the headers that a rule sets, and whether one of them is no value of a header.
func (c *Claims) headersFor(r *rule) (values []string, unfit bool) {
	if len(r.ClaimHeaders) == 0 {
		return nil, false
	}
	values = make([]string, len(r.ClaimHeaders))
	for i, h := range r.ClaimHeaders {
		value, ok := c.header(h.Claim)
		values[i], unfit = value, unfit || !ok
	}
	return values, unfit
}

// Issuer returns the claim iss, or "" if there is none.
func (c *Claims) Issuer() string { return c.issuer }

// Subject returns the claim sub, or "" if there is none.
func (c *Claims) Subject() string { return c.subject }

// Expires returns when the token expires, in seconds since 1970, and whether it does. The leeway for clocks that differ is not included.
func (c *Claims) Expires() (seconds uint64, has bool) { return c.expiry, c.expires }

// Values returns the strings of the claim at path: the claim itself if it is a string, or the strings in it if it is a list. The first name
// of the path is that of a claim; further names lead into objects. Numbers, booleans, objects and null are not strings. A claim that is a
// list of words (scope, permission and those that the rule names) is split at blanks, and its whole text is not one of its values.
func (c *Claims) Values(path ...string) []string {
	v := c.at(path)
	switch v.kind {
	case text:
		if len(path) == 1 && (path[0] == "scope" || path[0] == "permission" || slices.Contains(c.rule.SpaceDelimited, path[0])) {
			return strings.FieldsFunc(v.text, func(r rune) bool { return r == ' ' })
		}
		return []string{v.text}
	case list:
		all := make([]string, 0, min(1+strings.Count(v.text, ","), 16))
		for item := range v.items {
			if item.kind == text {
				all = append(all, item.text)
			}
		}
		return all
	}
	return nil
}

// at returns the claim at a path.
func (c *Claims) at(path []string) value {
	if len(path) == 0 {
		return value{}
	}
	v := find(c.members, path[0])
	for _, name := range path[1:] {
		v = v.member(name)
	}
	return v
}

// header returns the claim at a path of names joined by dots as the value of a header, or "" if there is no such claim. It is not ok if the
// claim has bytes that a header cannot have.
func (c *Claims) header(path string) (s string, ok bool) {
	v := c.at(strings.Split(path, "."))
	switch v.kind {
	case text, boolean:
		s = v.text
	case number:
		s = plainNumber(v.text)
	case list, object:
		s = base64.StdEncoding.EncodeToString(v.appendJSON(nil))
	}
	return s, !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// plainNumber returns a number as Envoy writes it: an integer if it is one that fits in 64 bits, and with six decimals otherwise.
func plainNumber(s string) string {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err == nil && f >= 0 && f < 1<<64 && f == float64(uint64(f)):
		return strconv.FormatUint(uint64(f), 10)
	case err != nil && f > 0:
		return "inf"
	case err != nil:
		return "-inf"
	}
	return strconv.FormatFloat(f, 'f', 6, 64)
}

// appendJSON appends the value as JSON without white space.
func (v value) appendJSON(out []byte) []byte {
	switch v.kind {
	case text:
		return appendString(out, v.text)
	case list:
		out = append(out, '[')
		first := len(out)
		for item := range v.items {
			if len(out) > first {
				out = append(out, ',')
			}
			out = item.appendJSON(out)
		}
		return append(out, ']')
	case object:
		out = append(out, '{')
		first := len(out)
		for m := range v.members {
			if len(out) > first {
				out = append(out, ',')
			}
			out = append(appendString(out, m.name), ':')
			out = m.appendJSON(out)
		}
		return append(out, '}')
	}
	return append(out, v.text...)
}

// appendString appends a JSON string in which only what must be escaped is escaped.
func appendString(out []byte, s string) []byte {
	const digits = "0123456789abcdef"
	out = append(out, '"')
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < ' ':
			out = append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}
