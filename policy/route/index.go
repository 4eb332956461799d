package route

import (
	"cmp"
	"slices"
	"strings"
)

// indexedFrom is the number of matches from which a table has an index.
const indexedFrom = 16

// index finds the first match of a table that applies to a request, without trying them all. Each match is filed under the one of its
// conditions that it shares with the fewest others. Only matches that are filed under a value of the request are tried, with all their
// conditions. The index is built when the table is first used, because most tables never are.
type index struct {
	places   []place            // of the matches, in their order
	exact    map[string][]int32 // by path; here and below, the lists of matches are in their order
	prefixes prefixes           // by prefixes of the path
	headers  []valuesOf[headerKey]
	query    []valuesOf[string]
	grams    [len(gramSizes)]grams // by bytes anywhere in the path, for regular expressions
	rest     []int32               // matches without a condition to file them under
}

// place is where a match is in the table. match is -1 for a rule that has none.
type place struct{ rule, match int32 }

// valuesOf files matches under the values of something.
type valuesOf[K comparable] struct {
	key   K
	lists map[string][]int32
}

// find is Table.Match.
func (x *index) find(t *Table, r *Request) (rule *Rule, match int, ok bool) {
	none := int32(len(x.places))
	best := x.first(t, r, x.exact[r.Path], none)
	for i := x.prefixes.last(r.Path); i >= 0; i = x.prefixes.list[i].parent {
		if p := &x.prefixes.list[i]; strings.HasPrefix(r.Path, p.text) {
			best = x.first(t, r, p.matches, best)
		}
	}
	for i := range x.headers {
		h := &x.headers[i]
		if value, present := h.key.of(r); present {
			best = x.first(t, r, h.lists[value], best)
		}
	}
	for i := range x.query {
		q := &x.query[i]
		if value, present := parameter(r.RawQuery, q.key); present {
			best = x.first(t, r, q.lists[value], best)
		}
	}
	best = x.first(t, r, x.rest, best)
	for i, size := range gramSizes {
		if g := &x.grams[i]; g.lists != nil {
			best = g.find(size, r.Path, best, func(list []int32, best int32) int32 { return x.first(t, r, list, best) })
		}
	}
	if best == none {
		return nil, -1, false
	}
	at := x.places[best]
	return &t.rules[at.rule], int(at.match), true
}

// first returns the first match of a list that applies, or best if none before best does.
func (x *index) first(t *Table, r *Request, list []int32, best int32) int32 {
	for _, i := range list {
		if i >= best {
			break
		}
		if at := x.places[i]; at.match < 0 || t.rules[at.rule].matches[at.match].match(r) {
			return i
		}
	}
	return best
}

// condition is a condition that a match may be filed under.
type condition struct {
	kind conditionKind
	key  headerKey // of a header
	text string    // a path or a prefix of it, the value of a header or parameter, or a gram
	name string    // of a parameter
}

type conditionKind uint8

// The kinds, the cheapest to look up first.
const (
	onPath conditionKind = iota
	onPrefix
	onHeader
	onParameter
	onGram
)

// option is a way to file a match: a set of conditions. Every request that the match applies to meets at least one of them. Most options
// have only one condition.
type option struct {
	first  condition
	others []condition
}

// all yields the conditions.
func (o *option) all(yield func(condition) bool) {
	if !yield(o.first) {
		return
	}
	for _, c := range o.others {
		if !yield(c) {
			return
		}
	}
}

// newIndex returns the index of a table.
func newIndex(t *Table) *index {
	x := &index{exact: make(map[string][]int32)}
	var options [][]option // of each match
	shared := make(sharers)
	for i := range t.rules {
		rule := &t.rules[i]
		for j := range rule.matches {
			own := filings(&rule.matches[j])
			shared.count(own, int32(len(x.places)))
			x.places, options = append(x.places, place{int32(i), int32(j)}), append(options, own)
		}
		if len(rule.matches) == 0 {
			x.places, options = append(x.places, place{int32(i), -1}), append(options, nil)
			break // it matches everything, so later rules are never reached
		}
	}
	prefixed := make(map[string][]int32)
	for i, own := range options {
		if len(own) == 0 {
			x.rest = append(x.rest, int32(i))
			continue
		}
		best := &own[0]
		for j := range own[1:] {
			if shared.of(&own[j+1]) < shared.of(best) {
				best = &own[j+1]
			}
		}
		for c := range best.all {
			x.file(int32(i), c, prefixed)
		}
	}
	x.prefixes.sort(prefixed)
	for i := range x.grams {
		x.grams[i].seal()
	}
	return x
}

// sharers counts the matches that share a condition.
type sharers map[condition]sharing

type sharing struct {
	matches int32
	last    int32 // 1 plus the last of them
}

// count counts the conditions of a match, each once.
func (s sharers) count(options []option, match int32) {
	for i := range options {
		for c := range options[i].all {
			if has := s[c]; has.last != match+1 {
				s[c] = sharing{has.matches + 1, match + 1}
			}
		}
	}
}

// of returns the number of matches that share the conditions of an option.
func (s sharers) of(o *option) (sum int32) {
	for c := range o.all {
		sum += s[c].matches
	}
	return sum
}

// file files match i under a condition.
func (x *index) file(i int32, c condition, prefixed map[string][]int32) {
	switch c.kind {
	case onPath:
		x.exact[c.text] = append(x.exact[c.text], i)
	case onPrefix:
		prefixed[c.text] = append(prefixed[c.text], i)
	case onHeader:
		x.headers = fileValue(x.headers, c.key, c.text, i)
	case onParameter:
		x.query = fileValue(x.query, c.name, c.text, i)
	case onGram:
		x.grams[slices.Index(gramSizes[:], len(c.text))].file(c.text, i)
	}
}

func fileValue[K comparable](all []valuesOf[K], key K, value string, i int32) []valuesOf[K] {
	at := slices.IndexFunc(all, func(v valuesOf[K]) bool { return v.key == key })
	if at < 0 {
		at, all = len(all), append(all, valuesOf[K]{key, make(map[string][]int32)})
	}
	all[at].lists[value] = append(all[at].lists[value], i)
	return all
}

// filings returns the ways to file a match, the cheapest first.
func filings(m *matcher) (all []option) {
	may := func(c condition) { all = append(all, option{first: c}) }
	if m.uri.kind == Exact && !m.uri.fold {
		may(condition{kind: onPath, text: m.uri.value})
	} else if m.uri.kind == Prefix && !m.uri.fold && m.uri.value != "" {
		may(condition{kind: onPrefix, text: m.uri.value})
	}
	fixed := func(s *stringMatcher) bool { return s.kind == Exact && !s.fold && s.value != "" }
	more := cmp.Or(m.more, new(matchers))
	if fixed(&more.authority) {
		may(condition{kind: onHeader, key: headerKey{":authority", ":authority"}, text: more.authority.value})
	}
	for i := range more.headers {
		if h := &more.headers[i]; !h.without && fixed(&h.value) {
			may(condition{kind: onHeader, key: h.key, text: h.value.value})
		}
	}
	for i := range more.query {
		if q := &more.query[i]; fixed(&q.value) {
			may(condition{kind: onParameter, name: q.key, text: q.value.value})
		}
	}
	for _, texts := range m.uri.literals() {
		all = fileGrams(all, texts)
	}
	return all
}

// prefixes finds the texts that a path begins with.
type prefixes struct {
	list []prefixed // sorted by text
}

type prefixed struct {
	text    string
	parent  int32 // the index of the longest other text that this one begins with, or -1
	matches []int32
}

func (p *prefixes) sort(lists map[string][]int32) {
	for text, matches := range lists {
		p.list = append(p.list, prefixed{text, -1, matches})
	}
	slices.SortFunc(p.list, func(a, b prefixed) int { return strings.Compare(a.text, b.text) })
	for i := 1; i < len(p.list); i++ {
		parent := int32(i - 1)
		for parent >= 0 && !strings.HasPrefix(p.list[i].text, p.list[parent].text) {
			parent = p.list[parent].parent
		}
		p.list[i].parent = parent
	}
}

// last returns the index of the last text in sorted order that is not greater than path, or -1. All texts that path begins with are this
// one, its parent, the parent of that, and so on: whatever sorts between one of them and path begins with it too.
func (p *prefixes) last(path string) int32 {
	low, high := 0, len(p.list)
	for low < high {
		if mid := int(uint(low+high) >> 1); p.list[mid].text <= path {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return int32(low - 1)
}
