package route

// Search is Match without an index.
func (t *Table) Search(r *Request) (rule *Rule, match int, ok bool) { return t.search(r) }

// Indexed is Match with an index, however small the table is.
func (t *Table) Indexed(r *Request) (rule *Rule, match int, ok bool) {
	t.indexing.Do(func() { t.index = newIndex(t) })
	return t.index.find(t, r)
}

// LongestList returns how many matches of the table are filed under one thing at most: so many are tried in vain.
func (t *Table) LongestList() int {
	x := newIndex(t)
	longest := len(x.rest)
	lists := func(m map[string][]int32) {
		for _, list := range m {
			longest = max(longest, len(list))
		}
	}
	lists(x.exact)
	for _, p := range x.prefixes.list {
		longest = max(longest, len(p.matches))
	}
	for i := range x.headers {
		lists(x.headers[i].lists)
	}
	for i := range x.query {
		lists(x.query[i].lists)
	}
	for i := range x.grams {
		lists(x.grams[i].lists)
	}
	return longest
}

// ErrPath is wrapped by the error of a request whose path is invalid after it was rewritten.
var ErrPath = errPath
