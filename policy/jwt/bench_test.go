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
	fresh := make([][]string, 2000) // the lines of the header
	for i := range fresh {
		fresh[i] = []string{"Bearer " + k.token(fmt.Sprintf(`{"n":%d,%s`, i, claims[1:]))}
	}
	b.Run("fresh RS256", func(b *testing.B) { benchmarkFresh(b, rule, fresh) })
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
	b.Run("forged RS256", func(b *testing.B) {
		a := authenticator(b, rule)
		r := bearer(signer{"k", "RS256", rsaKey2()}.token(claims))
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
		forged := bearer(signer{"k", "RS256", rsaKey2()}.token("{" + shape.more + "," + claims[1:]))
		b.Run("forged, "+shape.name, func(b *testing.B) {
			a := authenticator(b, rule)
			b.ReportAllocs()
			for b.Loop() {
				a.Authenticate(context.Background(), forged, now)
			}
		})
		b.Run("good, "+shape.name, func(b *testing.B) {
			good := make([][]string, 100)
			for i := range good {
				good[i] = []string{"Bearer " + k.token(fmt.Sprintf(`{"n":%d,%s,%s`, i, shape.more, claims[1:]))}
			}
			benchmarkFresh(b, rule, good)
		})
	}
}

// benchmarkFresh authenticates requests with tokens that are not remembered, each a line of the header Authorization.
func benchmarkFresh(b *testing.B, rule jwt.Rule, lines [][]string) {
	r := request("/")
	var a *jwt.Authenticator
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(lines) == 0 {
			a = authenticator(b, rule) // which remembers none of them
		}
		r.Header["Authorization"] = lines[i%len(lines)]
		if result := a.Authenticate(context.Background(), r, now); result.Claims == nil {
			b.Fatal(result.Err)
		}
	}
}
