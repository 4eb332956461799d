package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Keys is a set of public keys. It is immutable except for the forged tokens that it remembers, and safe for concurrent use.
type Keys struct {
	digest  digest // of the text that it was parsed from
	all     []key
	skipped []error // why keys are left out
	trials  trials
}

// digest stands for a key set where the set itself, which may be large, should not be kept.
type digest [sha256.Size]byte

type key struct {
	kid    string
	named  bool   // there is a kid
	alg    string // "" for any algorithm that fits
	public crypto.PublicKey
}

// Bounds of a key set.
const (
	maxKeySet = 1 << 20
	maxKeys   = 100
)

// ParseKeys reads a JSON Web Key Set (RFC 7517, section 5), or an object that names PEM certificates by their key IDs, as Google
// publishes it. Each key is checked on its own: a key that is broken, too weak, not public, or not for verifying signatures is left out, and
// skipped says why. A set without a usable key is an error, and so is a set with more than 100 keys or 1 MiB.
//
// All keys that may have signed a token are tried: those with its key ID first, and then those without a key ID. While many tokens arrive
// that no key has signed, only 16 keys are tried per token. So tokens and keys should have key IDs if there are more than 16 keys of a type.
func ParseKeys(set string) (keys *Keys, skipped []error, err error) {
	if len(set) > maxKeySet {
		return nil, nil, fmt.Errorf("the key set has %d bytes: want at most %d", len(set), maxKeySet)
	}
	members, ok := parse(set, nil)
	if !ok {
		return nil, nil, errors.New("the key set is not a JSON object")
	}
	k := &Keys{digest: sha256.Sum256([]byte(set))}
	n := 0
	add := func(name string, one key, err error) {
		if n++; err != nil {
			skipped = append(skipped, fmt.Errorf("%s is left out: %s", short(name, maxReason), short(err.Error(), maxReason)))
		} else {
			k.all = append(k.all, one)
		}
	}
	switch elements := find(members, "keys"); elements.kind {
	case list:
		for element := range elements.items {
			if n == maxKeys {
				return nil, nil, errManyKeys
			}
			one, err := parseKey(element)
			add(fmt.Sprintf("keys[%d]", n), one, err)
		}
	case absent:
		if len(members) > maxKeys {
			return nil, nil, errManyKeys
		}
		for _, m := range members {
			one, err := parseCertificate(m)
			add(strconv.Quote(m.name), one, err)
		}
	default:
		return nil, nil, errors.New("keys of the key set is not a list")
	}
	if len(k.all) == 0 {
		return nil, skipped, noneUsable(skipped)
	}
	slices.SortStableFunc(k.all, func(a, b key) int { // those that may be tried for any token come last
		switch {
		case a.named == b.named:
			return 0
		case a.named:
			return -1
		}
		return 1
	})
	k.skipped = skipped
	return k, skipped, nil
}

var errManyKeys = fmt.Errorf("the key set has more than %d keys", maxKeys)

// noneUsable returns the error about a set without a key that can be used.
func noneUsable(skipped []error) error {
	const mentioned = 3
	all := []error{errors.New("the key set has no key that can verify a token")}
	all = append(all, skipped[:min(len(skipped), mentioned)]...)
	if more := len(skipped) - mentioned; more > 0 {
		all = append(all, fmt.Errorf("and %d more", more))
	}
	return errors.Join(all...)
}

// Errors are logged, so they contain no more than this of what an issuer can make long.
const (
	maxReason = 200  // bytes about one key
	maxError  = 1000 // bytes about a fetch
)

func short(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// equal reports whether the sets were made of the same text.
func (k *Keys) equal(o *Keys) bool {
	return k == o || k != nil && o != nil && k.digest == o.digest
}

// Len returns how many keys there are.
func (k *Keys) Len() int { return len(k.all) }

// parseKey reads one element of a key set.
func parseKey(v value) (k key, err error) {
	if v.kind != object {
		return k, errors.New("it is not an object")
	}
	var kty, use, ops, exponent, private value
	for m := range v.members {
		switch m.name {
		case "kty":
			kty = m
		case "use":
			use = m
		case "key_ops":
			ops = m
		case "e":
			exponent = m
		case "d":
			private = m
		case "kid", "alg":
			if m.kind != text {
				return k, fmt.Errorf("its %s is not a string", m.name)
			}
			if m.name == "alg" {
				k.alg = m.text
			} else {
				k.kid, k.named = m.text, true
			}
		}
	}
	if use.kind != absent && use.text != "sig" {
		return k, errors.New("its use is not sig")
	}
	verifies := ops.kind == absent
	for op := range ops.items {
		verifies = verifies || op.kind == text && op.text == "verify"
	}
	if !verifies {
		return k, errors.New("its key_ops do not have verify")
	}
	if private.kind != absent || kty.text == "oct" {
		return k, errors.New("it is a private or a symmetric key, which has no place here")
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON([]byte(v.text)); err != nil {
		return k, err
	}
	k.public = jwk.Key
	if public, ok := k.public.(*rsa.PublicKey); ok && !isExponent(exponent.text, public.E) {
		return k, errExponent // go-jose silently takes the last 64 bits of a longer one
	}
	return k, k.check()
}

// isExponent reports whether an RSA exponent in base64url is e.
func isExponent(text string, e int) bool {
	data, err := base64.RawURLEncoding.DecodeString(text)
	return err == nil && new(big.Int).SetBytes(data).Cmp(big.NewInt(int64(e))) == 0
}

var errExponent = errors.New("the exponent of the RSA key is not an odd number between 3 and 2147483647")

// parseCertificate reads a certificate whose name is its key ID.
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

// maxModulus is the largest size of an RSA key in bits, as in crypto/tls.
const maxModulus = 8192

// check refuses keys that cannot be used here.
func (k *key) check() error {
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		switch bits := public.N.BitLen(); {
		case bits < 2048: // RFC 7518, section 3.3
			return fmt.Errorf("an RSA key of %d bits is too short: want 2048", bits)
		case bits > maxModulus:
			return fmt.Errorf("an RSA key of %d bits costs too much: want at most %d", bits, maxModulus)
		case public.N.Bit(0) == 0: // crypto/rsa refuses it, and an exponent out of bounds, with each token
			return errors.New("the modulus of the RSA key is even")
		case public.E < 3 || public.E > math.MaxInt32 || public.E%2 == 0:
			return errExponent
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
	// verify reports whether the signature is good. digest is the hash of what was signed, or for Ed25519 the text itself.
	verify func(public crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool
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

// verifyECDSA takes two numbers of the length of the curve, one after the other (RFC 7518, section 3.4). ASN.1 is refused.
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
