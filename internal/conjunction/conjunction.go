// Package conjunction joins the conditions that several documents set for the same request.
package conjunction

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"unicode"

	"github.com/nosidecar/mesh/policy/route"
)

// Never is a match that no request meets: no method has a parenthesis.
var Never = route.Match{Method: route.StringMatch{Kind: route.Exact, Value: "(none)"}}

// And returns a match that holds where a and b do, and false if they contradict each other. What a says of the path stays
// in place, because rewrites go by it; with keep set it does so too if a says nothing. It fails if b has a regular
// expression for the path that cannot stand beside another condition.
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

// Path turns a condition on the path into one on :path, which has the query too. A match can have any number of those.
func Path(m route.StringMatch) (route.KeyMatch, error) {
	key := func(value route.StringMatch) (route.KeyMatch, error) {
		return route.KeyMatch{Key: ":path", Value: value}, nil
	}
	var re *syntax.Regexp
	var err error
	switch m.Kind {
	case route.Any, route.Prefix:
		return key(m) // a path holds no question mark
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
	if err := withoutQuestionMarks(re); err != nil {
		return route.KeyMatch{}, err
	}
	return key(route.StringMatch{Kind: route.Regex, Value: "(?:" + re.String() + `)(?:\?(?s:.*))?`})
}

var errAnchor = errors.New(`the pattern has "$" or a line anchor inside: it cannot be combined with other conditions on the path`)

// withoutQuestionMarks makes a regular expression match only strings without a question mark, and those as before.
func withoutQuestionMarks(re *syntax.Regexp) error {
	const newline, question = '\n', '?'
	set := func(runes ...rune) {
		*re = syntax.Regexp{Op: syntax.OpCharClass, Rune: runes}
	}
	switch re.Op {
	case syntax.OpEndText, syntax.OpEndLine, syntax.OpBeginLine:
		return errAnchor
	case syntax.OpLiteral:
		if slices.Contains(re.Rune, question) {
			*re = syntax.Regexp{Op: syntax.OpNoMatch}
		}
	case syntax.OpAnyChar:
		set(0, question-1, question+1, unicode.MaxRune)
	case syntax.OpAnyCharNotNL:
		set(0, newline-1, newline+1, question-1, question+1, unicode.MaxRune)
	case syntax.OpCharClass:
		var runes []rune
		for i := 0; i < len(re.Rune); i += 2 {
			lo, hi := re.Rune[i], re.Rune[i+1]
			if question < lo || hi < question {
				runes = append(runes, lo, hi)
				continue
			}
			if lo < question {
				runes = append(runes, lo, question-1)
			}
			if question < hi {
				runes = append(runes, question+1, hi)
			}
		}
		if set(runes...); runes == nil {
			*re = syntax.Regexp{Op: syntax.OpNoMatch}
		}
	}
	for _, sub := range re.Sub {
		if err := withoutQuestionMarks(sub); err != nil {
			return err
		}
	}
	return nil
}
