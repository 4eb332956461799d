package jwt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/nosidecar/mesh/policy/jwt"
)

// now is when tokens are judged.
var now = time.Unix(1_800_000_000, 0)

// signer is a private key, and how it is published.
type signer struct {
	kid, alg string // the alg of its tokens
	private  crypto.Signer
}

var (
	rsaKey     = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	rsaKey2    = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	ecKey      = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return k })
	ec384Key   = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader); return k })
	ec521Key   = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader); return k })
	ed25519Key = sync.OnceValue(func() ed25519.PrivateKey { _, k, _ := ed25519.GenerateKey(rand.Reader); return k })
)

func rs(kid, alg string) signer { return signer{kid, alg, rsaKey()} }

// jwk returns the public key as an element of a key set; more replaces or adds members.
func (s signer) jwk(t testing.TB, more map[string]any) map[string]any {
	t.Helper()
	data, err := (&jose.JSONWebKey{Key: s.private.Public(), KeyID: s.kid}).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	for name, v := range more {
		m[name] = v
		if v == nil {
			delete(m, name)
		}
	}
	return m
}

func keySet(t testing.TB, elements ...any) string {
	t.Helper()
	if elements == nil {
		elements = []any{}
	}
	data, err := json.Marshal(map[string]any{"keys": elements})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func keys(t testing.TB, signers ...signer) *jwt.Keys {
	t.Helper()
	var all []any
	for _, s := range signers {
		all = append(all, s.jwk(t, nil))
	}
	parsed, _, err := jwt.ParseKeys(keySet(t, all...))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// sign returns a token over a header and a payload as they are.
func (s signer) sign(header, payload string) string {
	text := b64(header) + "." + b64(payload)
	return text + "." + base64.RawURLEncoding.EncodeToString(s.signature(text))
}

func (s signer) signature(text string) []byte {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[strings.TrimLeft(s.alg, "RSPEH")]
	if s.alg == "EdDSA" {
		sig, _ := s.private.Sign(rand.Reader, []byte(text), crypto.Hash(0))
		return sig
	}
	h := hash.New()
	h.Write([]byte(text))
	digest := h.Sum(nil)
	switch k := s.private.(type) {
	case *rsa.PrivateKey:
		if s.alg[0] == 'P' {
			sig, _ := rsa.SignPSS(rand.Reader, k, hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			return sig
		}
		sig, _ := rsa.SignPKCS1v15(rand.Reader, k, hash, digest)
		return sig
	case *ecdsa.PrivateKey:
		r, ss, _ := ecdsa.Sign(rand.Reader, k, digest)
		size := (k.Curve.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), ss.FillBytes(make([]byte, size))...)
	}
	panic("no such key")
}

// token returns a token with claims, and with the header that goes with the key.
func (s signer) token(claims string) string {
	return s.sign(fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, s.alg, s.kid), claims)
}

func hmacToken(secret []byte, claims string) string {
	text := b64(`{"alg":"HS256"}`) + "." + b64(claims)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func authenticator(t testing.TB, rules ...jwt.Rule) *jwt.Authenticator {
	t.Helper()
	a, err := jwt.New(rules, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// request returns a request with headers, by name and value in turn.
func request(target string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func bearer(token string) *http.Request { return request("/", "Authorization", "Bearer "+token) }

// outcome is a result in words: the principal, "nobody", or status and text.
func outcome(r jwt.Result) string {
	switch {
	case r.Err != nil && r.Claims != nil:
		return "refused, and yet somebody"
	case r.Err != nil:
		return fmt.Sprint(r.Err.Status(), " ", r.Err)
	case r.Claims == nil:
		return "nobody"
	}
	return r.Claims.Issuer() + "/" + r.Claims.Subject()
}
