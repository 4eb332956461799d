package jwt

import (
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"sync/atomic"
	"time"
)

// A token without a key ID may cost as many verifications as there are keys. Envoy makes them for each token. Here, those beyond maxTried
// that find no key are limited to 4,000 per second.
const (
	maxTried = 16                     // keys that are always tried for a token
	perTry   = 250 * time.Microsecond // the time that each further try without success reserves
	forTries = time.Second            // how far ahead of now time may be reserved
)

// trials is what a key set knows of the tokens that were verified by it.
type trials struct {
	lucky   atomic.Int32 // index of the key that verified the last token without a key ID
	owed    atomic.Int64 // the end of the time reserved by tries beyond maxTried, in nanoseconds since 1970
	refused atomic.Pointer[refused]
}

// verify verifies the signature of a token with the keys that may have made it (RFC 7515, appendix D).
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
		if tried == maxTried && k.trials.reserved(now) > forTries {
			return errVerification // not remembered: one of the other keys may have made it
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

// owe reserves the time for a number of tries.
func (t *trials) owe(tries int, now time.Time) {
	for tries > 0 {
		before := t.owed.Load()
		if t.owed.CompareAndSwap(before, now.Add(t.reserved(now)).UnixNano()+int64(tries)*int64(perTry)) {
			return
		}
	}
}

// reserved returns how much time from now on is reserved. If it seems to be much, the clock has been set back.
func (t *trials) reserved(now time.Time) time.Duration {
	ahead := time.Duration(t.owed.Load() - now.UnixNano())
	if ahead < 0 || ahead > time.Minute {
		return 0
	}
	return ahead
}

// refused remembers tokens that none of the keys has signed, so that they are not verified again. A token with a good signature that is
// refused for another reason, such as its expiry, is not among them.
type refused [1024]atomic.Pointer[mark]

// mark identifies a token, including its signature.
type mark [sha256.Size]byte

// mark returns the mark of the token. digest is that of what is signed.
func (t *token) mark(digest []byte) mark {
	text := append(make([]byte, 0, 1024), t.alg.name...)               // on the stack, if it fits; all names have the same length
	text = binary.LittleEndian.AppendUint32(text, uint32(len(digest))) // with Ed25519, it is a text of any length
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

// refuse remembers a token. It may take the place of another one.
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

// digest returns the hash of what is signed, or for Ed25519 the text itself.
func (t *token) digest() []byte {
	if t.alg.hash == 0 {
		return []byte(t.signed)
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
