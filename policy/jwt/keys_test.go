package jwt_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/jwt"
)

// Each element of a key set is looked at by itself: one that is of no use does not spoil the others.
func TestKeySets(t *testing.T) {
	good := rs("good", "RS256").jwk(t, nil)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err)
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	modulus := base64.RawURLEncoding.EncodeToString(rsaKey().N.Bytes())
	ec := signer{"ec", "ES256", ecKey()}
	for _, test := range []struct {
		name    string
		element any
		used    bool
	}{
		{"RSA", rs("x", "RS256").jwk(t, nil), true},
		{"EC", ec.jwk(t, nil), true},
		{"Ed25519", signer{"x", "EdDSA", ed25519Key()}.jwk(t, nil), true},
		{"no kid", rs("", "RS256").jwk(t, map[string]any{"kid": nil}), true},
		{"use sig", ec.jwk(t, map[string]any{"use": "sig"}), true},
		{"key_ops verify", ec.jwk(t, map[string]any{"key_ops": []string{"sign", "verify"}}), true},
		{"alg that fits", ec.jwk(t, map[string]any{"alg": "ES256"}), true},
		{"unknown member", ec.jwk(t, map[string]any{"x-made-by": "us"}), true},

		{"use enc", ec.jwk(t, map[string]any{"use": "enc"}), false},
		{"use number", ec.jwk(t, map[string]any{"use": 1}), false},
		{"key_ops without verify", ec.jwk(t, map[string]any{"key_ops": []string{"sign"}}), false},
		{"key_ops empty", ec.jwk(t, map[string]any{"key_ops": []string{}}), false},
		{"alg of another curve", ec.jwk(t, map[string]any{"alg": "ES384"}), false},
		{"alg of another type", ec.jwk(t, map[string]any{"alg": "RS256"}), false},
		{"alg none", ec.jwk(t, map[string]any{"alg": "none"}), false},
		{"alg HS256", ec.jwk(t, map[string]any{"alg": "HS256"}), false},
		{"alg of encryption", rs("x", "RS256").jwk(t, map[string]any{"alg": "RSA-OAEP"}), false},
		{"kid number", ec.jwk(t, map[string]any{"kid": 1}), false},
		{"null", nil, false},
		{"text", "key", false},
		{"empty", map[string]any{}, false},
		{"symmetric", map[string]any{"kty": "oct", "k": "AAAA", "kid": "good"}, false},
		{"private", ec.jwk(t, map[string]any{"d": strings.Repeat("A", 43)}), false},
		{"unknown kty", map[string]any{"kty": "AKP", "kid": "x"}, false},
		{"unknown curve", ec.jwk(t, map[string]any{"crv": "secp256k1"}), false},
		{"P-224", map[string]any{"kty": "EC", "crv": "P-224", "x": p224.X.Text(16), "y": p224.Y.Text(16)}, false},
		{"point off its curve", ec.jwk(t, map[string]any{"y": ec.jwk(t, nil)["x"]}), false},
		{"RSA of 1024 bits", signer{"x", "RS256", weak}.jwk(t, nil), false},
		{"RSA with exponent 1", map[string]any{"kty": "RSA", "n": modulus, "e": "AQ"}, false},
		{"RSA with an even exponent", map[string]any{"kty": "RSA", "n": modulus, "e": "Ag"}, false},
		{"RSA with an exponent of which the last 64 bits are 65537", map[string]any{"kty": "RSA", "n": modulus, "e": exponent("1", "0000000000010001")}, false},
		{"RSA with an exponent of 200 bytes", map[string]any{"kty": "RSA", "n": modulus, "e": exponent(strings.Repeat("f", 400))}, false},
		{"RSA with an exponent that crypto/rsa refuses", map[string]any{"kty": "RSA", "n": modulus, "e": exponent("80000001")}, false},
		{"RSA with the largest exponent", map[string]any{"kty": "RSA", "n": modulus, "e": exponent("7fffffff")}, true},
		{"RSA with zeros before the exponent", map[string]any{"kty": "RSA", "n": modulus, "e": exponent("00010001")}, true},
		{"RSA with exponent 0", map[string]any{"kty": "RSA", "n": modulus, "e": "AA"}, false},
		{"RSA with an empty exponent", map[string]any{"kty": "RSA", "n": modulus, "e": ""}, false},
		{"RSA without an exponent", map[string]any{"kty": "RSA", "n": modulus}, false},
		{"RSA with an even modulus", map[string]any{"kty": "RSA", "n": modulus[:len(modulus)-4] + "AAAA", "e": "AQAB"}, false},
		{"RSA of 8192 bits", map[string]any{"kty": "RSA", "n": base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 1024)), "e": "AQAB"}, true},
		{"RSA of 8200 bits", map[string]any{"kty": "RSA", "n": base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 1025)), "e": "AQAB"}, false},
		{"RSA with a huge modulus", map[string]any{"kty": "RSA", "n": strings.Repeat("_", 40000), "e": "AQAB"}, false},
		{"Ed25519 too short", map[string]any{"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}, false},
		{"Ed25519, a point for which anybody can sign", map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(make([]byte, 32))}, false},
		{"X25519", map[string]any{"kty": "OKP", "crv": "X25519", "x": base64.RawURLEncoding.EncodeToString(make([]byte, 32))}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			set, skipped, err := jwt.ParseKeys(keySet(t, good, test.element))
			if err != nil {
				t.Fatal(err)
			}
			if used := set.Len() == 2; used != test.used || used == (len(skipped) == 1) {
				t.Errorf("%d keys, %v; used: want %t", set.Len(), skipped, test.used)
			}
			if _, _, err := jwt.ParseKeys(keySet(t, test.element)); (err == nil) != test.used {
				t.Errorf("alone: %v", err)
			}
		})
	}

	for name, set := range map[string]string{
		"no JSON": "keys", "a list": "[]", "no keys": `{"keys":[]}`, "keys no list": `{"keys":{}}`, "keys null": `{"keys":null}`, "empty": `{}`,
		"keys twice":       `{"keys":[],` + keySet(t, good)[1:],
		"Keys":             strings.Replace(keySet(t, good), "keys", "Keys", 1),
		"a name twice":     strings.Replace(keySet(t, good), `"kid":"good"`, `"kid":"good","kid":"bad"`, 1),
		"too many":         keySet(t, many(good, 101)...),
		"too long":         keySet(t, good, strings.Repeat("x", 1<<20)),
		"something behind": keySet(t, good) + "x",
	} {
		if _, _, err := jwt.ParseKeys(set); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if set, _, err := jwt.ParseKeys(keySet(t, many(good, 100)...)); err != nil || set.Len() != 100 {
		t.Errorf("100 keys: %v", err)
	}
}

// exponent returns an exponent of RSA, given in hexadecimal digits, as a key set has it.
func exponent(digits ...string) string {
	data, _ := hex.DecodeString(strings.Repeat("0", len(digits[0])%2) + strings.Join(digits, ""))
	return base64.RawURLEncoding.EncodeToString(data)
}

func many(element any, n int) []any {
	all := make([]any, n)
	for i := range all {
		all[i] = element
	}
	return all
}

// A map from key IDs to certificates is a key set, too, as Google publishes one.
func TestKeysInCertificates(t *testing.T) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, rsaKey().Public(), rsaKey())
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	text, err := json.Marshal(map[string]any{"k": cert, "broken": "-----BEGIN CERTIFICATE-----", "two": cert + cert, "number": 1})
	if err != nil {
		t.Fatal(err)
	}
	set, skipped, err := jwt.ParseKeys(string(text))
	if err != nil || set.Len() != 1 || len(skipped) != 3 {
		t.Fatalf("%v, skipped %v, %v", set, skipped, err)
	}
	a := authenticator(t, jwt.Rule{Keys: set})
	for kid, want := range map[string]string{"k": "i/alice", "other": noKey} {
		if got := outcome(a.Authenticate(context.Background(), bearer(rs(kid, "RS256").token(`{"iss":"i","sub":"alice"}`)), now)); got != want {
			t.Errorf("kid %s: got %q", kid, got)
		}
	}
}

// Every key that may have signed is tried: keys without an ID or of the same ID, and all of them for a token without one.
func TestWhichKeysAreTried(t *testing.T) {
	const claims = `{"iss":"i","sub":"alice"}`
	first, second := signer{"k", "RS256", rsaKey()}, signer{"k", "RS256", rsaKey2()}
	bare := map[string]any{"kid": nil}
	for _, test := range []struct {
		name  string
		set   []any
		token string
		want  string
	}{
		{"two keys of one kid, the second signed", []any{first.jwk(t, nil), second.jwk(t, nil)}, second.token(claims), "i/alice"},
		{"a token without kid", []any{first.jwk(t, nil), second.jwk(t, map[string]any{"kid": "l"})}, second.sign(`{"alg":"RS256"}`, claims), "i/alice"},
		{"a key without kid", []any{first.jwk(t, map[string]any{"kid": "l"}), second.jwk(t, bare)}, second.token(claims), "i/alice"},
		{"a key without kid that did not sign", []any{first.jwk(t, bare)}, second.token(claims), failed},
		{"another kid", []any{first.jwk(t, map[string]any{"kid": "l"})}, first.token(claims), noKey},
		{"the key's alg", []any{first.jwk(t, map[string]any{"alg": "RS256"})}, first.token(claims), "i/alice"},
		{"not the key's alg", []any{first.jwk(t, map[string]any{"alg": "RS512"})}, first.token(claims), noKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantOutcome(t, test.set, test.token, test.want)
		})
	}
}

// wantOutcome authenticates a request with a token by a set of keys.
func wantOutcome(t *testing.T, set []any, token, want string) {
	t.Helper()
	keys, _, err := jwt.ParseKeys(keySet(t, set...))
	if err != nil {
		t.Fatal(err)
	}
	if got := outcome(authenticator(t, jwt.Rule{Keys: keys}).Authenticate(context.Background(), bearer(token), now)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// However many keys may have signed a token, the right one is found. Keys that name its ID come first.
func TestOneOfManyKeys(t *testing.T) {
	const claims = `{"iss":"i","sub":"alice"}`
	first, second := signer{"k", "RS256", rsaKey()}, signer{"k", "RS256", rsaKey2()}
	bare := map[string]any{"kid": nil}
	for _, test := range []struct {
		name  string
		set   []any
		token string
		want  string
	}{
		{"the 16th of them", append(many(first.jwk(t, bare), 15), second.jwk(t, bare)), second.sign(`{"alg":"RS256"}`, claims), "i/alice"},
		{"the 100th of them", append(many(first.jwk(t, bare), 99), second.jwk(t, bare)), second.sign(`{"alg":"RS256"}`, claims), "i/alice"},
		{"none of them", many(first.jwk(t, bare), 100), second.sign(`{"alg":"RS256"}`, claims), failed},
		{"behind keys of another ID", append(many(first.jwk(t, map[string]any{"kid": "l"}), 99), second.jwk(t, nil)), second.token(claims), "i/alice"},
		{"behind keys of other algorithms", append(many(first.jwk(t, map[string]any{"alg": "PS256"}), 50), append(many(signer{"", "ES256", ecKey()}.jwk(t, bare), 49), second.jwk(t, nil))...),
			second.sign(`{"alg":"RS256"}`, claims), "i/alice"},
		{"the one of its ID, behind many without", append(many(first.jwk(t, bare), 99), second.jwk(t, nil)), second.token(claims), "i/alice"},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantOutcome(t, test.set, test.token, test.want)
		})
	}
}

// Errors are logged: whoever publishes a key set does not decide how long they are.
func TestErrorsOfKeySetsAreShort(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	for name, set := range map[string]string{
		"curve":       keySet(t, many(map[string]any{"kty": "EC", "crv": long, "x": "AA", "y": "AA"}, 90)...),
		"alg":         keySet(t, signer{"", "ES256", ecKey()}.jwk(t, map[string]any{"alg": long})),
		"certificate": `{"` + long + `":"-----BEGIN"}`,
	} {
		_, skipped, err := jwt.ParseKeys(set)
		if err == nil || len(err.Error()) > 2000 {
			t.Errorf("%s: the error has %d bytes", name, len(fmt.Sprint(err)))
		}
		for _, why := range skipped {
			if len(why.Error()) > 500 {
				t.Fatalf("%s: %d bytes are said of one key", name, len(why.Error()))
			}
		}
	}
}

// Whatever a key set says, it is read or refused.
func FuzzKeySet(f *testing.F) {
	for _, s := range []signer{rs("a", "RS256"), {"b", "ES256", ecKey()}, {"c", "EdDSA", ed25519Key()}} {
		f.Add(keySet(f, s.jwk(f, nil), s.jwk(f, map[string]any{"use": "enc"})))
	}
	f.Add(`{"k":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}`)
	token := rs("a", "RS256").token(`{"iss":"i"}`)
	f.Fuzz(func(t *testing.T, set string) {
		keys, skipped, err := jwt.ParseKeys(set)
		if err != nil {
			return
		}
		if keys.Len() == 0 || keys.Len()+len(skipped) > 100 {
			t.Errorf("%d keys, %d skipped", keys.Len(), len(skipped))
		}
		if !json.Valid([]byte(set)) {
			t.Error("no JSON")
		}
		_ = fmt.Sprint(outcome(authenticator(t, jwt.Rule{Keys: keys}).Authenticate(context.Background(), bearer(token), now)))
	})
}
