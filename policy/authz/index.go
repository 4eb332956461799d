package authz

import (
	"cmp"
	"iter"
	"slices"
	"strings"
)

// group is the rules of one action, in the order of the policies, with an index of them.
//
// The index lists each rule under a set of keys, such as principals or paths. A request must have one of these keys to match the
// rule. If several fields of a rule have such keys, the index uses the field whose keys lead to the fewest rules. Rules without
// keys are tried for every request.
type group struct {
	rules []*rule

	indexed    bool      // there are enough rules for an index; otherwise the fields below are not used
	rest       []int32   // rules without keys
	negated    negations // rules without keys that have notPaths
	principals lookup
	paths      lookup
	suffixes   lookup // of paths; keys and paths are reversed
	namespaces map[string][]int32
	accounts   map[string][]int32
	methods    map[string][]int32
	headers    []headerLookup
	identities []int32 // all rules in namespaces and accounts, for principals that do not have Istio's form
}

// minIndexed is the number of rules from which an index is faster than trying them all.
const minIndexed = 5

func (g *group) add(r *rule) { g.rules = append(g.rules, r) }

// first returns the first rule that matches, or noMatch.
func (g *group) first(q *query) Match {
	if !g.indexed || q.unreadable {
		for _, r := range g.rules {
			if r.match(q) {
				return r.name
			}
		}
		return noMatch
	}
	best := g.negated.try(g, g.try(g.rest, len(g.rules), q), q)
	if q.Principal != "" {
		best = g.lookup(&g.principals, q.Principal, best, q)
		if len(g.identities) > 0 {
			if ns, account, ok := splitPrincipal(q.Principal); ok {
				best = g.try(g.namespaces[ns], best, q)
				best = g.try(g.accounts[account], best, q)
			} else {
				best = g.try(g.identities, best, q)
			}
		}
	}
	for i := range q.paths {
		best = g.lookup(&g.paths, q.paths[i].path, best, q)
		if len(g.suffixes.prefixes) > 0 {
			best = g.lookup(&g.suffixes, backwards(q.paths[i].path), best, q)
		}
		if g.rules[0].every {
			break // a rule that matches under every reading matches under the first
		}
	}
	best = g.try(g.methods[q.Method], best, q)
	for i := range g.headers {
		best = g.headers[i].lookup(g, best, q)
	}
	if best == len(g.rules) {
		return noMatch
	}
	return g.rules[best].name
}

// try returns the first rule of list that matches, or best if none before best does.
func (g *group) try(list []int32, best int, q *query) int {
	for _, i := range list {
		if int(i) >= best {
			break
		}
		if g.rules[i].match(q) {
			return int(i)
		}
	}
	return best
}

// headerLookup finds rules by the value of a header.
type headerLookup struct {
	condition condition // any condition on the header, for the look-up of its value
	exact     map[string][]int32
	all       []int32 // every rule in exact
}

func (l *headerLookup) lookup(g *group, best int, q *query) int {
	value, odd, present := q.headerOf(&l.condition)
	switch {
	case !present:
		return best
	case odd == nil:
		return g.try(l.exact[value], best, q)
	case odd.unreadable:
		return g.try(l.all, best, q)
	}
	for _, reading := range odd.all {
		for _, spelling := range reading {
			best = g.try(l.exact[spelling], best, q)
		}
	}
	return best
}

func (g *group) lookup(l *lookup, text string, best int, q *query) int {
	for list := range l.find(text) {
		best = g.try(list, best, q)
	}
	return best
}

// lookup finds numbers, such as those of rules, by a text of a request: under the text itself and under its prefixes.
type lookup struct {
	exact    map[string][]int32
	starts   map[string][]int32 // prefixes, until link sorts them
	prefixes []prefixed         // sorted
}

type prefixed struct {
	text    string
	numbers []int32
	parent  int // the longest other prefix of text, or -1
}

// find yields the numbers under text and under its prefixes.
func (l *lookup) find(text string) iter.Seq[[]int32] {
	return func(yield func([]int32) bool) {
		if list := l.exact[text]; list != nil && !yield(list) {
			return
		}
		for i := l.longest(text); i >= 0; i = l.prefixes[i].parent {
			if strings.HasPrefix(text, l.prefixes[i].text) && !yield(l.prefixes[i].numbers) {
				return
			}
		}
	}
}

// longest returns the last prefix in sorted order that is not greater than text, or -1. All prefixes of text are this one or its
// parents: whatever sorts between a prefix of text and text begins with that prefix too.
func (l *lookup) longest(text string) int {
	if len(l.prefixes) == 0 {
		return -1
	}
	i, found := slices.BinarySearchFunc(l.prefixes, text, func(p prefixed, text string) int {
		return cmp.Compare(p.text, text)
	})
	if !found {
		i--
	}
	return i
}

// link sorts the prefixes and finds their parents.
func (l *lookup) link() {
	for text, numbers := range l.starts {
		l.prefixes = append(l.prefixes, prefixed{text: text, numbers: numbers})
	}
	l.starts = nil
	slices.SortFunc(l.prefixes, func(a, b prefixed) int { return cmp.Compare(a.text, b.text) })
	for i := range l.prefixes {
		parent := i - 1
		for parent >= 0 && !strings.HasPrefix(l.prefixes[i].text, l.prefixes[parent].text) {
			parent = l.prefixes[parent].parent
		}
		l.prefixes[i].parent = parent
	}
}

// splitPrincipal splits "trust-domain/ns/NAMESPACE/sa/NAME" into the namespace and "NAMESPACE/sa/NAME". It reports false for any
// other form, and for the namespace "ns", which leads to a second "/ns/".
func splitPrincipal(principal string) (namespace, account string, ok bool) {
	domain := strings.IndexByte(principal, '/')
	if domain <= 0 {
		return "", "", false
	}
	account, ok = strings.CutPrefix(principal[domain:], "/ns/")
	if !ok {
		return "", "", false
	}
	namespace, name, ok := strings.Cut(account, "/sa/")
	more := strings.IndexByte(namespace, '/') >= 0 || strings.IndexByte(name, '/') >= 0
	if !ok || more || namespace == "ns" || name == "" {
		return "", "", false
	}
	return namespace, account, true
}

// key is an entry of the index.
type key struct {
	kind   keyKind
	text   string
	header string // of byHeader, "" for the others
}

// keyKind is the kind of a key. The most selective kinds come first.
type keyKind uint8

const (
	byPrincipal keyKind = iota
	byAccount
	byPath
	byNamespace
	byHeader
	byPrincipalPrefix
	byPathPrefix
	byPathSuffix
	byMethod
)

// index builds the index.
func (g *group) index() {
	if len(g.rules) < minIndexed {
		return
	}
	g.indexed = true
	choices := make([][][]key, len(g.rules))
	shared := make(map[key]int)
	for i, r := range g.rules {
		choices[i] = r.keys()
		for _, keys := range choices[i] {
			for _, k := range keys {
				shared[k]++
			}
		}
	}
	for i, r := range g.rules {
		for _, k := range cheapest(choices[i], shared) {
			g.insert(k, int32(i))
		}
		if len(choices[i]) == 0 && !g.negated.add(int32(i), r) {
			g.rest = append(g.rest, int32(i))
		}
	}
	g.principals.link()
	g.paths.link()
	g.suffixes.link()
	g.negated.link()
}

func (g *group) insert(k key, i int32) {
	switch k.kind {
	case byPrincipal:
		put(&g.principals.exact, k.text, i)
	case byPrincipalPrefix:
		put(&g.principals.starts, k.text, i)
	case byPath:
		put(&g.paths.exact, k.text, i)
	case byPathPrefix:
		put(&g.paths.starts, k.text, i)
	case byPathSuffix:
		put(&g.suffixes.starts, k.text, i)
	case byMethod:
		put(&g.methods, k.text, i)
	case byHeader:
		g.insertHeader(k, i)
	case byAccount, byNamespace:
		if k.kind == byAccount {
			put(&g.accounts, k.text, i)
		} else {
			put(&g.namespaces, k.text, i)
		}
		if n := len(g.identities); n == 0 || g.identities[n-1] != i {
			g.identities = append(g.identities, i)
		}
	}
}

func put(m *map[string][]int32, text string, i int32) {
	if *m == nil {
		*m = make(map[string][]int32)
	}
	(*m)[text] = append((*m)[text], i)
}

func (g *group) insertHeader(k key, i int32) {
	at := slices.IndexFunc(g.headers, func(l headerLookup) bool { return l.condition.header == k.header })
	if at < 0 {
		at = len(g.headers)
		for _, c := range g.rules[i].when {
			if c.attribute == header && c.header == k.header {
				g.headers = append(g.headers, headerLookup{condition: c})
				break
			}
		}
	}
	l := &g.headers[at]
	put(&l.exact, k.text, i)
	if n := len(l.all); n == 0 || l.all[n-1] != i {
		l.all = append(l.all, i)
	}
}

