package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Keys is a set of public keys. It is immutable and safe for concurrent use.
type Keys struct {
	text string
	all  []key
}

type key struct {
	kid    string
	named  bool   // there is a kid
	alg    string // "" for any that fits
	public crypto.PublicKey
}

// Bounds of a key set.
const (
	maxKeySet = 1 << 20
	maxKeys   = 100
)

// ParseKeys reads a JSON Web Key Set (RFC 7517, section 5), or an object that names PEM certificates by their key IDs, as Google
// publishes one. Each key is looked at by itself: one that is broken, too weak, not public, or not for verifying signatures is
// left out, and skipped says why. A set without a key that can be used is an error, and so is one with more than 100 keys or
// 1 MiB.
func ParseKeys(set string) (keys *Keys, skipped []error, err error) {
	if len(set) > maxKeySet {
		return nil, nil, fmt.Errorf("the key set has %d bytes: want at most %d", len(set), maxKeySet)
	}
	whole, ok := parse(set)
	if !ok {
		return nil, nil, errors.New("the key set is not a JSON object")
	}
	k := &Keys{text: set}
	add := func(name string, one key, err error) {
		if err != nil {
			skipped = append(skipped, fmt.Errorf("%s is left out: %w", name, err))
		} else {
			k.all = append(k.all, one)
		}
	}
	elements := whole.member("keys")
	switch {
	case elements.kind == list && len(elements.inner) > maxKeys || elements.kind == absent && len(whole.inner) > maxKeys:
		return nil, nil, fmt.Errorf("the key set has more than %d keys", maxKeys)
	case elements.kind == list:
		raw, err := elementsOf(set)
		if err != nil {
			return nil, nil, err
		}
		for i := range elements.inner {
			one, err := parseKey(&elements.inner[i], raw[i])
			add(fmt.Sprintf("keys[%d]", i), one, err)
		}
	case elements.kind == absent:
		for _, m := range whole.inner {
			one, err := parseCertificate(m)
			add(fmt.Sprintf("%q", m.name), one, err)
		}
	default:
		return nil, nil, errors.New("keys of the key set is not a list")
	}
	if len(k.all) == 0 {
		return nil, skipped, errors.Join(append([]error{errors.New("the key set has no key that can verify a token")}, skipped...)...)
	}
	return k, skipped, nil
}

// elementsOf returns the text of each element of keys.
func elementsOf(set string) (elements []json.RawMessage, err error) {
	var members map[string]json.RawMessage // names of struct fields would be found in any case
	if err = json.Unmarshal([]byte(set), &members); err == nil {
		err = json.Unmarshal(members["keys"], &elements)
	}
	return elements, err
}

// equal reports whether the sets were made of the same text.
func (k *Keys) equal(o *Keys) bool {
	return k == o || k != nil && o != nil && k.text == o.text
}

// Len returns how many keys there are.
func (k *Keys) Len() int { return len(k.all) }

var errStrings = errors.New("a field of it that is a string is something else")

// parseKey reads one element of a key set.
func parseKey(v *value, raw []byte) (k key, err error) {
	if v.kind != object {
		return k, errors.New("it is not an object")
	}
	for name, to := range map[string]*string{"kid": &k.kid, "alg": &k.alg} {
		switch m := v.member(name); m.kind {
		case text:
			*to, k.named = m.text, k.named || name == "kid"
		case absent:
		default:
			return k, errStrings
		}
	}
	if use := v.member("use"); use.kind != absent && use.text != "sig" {
		return k, errors.New("its use is not sig")
	}
	if ops := v.member("key_ops"); ops.kind != absent &&
		!slices.ContainsFunc(ops.inner, func(op value) bool { return op.kind == text && op.text == "verify" }) {
		return k, errors.New("its key_ops do not have verify")
	}
	if v.member("d").kind != absent || v.member("kty").text == "oct" {
		return k, errors.New("it is a private or a symmetric key, which has no place here")
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		return k, err
	}
	k.public = jwk.Key
	return k, k.check()
}

func parseCertificate(m value) (key, error) {
	k := key{kid: m.name, named: true}
	block, rest := pem.Decode([]byte(m.text))
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return k, errors.New("it is not one certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return k, err
	}
	k.public = cert.PublicKey
	return k, k.check()
}

