// Package jwttest issues JSON Web Tokens for tests.
package jwttest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
)

// Issuer signs tokens with a key of its own, by EdDSA.
type Issuer struct {
	kid string
	key ed25519.PrivateKey
}

// New returns an issuer whose key has an ID.
func New(kid string) *Issuer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // there is no randomness
	}
	return &Issuer{kid, key}
}

// Token returns a token with claims, which are a JSON object.
func (i *Issuer) Token(claims string) string {
	text := encode([]byte(`{"alg":"EdDSA","kid":"`+i.kid+`"}`)) + "." + encode([]byte(claims))
	return text + "." + encode(ed25519.Sign(i.key, []byte(text)))
}

// KeySet returns the key sets of issuers, as one.
func KeySet(issuers ...*Issuer) string {
	var keys []string
	for _, i := range issuers {
		x := encode(i.key.Public().(ed25519.PublicKey))
		keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}`, i.kid, x))
	}
	return `{"keys":[` + strings.Join(keys, ",") + `]}`
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }
