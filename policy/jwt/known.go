package jwt

import (
	"sync"
	"sync/atomic"
)

// known remembers verified tokens, so that a repeated token costs one look-up. It does not remember refused tokens, because anybody can make
// any number of them. The key set remembers some of those; see refused.
//
// Both the number of tokens and their bytes are bounded. A clock algorithm evicts: its hand passes over tokens that were used since it last
// came by, so tokens that come once do not displace those that come often.
type known struct {
	tokens sync.Map // string -> *verified

	mu    sync.Mutex
	all   []*verified
	hand  int // index in all
	bytes int
}

// verified is a token with its claims. Only used and at change.
type verified struct {
	text  string
	by    []*Claims // one for each rule that has accepted it
	bytes int
	used  atomic.Bool // since the hand last came by
	at    int         // index in known.all; guarded by known.mu
}

// Bounds of what an Authenticator remembers.
const (
	maxKnown      = 8192
	maxKnownBytes = 8 << 20
)

// entrySize is the memory that a token takes besides its text and its claims: a verified, and its places in the map and the list.
const entrySize = 320

// get returns what is known about a token, or nil.
func (k *known) get(text string) *verified {
	found, ok := k.tokens.Load(text)
	if !ok {
		return nil
	}
	v := found.(*verified)
	if !v.used.Load() { // usually it is set, and processors can share the cache line
		v.used.Store(true)
	}
	return v
}

// claims returns the claims of the token if the rule has accepted it with these keys, and nil otherwise. keys may be nil.
func (v *verified) claims(r *rule, keys *Keys) *Claims {
	for _, c := range v.by {
		if c.rule == r && keys != nil && c.keys == keys.digest {
			return c
		}
	}
	return nil
}

// add remembers that a rule has accepted a token, with its claims. It keeps text.
func (k *known) add(text string, c *Claims) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := &verified{text: text, by: []*Claims{c}}
	if found, ok := k.tokens.Load(text); ok {
		before := found.(*verified)
		for _, other := range before.by {
			if other.rule != c.rule {
				v.by = append(v.by, other)
			}
		}
		k.removeLocked(before)
		v.used.Store(true)
	}
	v.bytes = entrySize + len(text)
	for _, c := range v.by {
		v.bytes += c.bytes()
	}
	for len(k.all) >= maxKnown || len(k.all) > 0 && k.bytes+v.bytes > maxKnownBytes {
		k.forgetLocked()
	}
	v.at = len(k.all)
	k.all = append(k.all, v)
	k.bytes += v.bytes
	k.tokens.Store(v.text, v)
}

// forgetLocked removes a token that was not used lately.
func (k *known) forgetLocked() {
	for {
		v := k.all[k.hand]
		k.hand = (k.hand + 1) % len(k.all) // past the token that takes the place of one that is removed
		if !v.used.Swap(false) {
			k.tokens.Delete(v.text)
			k.removeLocked(v)
			return
		}
	}
}

func (k *known) removeLocked(v *verified) {
	last := len(k.all) - 1
	k.all[v.at] = k.all[last]
	k.all[v.at].at = v.at
	k.all[last] = nil
	k.all = k.all[:last]
	k.bytes -= v.bytes
	if k.hand >= last {
		k.hand = 0
	}
}
