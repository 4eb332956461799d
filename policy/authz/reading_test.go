package authz_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

// judged says what becomes of a request under an ALLOW policy with a rule, and under a DENY policy with it.
func judged(t *testing.T, r authz.Request, rule rule) (allowed, denied bool) {
	t.Helper()
	return compile(t, allow(rule)).Decide(&r).Allowed, !compile(t, deny(rule)).Decide(&r).Allowed
}

// HTTP/2 keeps the space around a value, and handlers trim it: it makes no other value.
func TestSpaceAroundHeaderValues(t *testing.T) {
	for _, sent := range []string{" admin", "admin ", "\tadmin", "admin\t ", " \t admin", "\u00a0admin", "admin\u3000", "\u0085admin"} {
		r := request()
		r.Header = http.Header{"X-Role": {sent}}
		for _, c := range []struct {
			name           string
			condition      authz.Condition
			allows, denies bool
		}{
			{"values", authz.Condition{Values: []string{"admin"}}, false, true},
			{"prefix", authz.Condition{Values: []string{"adm*"}}, sent[0] == 'a', true},
			{"suffix", authz.Condition{Values: []string{"*min"}}, strings.HasSuffix(sent, "n"), true},
			{"notValues", authz.Condition{NotValues: []string{"admin"}}, false, true},
			{"present and not", authz.Condition{Values: []string{"*"}, NotValues: []string{"admin"}}, false, true},
		} {
			c.condition.Key = "request.headers[x-role]"
			if allowed, denied := judged(t, r, when(c.condition)); allowed != c.allows || denied != c.denies {
				t.Errorf("%q: %s: allowed %v, want %v; denied %v, want %v", sent, c.name, allowed, c.allows, denied, c.denies)
			}
		}
	}
}

// Handlers take a line for one value, or for the list that it may be.
func TestElementsOfHeaderLines(t *testing.T) {
	const role, agent = "request.headers[x-role]", "request.headers[user-agent]"
	for _, tt := range []struct {
		name, key         string
		values, notValues []string
		sent              []string
		allows, denies    bool
	}{
		{"one element", role, []string{"admin"}, nil, []string{"admin, user"}, false, true},
		{"the last element", role, []string{"admin"}, nil, []string{"user,admin"}, false, true},
		{"space around elements", role, []string{"admin"}, nil, []string{"user ,\tadmin\t, x"}, false, true},
		{"empty elements", role, []string{"admin"}, nil, []string{",,admin,"}, false, true},
		{"not one element", role, nil, []string{"admin"}, []string{"user, admin"}, false, true},
		{"not any element", role, nil, []string{"root"}, []string{"user, admin"}, true, true},
		{"an element of the second line", role, nil, []string{"admin"}, []string{"user", "x, admin"}, false, true},
		{"all readings", role, []string{"a*"}, nil, []string{"a1, a2"}, true, true},
		{"a value that names the line", role, []string{"user, admin"}, nil, []string{"user, admin"}, true, true},
		{"a value that names the line, and not an element", role, []string{"user, admin"}, []string{"admin"}, []string{"user, admin"}, false, true},
		{"present", role, []string{"*"}, nil, []string{"a,b"}, true, true},
		{"no list", agent, []string{"Mozilla/5.0*"}, nil, []string{"Mozilla/5.0 (X11, like Gecko)"}, true, true},
		{"no list, and no element", agent, []string{"curl"}, nil, []string{"Mozilla/5.0, curl"}, false, false},
	} {
		r := request()
		r.Header = http.Header{"X-Role": tt.sent, "User-Agent": tt.sent}
		rule := when(authz.Condition{Key: tt.key, Values: tt.values, NotValues: tt.notValues})
		if allowed, denied := judged(t, r, rule); allowed != tt.allows || denied != tt.denies {
			t.Errorf("%s: allowed %v, want %v; denied %v, want %v", tt.name, allowed, tt.allows, denied, tt.denies)
		}
	}
}

// Cookies in several lines are those of one line, with a semicolon between them. HTTP/2 sends them so too.
func TestCookiesInSeveralLines(t *testing.T) {
	for _, sent := range [][]string{{"a=1; b=2"}, {"a=1", "b=2"}, {" a=1", "b=2 "}} {
		r := request()
		r.Header = http.Header{"Cookie": sent}
		for _, value := range []string{"a=1; b=2", "a=1; *", "*; b=2"} {
			if _, denied := judged(t, r, when(authz.Condition{Key: "request.headers[cookie]", Values: []string{value}})); !denied {
				t.Errorf("%q passes a DENY policy on %q", sent, value)
			}
			if allowed, _ := judged(t, r, when(authz.Condition{Key: "request.headers[cookie]", NotValues: []string{value}})); allowed {
				t.Errorf("%q meets an ALLOW policy on anything but %q", sent, value)
			}
		}
	}
}

