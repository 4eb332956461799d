package jwt

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// What is remembered is bounded, in number and in bytes; what is asked for stays; and what other keys verified is not known.
func TestKnownIsBounded(t *testing.T) {
	keys, others, r := new(Keys), new(Keys), new(rule)
	others.digest[0] = 1
	for _, length := range []int{10, 2048} {
		var k known
		add := func(i int) string {
			text := fmt.Sprintf("%0*d", length, i)
			k.add(text, &Claims{rule: r, keys: keys.digest, payload: payload{text: text}})
			return text
		}
		often := add(0)
		first := add(1)
		for i := range maxKnown + 2000 {
			add(i + 2)
			if i%1000 == 0 && k.get(often) == nil {
				t.Fatalf("after %d others a token that comes often is forgotten", i)
			}
			if len(k.all) > maxKnown || k.bytes > maxKnownBytes {
				t.Fatalf("%d entries, %d bytes", len(k.all), k.bytes)
			}
		}
		n := 0
		for range k.tokens.Range {
			n++
		}
		if n != len(k.all) || n < 1000 {
			t.Errorf("%d tokens are remembered, and %d are in the list", n, len(k.all))
		}
		v := k.get(often)
		if k.get(first) != nil || v.claims(r, keys) == nil || v.claims(r, others) != nil || v.claims(r, nil) != nil || v.claims(new(rule), keys) != nil {
			t.Error("known although forgotten, or to another rule, or verified by other keys")
		}
	}
}

// A token that comes for the first time is given the time to come again before it is forgotten, even if nothing was asked for lately.
func TestKnownForgetsInTurn(t *testing.T) {
	var k known
	r, keys := new(rule), new(Keys)
	for i := range maxKnown + 2000 {
		k.add(fmt.Sprint(i), &Claims{rule: r, keys: keys.digest})
		for _, before := range []int{i - maxKnown/4, i - 1, i} {
			if _, there := k.tokens.Load(fmt.Sprint(before)); before >= 0 && !there {
				t.Fatalf("token %d is forgotten when %d is remembered", before, i)
			}
		}
	}
}

// The hand may be at the end when several tokens make room for a large one.
func TestKnownMakesRoomForALargeToken(t *testing.T) {
	r, keys := new(rule), new(Keys)
	const size = maxKnownBytes / 8 // which counts twice
	for hand := range 3 {
		var k known
		add := func(text string, size int) {
			k.add(text, &Claims{rule: r, keys: keys.digest, payload: payload{text: strings.Repeat("x", size)}})
		}
		for _, text := range []string{"a", "b", "c"} {
			add(text, size)
		}
		k.hand = hand
		add("d", 2*size)
		if k.get("d") == nil || k.bytes > maxKnownBytes || len(k.all) > 2 {
			t.Errorf("with the hand at %d: %d tokens with %d bytes", hand, len(k.all), k.bytes)
		}
	}
}

// Rules that accept the same token have a place in one entry, and new keys take that of the old ones.
func TestKnownToSeveralRules(t *testing.T) {
	var k known
	a, b, old, keys := new(rule), new(rule), &Keys{digest: digest{1}}, new(Keys)
	for _, c := range []*Claims{{rule: a, keys: old.digest}, {rule: b, keys: old.digest}, {rule: a, keys: keys.digest}} {
		k.add("token", c)
	}
	v := k.get("token")
	if len(k.all) != 1 || len(v.by) != 2 || v.claims(a, keys) == nil || v.claims(a, old) != nil || v.claims(b, old) == nil {
		t.Errorf("%d entries, %+v", len(k.all), v)
	}
}

// Many may ask and add at once.
func TestKnownAtOnce(t *testing.T) {
	var k known
	r, keys := new(rule), new(Keys)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for i := range 3 * maxKnown / 8 {
				k.add(fmt.Sprint(i), &Claims{rule: r, keys: keys.digest})
				k.get(fmt.Sprint(i / 2))
			}
		})
	}
	wait.Wait()
	if n := len(k.all); n != 3*maxKnown/8 {
		t.Errorf("%d entries", n)
	}
}
