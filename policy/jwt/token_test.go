package jwt_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/jwt"
)

const (
	shape       = "401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	badHeader   = "401 Jwt header is an invalid Base64url encoded"
	badPayload  = "401 Jwt payload is an invalid Base64url encoded"
	badJSON     = "401 Jwt payload is an invalid JSON"
	badHeadJSON = "401 Jwt header is an invalid JSON"
	badAlg      = "401 Jwt header [alg] is not supported"
	noAlg       = "401 Jwt header [alg] field is required and must be a string"
	badSig      = "401 Jwt signature is an invalid Base64url encoded"
	failed      = "401 Jwt verification fails"
	noKey       = "401 Jwks doesn't have key to match kid or alg from Jwt"
	expired     = "401 Jwt is expired"
	notYet      = "401 Jwt not yet valid"
	wrongIssuer = "401 Jwt issuer is not configured"
	audience    = "403 Audiences in Jwt are not allowed"
	critical    = "401 Jwt header [crit] is not supported"
	alice       = "https://issuer/alice"
)

// A token is accepted or refused as the table says, with the status and the words of Envoy.
func TestTokens(t *testing.T) {
	k := rs("k", "RS256")
	const claims = `{"iss":"https://issuer","sub":"alice","aud":["mesh"]}`
	good := k.token(claims)
	header, payload, signature := part(good, 0), part(good, 1), part(good, 2)
	with := func(more string) string {
		return k.token(`{"iss":"https://issuer","sub":"alice","aud":"mesh",` + more + `}`)
	}
	head := func(header string) string { return k.sign(header, claims) }
	flip := func(s string) string { // another last bit that counts
		data, _ := base64.RawURLEncoding.DecodeString(s)
		data[len(data)/2] ^= 1
		return base64.RawURLEncoding.EncodeToString(data)
	}
	unused := func(s string) string { // the same bytes, with bits set that do not count
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		last := strings.IndexByte(digits, s[len(s)-1])
		return s[:len(s)-1] + string(digits[last|1])
	}
	odd := k.token(`{"iss":"https://issuer","sub":"alice","aud":["mesh"]} `)
	for len(part(odd, 1))%4 == 0 {
		odd = k.token(`{"iss":"https://issuer","sub":"alice","aud":["mesh"],"x":"` + strings.Repeat("x", len(part(odd, 1))%3+1) + `"}`)
	}
	in := func(d time.Duration) int64 { return now.Add(d).Unix() }
	public, _ := rsaKey().PublicKey.N.MarshalText()

	for _, test := range []struct{ name, token, want string }{
		{"good", good, alice},

		{"one part", header, shape},
		{"two parts", header + "." + payload, shape},
		{"four parts", good + "." + signature, shape},
		{"JWE, five parts", "a.b.c.d.e", shape},
		{"empty header", "." + payload + "." + signature, shape},
		{"empty payload", header + ".." + signature, shape},
		{"no signature", header + "." + payload + ".", shape},
		{"leading dot", "." + good, shape},
		{"nothing but dots", "..", shape},
		{"too long", k.token(`{"iss":"https://issuer","sub":"` + strings.Repeat("a", 13000) + `"}`), shape},
		{"padded header", header + "=." + payload + "." + signature, badHeader},
		{"padded payload", header + "." + payload + "=." + signature, badPayload},
		{"padded signature", good + "==", badSig},
		{"newline in the payload", header + "." + payload[:4] + "\n" + payload[4:] + "." + signature, badPayload},
		{"carriage return in the signature", header + "." + payload + "." + signature[:4] + "\r" + signature[4:], badSig},
		{"standard alphabet", header + "." + payload + "." + strings.NewReplacer("-", "+", "_", "/").Replace(signature) + "+", badSig},
		{"space", good + " ", badSig},
		{"unused bits of the payload", part(odd, 0) + "." + unused(part(odd, 1)) + "." + part(odd, 2), badPayload},
		{"unused bits of the signature", header + "." + payload + "." + unused(signature), badSig},
		{"percent-encoded", strings.Replace(good, ".", "%2E", 1), shape},

		{"alg none", b64(`{"alg":"none"}`) + "." + payload + "." + b64("x"), badAlg},
		{"alg None", head(`{"alg":"None"}`), badAlg},
		{"alg NONE without signature", b64(`{"alg":"NONE"}`) + "." + payload + ".", shape},
		{"alg empty", head(`{"alg":""}`), badAlg},
		{"alg missing", head(`{"kid":"k"}`), noAlg},
		{"alg null", head(`{"alg":null}`), noAlg},
		{"alg number", head(`{"alg":256}`), noAlg},
		{"alg list", head(`{"alg":["RS256"]}`), noAlg},
		{"alg in another case", head(`{"alg":"rs256"}`), badAlg},
		{"Alg", head(`{"Alg":"RS256"}`), noAlg},
		{"alg twice", head(`{"alg":"RS256","alg":"none"}`), badHeadJSON},
		{"HS256 with the public key as secret", hmacToken(public, claims), badAlg},
		{"HS256 with nothing", hmacToken(nil, claims), badAlg},
		{"RS256 signature said to be PS256", head(`{"alg":"PS256","kid":"k"}`), failed},
		{"RS256 signature said to be RS512", head(`{"alg":"RS512","kid":"k"}`), failed},
		{"RS256 signature said to be ES256", head(`{"alg":"ES256","kid":"k"}`), noKey},
		{"RS256 signature said to be EdDSA", head(`{"alg":"EdDSA","kid":"k"}`), noKey},
		{"ES256K", head(`{"alg":"ES256K","kid":"k"}`), badAlg},
		{"RSA1_5, of encryption", head(`{"alg":"RSA1_5","kid":"k"}`), badAlg},

		{"crit", head(`{"alg":"RS256","kid":"k","crit":["exp"]}`), critical},
		{"crit empty", head(`{"alg":"RS256","kid":"k","crit":[]}`), critical},
		{"crit null", head(`{"alg":"RS256","kid":"k","crit":null}`), critical},
		{"b64 false", head(`{"alg":"RS256","kid":"k","b64":false}`), critical},
		{"b64 false and crit", head(`{"alg":"RS256","kid":"k","b64":false,"crit":["b64"]}`), critical},
		{"jwk of the attacker", head(`{"alg":"RS256","kid":"other","jwk":{"kty":"RSA"}}`), noKey},
		{"jku of the attacker", head(`{"alg":"RS256","kid":"other","jku":"http://127.0.0.1:1/"}`), noKey},
		{"x5u of the attacker", head(`{"alg":"RS256","kid":"other","x5u":"http://127.0.0.1:1/"}`), noKey},
		{"x5c of the attacker", head(`{"alg":"RS256","kid":"other","x5c":["AAAA"]}`), noKey},
		{"jwk beside a good signature", head(`{"alg":"RS256","kid":"k","jwk":{"kty":"oct","k":"AAAA"}}`), alice},
		{"zip", head(`{"alg":"RS256","kid":"k","zip":"DEF"}`), alice},
		{"typ of something else", head(`{"alg":"RS256","kid":"k","typ":"secevent+jwt"}`), alice},
		{"cty nested", head(`{"alg":"RS256","kid":"k","cty":"JWT"}`), alice},
		{"header is a list", k.sign(`["RS256"]`, claims), badHeadJSON},
		{"header is text", k.sign(`RS256`, claims), badHeadJSON},
		{"header with something behind", k.sign(`{"alg":"RS256"}{}`, claims), badHeadJSON},
		{"header is not UTF-8", k.sign("{\"alg\":\"RS256\",\"x\":\"\xff\"}", claims), badHeadJSON},

		{"no kid", head(`{"alg":"RS256"}`), alice},
		{"kid unknown", head(`{"alg":"RS256","kid":"other"}`), noKey},
		{"kid empty", head(`{"alg":"RS256","kid":""}`), noKey},
		{"kid in another case", head(`{"alg":"RS256","kid":"K"}`), noKey},
		{"kid is a path", head(`{"alg":"RS256","kid":"../../dev/null"}`), noKey},
		{"kid is SQL", head(`{"alg":"RS256","kid":"' OR 1=1 --"}`), noKey},
		{"kid is long", head(`{"alg":"RS256","kid":"` + strings.Repeat("k", 8000) + `"}`), noKey},
		{"kid number", head(`{"alg":"RS256","kid":1}`), "401 Jwt header [kid] field is not a string"},
		{"kid null", head(`{"alg":"RS256","kid":null}`), "401 Jwt header [kid] field is not a string"},

		{"signature changed", header + "." + payload + "." + flip(signature), failed},
		{"payload changed", header + "." + b64(`{"iss":"https://issuer","sub":"root","aud":["mesh"]}`) + "." + signature, failed},
		{"header changed", b64(`{"alg":"RS256","kid":"k"}`) + "." + payload + "." + signature, failed},
		{"signature of another token", header + "." + payload + "." + part(with(`"x":1`), 2), failed},
		{"signature one byte short", header + "." + payload + "." + b64(unb64(signature)[1:]), failed},
		{"signature zero", header + "." + payload + "." + b64(strings.Repeat("\x00", 256)), failed},
		{"signed by another key of the same kid", signer{"k", "RS256", rsaKey2()}.token(claims), failed},
		{"forged, and for another audience", header + "." + b64(`{"iss":"https://issuer","aud":"other"}`) + "." + signature, audience},
		{"forged, and expired", header + "." + b64(`{"iss":"https://issuer","aud":"mesh","exp":1}`) + "." + signature, expired},
		{"forged, and of another issuer", header + "." + b64(`{"iss":"x","aud":"mesh"}`) + "." + signature, wrongIssuer},

		{"payload is a list", k.token(`["https://issuer"]`), badJSON},
		{"payload is a string", k.token(`"https://issuer"`), badJSON},
		{"payload is no JSON", k.token(`{iss:"https://issuer"}`), badJSON},
		{"payload empty object", k.token(`{}`), wrongIssuer},
		{"payload with something behind", k.token(claims + "{}"), badJSON},
		{"payload with a trailing comma", k.token(`{"iss":"https://issuer",}`), badJSON},
		{"payload with a comment", k.token(`{"iss":"https://issuer"/* */}`), badJSON},
		{"payload with a BOM", k.token("\ufeff" + claims), badJSON},
		{"payload with space around", k.token("\n " + claims + "\t\r\n"), alice},
		{"payload not UTF-8", k.token("{\"iss\":\"https://issuer\",\"sub\":\"\xff\"}"), badJSON},
		{"lone surrogate", with(`"x":"\ud800"`), badJSON},
		{"low surrogate first", with(`"x":"\udc00\ud800"`), badJSON},
		{"surrogate pair", with(`"x":"\ud83d\ude00"`), alice},
		{"control byte in a string", with("\"x\":\"\x01\""), badJSON},
		{"bad escape", with(`"x":"\x41"`), badJSON},
		{"claim twice", with(`"sub":"root"`), badJSON},
		{"claim twice, escaped once", with(`"s\u0075b":"root"`), badJSON},
		{"name twice, deeper", with(`"x":{"a":1,"a":2}`), badJSON},
		{"name twice, in a list", with(`"x":[{"a":1},{"b":1,"b":2}]`), badJSON},
		{"name twice, among many", with(members(300) + `,"n0":1`), badJSON},
		{"name twice, among many, deeper", with(`"x":{` + members(300) + `,"n299":1}`), badJSON},
		{"many names", with(members(300) + `,"x":{` + members(300) + `}`), alice},
		{"a name in two objects", with(`"x":{"a":1,"sub":2},"y":{"a":1}`), alice},
		{"names that differ in case", with(`"Sub":"root","SUB":"root"`), alice},
		{"64 deep", with(`"x":` + strings.Repeat("[", 63) + strings.Repeat("]", 63)), alice},
		{"too deep", with(`"x":` + strings.Repeat("[", 65) + strings.Repeat("]", 65)), badJSON},
		{"leading zero", with(`"x":01`), badJSON},
		{"NaN", with(`"x":NaN`), badJSON},
		{"Infinity", with(`"exp":Infinity`), badJSON},
		{"plus", with(`"exp":+1`), badJSON},
		{"hexadecimal", with(`"exp":0x7fffffff`), badJSON},

		{"iss missing", k.token(`{"sub":"alice","aud":"mesh"}`), wrongIssuer},
		{"iss number", k.token(`{"iss":1,"sub":"alice"}`), "401 Jwt payload [iss] field is not a string"},
		{"iss list", k.token(`{"iss":["https://issuer"],"sub":"alice"}`), "401 Jwt payload [iss] field is not a string"},
		{"iss with a slash behind", k.token(`{"iss":"https://issuer/","sub":"alice","aud":"mesh"}`), wrongIssuer},
		{"iss in another case", k.token(`{"iss":"https://Issuer","sub":"alice","aud":"mesh"}`), wrongIssuer},
		{"iss that begins with it", k.token(`{"iss":"https://issuer.evil","sub":"alice","aud":"mesh"}`), wrongIssuer},
		{"iss with NUL behind", k.token(`{"iss":"https://issuer\u0000","sub":"alice","aud":"mesh"}`), wrongIssuer},
		{"sub number", k.token(`{"iss":"https://issuer","sub":1,"aud":"mesh"}`), "401 Jwt payload [sub] field is not a string"},
		{"sub missing", k.token(`{"iss":"https://issuer","aud":"mesh"}`), "https://issuer/"},
		{"jti number", with(`"jti":1`), "401 Jwt payload [jti] field is not a string"},

		{"exp later", with(fmt.Sprintf(`"exp":%d`, in(time.Hour))), alice},
		{"exp past", with(fmt.Sprintf(`"exp":%d`, in(-time.Hour))), expired},
		{"exp within the leeway", with(fmt.Sprintf(`"exp":%d`, in(-time.Minute))), alice},
		{"exp just beyond the leeway", with(fmt.Sprintf(`"exp":%d`, in(-61*time.Second))), expired},
		{"exp zero", with(`"exp":0`), expired},
		{"exp negative", with(`"exp":-1`), "401 Jwt payload [exp] field is not a positive 64 bit integer"},
		{"exp of 2^64", with(`"exp":18446744073709551616`), "401 Jwt payload [exp] field is not a positive 64 bit integer"},
		{"exp of 2^64-1, and no overflow", with(`"exp":18446744073709551615`), alice},
		{"exp huge", with(`"exp":1e400`), "401 Jwt payload [exp] field is not a positive 64 bit integer"},
		{"exp as a float", with(fmt.Sprintf(`"exp":%d.9`, in(time.Hour))), alice},
		{"exp in scientific notation", with(`"exp":1e9`), expired},
		{"exp text", with(fmt.Sprintf(`"exp":"%d"`, in(time.Hour))), "401 Jwt payload [exp] field is not an integer"},
		{"exp null", with(`"exp":null`), "401 Jwt payload [exp] field is not an integer"},
		{"exp bool", with(`"exp":true`), "401 Jwt payload [exp] field is not an integer"},
		{"EXP", with(`"EXP":1`), alice},
		{"nbf past", with(fmt.Sprintf(`"nbf":%d`, in(-time.Hour))), alice},
		{"nbf within the leeway", with(fmt.Sprintf(`"nbf":%d`, in(time.Minute))), alice},
		{"nbf beyond the leeway", with(fmt.Sprintf(`"nbf":%d`, in(61*time.Second))), notYet},
		{"nbf of 2^64-1", with(`"nbf":18446744073709551615`), notYet},
		{"nbf text", with(`"nbf":"1"`), "401 Jwt payload [nbf] field is not an integer"},
		{"nbf negative", with(`"nbf":-5`), "401 Jwt payload [nbf] field is not a positive 64 bit integer"},
		{"iat in the future", with(fmt.Sprintf(`"iat":%d`, in(100*time.Hour))), alice},
		{"iat text", with(`"iat":"yesterday"`), "401 Jwt payload [iat] field is not an integer"},
		{"iat negative", with(`"iat":-1`), "401 Jwt payload [iat] field is not a positive 64 bit integer"},

		{"aud missing", k.token(`{"iss":"https://issuer","sub":"alice"}`), audience},
		{"aud other", k.token(`{"iss":"https://issuer","sub":"alice","aud":"other"}`), audience},
		{"aud one of several", k.token(`{"iss":"https://issuer","sub":"alice","aud":["a","mesh"]}`), alice},
		{"aud empty list", k.token(`{"iss":"https://issuer","sub":"alice","aud":[]}`), audience},
		{"aud number", k.token(`{"iss":"https://issuer","sub":"alice","aud":1}`), "401 Jwt payload [aud] field is not a string or string list"},
		{"aud list with a number", k.token(`{"iss":"https://issuer","sub":"alice","aud":["mesh",1]}`), "401 Jwt payload [aud] field is not a string or string list"},
		{"aud null", k.token(`{"iss":"https://issuer","sub":"alice","aud":null}`), "401 Jwt payload [aud] field is not a string or string list"},
		{"aud as a URL", k.token(`{"iss":"https://issuer","sub":"alice","aud":"https://mesh/"}`), alice},
		{"aud as an http URL", k.token(`{"iss":"https://issuer","sub":"alice","aud":"http://mesh"}`), alice},
		{"aud in another case", k.token(`{"iss":"https://issuer","sub":"alice","aud":"Mesh"}`), audience},
		{"aud that contains it", k.token(`{"iss":"https://issuer","sub":"alice","aud":"mesh/x"}`), audience},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := authenticator(t, jwt.Rule{Issuer: "https://issuer", Audiences: []string{"mesh"}, Keys: keys(t, k)})
			for _, again := range []string{"", ", when it comes again"} {
				if got := outcome(a.Authenticate(context.Background(), bearer(test.token), now)); got != test.want {
					t.Errorf("got %q%s, want %q", got, again, test.want)
				}
			}
		})
	}
}

