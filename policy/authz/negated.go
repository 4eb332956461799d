package authz

import "slices"

// negations are the rules with notPaths that have no keys, so that the index cannot find them. The patterns that the readings of
// a path match are looked up once. Then only the few rules that can still match are tried.
type negations struct {
	rules    []negatedRule
	patterns []negatedPath
	always   []int32 // patterns without a key
	paths    lookup  // of patterns
	suffixes lookup  // of patterns; keys and paths are reversed

	operations int
}

// negatedRule is a rule and the numbers of its operations, each of which has notPaths.
type negatedRule struct {
	rule     int32
	from, to int
}

// negatedPath is a pattern and the operations that have it among their notPaths.
type negatedPath struct {
	pattern
	operations []int32
}

// add adds a rule if each of its operations has notPaths, and reports whether it did. A rule that must match under every reading
// can match by a different operation under each, so it is added only if it has a single operation.
func (n *negations) add(i int32, r *rule) bool {
	if len(r.to) == 0 || r.every && len(r.to) > 1 {
		return false
	}
	for j := range r.to {
		if r.to[j].paths.notValues.empty() {
			return false
		}
	}
	from := n.operations
	n.operations += len(r.to)
	n.rules = append(n.rules, negatedRule{i, from, n.operations})
	for j := range r.to {
		for _, p := range r.to[j].paths.notValues.all {
			n.patterns = append(n.patterns, negatedPath{p, []int32{int32(from + j)}})
		}
	}
	return true
}

// link merges equal patterns and lists each under its keys.
func (n *negations) link() {
	known := make(map[pattern]int)
	all := n.patterns
	n.patterns = nil
	for _, p := range all {
		at, ok := known[p.pattern]
		if ok {
			n.patterns[at].operations = append(n.patterns[at].operations, p.operations...)
			continue
		}
		at = len(n.patterns)
		known[p.pattern] = at
		n.patterns = append(n.patterns, p)
		keys := pathKeys([]pattern{p.pattern})
		for _, k := range keys {
			switch k.kind {
			case byPath:
				put(&n.paths.exact, k.text, int32(at))
			case byPathPrefix:
				put(&n.paths.starts, k.text, int32(at))
			case byPathSuffix:
				put(&n.suffixes.starts, k.text, int32(at))
			}
		}
		if keys == nil {
			n.always = append(n.always, int32(at))
		}
	}
	n.paths.link()
	n.suffixes.link()
}

// try is [group.try] for these rules.
func (n *negations) try(g *group, best int, q *query) int {
	if len(n.rules) == 0 {
		return best
	}
	var not []bool
	if q.paths[0].path != q.paths[len(q.paths)-1].path { // for a plain path, trying the rules is as fast and does not allocate
		not = n.matched(q.paths, g.rules[0].every)
	}
	for _, r := range n.rules {
		if int(r.rule) >= best {
			break
		}
		if (not == nil || slices.Contains(not[r.from:r.to], false)) && g.rules[r.rule].match(q) {
			return int(r.rule)
		}
	}
	return best
}

// matched reports for each operation whether its notPaths match every reading. For rules that must match under every reading
// (anyReading), it reports whether they match any. In both cases the operation does not match the request.
func (n *negations) matched(paths []reading, anyReading bool) []bool {
	found, times := n.find(paths)
	matched := make([]bool, n.operations)
	var under []int32 // for operations that different patterns match: how many readings in a row, from the first
	for _, f := range found {
		operations := n.patterns[f.pattern].operations
		switch {
		case anyReading, f.reading == 0 && int(times[f.pattern]) == len(paths):
			for _, o := range operations {
				matched[o] = true
			}
		case int(times[f.pattern]) < len(paths):
			if under == nil {
				under = make([]int32, n.operations)
			}
			for _, o := range operations {
				if under[o] == f.reading {
					under[o]++
				}
				matched[o] = matched[o] || int(under[o]) == len(paths)
			}
		}
	}
	return matched
}

// foundPath is a pattern that a reading matches.
type foundPath struct{ reading, pattern int32 }

// find returns the patterns that readings match, reading by reading, and how many readings match each pattern.
func (n *negations) find(paths []reading) (found []foundPath, times []int32) {
	times = make([]int32, len(n.patterns))
	last := make([]int32, len(n.patterns)) // 1 plus the last reading that matched; 0 for none
	for i := range paths {
		r := &paths[i]
		try := func(patterns []int32) {
			for _, p := range patterns {
				if last[p] <= int32(i) && n.patterns[p].matchReading(r) {
					found = append(found, foundPath{int32(i), p})
					last[p], times[p] = int32(i)+1, times[p]+1
				}
			}
		}
		try(n.always)
		for list := range n.paths.find(r.path) {
			try(list)
		}
		if len(n.suffixes.prefixes) > 0 {
			for list := range n.suffixes.find(backwards(r.path)) {
				try(list)
			}
		}
	}
	return found, times
}
