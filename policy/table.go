package policy

import (
	"iter"
	"maps"
	"slices"
)

// table is a map whose unchanged part plans share: see share.
type table[K comparable, T any] struct {
	index map[K]int32 // where the values of the keys of an earlier plan are
	more  map[K]int32 // where those of other keys are
	exact []*T        // the values, nil for keys of index that have none any more
}

// newTable returns an empty table that is about to have the keys of last. Its values are in the memory of a room.
func newTable[K comparable, T any](last *table[K, T], in *[]*T) table[K, T] {
	return table[K, T]{index: last.index, exact: zeroed(in, len(last.index))}
}

// plain returns the value of a key, or nil if it has none.
func (t *table[K, T]) plain(key K) *T {
	i, known := t.at(key)
	if !known {
		return nil
	}
	return t.exact[i]
}

func (t *table[K, T]) at(key K) (i int32, known bool) {
	if i, known = t.index[key]; !known {
		i, known = t.more[key]
	}
	return i, known
}

// put sets or replaces the value of a key.
func (t *table[K, T]) put(key K, value *T) {
	if i, known := t.at(key); known {
		t.exact[i] = value
		return
	}
	if t.more == nil {
		t.more = make(map[K]int32)
	}
	t.more[key] = int32(len(t.exact))
	t.exact = append(t.exact, value)
}

// all yields the keys and their values, in the order in which the keys were first added.
func (t *table[K, T]) all() iter.Seq2[K, *T] {
	return func(yield func(K, *T) bool) {
		keys := make([]K, len(t.exact))
		for key, i := range t.index {
			keys[i] = key
		}
		for key, i := range t.more {
			keys[i] = key
		}
		for i, value := range t.exact {
			if value != nil && !yield(keys[i], value) {
				return
			}
		}
	}
}

// values yields the values, in the same order.
func (t *table[K, T]) values() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for _, value := range t.exact {
			if value != nil && !yield(value) {
				return
			}
		}
	}
}

// share completes the table, and takes what is the same from the last plan. keep returns the value that a key keeps, which may be that of the last
// plan. share reports whether all values are those of the last plan.
func (t *table[K, T]) share(last *table[K, T], keep func(last, now *T) *T) (unchanged bool) {
	for key, i := range t.more {
		t.exact[i] = keep(last.plain(key), t.exact[i])
	}
	keys := len(t.more)
	for i, now := range t.exact[:len(t.index)] {
		if now != nil {
			t.exact[i] = keep(last.exact[i], now)
			keys++
		}
	}
	unchanged = maps.Equal(t.more, last.more) && slices.Equal(t.exact, last.exact)
	switch {
	case unchanged:
		t.exact, t.more = last.exact, last.more
	case len(t.more) > keys/16 || keys < len(t.index)/2:
		index, exact := make(map[K]int32, keys), make([]*T, 0, keys)
		for key, value := range t.all() {
			index[key] = int32(len(exact))
			exact = append(exact, value)
		}
		t.index, t.more, t.exact = index, nil, exact
	default:
		t.exact = slices.Clone(t.exact)
	}
	return unchanged
}