// The index finds a rule under every reading of a header.
func TestManyRulesOnOneHeader(t *testing.T) {
	var list rules
	for i := range 30 {
		list = append(list, when(authz.Condition{Key: "request.headers[x-role]", Values: []string{fmt.Sprint("role-", i)}}))
	}
	for _, sent := range [][]string{{"role-17"}, {" role-17"}, {"a, role-17"}, {"a", "role-17"}, {"a", "b ,role-17 "}} {
		r := request()
		r.Header = http.Header{"X-Role": sent}
		if d := compile(t, deny(list...)).Decide(&r); d.Allowed || d.Rule != 17 {
			t.Errorf("%q: Decide = %+v, want a denial by rule 17", sent, d)
		}
		if d := compile(t, allow(list...)).Decide(&r); d.Allowed != (len(sent) == 1 && sent[0] == "role-17") {
			t.Errorf("%q: Decide = %+v", sent, d)
		}
	}
	r := request()
	r.Header = http.Header{"X-Role": slices.Repeat([]string{"x"}, 20_000)}
	if d := compile(t, deny(list...)).Decide(&r); d.Allowed {
		t.Error("a header that is too much to read passes a DENY policy on it")
	}
	if d := compile(t, allow(list...)).Decide(&r); d.Allowed {
		t.Error("a header that is too much to read matches an ALLOW policy on it")
	}
	if d := compile(t, allow(paths("/v1/*")), deny(paths("/admin"))).Decide(&r); !d.Allowed {
		t.Error("a header that nobody asks for is in the way")
	}
}

// Binary headers travel in base64, and gRPC's handlers get them decoded.
func TestBinaryHeaders(t *testing.T) {
	for _, tt := range []struct {
		value, sent string
		want        bool
	}{
		{"admin", "YWRtaW4=", true},
		{"admin", "YWRtaW4", true},
		{"YWRtaW4=", "YWRtaW4", true},
		{"YWRtaW4", "YWRtaW4=", true},
		{"YWRtaW4=", "YWRtaW4=", true},
		{"adm*", "YWRtaW4=", true},
		{"user", "YWRtaW4=", false},
	} {
		r := request()
		r.Header = http.Header{"X-Role-Bin": {tt.sent}}
		rule := when(authz.Condition{Key: "request.headers[x-role-bin]", Values: []string{tt.value}})
		if allowed, denied := judged(t, r, rule); allowed != tt.want || denied != tt.want {
			t.Errorf("%q is sent for %q: allowed %v, denied %v, want %v", tt.sent, tt.value, allowed, denied, tt.want)
		}
		rule = when(authz.Condition{Key: "request.headers[x-role-bin]", NotValues: []string{tt.value}})
		if allowed, denied := judged(t, r, rule); allowed == tt.want || denied == tt.want {
			t.Errorf("%q is sent for not %q: allowed %v, denied %v, want %v", tt.sent, tt.value, allowed, denied, !tt.want)
		}
	}
	r := request()
	r.Header = http.Header{"X-Role-Bin": {"dXNlcg==,YWRtaW4="}}
	if _, denied := judged(t, r, when(authz.Condition{Key: "request.headers[x-role-bin]", Values: []string{"admin"}})); !denied {
		t.Error("the second of two binary values passes a DENY policy")
	}
}

