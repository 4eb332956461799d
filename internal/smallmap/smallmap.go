// Package smallmap has a map that takes little memory while it has few entries. A built-in one has room for eight from the first on, which
// adds up where thousands of maps have one.
package smallmap

import (
	"iter"
	"slices"
)

// Map is a map. The zero value is empty and ready for use.
type Map[K comparable, V any] struct {
	few  []entry[K, V]
	many map[K]V // nil as long as few is enough
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// most is how many entries are searched one by one.
const most = 8

// Get returns the value of a key, the zero value if it has none.
func (m *Map[K, V]) Get(key K) V {
	if m.many != nil {
		return m.many[key]
	}
	if i := m.index(key); i >= 0 {
		return m.few[i].value
	}
	var none V
	return none
}

// Set sets the value of a key.
func (m *Map[K, V]) Set(key K, value V) {
	if m.many != nil {
		m.many[key] = value
	} else if i := m.index(key); i >= 0 {
		m.few[i].value = value
	} else if len(m.few) < most {
		m.few = append(m.few, entry[K, V]{key, value})
	} else {
		m.many = make(map[K]V, 2*most)
		for _, e := range m.few {
			m.many[e.key] = e.value
		}
		m.few, m.many[key] = nil, value
	}
}

// Delete removes a key, if it is there.
func (m *Map[K, V]) Delete(key K) {
	if m.many != nil {
		delete(m.many, key)
	} else if i := m.index(key); i >= 0 {
		m.few = slices.Delete(m.few, i, i+1)
	}
}

// Len returns the number of keys.
func (m *Map[K, V]) Len() int { return len(m.few) + len(m.many) }

// All yields the keys with their values, in no particular order. The key that was yielded last may be deleted meanwhile, and no other be
// set or deleted.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := len(m.few) - 1; i >= 0; i-- {
			if !yield(m.few[i].key, m.few[i].value) {
				return
			}
		}
		for key, value := range m.many {
			if !yield(key, value) {
				return
			}
		}
	}
}

func (m *Map[K, V]) index(key K) int {
	for i := range m.few {
		if m.few[i].key == key {
			return i
		}
	}
	return -1
}
