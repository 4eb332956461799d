package jwt

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// value is a value of JSON.
type value struct {
	kind    kind
	text    string // of a string, decoded; of a number or a literal as it stands
	members []member
	items   []value
}

type member struct {
	name  string
	value value
}

type kind uint8

const (
	absent kind = iota
	null
	boolean
	number
	text
	list
	object
)

// maxDepth bounds how deep objects and lists nest.
const maxDepth = 64

// parse reads one JSON object (RFC 8259), and nothing that two readers may take differently: a name that occurs twice in an
// object, invalid UTF-8, half of a surrogate pair, something behind the object.
func parse(data string) (value, bool) {
	if !utf8.ValidString(data) {
		return value{}, false
	}
	p := parser{rest: data}
	p.space()
	v, ok := p.value(0)
	p.space()
	return v, ok && v.kind == object && p.rest == ""
}

// member returns the member of an object by its name.
func (v *value) member(name string) *value {
	for i := range v.members {
		if v.members[i].name == name {
			return &v.members[i].value
		}
	}
	return &value{}
}

type parser struct{ rest string }

func (p *parser) space() {
	i := 0
	for i < len(p.rest) && (p.rest[i] == ' ' || p.rest[i] == '\t' || p.rest[i] == '\r' || p.rest[i] == '\n') {
		i++
	}
	p.rest = p.rest[i:]
}

// take takes c, with the space before it.
func (p *parser) take(c byte) bool {
	p.space()
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *parser) value(depth int) (value, bool) {
	if p.rest == "" || depth > maxDepth {
		return value{}, false
	}
	switch c := p.rest[0]; {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.list(depth)
	case c == '"':
		s, ok := p.string()
		return value{kind: text, text: s}, ok
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	}
	for _, l := range [...]value{{kind: boolean, text: "true"}, {kind: boolean, text: "false"}, {kind: null, text: "null"}} {
		if rest, ok := strings.CutPrefix(p.rest, l.text); ok {
			p.rest = rest
			return l, true
		}
	}
	return value{}, false
}

func (p *parser) object(depth int) (v value, ok bool) {
	v.kind = object
	p.rest = p.rest[1:]
	if p.take('}') {
		return v, true
	}
	for {
		p.space()
		name, ok := p.string()
		if !ok || v.member(name).kind != absent || !p.take(':') {
			return v, false
		}
		p.space()
		m, ok := p.value(depth + 1)
		if !ok || len(v.members) == maxMembers {
			return v, false
		}
		if v.members == nil {
			v.members = make([]member, 0, 8) // as many claims as most tokens have
		}
		v.members = append(v.members, member{name, m})
		if p.take('}') {
			return v, true
		}
		if !p.take(',') {
			return v, false
		}
	}
}

// maxMembers bounds the members of an object, each of which is compared to those before it.
const maxMembers = 1024

func (p *parser) list(depth int) (v value, ok bool) {
	v.kind = list
	p.rest = p.rest[1:]
	if p.take(']') {
		return v, true
	}
	for {
		p.space()
		item, ok := p.value(depth + 1)
		if !ok {
			return v, false
		}
		v.items = append(v.items, item)
		if p.take(']') {
			return v, true
		}
		if !p.take(',') {
			return v, false
		}
	}
}

// number takes a number: an integer, and a fraction and an exponent, if any.
func (p *parser) number() (value, bool) {
	n := 0
	digits := func() bool {
		from := n
		for n < len(p.rest) && '0' <= p.rest[n] && p.rest[n] <= '9' {
			n++
		}
		return n > from
	}
	at := func(chars string) bool {
		if n < len(p.rest) && strings.IndexByte(chars, p.rest[n]) >= 0 {
			n++
			return true
		}
		return false
	}
	at("-")
	ok := at("0") || digits()
	if ok && at(".") {
		ok = digits()
	}
	if ok && at("eE") {
		at("+-")
		ok = digits()
	}
	v := value{kind: number, text: p.rest[:n]}
	p.rest = p.rest[n:]
	return v, ok
}

// string takes a string and decodes its escapes.
func (p *parser) string() (string, bool) {
	if p.rest == "" || p.rest[0] != '"' {
		return "", false
	}
	s := p.rest[1:]
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			p.rest = s[i+1:]
			return s[:i], true
		case c == '\\':
			return p.escaped(s, i)
		case c < ' ':
			return "", false
		}
	}
	return "", false
}

// escaped goes on with a string in which there is an escape at i.
func (p *parser) escaped(s string, i int) (string, bool) {
	var out strings.Builder
	out.WriteString(s[:i])
	for i < len(s) {
		c := s[i]
		i++
		switch {
		case c == '"':
			p.rest = s[i:]
			return out.String(), true
		case c < ' ':
			return "", false
		case c != '\\':
			out.WriteByte(c)
			continue
		}
		if i == len(s) {
			return "", false
		}
		c = s[i]
		i++
		if plain := strings.IndexByte(`"\/bfnrt`, c); plain >= 0 {
			out.WriteByte("\"\\/\b\f\n\r\t"[plain])
			continue
		}
		if c != 'u' {
			return "", false
		}
		r, ok := hex4(s[i:])
		if !ok {
			return "", false
		}
		i += 4
		if utf16.IsSurrogate(r) {
			if !strings.HasPrefix(s[i:], `\u`) {
				return "", false
			}
			low, ok := hex4(s[i+2:])
			if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
				return "", false
			}
			i += 6
		}
		out.WriteRune(r)
	}
	return "", false
}

func hex4(s string) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:4], 16, 16)
	return rune(n), err == nil
}
