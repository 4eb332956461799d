package jwt_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/jwt"
)

// Tokens are found where rules say, and nowhere else.
func TestPlaces(t *testing.T) {
	k := rs("k", "RS256")
	token := k.token(`{"iss":"i","sub":"alice"}`)
	bob := k.token(`{"iss":"i","sub":"bob"}`)
	header := func(name, prefix string) jwt.Rule {
		return jwt.Rule{Headers: []jwt.Header{{Name: name, Prefix: prefix}}}
	}
	for _, test := range []struct {
		name    string
		rule    jwt.Rule
		target  string
		headers []string
		want    string
	}{
		{"bearer", jwt.Rule{}, "/", []string{"Authorization", "Bearer " + token}, "i/alice"},
		{"bearer, in small letters", jwt.Rule{}, "/", []string{"authorization", "bearer " + token}, "nobody"},
		{"bearer, not in front", jwt.Rule{}, "/", []string{"Authorization", "x Bearer " + token}, "i/alice"},
		{"bearer and more space", jwt.Rule{}, "/", []string{"Authorization", "Bearer   " + token}, "i/alice"},
		{"bearer and nothing", jwt.Rule{}, "/", []string{"Authorization", "Bearer "}, shape},
		{"basic", jwt.Rule{}, "/", []string{"Authorization", "Basic QTpC"}, "nobody"},
		{"second line", jwt.Rule{}, "/", []string{"Authorization", "Basic QTpC", "Authorization", "Bearer " + token}, "i/alice"},
		{"two lines, both good", jwt.Rule{}, "/", []string{"Authorization", "Bearer " + bob, "Authorization", "Bearer " + token}, "i/bob"},
		{"two lines, one bad", jwt.Rule{}, "/", []string{"Authorization", "Bearer " + token, "Authorization", "Bearer x"}, shape},
		{"list in a line", jwt.Rule{}, "/", []string{"Authorization", "Bearer " + token + ", Bearer " + bob}, shape},
		{"access_token", jwt.Rule{}, "/?a=b&access_token=" + token, nil, "i/alice"},
		{"access_token, escaped", jwt.Rule{}, "/?access%5Ftoken=" + strings.ReplaceAll(token, ".", "%2E"), nil, "i/alice"},
		{"access_token, empty", jwt.Rule{}, "/?access_token=", nil, shape},
		{"access_token without value", jwt.Rule{}, "/?access_token", nil, shape},
		{"Access_Token", jwt.Rule{}, "/?Access_Token=" + token, nil, "nobody"},
		{"header and parameter, one bad", jwt.Rule{}, "/?access_token=x", []string{"Authorization", "Bearer " + token}, shape},
		{"header and parameter, both good", jwt.Rule{}, "/?access_token=" + bob, []string{"Authorization", "Bearer " + token}, "i/alice"},
		{"cookie is no place by default", jwt.Rule{}, "/", []string{"Cookie", "access_token=" + token}, "nobody"},

		{"other header", header("X-Jwt", ""), "/", []string{"x-jwt", token}, "i/alice"},
		{"other header, empty", header("X-Jwt", ""), "/", []string{"x-jwt", ""}, shape},
		{"other header with prefix", header("X-Jwt", "jwt="), "/", []string{"x-jwt", "a=b jwt=" + token}, "i/alice"},
		{"the default is off", header("X-Jwt", ""), "/?access_token=x", []string{"Authorization", "Bearer x"}, "nobody"},
		{"parameter", jwt.Rule{Params: []string{"t"}}, "/?t=" + token + "&t=x", nil, "i/alice"},
		{"cookie", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", "a=b; t=" + token}, "i/alice"},
		{"cookie in a second line", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", "a=b", "Cookie", "t=" + token}, "i/alice"},
		{"cookie with a space behind its name, which net/http removes", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", "a=b; t \t=" + token}, "i/alice"},
		{"bad cookie with a space behind its name", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", "t =x"}, shape},
		{"cookie in quotes", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", `t="` + token + `"`}, "i/alice"},
		{"cookie with half of its quotes", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", `t="` + token + `; t=x`}, badHeader},
		{"cookie in two pairs of quotes", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", `t=""` + token + `""; t=x`}, badHeader},
		{"cookie with a space before its quotes", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", `t= "` + token + `"; t=x`}, badHeader},
		{"cookie of another name", jwt.Rule{Cookies: []string{"t"}}, "/", []string{"Cookie", "tt=x; T=x"}, "nobody"},
		{"order: headers by name, parameters, cookies", jwt.Rule{Headers: []jwt.Header{{Name: "B"}, {Name: "A"}}, Params: []string{"t"}, Cookies: []string{"t"}},
			"/?t=" + token, []string{"B", token, "A", bob, "Cookie", "t=" + token}, "i/bob"},
		{"more tokens than anybody has", jwt.Rule{}, "/", slices.Repeat([]string{"Authorization", "Bearer " + token}, 9), shape},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.rule.Keys = keys(t, k)
			got := outcome(authenticator(t, test.rule).Authenticate(context.Background(), request(test.target, test.headers...), now))
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// Browsers send preflights without a token: they are not looked at at all.
func TestPreflights(t *testing.T) {
	a := authenticator(t, jwt.Rule{Keys: keys(t, rs("k", "RS256")), PayloadHeader: "x-payload"})
	for _, test := range []struct{ method, origin, asked, want string }{
		{"OPTIONS", "https://a", "POST", "nobody"}, {"OPTIONS", "https://a", "", shape}, {"OPTIONS", "", "POST", shape}, {"GET", "https://a", "POST", shape},
	} {
		r := request("/", "Authorization", "Bearer x", "X_Payload", "forged")
		r.Method = test.method
		r.Header.Set("Origin", test.origin)
		r.Header.Set("Access-Control-Request-Method", test.asked)
		result := a.Authenticate(context.Background(), r, now)
		if got := outcome(result); got != test.want {
			t.Errorf("%v: got %q", test, got)
		}
		if h := result.Header(r.Header); h == nil || len(h["X_payload"]) != 0 {
			t.Errorf("%v: the handler gets %v", test, h)
		}
	}
}

// Rules are alternatives. A place belongs to the rules that name it, and every token must be accepted by one of them.
func TestRules(t *testing.T) {
	ours, theirs := signer{"k", "RS256", rsaKey()}, signer{"k", "RS256", rsaKey2()}
	rules := []jwt.Rule{
		{Issuer: "z", Keys: keys(t, theirs)},
		{Issuer: "a", Keys: keys(t, ours), Headers: []jwt.Header{{Name: "X-A"}}},
		{Issuer: "b", Keys: keys(t, ours), Headers: []jwt.Header{{Name: "X-B"}}},
	}
	a := authenticator(t, rules...)
	token := func(s signer, issuer string) string { return s.token(`{"iss":"` + issuer + `","sub":"u"}`) }
	for _, test := range []struct {
		name    string
		headers []string
		want    string
	}{
		{"none", nil, "nobody"},
		{"first place", []string{"X-A", token(ours, "a")}, "a/u"},
		{"second place", []string{"X-B", token(ours, "b")}, "b/u"},
		{"default place", []string{"Authorization", "Bearer " + token(theirs, "z")}, "z/u"},
		{"a token of one rule at the place of another", []string{"X-A", token(ours, "b")}, wrongIssuer},
		{"the key of one issuer for the name of another", []string{"X-A", token(theirs, "a")}, failed},
		{"two good ones: by issuer", []string{"X-B", token(ours, "b"), "X-A", token(ours, "a")}, "a/u"},
		{"a good one and a bad one elsewhere", []string{"X-A", token(ours, "a"), "X-B", "x"}, shape},
		{"a good one and one of an unknown issuer", []string{"X-A", token(ours, "a"), "X-B", token(ours, "c")}, wrongIssuer},
		{"several errors: the last that is not about the issuer", []string{"X-A", token(ours, "c"), "X-B", token(theirs, "b")}, failed},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := outcome(a.Authenticate(context.Background(), request("/", test.headers...), now)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}

	// Two issuers at one place.
	a = authenticator(t, jwt.Rule{Issuer: "a", Keys: keys(t, ours)}, jwt.Rule{Issuer: "z", Keys: keys(t, theirs)})
	for token, want := range map[string]string{
		token(ours, "a"): "a/u", token(theirs, "z"): "z/u", token(ours, "z"): failed, token(theirs, "a"): failed, token(ours, "x"): wrongIssuer,
	} {
		if got := outcome(a.Authenticate(context.Background(), bearer(token), now)); got != want {
			t.Errorf("two issuers: got %q, want %q", got, want)
		}
	}
}

// The handler gets what the rules say, and nothing that the client made up.
func TestWhatTheHandlerSees(t *testing.T) {
	k := rs("k", "RS256")
	payload := `{"iss":"i","sub":"alice","n":1.0,"big":1e30,"half":0.5,"neg":-2,"ok":true,"none":null,"empty":"","list":["a",1],"o":{"a":{"b":"deep"}},"a.b":"dotted"}`
	token := k.token(payload)
	claim := func(name string) jwt.ClaimHeader {
		return jwt.ClaimHeader{Header: "x-" + strings.ReplaceAll(name, ".", "-"), Claim: name}
	}
	rule := jwt.Rule{Keys: keys(t, k), PayloadHeader: "X-Payload"}
	for _, name := range []string{"sub", "n", "big", "half", "neg", "ok", "none", "empty", "list", "o", "o.a.b", "a.b", "missing"} {
		rule.ClaimHeaders = append(rule.ClaimHeaders, claim(name))
	}
	a := authenticator(t, rule)
	arrived := request("/p?x=%7e&access_token=y&z", "Authorization", "Bearer "+token, "X-Payload", "forged", "x_sub", "root", "X-Missing", "forged", "X-Other", "kept")
	arrived.URL.RawQuery = "x=%7e&access_token=" + token + "&z"
	before := arrived.Header.Clone()
	result := a.Authenticate(context.Background(), arrived, now)
	h := result.Header(arrived.Header)
	want := map[string]string{
		"X-Payload": b64(payload), "X-Sub": "alice", "X-N": "1", "X-Half": "0.500000", "X-Neg": "-2.000000", "X-Ok": "true",
		"X-Big": "1000000000000000019884624838656.000000", "X-O-A-B": "deep", "X-Other": "kept",
		"X-List": base64.StdEncoding.EncodeToString([]byte(`["a",1]`)), "X-O": base64.StdEncoding.EncodeToString([]byte(`{"a":{"b":"deep"}}`)),
	}
	for name, value := range want {
		if got := h.Get(name); got != value {
			t.Errorf("%s: got %q, want %q", name, got, value)
		}
		delete(h, name)
	}
	if len(h) != 0 {
		t.Errorf("and more: %v", h)
	}
	seen := arrived.WithContext(t.Context())
	result.HideToken(seen)
	if seen.URL.RawQuery != "x=%7e&z" || seen.RequestURI != "/p?x=%7e&z" || arrived.URL.RawQuery == seen.URL.RawQuery {
		t.Errorf("query %q, %s", seen.URL.RawQuery, seen.RequestURI)
	}
	if fmt.Sprint(arrived.Header) != fmt.Sprint(before) {
		t.Error("the request was changed")
	}

	// Middleware before it may have parsed the form.
	parsed := httptest.NewRequest(http.MethodPost, "/p?a=b&access_token="+token, strings.NewReader("access_token=of+the+body&c=d"))
	parsed.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if err := parsed.ParseForm(); err != nil {
		t.Fatal(err)
	}
	result = a.Authenticate(context.Background(), parsed, now)
	seen = parsed.WithContext(t.Context())
	result.HideToken(seen)
	if got := fmt.Sprint(seen.Form); got != "map[a:[b] access_token:[of the body] c:[d]]" || len(parsed.Form["access_token"]) != 2 {
		t.Errorf("the handler sees the form %s, and who was before it %v", got, parsed.Form)
	}
	parsed = httptest.NewRequest(http.MethodGet, "/p?a=b&access_token="+token, nil)
	_ = parsed.FormValue("a")
	result = a.Authenticate(context.Background(), parsed, now)
	seen = parsed.WithContext(t.Context())
	result.HideToken(seen)
	if got := fmt.Sprint(seen.Form); got != "map[a:[b]]" || seen.FormValue("access_token") != "" {
		t.Errorf("the handler sees the form %s", got)
	}

	rule.Forward = true
	result = authenticator(t, rule).Authenticate(context.Background(), arrived, now)
	seen = arrived.WithContext(t.Context())
	result.HideToken(seen)
	if h := result.Header(arrived.Header); h.Get("Authorization") != "Bearer "+token || !strings.Contains(seen.URL.RawQuery, token) {
		t.Error("the token was removed although it is to be forwarded")
	}

	cookie := jwt.Rule{Keys: keys(t, k), Cookies: []string{"t"}}
	for lines, want := range map[string]string{"t=" + token: "", "a=b; t=" + token + "; c=d": "a=b; c=d", "t=" + token + ";t=x": "", "a=b; t =" + token: "a=b"} {
		r := request("/", "Cookie", lines)
		result := authenticator(t, cookie).Authenticate(context.Background(), r, now)
		if got := result.Header(r.Header).Get("Cookie"); got != want || result.Err != nil {
			t.Errorf("cookies: got %q, want %q; %v", got, want, result.Err)
		}
	}

	for _, bad := range []string{`a\u0000b`, `a\r\nX-Admin: yes`, `\u007f`} {
		r := bearer(k.token(`{"iss":"i","sub":"` + bad + `"}`))
		if got := outcome(authenticator(t, jwt.Rule{Keys: keys(t, k), ClaimHeaders: []jwt.ClaimHeader{claim("sub")}}).Authenticate(context.Background(), r, now)); !strings.HasPrefix(got, "401") {
			t.Errorf("a claim with %q for a header: got %q", bad, got)
		}
	}
}

// A handler to which a token is forwarded reads the one that was verified, whatever else the client sends beside it.
func TestForwardedTokensAreTheVerifiedOnes(t *testing.T) {
	k := rs("k", "RS256")
	good, forged := k.token(`{"iss":"i","sub":"alice"}`), b64(`{"alg":"none"}`)+"."+b64(`{"iss":"i","sub":"root"}`)+"."
	a := authenticator(t, jwt.Rule{
		Keys: keys(t, k), Forward: true, Headers: []jwt.Header{{Name: "Authorization", Prefix: "Bearer "}, {Name: "Authorization", Prefix: "JWT "}},
		Params: []string{"t"}, Cookies: []string{"t"},
	})
	s := httptest.NewServer(&jwt.Handler{Authenticator: a, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie("t"); err == nil {
			fmt.Fprint(w, c.Value)
		}
		if scheme, credentials, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && (strings.EqualFold(scheme, "bearer") || strings.EqualFold(scheme, "jwt")) {
			fmt.Fprint(w, credentials)
		}
		fmt.Fprint(w, r.URL.Query().Get("t"))
	})})
	defer s.Close()
	for _, tt := range []struct {
		target  string
		headers []string
		status  int
	}{
		{"/", []string{"Cookie", "t=" + good + "; t=" + forged}, 200},
		{"/", []string{"Cookie", `t="` + good + `; t=` + forged}, 401},
		{"/", []string{"Cookie", `t=""` + good + `""; t=` + forged}, 401},
		{"/", []string{"Cookie", `t= "` + good + `"; t=` + forged}, 401},
		{"/", []string{"Cookie", "t=\t" + good, "Cookie", "t=" + forged}, 401},
		{"/", []string{"Authorization", "Bearer " + good}, 200},
		{"/", []string{"Authorization", "JWT " + good, "Authorization", "Bearer " + good}, 200},
		{"/", []string{"Authorization", "bearer " + forged, "Authorization", "Bearer " + good}, 401},
		{"/", []string{"Authorization", "Bearer " + good, "Authorization", "jwt " + forged}, 401},
		{"/?t=" + good + "&t=" + forged, nil, 200},
		{"/?t=" + good + ";&t=" + forged, nil, 401},
		{"/?t=" + good + "%&t=" + forged, nil, 401},
		{"/?;t=" + forged + "&t=" + good, nil, 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+tt.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(tt.headers); i += 2 {
			req.Header.Add(tt.headers[i], tt.headers[i+1])
		}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.status || tt.status == 200 && string(body) != good {
			t.Errorf("%s %q: %d, and the handler reads %q", tt.target, tt.headers, resp.StatusCode, body)
		}
	}
}

// Claims are the strings that documents compare to.
func TestClaims(t *testing.T) {
	k := rs("k", "RS256")
	a := authenticator(t, jwt.Rule{Keys: keys(t, k), SpaceDelimited: []string{"roles"}})
	claims := a.Authenticate(context.Background(), bearer(k.token(`{"iss":"i","sub":"s","aud":["a","https://b/"],"azp":"p","scope":"read  write","roles":"x y","words":"x y",
		"n":1,"b":true,"list":["a",1,null,"b"],"o":{"scope":"c d","k.l":["v"]},"null":null}`)), now).Claims
	if claims == nil {
		t.Fatal("refused")
	}
	for path, want := range map[string][]string{
		"aud": {"a", "https://b/"}, "azp": {"p"}, "scope": {"read", "write"}, "roles": {"x", "y"}, "words": {"x y"}, "list": {"a", "b"}, "o>scope": {"c d"}, "o>k.l": {"v"},
		"n": nil, "b": nil, "null": nil, "o": nil, "missing": nil, "missing>deeper": nil, "scope>deeper": nil,
	} {
		if got := claims.Values(strings.Split(path, ">")...); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

// A token that is remembered is still judged by the time and by the keys in force.
func TestRememberedTokens(t *testing.T) {
	k := rs("k", "RS256")
	a := authenticator(t, jwt.Rule{Keys: keys(t, k)})
	r := bearer(k.token(fmt.Sprintf(`{"iss":"i","sub":"alice","exp":%d}`, now.Unix())))
	for after, want := range map[time.Duration]string{0: "i/alice", time.Minute: "i/alice", 61 * time.Second: expired} {
		if got := outcome(a.Authenticate(context.Background(), r, now.Add(after))); got != want {
			t.Errorf("after %v: got %q", after, got)
		}
	}
}

// What is remembered takes bounded memory, whatever is in the tokens, and however long the lines are in which they came.
func TestRememberedTokensTakeBoundedMemory(t *testing.T) {
	k := signer{"k", "EdDSA", ed25519Key()}
	set := keys(t, k)
	for name, claims := range map[string]string{
		"few claims":  `"sub":"alice"`,
		"many claims": members(900),
		"a list":      `"l":[` + strings.Repeat("1,", 5000) + "1]",
		"escapes":     `"l":"` + strings.Repeat(`\n`, 4000) + `"`,
	} {
		a := authenticator(t, jwt.Rule{Keys: set})
		before := leak.Heap()
		for i := range 250 {
			r := request("/")
			r.Header["Authorization"] = []string{strings.Repeat(" ", 100_000) + "Bearer " + k.token(fmt.Sprintf(`{"n":%d,%s}`, i, claims))}
			if result := a.Authenticate(t.Context(), r, now); result.Claims == nil {
				t.Fatal(result.Err)
			}
		}
		if took := leak.Heap() - before; took > 10<<20 {
			t.Errorf("%s: what is remembered takes %d bytes", name, took)
		}
		runtime.KeepAlive(a)
	}
}

// Refusals are worded as Envoy words them, and say nothing of the token.
func TestRefusals(t *testing.T) {
	k := rs("k", "RS256")
	a := authenticator(t, jwt.Rule{Keys: keys(t, k), Audiences: []string{"x"}})
	h := &jwt.Handler{Authenticator: a, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, jwt.ClaimsOf(r.Context()) != nil) })}
	for _, test := range []struct {
		name, target, token, contentType string
		status                           int
		realm, body, code                string
	}{
		{"no token", "/", "", "", 200, "", "false", ""},
		{"bad token", "/a/b?c=d", "x", "", 401, "http://example.com/a/b?c=d", "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections", ""},
		{"wrong audience", "/", k.token(`{"aud":"y"}`), "", 403, "http://example.com/", "Audiences in Jwt are not allowed", ""},
		{"token in the query", "/?access_token=secret&a=b", "x", "", 401, "http://example.com/?a=b", shape[4:], ""},
		{"quotes and more", "/%22?a=%0d\"\\", "x", "", 401, "http://example.com/%22?a=%0d%22%5C", shape[4:], ""},
		{"long path", "/" + strings.Repeat("a", 300), "x", "", 401, "http://example.com/" + strings.Repeat("a", 255), shape[4:], ""},
		{"long query", "/?" + strings.Repeat("b&", 200), "x", "", 401, "http://example.com/?" + strings.Repeat("b&", 127), shape[4:], ""},
		{"token at the end of a long query", "/?" + strings.Repeat("b&", 126) + "%61ccess_token=secret&access_token&c=secret", "x", "", 401,
			"http://example.com/?" + strings.Repeat("b&", 126) + "c=", shape[4:], ""},
		{"gRPC", "/s/m", "x", "application/grpc", 200, "http://example.com/s/m", "", "16"},
		{"gRPC, wrong audience", "/s/m", k.token(`{"aud":"y"}`), "application/grpc", 200, "http://example.com/s/m", "", "7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := request("/", "Content-Type", test.contentType)
			r.URL.Path, r.URL.RawPath, r.URL.RawQuery = "", "", ""
			path, query, _ := strings.Cut(test.target, "?")
			r.URL.Path, r.URL.RawQuery = strings.ReplaceAll(path, "%22", `"`), query
			r.Host = "example.com"
			if test.token != "" {
				r.Header.Set("Authorization", "Bearer "+test.token)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			var challenge string
			if test.realm != "" {
				challenge = `Bearer realm="` + test.realm + `", error="invalid_token"`
			}
			if w.Code != test.status || w.Body.String() != test.body || w.Header().Get("Www-Authenticate") != challenge || w.Header().Get("Grpc-Status") != test.code {
				t.Errorf("got %d %q %v", w.Code, w.Body, w.Header())
			}
		})
	}
}

// A refusal of a request with a long query takes no more memory than another one.
func TestRealmOfALongQuery(t *testing.T) {
	a := authenticator(t, jwt.Rule{Keys: keys(t, rs("k", "RS256"))})
	r := request("/")
	for name, query := range map[string]string{"many parameters": strings.Repeat("&", 1<<20), "many tokens": strings.Repeat("access_token&", 100_000)} {
		r.URL.RawQuery = query
		if took := leak.Allocated(func() { a.Realm(r) }); took > 64<<10 {
			t.Errorf("%s: %d bytes", name, took)
		}
	}
}

// Rules that cannot work are refused, each with what is wrong.
func TestBadRules(t *testing.T) {
	set := keys(t, rs("k", "RS256"))
	for name, rule := range map[string]jwt.Rule{
		"no keys":                {Issuer: "i"},
		"keys and URI":           {Keys: set, URI: "https://k"},
		"discovery without name": {Discover: true},
		"discovery of no URL":    {Discover: true, Issuer: "issuer"},
		"URI of a file":          {URI: "file:///etc/passwd"},
		"URI without host":       {URI: "https:///keys"},
		"URI with a user":        {URI: "https://u:p@h/"},
		"empty audience":         {Keys: set, Audiences: []string{""}},
		"empty parameter":        {Keys: set, Params: []string{""}},
		"bad header":             {Keys: set, Headers: []jwt.Header{{Name: "a b"}}},
		"bad output":             {Keys: set, PayloadHeader: "a b"},
		"output twice":           {Keys: set, PayloadHeader: "a-b", ClaimHeaders: []jwt.ClaimHeader{{Header: "A_B", Claim: "c"}}},
		"a subject of words":     {Keys: set, SpaceDelimited: []string{"roles", "sub"}},
		"an issuer of words":     {Keys: set, SpaceDelimited: []string{"iss"}},
		"no claim":               {Keys: set, ClaimHeaders: []jwt.ClaimHeader{{Header: "a"}}},
		"negative timeout":       {URI: "https://k", Timeout: -1},
	} {
		if _, err := jwt.New([]jwt.Rule{rule}, new(jwt.Remotes)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := jwt.New([]jwt.Rule{{URI: "https://k"}}, nil); err == nil {
		t.Error("nothing that fetches: no error")
	}
}

// What rules set is not for the client to say in trailers either, to a handler that is used alone.
func TestHandlerCleansTrailers(t *testing.T) {
	k := rs("k", "RS256")
	a := authenticator(t, jwt.Rule{Keys: keys(t, k), ClaimHeaders: []jwt.ClaimHeader{{Header: "X-Sub", Claim: "sub"}}})
	seen := make(chan string, 1)
	s := httptest.NewServer(&jwt.Handler{Authenticator: a, Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		before := fmt.Sprint(r.Trailer)
		io.Copy(io.Discard, r.Body)
		seen <- before + fmt.Sprint(r.Trailer)
	})})
	defer s.Close()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, io.MultiReader(strings.NewReader("body")))
	req.Trailer = http.Header{"X-Sub": {"root"}, "X_sub": {"root"}, "X-Sum": {"1"}}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got, want := <-seen, "map[X-Sum:[]]map[X-Sum:[1]]"; got != want {
		t.Errorf("the handler sees %s, want %s", got, want)
	}
}

// A client cannot have a proxy behind the handler remove what rules set.
func TestHandlerCleansConnection(t *testing.T) {
	k := rs("k", "RS256")
	a := authenticator(t, jwt.Rule{Keys: keys(t, k), PayloadHeader: "X-Payload", ClaimHeaders: []jwt.ClaimHeader{{Header: "X-Sub", Claim: "sub"}}})
	seen := make(chan http.Header, 1)
	behind := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	defer behind.Close()
	to, _ := url.Parse(behind.URL)
	s := httptest.NewServer(&jwt.Handler{Authenticator: a, Next: httputil.NewSingleHostReverseProxy(to)})
	defer s.Close()
	token := k.token(`{"iss":"i","sub":"alice"}`)
	for options, other := range map[string]string{"x-sub": "kept", "X_Sub, X-PAYLOAD": "kept", "x-other, x-sub ,x-payload": "", "x-other": ""} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
		req.Header = http.Header{"Authorization": {"Bearer " + token}, "Connection": {options}, "X-Other": {"kept"}}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		h := await.Receive(t, "a request", seen)
		if h.Get("X-Sub") != "alice" || h.Get("X-Payload") != part(token, 1) || h.Get("X-Other") != other {
			t.Errorf("Connection: %s: the server behind the proxy sees %v", options, h)
		}
	}
}