// A dot at its end, space, user information, or brackets make no other host, and neither does a second host header.
// What is beyond ASCII could be any host.
func TestSpellingsOfHosts(t *testing.T) {
	for _, tt := range []struct {
		value, host string
		header      []string
	}{
		{"secret.example", "secret.example.", nil},
		{"secret.example", "SECRET.example..", nil},
		{"secret.example", " secret.example", nil},
		{"secret.example", "secret.example\t", nil},
		{"secret.example", "me@secret.example", nil},
		{"secret.example:80", "secret.example.:80", nil},
		{"*.example", "secret.example.", nil},
		{"secret.example", "[secret.example]", nil},
		{"secret.example:80", "[Secret.example]:80", nil},
		{"secret.example:*", "[secret.example.]:", nil},
		{"secret.example", "\u017fecret.example", nil}, // strings.EqualFold
		{"kelvin.example:*", "\u212aelvin.example:80", nil},
		{"secret.example", "\uff53ecret.example", nil}, // idna.Lookup.ToASCII
		{"secret.example", "public.example", []string{"\u017fecret.example"}},
		{"secret.example", "public.example", []string{"secret.example"}},
		{"secret.example", "public.example", []string{"public.example", "secret.example."}},
	} {
		r := request()
		r.Host, r.Header = tt.host, http.Header{"Host": tt.header}
		for _, key := range []string{"", "request.headers[:authority]", "request.headers[host]"} {
			is, isNot := to(authz.Operation{Hosts: []string{tt.value}}), to(authz.Operation{NotHosts: []string{tt.value}})
			if key != "" {
				is = when(authz.Condition{Key: key, Values: []string{tt.value}})
				isNot = when(authz.Condition{Key: key, NotValues: []string{tt.value}})
			}
			if allowed, denied := judged(t, r, is); !denied || allowed {
				t.Errorf("%s %q %q for %q: allowed %v, denied %v, want a denial", key, tt.host, tt.header, tt.value, allowed, denied)
			}
			if allowed, _ := judged(t, r, isNot); allowed {
				t.Errorf("%s %q %q passes an ALLOW of what is not %q", key, tt.host, tt.header, tt.value)
			}
		}
	}
	r := request()
	r.Header = http.Header{"Host": {r.Host}}
	if allowed, _ := judged(t, r, to(authz.Operation{Hosts: []string{r.Host}})); !allowed {
		t.Error("the same host twice is denied")
	}
	r.Host, r.Header = "[2001:db8::1]:80", http.Header{}
	if allowed, denied := judged(t, r, to(authz.Operation{Hosts: []string{"[2001:db8::1]:*"}})); !allowed || !denied {
		t.Errorf("the address %s: allowed %v, denied %v, want one reading", r.Host, allowed, denied)
	}
	r.Header["Host"] = slices.Repeat([]string{"x"}, 1000)
	if allowed, denied := judged(t, r, to(authz.Operation{Hosts: []string{"*.example"}})); allowed || !denied {
		t.Errorf("a thousand hosts: allowed %v, denied %v", allowed, denied)
	}
}

// To http.ServeMux a backslash is a character like others.
func TestBackslashesAreNoSlashesToServeMux(t *testing.T) {
	var reached string
	mux := http.NewServeMux()
	mux.HandleFunc("/{tenant}", func(http.ResponseWriter, *http.Request) { reached = "tenant" })
	mux.HandleFunc("/public/", func(http.ResponseWriter, *http.Request) { reached = "public" })
	for _, mode := range []authz.Normalization{authz.Base, authz.None, authz.MergeSlashes} {
		handler := &authz.Handler{Next: mux, Authorizer: compileWith(t, authz.Config{Normalization: mode}, allow(paths("/public/*")))}
		for _, target := range []string{`/public\x`, `/public%5Cx`, `/%70ublic\x`, `//public\x`, `/public\x?/public/`} {
			reached = ""
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", target, nil))
			if reached != "" {
				t.Errorf("mode %d: %s reached %q", mode, target, reached)
			}
		}
	}
	for _, value := range []string{`/a\b`, `/a\*`, `*\b`, `/{*}/c\d`, `/a%5Cb`} {
		for _, target := range []string{`/a\b`, `/a%5Cb`, `/a%5cb`, `/a/c\d`, `/a/c%5Cd`} {
			if strings.Contains(value, "{") != strings.HasPrefix(target, "/a/") {
				continue
			}
			r := request()
			r.Target = target
			if d := compile(t, deny(paths(value))).Decide(&r); d.Allowed {
				t.Errorf("%s passes a DENY of %s", target, value)
			}
		}
	}
}

