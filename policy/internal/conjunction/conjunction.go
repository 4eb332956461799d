// Package conjunction combines the conditions of several documents on the same request.
package conjunction

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"

	"github.com/nosidecar/mesh/policy/route"
)

// Never matches no request, since no method contains a parenthesis.
var Never = route.Match{Method: route.StringMatch{Kind: route.Exact, Value: "(none)"}}

// And returns a match for the requests that match both a and b. It reports false if a and b contradict each other. The condition of a on
// the path remains the condition on the path, because rewrites depend on it. If keep is set, that is also true if a has no such
// condition. And returns an error if b has a regular expression for the path that cannot be combined with other conditions.
func And(a, b route.Match, keep bool) (both route.Match, ok bool, err error) {
	both = a
	both.Headers = slices.Concat(a.Headers, b.Headers)
	both.WithoutHeaders = slices.Concat(a.WithoutHeaders, b.WithoutHeaders)
	both.Query = slices.Concat(a.Query, b.Query)
	switch {
	case a.Port == 0:
		both.Port = b.Port
	case b.Port != 0 && a.Port != b.Port:
		return route.Match{}, false, nil
	}
	for _, f := range []struct {
		name string
		a, b *route.StringMatch
	}{
		{":method", &both.Method, &b.Method}, {":scheme", &both.Scheme, &b.Scheme}, {":authority", &both.Authority, &b.Authority},
	} {
		switch {
		case f.b.Kind == route.Any || *f.a == *f.b:
		case f.a.Kind == route.Any:
			*f.a = *f.b
		case f.a.Kind == route.Exact && f.b.Kind == route.Exact && !f.a.IgnoreCase && !f.b.IgnoreCase:
			return route.Match{}, false, nil // two values that differ
		default:
			both.Headers = append(both.Headers, route.KeyMatch{Key: f.name, Value: *f.b})
		}
	}
	switch {
	case b.URI.Kind == route.Any || a.URI == b.URI:
	case a.URI.Kind == route.Any && !keep:
		both.URI = b.URI
	default:
		path, err := Path(b.URI)
		if err != nil {
			return route.Match{}, false, err
		}
		both.Headers = append(both.Headers, path)
	}
	return both, true, nil
}

// Path converts a condition on the path to one on :path, which includes the query. A match may have any number of conditions on :path.
func Path(m route.StringMatch) (route.KeyMatch, error) {
	key := func(value route.StringMatch) (route.KeyMatch, error) {
		return route.KeyMatch{Key: ":path", Value: value}, nil
	}
	var re *syntax.Regexp
	var err error
	switch m.Kind {
	case route.Any, route.Prefix:
		return key(m) // a path contains no question mark
	case route.Exact:
		flags := syntax.Literal
		if m.IgnoreCase {
			flags |= syntax.FoldCase
		}
		re, err = syntax.Parse(m.Value, flags)
	case route.Regex:
		re, err = syntax.Parse(m.Value, syntax.Perl)
	default:
		return route.KeyMatch{}, fmt.Errorf("a path cannot be compared by kind %d", m.Kind)
	}
	if err != nil {
		return route.KeyMatch{}, err
	}
	var text strings.Builder
	if err := write(&text, re); err != nil {
		return route.KeyMatch{}, err
	}
	return key(route.StringMatch{Kind: route.Regex, Value: text.String() + `(?:\?(?s:.*))?`})
}

var errAnchor = errors.New(`the pattern has "$" or a line anchor inside: it cannot be combined with other conditions on the path`)

// write writes a regular expression that matches the same strings as re, except those with a question mark. It omits what matters only for
// searches: groups, and whether a repetition is greedy. re.String would take milliseconds for each character class.
func write(b *strings.Builder, re *syntax.Regexp) error {
	const nothing = `[^\x00-\x{10FFFF}]`
	switch re.Op {
	case syntax.OpEndText, syntax.OpEndLine, syntax.OpBeginLine:
		return errAnchor
	case syntax.OpNoMatch:
		b.WriteString(nothing)
	case syntax.OpEmptyMatch:
		b.WriteString("(?:)")
	case syntax.OpBeginText:
		b.WriteString(`\A`)
	case syntax.OpWordBoundary:
		b.WriteString(`\b`)
	case syntax.OpNoWordBoundary:
		b.WriteString(`\B`)
	case syntax.OpLiteral:
		text := regexp.QuoteMeta(string(re.Rune))
		switch {
		case slices.Contains(re.Rune, '?'):
			text = nothing
		case re.Flags&syntax.FoldCase != 0:
			text = "(?i:" + text + ")"
		default:
			text = "(?:" + text + ")"
		}
		b.WriteString(text)
	case syntax.OpAnyChar:
		writeClass(b, []rune{0, unicode.MaxRune})
	case syntax.OpAnyCharNotNL:
		writeClass(b, []rune{0, '\n' - 1, '\n' + 1, unicode.MaxRune})
	case syntax.OpCharClass:
		writeClass(b, re.Rune)
	default:
		b.WriteString("(?:")
		for i, sub := range re.Sub {
			if i > 0 && re.Op == syntax.OpAlternate {
				b.WriteByte('|')
			}
			if err := write(b, sub); err != nil {
				return err
			}
		}
		b.WriteByte(')')
		switch re.Op {
		case syntax.OpStar:
			b.WriteByte('*')
		case syntax.OpPlus:
			b.WriteByte('+')
		case syntax.OpQuest:
			b.WriteByte('?')
		case syntax.OpRepeat:
			fmt.Fprintf(b, "{%d,", re.Min)
			if re.Max >= 0 {
				fmt.Fprint(b, re.Max)
			}
			b.WriteByte('}')
		}
	}
	return nil
}

// writeClass writes a character class without the question mark. ranges has the first and last character of each range.
func writeClass(b *strings.Builder, ranges []rune) {
	empty := true
	add := func(lo, hi rune) {
		if lo > hi {
			return
		}
		if empty {
			b.WriteByte('[')
		}
		empty = false
		fmt.Fprintf(b, `\x{%X}-\x{%X}`, lo, hi)
	}
	for i := 0; i < len(ranges); i += 2 {
		lo, hi := ranges[i], ranges[i+1]
		if lo <= '?' && '?' <= hi {
			add(lo, '?'-1)
			lo = '?' + 1
		}
		add(lo, hi)
	}
	if empty {
		b.WriteString(`[^\x00-\x{10FFFF}]`)
	} else {
		b.WriteByte(']')
	}
}