// cheapest returns the choice whose keys lead to the fewest rules. Among equals it returns the one of the most selective kind.
func cheapest(choices [][]key, shared map[key]int) []key {
	var best []key
	bestCost, bestKind := 0, keyKind(0)
	for _, keys := range choices {
		cost, kind := 0, keyKind(0)
		for _, k := range keys {
			cost += shared[k]
			kind = max(kind, k.kind)
		}
		if best == nil || cost < bestCost || cost == bestCost && kind < bestKind {
			best, bestCost, bestKind = keys, cost, kind
		}
	}
	return best
}

// keys returns the sets of keys under which the rule can be listed. A request must have a key of each set to match the rule.
func (r *rule) keys() [][]key {
	var choices [][]key
	add := func(keys []key) {
		if len(keys) > 0 {
			slices.SortFunc(keys, func(a, b key) int {
				return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.text, b.text), cmp.Compare(a.header, b.header))
			})
			choices = append(choices, slices.Compact(keys))
		}
	}
	add(union(len(r.from), func(i int) []key {
		s := &r.from[i]
		return firstKeys(
			textKeys(s.principals.values.all, principal),
			textKeys(s.accounts.values.all, account),
			textKeys(s.namespaces.values.all, namespace))
	}))
	add(union(len(r.to), func(i int) []key { return pathKeys(r.to[i].paths.values.all) }))
	add(union(len(r.to), func(i int) []key { return textKeys(r.to[i].methods.values.all, method) }))
	for i := range r.when {
		c := &r.when[i]
		keys := textKeys(c.texts.values.all, c.attribute)
		for k := range keys {
			keys[k].header = c.header
		}
		add(keys)
	}
	return choices
}

// union returns the keys of n alternatives, or nil if one of them has no keys.
func union(n int, of func(int) []key) []key {
	var all []key
	for i := range n {
		keys := of(i)
		if len(keys) == 0 {
			return nil
		}
		all = append(all, keys...)
	}
	return all
}

func firstKeys(choices ...[]key) []key {
	for _, keys := range choices {
		if len(keys) > 0 {
			return keys
		}
	}
	return nil
}

// textKeys returns a key for each value, or nil if a value has no key.
func textKeys(values []pattern, about attribute) []key {
	keys := make([]key, 0, len(values))
	for _, v := range values {
		switch {
		case about == principal && v.kind == exact:
			keys = append(keys, key{kind: byPrincipal, text: v.text})
		case about == principal && v.kind == prefix:
			keys = append(keys, key{kind: byPrincipalPrefix, text: v.text})
		case about == account:
			keys = append(keys, key{kind: byAccount, text: strings.Replace(v.text, "/", "/sa/", 1)})
		case about == namespace && !strings.ContainsAny(namespaceOf(v), "*/"):
			keys = append(keys, key{kind: byNamespace, text: namespaceOf(v)})
		case about == method && v.kind == exact:
			keys = append(keys, key{kind: byMethod, text: v.text})
		case about == header && v.kind == exact:
			keys = append(keys, key{kind: byHeader, text: v.text})
		default:
			return nil
		}
	}
	return keys
}

// pathKeys is textKeys for paths. Each value has two keys: as it is written and decoded.
func pathKeys(values []pattern) []key {
	keys := make([]key, 0, len(values))
	for _, v := range values {
		kind, texts := byPath, [2]string{v.text, v.decoded}
		switch v.kind {
		case exact:
		case prefix:
			kind = byPathPrefix
		case suffix:
			kind, texts = byPathSuffix, [2]string{backwards(v.text), backwards(v.decoded)}
		case template:
			kind = byPathPrefix
			for i := range texts {
				texts[i], _, _ = strings.Cut(texts[i], "{")
			}
		default:
			return nil
		}
		for _, text := range texts {
			keys = append(keys, key{kind: kind, text: text})
		}
	}
	return keys
}

// backwards returns s with its bytes reversed. It is rarely needed, and its buffer would be part of the stack frame of each decision.
//
//go:noinline
func backwards(s string) string {
	var room [maxScratch]byte
	out := scratch(&room, s)
	for i := len(s) - 1; i >= 0; i-- {
		out = append(out, s[i])
	}
	return string(out)
}
