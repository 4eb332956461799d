package jwt

import (
	"crypto"
	"fmt"
	"sync"
	"testing"
	"time"
)

// A token whose signature none of the keys has made is verified once, and not again when it comes again.
func TestForgedTokensAreVerifiedOnce(t *testing.T) {
	verified := 0
	counting := &algorithm{name: "RS256", hash: crypto.SHA256, fits: func(crypto.PublicKey) bool { return true },
		verify: func(_ crypto.PublicKey, _ crypto.Hash, _, signature []byte) bool {
			verified++
			return string(signature) == "good"
		}}
	other := *counting
	other.name = "PS256"
	keys := &Keys{all: make([]key, 3)}
	for i, step := range []struct {
		token token
		err   *Error
		times int
	}{
		{token{signed: "a", alg: counting, signature: []byte("bad")}, errVerification, 3},
		{token{signed: "a", alg: counting, signature: []byte("bad")}, errVerification, 0},
		{token{signed: "a", alg: counting, signature: []byte("good")}, nil, 1},
		{token{signed: "a", alg: counting, signature: []byte("worse")}, errVerification, 3},
		{token{signed: "b", alg: counting, signature: []byte("bad")}, errVerification, 3},
		{token{signed: "a", alg: &other, signature: []byte("bad")}, errVerification, 3},
		{token{signed: "a", alg: counting, signature: []byte("bad")}, errVerification, 0},
		{token{signed: "a", alg: counting, signature: []byte("good")}, nil, 1},
	} {
		verified = 0
		if err := keys.verify(&step.token, time.Now()); err != step.err || verified != step.times {
			t.Errorf("step %d: %v after %d verifications, want %v after %d", i, err, verified, step.err, step.times)
		}
	}
	// Another set of keys may verify it.
	verified = 0
	if (&Keys{all: make([]key, 1)}).verify(&token{signed: "a", alg: counting, signature: []byte("bad")}, time.Now()); verified != 1 {
		t.Errorf("by other keys, it is verified %d times", verified)
	}
}

// Whoever sends many forged tokens without a key ID cannot have all keys tried for each. Meanwhile, those whose key has verified the last good
// token find it, and so does everybody soon after.
func TestForgedTokensAndManyKeys(t *testing.T) {
	const forged = 255
	tried := 0
	alg := &algorithm{name: "RS256", hash: crypto.SHA256, fits: func(crypto.PublicKey) bool { return true },
		verify: func(public crypto.PublicKey, _ crypto.Hash, _, signature []byte) bool {
			tried++
			return signature[0] == public.(byte) // which stands for a key
		}}
	keys := &Keys{all: make([]key, 100)}
	for i := range keys.all {
		keys.all[i].public = byte(i)
	}
	accepted := func(by byte, text string, at time.Time) bool {
		return keys.verify(&token{signed: text, alg: alg, signature: []byte{by}}, at) == nil
	}
	flood := func(at time.Time) {
		tried = 0
		for n := range 1000 {
			if accepted(forged, fmt.Sprint(at, n), at) {
				t.Fatal("a forged token is accepted")
			}
		}
		if most := 1000*maxTried + int(forTries/perTry) + len(keys.all); tried > most {
			t.Errorf("%d keys are tried for 1000 forged tokens, want at most %d", tried, most)
		}
	}
	now := time.Unix(1_800_000_000, 0)
	for i := range keys.all {
		for range 2 {
			if !accepted(byte(i), "a", now) {
				t.Errorf("a token of key %d is refused", i)
			}
		}
	}
	accepted(20, "a", now)
	flood(now)
	if accepted(50, "a", now) {
		t.Error("all keys are tried for each token, although many are forged")
	}
	for _, i := range []byte{20, 35} {
		if !accepted(i, "a", now) {
			t.Errorf("meanwhile, a token of key %d is refused", i)
		}
	}
	soon := now.Add(time.Second)
	if !accepted(50, "a", soon) {
		t.Error("soon after, a good token is still refused")
	}
	flood(soon)
	if accepted(20, "a", soon) || !accepted(50, "a", soon) {
		t.Error("the key of the last good token is not the first one to be tried")
	}
	before := soon.Add(-time.Hour) // the clock is set back
	if !accepted(80, "a", before) {
		t.Error("a good token is refused until the clock is where it was")
	}
	flood(before)
}

// Many tokens at once are judged as one after the other.
func TestForgedTokensAtOnce(t *testing.T) {
	alg := &algorithm{name: "RS256", hash: crypto.SHA256, fits: func(crypto.PublicKey) bool { return true },
		verify: func(_ crypto.PublicKey, _ crypto.Hash, _, signature []byte) bool { return signature[0] == 'g' }}
	keys := &Keys{all: make([]key, 20)}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 1000 {
				text := string(rune('a' + n%100))
				if err := keys.verify(&token{signed: text, alg: alg, signature: []byte{'g', byte(i)}}, time.Now()); err != nil {
					t.Errorf("a good token: %v", err)
				}
				if err := keys.verify(&token{signed: text, alg: alg, signature: []byte{'b', byte(n >> 4)}}, time.Now()); err != errVerification {
					t.Errorf("a forged token: %v", err)
				}
			}
		})
	}
	all.Wait()
}
