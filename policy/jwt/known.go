package jwt

import (
	"sync"
	"sync/atomic"
)

// known remembers verified tokens, so that one that comes again costs a look-up. Tokens that were refused are not here: whoever makes
// them can make as many as they like. Their key set remembers some of them; see refused.
//
// What is remembered is bounded, in tokens and in bytes. A hand that goes around decides what is forgotten: it passes over a token that was
// used since it last came by, so tokens that come once do not displace those that come often.
type known struct {
	tokens sync.Map // string -> *verified

	mu    sync.Mutex
	all   []*verified
	hand  int // index in all
	bytes int
}

// verified is a token, and what the rules say that accept it. It never changes but for the fields with a comment.
type verified struct {
	text  string
	by    []*Claims // of different rules
	bytes int
	used  atomic.Bool // since the hand came by
	at    int         // index in known.all; guarded by known.mu
}

// Bounds of what an Authenticator remembers.
const (
	maxKnown      = 8192
	maxKnownBytes = 8 << 20
)

// entrySize is what a token takes besides its text and its claims: it, and its places in the map and the list.
const entrySize = 320

// get returns what is known about a token; nil if that is nothing.
func (k *known) get(text string) *verified {
	found, ok := k.tokens.Load(text)
	if !ok {
		return nil
	}
	v := found.(*verified)
	if !v.used.Load() { // most of the time it is set, and processors can share it
		v.used.Store(true)
	}
	return v
}

// claims returns what a rule has said of the token when its keys were these. It returns nil if they were not, or if the rule has not
// accepted the token. keys may be nil.
func (v *verified) claims(r *rule, keys *Keys) *Claims {
	for _, c := range v.by {
		if c.rule == r && keys != nil && c.keys == keys.digest {
			return c
		}
	}
	return nil
}

// add remembers what a rule says of a token. It keeps text.
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

// forgetLocked forgets a token that was not used lately.
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
