package route

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// HeaderEdits is a compiled list of [HeaderOps]: those of a destination, followed by those of its route. A nil *HeaderEdits
// does nothing. It is immutable and safe for concurrent use.
type HeaderEdits struct {
	levels []level
}

// level is one compiled HeaderOps. Like Envoy, it first removes headers, then evaluates all values, then sets headers, and
// appends last.
type level struct {
	remove  []headerKey
	set     []headerValue
	add     []headerValue
	dynamic bool // some value depends on the request or response
}

type headerValue struct {
	key   headerKey
	value template
}

// Apply edits h, a header with canonical keys such as http.Header. If h belongs to a request, req is that request and req.Header
// is h. If h belongs to a response, req is the request that was sent. Values that do not change are not copied.
func (e *HeaderEdits) Apply(h map[string][]string, req *Request) {
	if e == nil {
		return
	}
	for i := range e.levels {
		e.levels[i].apply(h, req)
	}
}

func (l *level) apply(h map[string][]string, req *Request) {
	for i := range l.remove {
		remove(h, &l.remove[i])
	}
	var values []string
	if l.dynamic {
		values = make([]string, 0, len(l.set)+len(l.add))
		for i := range l.set {
			values = append(values, l.set[i].value.eval(h, req))
		}
		for i := range l.add {
			values = append(values, l.add[i].value.eval(h, req))
		}
	}
	for i := range l.set {
		s := &l.set[i]
		value := s.value.literal
		if l.dynamic {
			value = values[i]
		}
		if value == "" {
			continue
		}
		remove(h, &s.key)
		h[s.key.canonical] = []string{value}
	}
	for i := range l.add {
		a := &l.add[i]
		value := a.value.literal
		if l.dynamic {
			value = values[len(l.set)+i]
		}
		if value == "" {
			continue
		}
		key := a.key.canonical
		// The slice may be shared with the caller: do not write to its spare capacity.
		old := h[key]
		h[key] = append(old[:len(old):len(old)], value)
	}
}

func remove(h map[string][]string, key *headerKey) {
	delete(h, key.canonical)
	delete(h, key.lower)
}

// errFraming is for headers that net/http and gRPC write themselves, whatever the header map says.
var errFraming = errors.New("the header frames the message and cannot be changed")

func compileLevel(ops *HeaderOps, response bool, report reporter) (l level, authority string) {
	key := func(field, name string, removing bool) headerKey {
		k, err := newHeaderKey(name, false)
		if err == nil {
			switch k.lower {
			case "host":
				err = errors.New("the Host can only be set or added, on a request")
			case "content-length", "transfer-encoding", "trailer", "connection", "upgrade":
				if !removing || !response {
					err = errFraming
				}
			}
		}
		if err != nil {
			report(field, err)
		}
		return k
	}
	for i, name := range ops.Remove {
		l.remove = append(l.remove, key(fmt.Sprintf("Remove[%d]", i), name, true))
	}
	values := func(field string, from []Header) (to []headerValue, host string) {
		for i, h := range from {
			field := fmt.Sprintf("%s[%d]", field, i)
			if lower := strings.ToLower(h.Name); !response && (lower == "host" || lower == ":authority") {
				if !validAuthority(h.Value) {
					report(field, fmt.Errorf("%q is not an authority", h.Value))
				}
				host = h.Value
				continue
			}
			v := headerValue{key: key(field, h.Name, false)}
			var err error
			if v.value, err = parseTemplate(h.Value, response); err != nil {
				report(field, err)
			}
			l.dynamic = l.dynamic || v.value.parts != nil
			to = append(to, v)
		}
		return to, host
	}
	var added string
	l.set, authority = values("Set", ops.Set)
	l.add, added = values("Add", ops.Add)
	if authority == "" {
		authority = added
	}
	return l, authority
}

