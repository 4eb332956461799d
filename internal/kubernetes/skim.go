package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// maxDepth bounds the nesting of values.
const maxDepth = 1000

// Skimmer walks over JSON and checks its syntax like encoding/json, but several times as fast: a watch of busy objects reads much more than
// it uses. The methods that read a value return false if it does not have their type. Null has every type and leaves the target
// unchanged. Keys are compared in their written form, which is how API servers write them.
type Skimmer struct {
	data []byte
	at   int
	key  string // of the innermost value that could not be read
}

// Skim returns a skimmer at the beginning of a value.
func Skim(data []byte) Skimmer { return Skimmer{data: data} }

// Err returns why a value could not be read.
func (s *Skimmer) Err() error {
	if s.key == "" {
		return fmt.Errorf("byte %d is not what is expected there", s.at)
	}
	return fmt.Errorf("%s: byte %d is not what is expected there", clean(s.key), s.at)
}

// space skips white space, and returns the byte after it; 0 at the end.
func (s *Skimmer) space() byte {
	for s.at < len(s.data) {
		switch c := s.data[s.at]; c {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return c
		}
	}
	return 0
}

// Members walks over an object. member is called with each key, as it is written but without quotes, and must walk over the value.
func (s *Skimmer) Members(member func(key []byte) bool) bool {
	return s.null() || s.members(member)
}

// null walks over null, if it is there.
func (s *Skimmer) null() bool { return s.space() == 'n' && s.word("null") }

func (s *Skimmer) members(member func(key []byte) bool) bool {
	if s.space() != '{' {
		return false
	}
	s.at++
	if s.space() == '}' {
		s.at++
		return true
	}
	for {
		s.space()
		from := s.at
		if !s.text() {
			return false
		}
		key := s.data[from+1 : s.at-1]
		if s.space() != ':' {
			return false
		}
		s.at++
		s.space()
		if !member(key) {
			if s.key == "" {
				s.key = string(key)
			}
			return false
		}
		switch s.space() {
		case ',':
			s.at++
		case '}':
			s.at++
			return true
		default:
			return false
		}
	}
}

// value walks over a value of any type.
func (s *Skimmer) value(depth int) bool {
	switch c := s.space(); {
	case c == '"':
		return s.text()
	case c == '{':
		return depth < maxDepth && s.members(func([]byte) bool { return s.value(depth + 1) })
	case c == '[':
		return depth < maxDepth && s.items(func() bool { return s.value(depth + 1) })
	case c == 't':
		return s.word("true")
	case c == 'f':
		return s.word("false")
	case c == 'n':
		return s.word("null")
	}
	return s.number()
}

// Items walks over an array. item is called for each item, and must walk over it.
func (s *Skimmer) Items(item func() bool) bool {
	return s.null() || s.space() == '[' && s.items(item)
}

func (s *Skimmer) items(item func() bool) bool {
	s.at++
	if s.space() == ']' {
		s.at++
		return true
	}
	for {
		if !item() {
			return false
		}
		switch s.space() {
		case ',':
			s.at++
		case ']':
			s.at++
			return true
		default:
			return false
		}
	}
}

// text walks over a string.
func (s *Skimmer) text() bool {
	if s.at >= len(s.data) || s.data[s.at] != '"' {
		return false
	}
	for i := s.at + 1; i < len(s.data); i++ {
		switch c := s.data[i]; {
		case c == '"':
			s.at = i + 1
			return true
		case c < ' ':
			return false
		case c == '\\':
			if i++; i >= len(s.data) {
				return false
			}
			switch s.data[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if i++; i >= len(s.data) || !hex(s.data[i]) {
						return false
					}
				}
			default:
				return false
			}
		}
	}
	return false
}

func hex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }

func (s *Skimmer) word(word string) bool {
	if !bytes.HasPrefix(s.data[s.at:], []byte(word)) {
		return false
	}
	s.at += len(word)
	return true
}