// members returns n members of an object.
func members(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"n%d":1`, i))
	}
	return strings.Join(all, ",")
}

func part(token string, i int) string { return strings.Split(token, ".")[i] }

func unb64(s string) string {
	data, _ := base64.RawURLEncoding.DecodeString(s)
	return string(data)
}

// Each algorithm verifies what its own kind of key has signed, and nothing else.
func TestAlgorithms(t *testing.T) {
	const claims = `{"iss":"i","sub":"alice"}`
	signers := []signer{
		rs("k", "RS256"), rs("k", "RS384"), rs("k", "RS512"), rs("k", "PS256"), rs("k", "PS384"), rs("k", "PS512"),
		{"k", "ES256", ecKey()}, {"k", "ES384", ec384Key()}, {"k", "ES512", ec521Key()}, {"k", "EdDSA", ed25519Key()},
	}
	sets := make([]*jwt.Keys, len(signers))
	for i, key := range signers {
		sets[i] = keys(t, key)
	}
	family := func(s signer) string { return fmt.Sprintf("%T %p", s.private, s.private) }
	for _, by := range signers {
		for _, said := range signers {
			token := by.sign(fmt.Sprintf(`{"alg":%q}`, said.alg), claims)
			for i, key := range signers {
				got := outcome(authenticator(t, jwt.Rule{Keys: sets[i]}).Authenticate(context.Background(), bearer(token), now))
				if want := family(key) == family(by) && by.alg == said.alg; (got == "i/alice") != want {
					t.Errorf("a key for %s, a token signed by %s that says %s: got %q", key.alg, by.alg, said.alg, got)
				}
			}
		}
	}
}

// An ECDSA signature has one length and one form, and a salt of PSS the length of the hash.
func TestFormsOfSignatures(t *testing.T) {
	k := signer{"k", "ES256", ecKey()}
	token := k.token(`{"iss":"i","sub":"alice"}`)
	raw := unb64(part(token, 2))
	rest := part(token, 0) + "." + part(token, 1) + "."
	a := authenticator(t, jwt.Rule{Keys: keys(t, k)})
	for name, signature := range map[string]string{
		"short": raw[:63], "long": raw + "\x00", "zero in front": "\x00" + raw[:32] + raw[32:], "all zero": strings.Repeat("\x00", 64),
		"ASN.1": "\x30\x44\x02\x20" + raw[:32] + "\x02\x20" + raw[32:], "r only": raw[:32] + strings.Repeat("\x00", 32),
	} {
		if got := outcome(a.Authenticate(context.Background(), bearer(rest+b64(signature)), now)); got != failed {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

// Whoever knows a token cannot have it refused by sending another one of the same bytes, which nobody has signed.
func TestForgedTokenOfTheSameBytes(t *testing.T) {
	k := signer{"k", "EdDSA", ed25519Key()}
	a := authenticator(t, jwt.Rule{Keys: keys(t, k)})
	const claims = `{"iss":"iii","sub":"alice"}` // 27 bytes, so the next one begins with a letter of its own
	good := k.token(claims + "\n")
	forged := part(good, 0) + "." + b64(claims) + "." + b64(strings.TrimPrefix(part(good, 1), b64(claims))+unb64(part(good, 2)))
	for _, test := range []struct{ token, want string }{{forged, failed}, {good, "iii/alice"}} {
		if got := outcome(a.Authenticate(context.Background(), bearer(test.token), now)); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
