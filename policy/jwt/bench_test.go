package jwt_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/jwt"
)

func BenchmarkAuthenticate(b *testing.B) {
	k := rs("k", "RS256")
	set := keys(b, k)
	claims := fmt.Sprintf(`{"iss":"https://issuer.example.com","sub":"alice","aud":["mesh","web"],"exp":%d,"iat":%d,"azp":"client","scope":"read write","email":"alice@example.com"}`,
		now.Add(time.Hour).Unix(), now.Unix())
	r := bearer(k.token(claims))
	rule := jwt.Rule{Issuer: "https://issuer.example.com", Audiences: []string{"mesh"}, Keys: set, Forward: true}
	b.Run("no token", func(b *testing.B) {
		a, none := authenticator(b, rule), request("/")
		b.ReportAllocs()
		for b.Loop() {
			a.Authenticate(context.Background(), none, now)
		}
	})
	b.Run("remembered", func(b *testing.B) {
		a := authenticator(b, rule)
		b.ReportAllocs()
		for b.Loop() {
			if result := a.Authenticate(context.Background(), r, now); result.Claims == nil {
				b.Fatal(result.Err)
			}
		}
	})
	b.Run("remembered, of the last of ten issuers", func(b *testing.B) {
		rules := []jwt.Rule{rule}
		for i := range 9 {
			rules = append(rules, jwt.Rule{Issuer: fmt.Sprint(i), Keys: set})
		}
		a := authenticator(b, rules...)
		b.ReportAllocs()
		for b.Loop() {
			if result := a.Authenticate(context.Background(), r, now); result.Claims == nil {
				b.Fatal(result.Err)
			}
		}
	})
	// lines returns different tokens, each as a line of the header.
	lines := func(n int, by signer, more string) [][]string {
		all := make([][]string, n)
		for i := range all {
			all[i] = []string{"Bearer " + by.token(fmt.Sprintf(`{"n":%d,%s%s`, i, more, claims[1:]))}
		}
		return all
	}
	forger := signer{"k", "RS256", rsaKey2()}
	fresh := lines(500, k, "")
	b.Run("fresh RS256", func(b *testing.B) { benchmarkFresh(b, rule, k, fresh) })
	b.Run("crypto/rsa alone", func(b *testing.B) {
		token := strings.TrimPrefix(fresh[0][0], "Bearer ")
		public, text := &rsaKey().PublicKey, []byte(part(token, 0)+"."+part(token, 1))
		signature := []byte(unb64(part(token, 2)))
		b.ReportAllocs()
		for b.Loop() {
			digest := sha256.Sum256(text)
			if rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) != nil {
				b.Fatal("not verified")
			}
		}
	})
	b.Run("forged RS256", func(b *testing.B) { benchmarkFresh(b, rule, k, lines(500, forger, "")) })
	b.Run("forged RS256, again and again", func(b *testing.B) {
		a := authenticator(b, rule)
		r := bearer(forger.token(claims))
		b.ReportAllocs()
		for b.Loop() {
			a.Authenticate(context.Background(), r, now)
		}
	})
	for _, shape := range []struct{ name, more string }{
		{"many claims", members(1000)},
		{"a long list", `"l":[` + strings.Repeat("1,", 5000) + "1]"},
		{"a long text", `"l":"` + strings.Repeat("a", 10000) + `"`},
	} {
		b.Run("forged, "+shape.name, func(b *testing.B) { benchmarkFresh(b, rule, k, lines(100, forger, shape.more+",")) })
		b.Run("good, "+shape.name, func(b *testing.B) { benchmarkFresh(b, rule, k, lines(100, k, shape.more+",")) })
	}
}

// benchmarkFresh authenticates requests with tokens that are not remembered, whether the key has signed them or not.
func benchmarkFresh(b *testing.B, rule jwt.Rule, k signer, lines [][]string) {
	set := keySet(b, k.jwk(b, nil))
	r := request("/")
	var a *jwt.Authenticator
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(lines) == 0 {
			rule.Keys, _, _ = jwt.ParseKeys(set) // which remember none of them
			a = authenticator(b, rule)
		}
		r.Header["Authorization"] = lines[i%len(lines)]
		a.Authenticate(context.Background(), r, now)
	}
}
