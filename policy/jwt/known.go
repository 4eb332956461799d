package jwt

import (
	"sync"
	"sync/atomic"
)

// known remembers verified tokens, so that one that comes again costs a look-up. What does not depend on the keys is checked again
// each time. Tokens that were refused are not remembered: they are many, and cost whoever makes them nothing.
//
// There are two generations: the younger one becomes the older one when it is full, and what the older one had is forgotten
// unless it was asked for meanwhile.
type known struct {
	young, old atomic.Pointer[generation]
	mu         sync.Mutex // held while they change places
}

type generation struct {
	tokens  sync.Map // string -> *verified
	entries atomic.Int64
	bytes   atomic.Int64
}

type verified struct {
	keys   *Keys // the set that did it: an entry dies with any change of the keys
	claims *Claims
}

// Bounds of a generation.
const (
	maxKnown      = 4096
	maxKnownBytes = 4 << 20
)

// get returns the claims of a token that keys have verified, nil if it is not known.
func (k *known) get(text string, keys *Keys) *Claims {
	for _, from := range [...]*generation{k.young.Load(), k.old.Load()} {
		if from == nil {
			continue
		}
		if found, ok := from.tokens.Load(text); ok {
			v := found.(*verified)
			if v.keys != keys {
				return nil
			}
			if from != k.young.Load() {
				k.add(text, keys, v.claims)
			}
			return v.claims
		}
	}
	return nil
}

// add remembers a token.
func (k *known) add(text string, keys *Keys, claims *Claims) {
	g := k.young.Load()
	if g == nil || g.entries.Load() >= maxKnown || g.bytes.Load() >= maxKnownBytes {
		g = k.next(g)
	}
	if _, there := g.tokens.Swap(text, &verified{keys, claims}); !there {
		g.entries.Add(1)
		g.bytes.Add(int64(4 * len(text))) // with what it was parsed to
	}
}

// next makes the generation after a full one.
func (k *known) next(full *generation) *generation {
	k.mu.Lock()
	defer k.mu.Unlock()
	g := k.young.Load()
	if g == full {
		g = new(generation)
		k.old.Store(full)
		k.young.Store(g)
	}
	return g
}
