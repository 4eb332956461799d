package jwt

import (
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// value is a JSON value. Objects and lists are kept as text and parsed when they are needed, so the memory for a token is bounded by its
// length, whatever its sender puts in.
type value struct {
	kind kind
	name string // of a member of an object
	text string // of a string, decoded; of all other values, as in the source
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

const (
	// maxDepth bounds how deep objects and lists nest.
	maxDepth = 64

	// maxMembers bounds the members of an object.
	maxMembers = 1024

	// wide is the number of members above which names that occur twice are found by hashing, and not by comparing all pairs.
	wide = 32
)

// parse reads one JSON object (RFC 8259) and appends its members to members. It refuses whatever two readers may understand differently: a
// name that occurs twice in an object, invalid UTF-8, half of a surrogate pair, anything after the object.
func parse(data string, members []value) (all []value, ok bool) {
	if !utf8.ValidString(data) {
		return nil, false
	}
	p := parser{data}
	p.space()
	if p.rest == "" || p.rest[0] != '{' {
		return nil, false
	}
	if members == nil { // there are at most as many members as colons
		members = make([]value, 0, min(strings.Count(data, ":"), maxMembers))
	}
	var room [maxDepth]string
	members, ok = p.object(0, members, room[:0])
	p.space()
	return members, ok && p.rest == ""
}

// find returns the member with a name; it is absent if there is none.
func find(members []value, name string) value {
	for i := range members {
		if members[i].name == name {
			return members[i]
		}
	}
	return value{}
}

// member returns the member of an object by its name; it is absent if there is none.
func (v value) member(name string) value {
	for m := range v.members {
		if m.name == name {
			return m
		}
	}
	return value{}
}

// members yields the members of an object.
func (v value) members(yield func(value) bool) { v.each(object, '}', yield) }

// items yields the items of a list.
func (v value) items(yield func(value) bool) { v.each(list, ']', yield) }

// each yields the parts of a value of a kind. The text was parsed before, so it has no errors.
func (v value) each(of kind, end byte, yield func(value) bool) {
	if v.kind != of {
		return
	}
	p := parser{v.text[1:]}
	var room [maxDepth]string
	for more := !p.take(end); more; more = p.take(',') {
		p.space()
		part := value{}
		if of == object {
			part.name, _ = p.string(true)
			p.take(':')
			p.space()
		}
		if part.kind, part.text, _ = p.value(1, true, room[:0]); !yield(part) {
			return
		}
	}
}

// parser takes values from the front of a text, and validates them.
type parser struct {
	rest string
}

func (p *parser) space() {
	i := 0
	for i < len(p.rest) && (p.rest[i] == ' ' || p.rest[i] == '\t' || p.rest[i] == '\r' || p.rest[i] == '\n') {
		i++
	}
	p.rest = p.rest[i:]
}

// take takes c and the space before it, if c comes next.
func (p *parser) take(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		if p.space(); p.rest == "" || p.rest[0] != c {
			return false
		}
	}
	p.rest = p.rest[1:]
	return true
}

// value takes a value. If it is a string, it is decoded only if keep is set. room is memory for the names in objects.
func (p *parser) value(depth int, keep bool, room []string) (k kind, s string, ok bool) {
	if p.rest == "" || depth > maxDepth {
		return absent, "", false
	}
	from := p.rest
	switch c := from[0]; {
	case c == '"':
		s, ok = p.string(keep)
		return text, s, ok
	case c == '{':
		k = object
		_, ok = p.object(depth, nil, room)
	case c == '[':
		k, ok = list, p.list(depth, room)
	case c == '-' || '0' <= c && c <= '9':
		k, ok = number, p.number()
	case c == 't':
		k, ok = boolean, p.literal("true")
	case c == 'f':
		k, ok = boolean, p.literal("false")
	case c == 'n':
		k, ok = null, p.literal("null")
	}
	return k, from[:len(from)-len(p.rest)], ok
}

func (p *parser) literal(s string) (ok bool) {
	p.rest, ok = strings.CutPrefix(p.rest, s)
	return ok
}

// object takes an object. It appends the members to members, unless that is nil. names is memory for the names.
func (p *parser) object(depth int, members []value, names []string) (all []value, ok bool) {
	p.rest = p.rest[1:]
	if p.take('}') {
		return members, true
	}
	for more := true; more; more = p.take(',') {
		p.space()
		name, ok := p.string(true)
		if !ok || len(names) == maxMembers || len(names) < wide && slices.Contains(names, name) || !p.take(':') {
			return nil, false
		}
		names = append(names, name)
		p.space()
		k, s, ok := p.value(depth+1, members != nil, names[len(names):])
		if !ok {
			return nil, false
		}
		if members != nil {
			members = append(members, value{k, name, s})
		}
	}
	return members, p.take('}') && (len(names) <= wide || distinct(names))
}

// distinct reports whether no name occurs twice.
func distinct(names []string) bool {
	var table [2 * maxMembers]uint16 // by hash, and then by the next free place: the number of a name, counted from 1
	seed := maphash.MakeSeed()       // so that nobody can choose names that collide
	for i, name := range names {
		at := maphash.String(seed, name) % uint64(len(table))
		for ; table[at] != 0; at = (at + 1) % uint64(len(table)) {
			if names[table[at]-1] == name {
				return false
			}
		}
		table[at] = uint16(i + 1)
	}
	return true
}

func (p *parser) list(depth int, room []string) bool {
	p.rest = p.rest[1:]
	if p.take(']') {
		return true
	}
	for more := true; more; more = p.take(',') {
		p.space()
		if _, _, ok := p.value(depth+1, false, room); !ok {
			return false
		}
	}
	return p.take(']')
}

// number takes a number: an integer, with a fraction and an exponent if there are any.
func (p *parser) number() bool {
	s := p.rest
	i := 0
	if s[0] == '-' {
		i++
	}
	from := i
	i = digits(s, i)
	ok := i > from && (s[from] != '0' || i == from+1)
	if ok && i < len(s) && s[i] == '.' {
		from = i + 1
		i = digits(s, from)
		ok = i > from
	}
	if ok && i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		if i++; i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		from = i
		i = digits(s, i)
		ok = i > from
	}
	p.rest = s[i:]
	return ok
}

