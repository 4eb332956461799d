package jwt

import (
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Whoever sends a token without a key ID may have as many signatures verified for it as there are keys. Envoy does it each time.
const (
	maxTried = 16                     // keys that are always tried for a token
	perTry   = 250 * time.Microsecond // what a try beyond these takes from the time for them, if no key has made the signature
	forTries = time.Second            // how much of that time may be owed
)

// trials is what a key set knows of the tokens that were verified by it.
type trials struct {
	lucky   atomic.Int32 // index of the key that has verified the last token without a key ID
	owed    atomic.Int64 // until when, in nanoseconds since 1970, the tries beyond maxTried were paid for
	refused atomic.Pointer[refused]
}

// verify judges the signature of a token by the keys that may have made it (RFC 7515, appendix D).
func (k *Keys) verify(t *token, now time.Time) *Error {
	var digest []byte
	first, tried := 0, 0
	if !t.named {
		first = int(k.trials.lucky.Load())
	}
	for n := range k.all {
		i := (first + n) % len(k.all)
		key := &k.all[i]
		if !key.mayHaveSigned(t) {
			continue
		}
		if digest == nil {
			digest = t.digest()
			if k.trials.refused.Load().has(t, digest) {
				return errVerification
			}
		}
		if tried == maxTried && k.trials.owed.Load() > now.Add(forTries).UnixNano() {
			return errVerification // and perhaps not the next time: another key may have made it
		}
		tried++
		if t.alg.verify(key.public, t.alg.hash, digest, t.signature) {
			if !t.named {
				k.trials.lucky.Store(int32(i))
			}
			return nil
		}
	}
	if tried == 0 {
		return errNoKey
	}
	k.trials.refuse(t.mark(digest))
	k.trials.owe(tried-maxTried, now)
	return errVerification
}

// owe takes tries from the time for them.
func (t *trials) owe(tries int, now time.Time) {
	if tries <= 0 {
		return
	}
	for {
		before := t.owed.Load()
		if t.owed.CompareAndSwap(before, max(before, now.UnixNano())+int64(tries)*int64(perTry)) {
			return
		}
	}
}

// refused remembers tokens whose signature none of the keys has made, so that one that comes again is not verified again. A token with a
// good signature that is refused for another reason, such as the time, is not among them.
type refused [1024]atomic.Pointer[mark]

// mark stands for a token, signature included.
type mark [sha256.Size]byte

// mark returns the mark of the token. digest is that of what is signed.
func (t *token) mark(digest []byte) mark {
	text := append(make([]byte, 0, 1024), t.alg.name...)               // on the stack, if it fits. All names have the same length
	text = binary.LittleEndian.AppendUint32(text, uint32(len(digest))) // with Ed25519, the digest and the signature have any length
	text = append(append(text, digest...), t.signature...)
	return sha256.Sum256(text)
}

func (r *refused) at(m mark) *atomic.Pointer[mark] {
	return &r[binary.LittleEndian.Uint32(m[:])%uint32(len(r))]
}

// has reports whether the token was refused. r may be nil.
func (r *refused) has(t *token, digest []byte) bool {
	if r == nil {
		return false
	}
	m := t.mark(digest)
	found := r.at(m).Load()
	return found != nil && *found == m
}

// refuse remembers a token, in place of another one if need be.
func (t *trials) refuse(m mark) {
	r := t.refused.Load()
	if r == nil {
		r = new(refused)
		if !t.refused.CompareAndSwap(nil, r) {
			r = t.refused.Load()
		}
	}
	r.at(m).Store(&m)
}

func (k *key) mayHaveSigned(t *token) bool {
	return (!k.named || !t.named || k.kid == t.kid) && (k.alg == "" || k.alg == t.alg.name) && t.alg.fits(k.public)
}

// digest returns what is signed.
func (t *token) digest() []byte {
	if t.alg.hash == 0 {
		return []byte(t.signed) // Ed25519 takes the text
	}
	text := append(make([]byte, 0, 1024), t.signed...) // on the stack, if it fits
	switch t.alg.hash {
	case crypto.SHA384:
		digest := sha512.Sum384(text)
		return digest[:]
	case crypto.SHA512:
		digest := sha512.Sum512(text)
		return digest[:]
	}
	digest := sha256.Sum256(text)
	return digest[:]
}
