package jwt

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// value is a value of JSON.
type value struct {
	kind  kind
	name  string  // of a member of an object
	text  string  // of a string, decoded; of all others but objects and lists that were read, as it stands
	inner []value // the members of an object, or the items of a list
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
func parse(data string) (value, bool) { return parseObject(data, true) }

// scan is parse, but leaves objects and lists in the object, which it checks, for read: whoever sends a forged token does not decide how
// much memory it takes.
func scan(data string) (value, bool) { return parseObject(data, false) }

func parseObject(data string, whole bool) (value, bool) {
	if !utf8.ValidString(data) {
		return value{}, false
	}
	p := parser{rest: data, whole: whole}
	p.space()
	v, ok := p.value(0)
	p.space()
	return v, ok && v.kind == object && p.rest == ""
}

// read reads what scan has left.
func (v *value) read() {
	if v.text == "" || v.kind != object && v.kind != list {
		return
	}
	p := parser{rest: v.text, whole: true}
	name := v.name
	*v, _ = p.value(1)
	v.name = name
}

// texts yields the string that a value is, or the items of the list that it is, with false for one that is no string. The list may be one that
// scan has left: nothing of it is kept.
func (v *value) texts(yield func(s string, ok bool) bool) {
	switch {
	case v.kind == text:
		yield(v.text, true)
	case v.kind == list && v.text == "":
		for i := range v.inner {
			if !yield(v.inner[i].text, v.inner[i].kind == text) {
				return
			}
		}
	case v.kind == list:
		p := parser{rest: v.text[1:]}
		for !p.take(']') {
			p.space()
			s, ok := p.string()
			if !yield(s, ok) || !ok {
				return
			}
			p.take(',')
		}
	}
}

// member returns the member of an object by its name.
func (v *value) member(name string) *value {
	if v.kind == object {
		for i := range v.inner {
			if v.inner[i].name == name {
				return &v.inner[i]
			}
		}
	}
	return &value{}
}

type parser struct {
	rest  string
	whole bool // all values are wanted, and not only those of the outermost object
}

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
	from := p.rest
	p.rest = p.rest[1:]
	if depth == 0 { // as many claims as there may be, and no more than most tokens have
		v.inner = make([]value, 0, min(strings.Count(p.rest, ":"), 16))
	}
	var space [16]string
	names := space[:0]
	for len(names) > 0 || !p.take('}') {
		p.space()
		name, ok := p.string()
		if !ok || len(names) == maxMembers || len(names) < wide && slices.Contains(names, name) || !p.take(':') {
			return v, false
		}
		names = append(names, name)
		p.space()
		m, ok := p.value(depth + 1)
		if !ok {
			return v, false
		}
		if p.whole || depth == 0 {
			m.name = name
			v.inner = append(v.inner, m)
		}
		if p.take('}') {
			break
		}
		if !p.take(',') {
			return v, false
		}
	}
	return p.end(v, from, depth), len(names) <= wide || distinct(names)
}

const (
	// maxMembers bounds the members of an object.
	maxMembers = 1024

	// wide is how many members an object has before their names are sorted to find one that occurs twice, and not compared each to all
	// others.
	wide = 32
)

// distinct reports whether no name occurs twice. It sorts them.
func distinct(names []string) bool {
	slices.Sort(names)
	return len(slices.Compact(names)) == len(names)
}

func (p *parser) list(depth int) (v value, ok bool) {
	v.kind = list
	from := p.rest
	p.rest = p.rest[1:]
	for first := true; !first || !p.take(']'); first = false {
		p.space()
		item, ok := p.value(depth + 1)
		if !ok {
			return v, false
		}
		if p.whole {
			v.inner = append(v.inner, item)
		}
		if p.take(']') {
			break
		}
		if !p.take(',') {
			return v, false
		}
	}
	return p.end(v, from, depth), true
}

// end returns an object or a list, which has its text if it was only scanned.
func (p *parser) end(v value, from string, depth int) value {
	if !p.whole && depth == 1 {
		v.text = from[:len(from)-len(p.rest)]
	}
	return v
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