// digits returns the end of the digits that begin at i.
func digits(s string, i int) int {
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		i++
	}
	return i
}

// string takes a string. It returns it decoded if keep is set.
func (p *parser) string(keep bool) (string, bool) {
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
			return p.escaped(s, i, keep)
		case c < ' ':
			return "", false
		}
	}
	return "", false
}

// escaped takes the rest of a string in which the first escape is at i.
func (p *parser) escaped(s string, i int, keep bool) (string, bool) {
	var out strings.Builder
	if keep {
		out.WriteString(s[:i])
	}
	for i < len(s) {
		c := s[i]
		switch {
		case c == '"':
			p.rest = s[i+1:]
			return out.String(), true
		case c < ' ':
			return "", false
		case c != '\\':
			if i++; keep {
				out.WriteByte(c)
			}
			continue
		}
		r, n := unescape(s[i+1:])
		if n == 0 {
			return "", false
		}
		if i += 1 + n; keep {
			out.WriteRune(r)
		}
	}
	return "", false
}

// unescape decodes what follows a backslash, and returns its length, or 0 if it is malformed.
func unescape(s string) (r rune, length int) {
	if s == "" {
		return 0, 0
	}
	if plain := strings.IndexByte(`"\/bfnrt`, s[0]); plain >= 0 {
		return rune("\"\\/\b\f\n\r\t"[plain]), 1
	}
	r, ok := hex4(s)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 5
	}
	if len(s) < 6 || s[5] != '\\' {
		return 0, 0
	}
	low, ok := hex4(s[6:])
	if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
		return 0, 0
	}
	return r, 11
}

// hex4 reads u and four hexadecimal digits.
func hex4(s string) (rune, bool) {
	if len(s) < 5 || s[0] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(s[1:5], 16, 16)
	return rune(n), err == nil
}
