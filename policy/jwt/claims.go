package jwt

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
)

// Claims are those of a verified token. They are immutable and safe for concurrent use.
type Claims struct {
	token *token
	words []string // claims that are lists of words
}

// Issuer returns the claim iss, "" without one.
func (c *Claims) Issuer() string { return c.token.issuer }

// Subject returns the claim sub, "" without one.
func (c *Claims) Subject() string { return c.token.claims.member("sub").text }

// Expires returns the end of the token's life in seconds since 1970, and whether it has one. The leeway for clocks that differ
// is not part of it.
func (c *Claims) Expires() (seconds uint64, has bool) { return c.token.expiry, c.token.expires }

// Values returns the strings that the claim at path has: the claim itself, or the strings in the list that it is. Names that
// follow the first lead into objects. Numbers, booleans, objects and null are no strings. A claim that is a list of words (scope,
// permission and those that the rule names) is split at blanks; the whole text is none of its values then.
func (c *Claims) Values(path ...string) []string {
	v := &c.token.claims
	for _, name := range path {
		v = v.member(name)
	}
	switch v.kind {
	case text:
		if len(path) == 1 && (path[0] == "scope" || path[0] == "permission" || slices.Contains(c.words, path[0])) {
			return strings.FieldsFunc(v.text, func(r rune) bool { return r == ' ' })
		}
		return []string{v.text}
	case list:
		var all []string
		for _, item := range v.inner {
			if item.kind == text {
				all = append(all, item.text)
			}
		}
		return all
	}
	return nil
}

// header returns the claim at a path of names joined by dots as the value of a header, "" if there is nothing to say. It is
// not ok if the claim has bytes that no header has.
func (c *Claims) header(path string) (s string, ok bool) {
	v := &c.token.claims
	for name := range strings.SplitSeq(path, ".") {
		v = v.member(name)
	}
	switch v.kind {
	case text:
		s = v.text
	case number:
		s = plainNumber(v.text)
	case boolean:
		s = v.text
	case list, object:
		s = base64.StdEncoding.EncodeToString(v.appendJSON(nil))
	}
	return s, !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// plainNumber returns a number as Envoy writes it: whole ones that fit in 64 bits as they are, others with six digits.
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

// appendJSON appends the value as JSON without space.
func (v *value) appendJSON(out []byte) []byte {
	switch v.kind {
	case text:
		return appendString(out, v.text)
	case list:
		out = append(out, '[')
		for i := range v.inner {
			if i > 0 {
				out = append(out, ',')
			}
			out = v.inner[i].appendJSON(out)
		}
		return append(out, ']')
	case object:
		out = append(out, '{')
		for i := range v.inner {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(appendString(out, v.inner[i].name), ':')
			out = v.inner[i].appendJSON(out)
		}
		return append(out, '}')
	case null:
		return append(out, "null"...)
	}
	return append(out, v.text...)
}

// appendString appends a string of JSON; only what must be escaped is.
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