func (s *Skimmer) number() bool {
	s.sign("-")
	if s.at < len(s.data) && s.data[s.at] == '0' {
		s.at++
	} else if !s.digits() {
		return false
	}
	if s.at < len(s.data) && s.data[s.at] == '.' {
		if s.at++; !s.digits() {
			return false
		}
	}
	if s.at < len(s.data) && (s.data[s.at] == 'e' || s.data[s.at] == 'E') {
		s.at++
		s.sign("+-")
		return s.digits()
	}
	return true
}

func (s *Skimmer) sign(of string) {
	if s.at < len(s.data) && bytes.IndexByte([]byte(of), s.data[s.at]) >= 0 {
		s.at++
	}
}

func (s *Skimmer) digits() bool {
	from := s.at
	for s.at < len(s.data) && s.data[s.at] >= '0' && s.data[s.at] <= '9' {
		s.at++
	}
	return s.at > from
}

// string walks over a value and puts it into *into if it is a string.
func (s *Skimmer) string(into *string) bool {
	if s.space() != '"' {
		return s.value(0)
	}
	text, ok := s.Text()
	*into = string(text)
	return ok
}

// Skip walks over a value of any type.
func (s *Skimmer) Skip() bool { return s.value(0) }

// Text walks over a string, and returns it: a part of the data, unless it was written with escapes. It is nil for null.
func (s *Skimmer) Text() (text []byte, ok bool) {
	if s.null() {
		return nil, true
	}
	from := s.at
	if !s.text() {
		return nil, false
	}
	span := s.data[from:s.at]
	if bytes.IndexByte(span, '\\') < 0 && utf8.Valid(span) {
		return span[1 : len(span)-1], true
	}
	var decoded string
	err := json.Unmarshal(span, &decoded)
	return []byte(decoded), err == nil
}

// Bool walks over true or false, and puts it into *into.
func (s *Skimmer) Bool(into *bool) bool {
	switch s.space() {
	case 't':
		*into = true
		return s.word("true")
	case 'f':
		*into = false
		return s.word("false")
	}
	return s.null()
}

// Int walks over a whole number, and puts it into *into.
func (s *Skimmer) Int(into *int) bool {
	if s.null() {
		return true
	}
	from := s.at
	if !s.number() {
		return false
	}
	n, err := strconv.Atoi(string(s.data[from:s.at]))
	*into = n
	return err == nil
}

// head is what is read of every object.
type head struct {
	kind, apiVersion           string
	name, namespace            string
	uid, resourceVersion, mark string // mark is the annotation of the end of initial events
}

// object walks over an object of the API and reads its head.
func (s *Skimmer) object(h *head) bool {
	return s.members(func(key []byte) bool {
		switch string(key) {
		case "kind":
			return s.string(&h.kind)
		case "apiVersion":
			return s.string(&h.apiVersion)
		case "metadata":
			if s.space() == '{' {
				return s.metadata(h)
			}
		}
		return s.value(0)
	})
}

func (s *Skimmer) metadata(h *head) bool {
	return s.members(func(key []byte) bool {
		switch string(key) {
		case "name":
			return s.string(&h.name)
		case "namespace":
			return s.string(&h.namespace)
		case "uid":
			return s.string(&h.uid)
		case "resourceVersion":
			return s.string(&h.resourceVersion)
		case "annotations":
			if s.space() == '{' {
				return s.members(func(key []byte) bool {
					if string(key) == markerAnnotation {
						return s.string(&h.mark)
					}
					return s.value(0)
				})
			}
		}
		return s.value(0)
	})
}

// event walks over an event of a watch, and returns its type and its object.
func (s *Skimmer) event(h *head) (kind string, object []byte, ok bool) {
	ok = s.members(func(key []byte) bool {
		switch string(key) {
		case "type":
			return s.string(&kind)
		case "object":
			if from := s.at; s.space() == '{' {
				*h = head{}
				ok := s.object(h)
				object = s.data[from:s.at]
				return ok
			}
		}
		return s.value(0)
	})
	return kind, object, ok && s.space() == 0 && s.at == len(s.data)
}