// check refuses keys that verify nothing here.
func (k *key) check() error {
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		if public.N.BitLen() < 2048 { // RFC 7518, section 3.3
			return fmt.Errorf("an RSA key of %d bits is too short: want 2048", public.N.BitLen())
		}
		if public.N.BitLen() > 16384 {
			return fmt.Errorf("an RSA key of %d bits costs too much", public.N.BitLen())
		}
		if public.E < 3 || public.E%2 == 0 {
			return errors.New("the exponent of the RSA key is not an odd number above 1")
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return fmt.Errorf("keys of the type %T are not supported", k.public)
	}
	if k.alg != "" {
		if alg := algorithmOf(k.alg); alg == nil || !alg.fits(k.public) {
			return fmt.Errorf("its alg %q is not supported, or not for a key of its type", k.alg)
		}
	}
	if !slices.ContainsFunc(algorithms, func(a algorithm) bool { return a.fits(k.public) }) {
		return errors.New("no supported algorithm uses its curve")
	}
	return nil
}

// algorithm is a way to sign (RFC 7518, section 3.1; RFC 8037).
type algorithm struct {
	name string
	hash crypto.Hash
	fits func(crypto.PublicKey) bool
	// verify judges the signature of a text that is hashed already, but for Ed25519, which hashes itself.
	verify func(public crypto.PublicKey, hash crypto.Hash, text, signature []byte) bool
}

var algorithms = []algorithm{
	{"RS256", crypto.SHA256, isRSA, verifyPKCS1}, {"RS384", crypto.SHA384, isRSA, verifyPKCS1}, {"RS512", crypto.SHA512, isRSA, verifyPKCS1},
	{"PS256", crypto.SHA256, isRSA, verifyPSS}, {"PS384", crypto.SHA384, isRSA, verifyPSS}, {"PS512", crypto.SHA512, isRSA, verifyPSS},
	{"ES256", crypto.SHA256, on(elliptic.P256()), verifyECDSA}, {"ES384", crypto.SHA384, on(elliptic.P384()), verifyECDSA},
	{"ES512", crypto.SHA512, on(elliptic.P521()), verifyECDSA},
	{"EdDSA", 0, isEd25519, verifyEd25519},
}

func algorithmOf(name string) *algorithm {
	for i := range algorithms {
		if algorithms[i].name == name {
			return &algorithms[i]
		}
	}
	return nil
}

func isRSA(public crypto.PublicKey) bool { _, ok := public.(*rsa.PublicKey); return ok }

func isEd25519(public crypto.PublicKey) bool { _, ok := public.(ed25519.PublicKey); return ok }

func on(curve elliptic.Curve) func(crypto.PublicKey) bool {
	return func(public crypto.PublicKey) bool {
		k, ok := public.(*ecdsa.PublicKey)
		return ok && k.Curve == curve
	}
}

func verifyPKCS1(public crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), hash, digest, signature) == nil
}

func verifyPSS(public crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash} // RFC 7518, section 3.5
	return rsa.VerifyPSS(public.(*rsa.PublicKey), hash, digest, signature, options) == nil
}

// verifyECDSA takes the two numbers side by side, each in the length of the curve (RFC 7518, section 3.4), and not in ASN.1.
func verifyECDSA(public crypto.PublicKey, _ crypto.Hash, digest, signature []byte) bool {
	k := public.(*ecdsa.PublicKey)
	size := (k.Curve.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(k, digest, r, s)
}

func verifyEd25519(public crypto.PublicKey, _ crypto.Hash, text, signature []byte) bool {
	return ed25519.Verify(public.(ed25519.PublicKey), text, signature)
}

// verify judges the signature of a token by every key that may have made it (RFC 7515, appendix D).
func (k *Keys) verify(t *token) *Error {
	var digest []byte
	tried := false
	for i := range k.all {
		if key := &k.all[i]; key.mayHaveSigned(t) {
			if tried = true; digest == nil {
				digest = t.digest()
			}
			if t.alg.verify(key.public, t.alg.hash, digest, t.signature) {
				return nil
			}
		}
	}
	if tried {
		return errVerification
	}
	return errNoKey
}

func (k *key) mayHaveSigned(t *token) bool {
	return (!k.named || !t.named || k.kid == t.kid) && (k.alg == "" || k.alg == t.alg.name) && t.alg.fits(k.public)
}

// digest returns what a signature is made of.
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