// A value that no request matches is a mistake, and in a DENY policy an open door.
func TestValuesThatNeverMatchAreErrors(t *testing.T) {
	cond := func(key, v string) rule { return when(authz.Condition{Key: key, NotValues: []string{v}}) }
	principals := func(v string) rule { return from(authz.Source{Principals: []string{v}}) }
	hosts := func(v string) rule { return to(authz.Operation{Hosts: []string{v}}) }
	never := map[string][]rule{
		"dot segments": {paths("/a/../admin"), paths("/a/./b"), paths("/.."), paths("/a/../*"), paths("*/../admin"), paths("/{*}/../x"),
			paths("/a/%2e%2e/admin"), notPaths("/a/../admin"), paths("/admin/.")},
		"query":       {paths("/admin?x=1"), paths("/admin?*"), notPaths("/a?")},
		"number sign": {paths("/admin#x"), paths("#"), paths("/a/#/*")},
		"slash":       {paths("admin"), paths("admin/*"), notPaths("x")},
		"NUL":         {paths("/a%00"), paths("/a\x00*")},
		"star": {principals("cluster.local/ns/*/sa/web"), principals("*default*"), principals("**"), principals("a*b"), hosts("a.*.example"),
			hosts("*shop*"), cond("source.principal", "td/*/x"), cond("connection.sni", "a*b")},
		"SPIFFE ID": {principals("td/ns/a b"), principals("td//x"), principals("web"), principals("td/x/"), principals("TD/ns/a/sa/b"),
			principals("td/ns/a?"), from(authz.Source{NotNamespaces: []string{"a b"}}), from(authz.Source{TrustDomains: []string{"TD"}}),
			from(authz.Source{TrustDomains: []string{"td/x"}}), from(authz.Source{ServiceAccounts: []string{"a/b c"}})},
		"host": {hosts("https://shop.example"), hosts("http://*"), hosts("shop.example/x"), hosts("shop example"), hosts("me@shop.example"),
			hosts("shop.example."), hosts("*.example."), hosts("shop.example.:80"), cond("request.headers[:authority]", "http://x"), cond("connection.sni", "https://x")},
		"method": {to(authz.Operation{Methods: []string{"GET, POST"}}), to(authz.Operation{NotMethods: []string{"GET "}}), cond("request.headers[:method]", "A B")},
		"header": {cond("request.headers[x-role]", " admin"), cond("request.headers[x-role]", "admin\t"), cond("request.headers[x-role]", "a\nb"),
			cond("request.headers[x-role]", "a\x00*"), cond("request.headers[x-role]", "*a ")},
		"port": {to(authz.Operation{Ports: []uint16{0}}), cond("destination.port", "0")},
	}
	for name, rules := range never {
		for _, rule := range rules {
			for _, action := range []authz.Policy{allow(rule), deny(rule), audit(rule)} {
				if _, err := authz.Compile([]authz.Policy{action}, authz.Config{}); err == nil {
					t.Errorf("%s: %+v is accepted", name, rule)
				}
			}
		}
	}
	for mode, values := range map[authz.Normalization][]string{
		authz.Base:         {"/a//b", "/.well-known/*", "/...", "/a/.*", "/a/..*", "*../x", "*.txt", "/a;b", `/a\b`, "/a*b", "*a*", "/", "*", "/a%3Fb", "/a%23", "/caf\u00e9"},
		authz.None:         {"/a/../admin", "/a//b"},
		authz.MergeSlashes: {"/a/b"},
	} {
		if _, err := authz.Compile([]authz.Policy{deny(paths(values...))}, authz.Config{Normalization: mode}); err != nil {
			t.Errorf("mode %d: %v", mode, err)
		}
	}
	for _, mode := range []authz.Normalization{authz.MergeSlashes, authz.DecodeAndMergeSlashes} {
		if _, err := authz.Compile([]authz.Policy{deny(paths("/a//b"))}, authz.Config{Normalization: mode}); err == nil {
			t.Errorf("mode %d: two slashes are accepted", mode)
		}
	}
	fine := []rule{principals("*"), principals("*/sa/web"), principals("cluster.local/*"), hosts("*"), hosts("shop.*"), hosts("*.example:80"),
		hosts("[::1]:80"), cond("request.headers[x-role]", "a b"), cond("request.headers[x-role]", "*a*"), from(authz.Source{Namespaces: []string{"*a*"}})}
	if _, err := authz.Compile([]authz.Policy{deny(fine...)}, authz.Config{}); err != nil {
		t.Error(err)
	}
}

// Policies that decide nothing leave a path that cannot be read to the application.
func TestPoliciesThatDecideNothingRefuseNoPath(t *testing.T) {
	for _, target := range []string{"/a%00", "/%", "/caf%e9", "/" + strings.Repeat("/", 9000)} {
		r := request()
		r.Target = target
		for name, policies := range map[string][]authz.Policy{
			"AUDIT":                {audit(paths("/admin"))},
			"a dry run of ALLOW":   {dryRun(allow(paths("/public")))},
			"a dry run of DENY":    {dryRun(deny(paths("/admin")))},
			"both":                 {audit(rule{}), dryRun(deny(rule{}))},
			"a DENY without rules": {deny()},
		} {
			d := compile(t, policies...).Decide(&r)
			if !d.Allowed || d.BadRequest {
				t.Errorf("%s: %.20q: Decide = %+v, want allowed", name, target, d)
			}
			if d.Shadow.Present && d.Shadow.Allowed {
				t.Errorf("%s: %.20q: %+v, want what would have been answered", name, target, d.Shadow)
			}
			if policies[0].Action == authz.Audit && d.Audit.Policy == "" {
				t.Errorf("%s: %.20q is not marked", name, target)
			}
		}
	}
}