// newHeaderEdits returns nil if the levels do nothing.
func newHeaderEdits(levels ...level) *HeaderEdits {
	var e HeaderEdits
	for _, l := range levels {
		if len(l.remove)+len(l.set)+len(l.add) > 0 {
			e.levels = append(e.levels, l)
		}
	}
	if e.levels == nil {
		return nil
	}
	return &e
}

// template is a parsed format string. A template without commands is a literal.
type template struct {
	literal string // if parts is nil
	parts   []part
}

type part struct {
	literal string // if command is nil
	command func(key *headerKey, h map[string][]string, req *Request) string
	key     headerKey
	alt     *headerKey // used if the value of key is empty; nil if there is none
	limit   int        // of the value, in bytes; 0 means none
}

func (t *template) eval(h map[string][]string, req *Request) string {
	if t.parts == nil {
		return t.literal
	}
	var b strings.Builder
	for i := range t.parts {
		p := &t.parts[i]
		if p.command == nil {
			b.WriteString(p.literal)
			continue
		}
		value := p.command(&p.key, h, req)
		if value == "" && p.alt != nil {
			value = p.command(p.alt, h, req)
		}
		if p.limit > 0 && len(value) > p.limit {
			value = value[:p.limit]
		}
		b.WriteString(value)
	}
	return b.String()
}

func requestHeader(key *headerKey, _ map[string][]string, req *Request) string {
	value, _ := key.of(req)
	return value
}

func responseHeader(key *headerKey, h map[string][]string, _ *Request) string {
	return strings.Join(key.in(h), ",")
}

// parseTemplate parses a format string in Envoy's syntax. [NewTable] documents the supported commands.
func parseTemplate(s string, response bool) (template, error) {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return template{}, fmt.Errorf("%q holds a control character", s)
		}
	}
	var parts []part
	var literal strings.Builder
	rest := s
	for {
		before, after, found := strings.Cut(rest, "%")
		literal.WriteString(before)
		if !found {
			break
		}
		command, after, found := strings.Cut(after, "%")
		if !found {
			return template{}, fmt.Errorf("%q has a single %%; a percent sign is written %%%%", s)
		}
		rest = after
		if command == "" {
			literal.WriteByte('%')
			continue
		}
		p, err := parseCommand(command, response)
		if err != nil {
			return template{}, err
		}
		if literal.Len() > 0 {
			parts = append(parts, part{literal: literal.String()})
			literal.Reset()
		}
		parts = append(parts, p)
	}
	if parts == nil {
		return template{literal: literal.String()}, nil
	}
	if literal.Len() > 0 {
		parts = append(parts, part{literal: literal.String()})
	}
	return template{parts: parts}, nil
}

// parseCommand parses a command of the form NAME(header?alternative):limit.
func parseCommand(s string, response bool) (part, error) {
	unsupported := fmt.Errorf("%%%s%% is not supported", s)
	name, args, found := strings.Cut(s, "(")
	var p part
	switch {
	case name == "REQ":
		p.command = requestHeader
	case name == "RESP" && response:
		p.command = responseHeader
	case name == "RESP":
		return p, fmt.Errorf("%%%s%% is for response headers", s)
	default:
		return p, unsupported
	}
	args, suffix, closed := strings.Cut(args, ")")
	if !found || !closed {
		return p, unsupported
	}
	if suffix != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(suffix, ":"))
		if err != nil || n <= 0 || suffix[0] != ':' {
			return p, unsupported
		}
		p.limit = n
	}
	main, alternative, both := strings.Cut(args, "?")
	var err error
	if p.key, err = newHeaderKey(main, name == "REQ"); err != nil {
		return p, fmt.Errorf("%%%s%%: %w", s, err)
	}
	if both {
		alt, err := newHeaderKey(alternative, name == "REQ")
		if err != nil {
			return p, fmt.Errorf("%%%s%%: %w", s, err)
		}
		p.alt = &alt
	}
	return p, nil
}
