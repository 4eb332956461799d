package authz_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

const connectDomain = "11111111-2222-3333-4444-555555555555.consul"

// service is the identity that Consul gives to a service, in a datacenter.
func service(name string) string { return connectDomain + "/ns/default/dc/dc1/svc/" + name }

// anyOf is the form of such identities, whatever the datacenter.
func anyOf(name string) string { return connectDomain + "/ns/default/dc/{*}/svc/" + name }

func intentions(t testing.TB, in authz.Intentions, others ...authz.Policy) *authz.Authorizer {
	t.Helper()
	in.Peers = anyOf("{*}")
	for i := range in.List {
		in.List[i].Match = authz.Match{Policy: "web", Rule: i}
		in.List[i].Principal = anyOf(in.List[i].Principal)
	}
	a, err := authz.Compile(append(others, authz.Policy{Name: "web", Intentions: &in}), authz.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func sent(principal, method, target string, header ...string) *authz.Request {
	r := &authz.Request{Principal: principal, Method: method, Target: target, Host: "web", Header: http.Header{}}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func TestFirstIntentionThatNamesThePeerDecidesAlone(t *testing.T) {
	get := authz.Permission{Allow: true, Methods: []string{"GET"}}
	for _, tt := range []struct {
		name    string
		list    []authz.Intention
		allow   bool
		request *authz.Request
		want    bool
		decides int
	}{
		{"the exact one before the wildcard", []authz.Intention{{Principal: "api"}, {Principal: "{*}", Allow: true}}, false, sent(service("api"), "GET", "/"), false, 0},
		{"the wildcard for others", []authz.Intention{{Principal: "api"}, {Principal: "{*}", Allow: true}}, false, sent(service("db"), "GET", "/"), true, 1},
		{"the wildcard first", []authz.Intention{{Principal: "{*}"}, {Principal: "api", Allow: true}}, true, sent(service("api"), "GET", "/"), false, 0},
		{"of two for the same the first", []authz.Intention{{Principal: "api", Allow: true}, {Principal: "api"}}, false, sent(service("api"), "GET", "/"), true, 0},
		{"nobody named, deny", []authz.Intention{{Principal: "api", Allow: true}}, false, sent(service("db"), "GET", "/"), false, -1},
		{"nobody named, allow", []authz.Intention{{Principal: "api"}}, true, sent(service("db"), "GET", "/"), true, -1},
		{"none at all, deny", nil, false, sent(service("db"), "GET", "/"), false, -1},
		{"none at all, allow", nil, true, sent(service("db"), "GET", "/"), true, -1},
		{"a permission allows", []authz.Intention{{Principal: "api", Permissions: []authz.Permission{get}}}, false, sent(service("api"), "GET", "/"), true, 0},
		{"no permission matches, and no fall-through", []authz.Intention{{Principal: "api", Permissions: []authz.Permission{get}}, {Principal: "{*}", Allow: true}}, false, sent(service("api"), "PUT", "/"), false, 0},
		{"no permission matches, default allow", []authz.Intention{{Principal: "api", Permissions: []authz.Permission{get}}, {Principal: "{*}"}}, true, sent(service("api"), "PUT", "/"), true, 0},
		{"another datacenter", []authz.Intention{{Principal: "api", Allow: true}}, false, sent(connectDomain+"/ns/default/dc/dc2/svc/api", "GET", "/"), true, 0},
		{"no datacenter", []authz.Intention{{Principal: "api", Allow: true}}, true, sent(connectDomain+"/ns/default/dc//svc/api", "GET", "/"), false, -1},
		{"two segments for the datacenter", []authz.Intention{{Principal: "api", Allow: true}}, true, sent(connectDomain+"/ns/default/dc/a/b/svc/api", "GET", "/"), false, -1},
		{"another trust domain", []authz.Intention{{Principal: "api", Allow: true}}, true, sent("other.consul/ns/default/dc/dc1/svc/api", "GET", "/"), false, -1},
		{"another namespace", []authz.Intention{{Principal: "api", Allow: true}}, true, sent(connectDomain+"/ns/other/dc/dc1/svc/api", "GET", "/"), false, -1},
		{"another case", []authz.Intention{{Principal: "api", Allow: true}}, false, sent(service("API"), "GET", "/"), false, -1},
		{"a form of Istio's", []authz.Intention{{Principal: "{*}", Allow: true}}, true, sent(connectDomain+"/ns/default/sa/api", "GET", "/"), false, -1},
		{"a partition", []authz.Intention{{Principal: "{*}", Allow: true}}, true, sent(connectDomain+"/ap/default/ns/default/dc/dc1/svc/api", "GET", "/"), false, -1},
		{"something after the name", []authz.Intention{{Principal: "{*}", Allow: true}}, true, sent(service("api/x"), "GET", "/"), false, -1},
		{"no identity", []authz.Intention{{Principal: "{*}", Allow: true}}, true, sent("", "GET", "/"), false, -1},
	} {
		a := intentions(t, authz.Intentions{AllowByDefault: tt.allow, List: slices.Clone(tt.list)})
		got := a.Decide(tt.request)
		if got.Allowed != tt.want || got.Rule != tt.decides {
			t.Errorf("%s: allowed %v by %d (%s), want %v by %d", tt.name, got.Allowed, got.Rule, got.Reason, tt.want, tt.decides)
		}
	}
}

// A websocket over HTTP/2 is a GET to Envoy, and a CONNECT to the handler: it must be allowed as both.
func TestIntentionsOfExtendedCONNECT(t *testing.T) {
	permission := func(allow bool, methods ...string) authz.Permission {
		return authz.Permission{Allow: allow, Methods: methods}
	}
	for _, tt := range []struct {
		name           string
		permission     authz.Permission
		allowByDefault bool
		want           bool
	}{
		{"GET denied", permission(false, "GET"), true, false},
		{"CONNECT denied", permission(false, "CONNECT"), true, false},
		{"POST denied", permission(false, "POST"), true, true},
		{"GET allowed", permission(true, "GET"), false, false},
		{"CONNECT allowed", permission(true, "CONNECT"), false, false},
		{"both allowed", permission(true, "GET", "CONNECT"), false, true},
	} {
		a := intentions(t, authz.Intentions{AllowByDefault: tt.allowByDefault, List: []authz.Intention{
			{Principal: "api", Permissions: []authz.Permission{tt.permission}},
		}})
		if got := a.Decide(sent(service("api"), "CONNECT", "/", ":protocol", "websocket")); got.Allowed != tt.want {
			t.Errorf("%s: allowed %t (%s)", tt.name, got.Allowed, got.Reason)
		}
	}
}

func TestIntentionsOfRawConnections(t *testing.T) {
	a := intentions(t, authz.Intentions{AllowByDefault: true, List: []authz.Intention{
		{Principal: "web", Allow: true},
		{Principal: "old"},
		{Principal: "api", Permissions: []authz.Permission{{Allow: true, PathPrefix: "/"}}},
	}})
	for name, want := range map[string]bool{"web": true, "old": false, "api": false, "unnamed": true} {
		if got := a.Decide(&authz.Request{L4: true, Principal: service(name)}); got.Allowed != want {
			t.Errorf("%s: allowed %v (%s), want %v", name, got.Allowed, got.Reason, want)
		}
	}
}

func TestPermissions(t *testing.T) {
	header := func(h authz.HeaderMatch) authz.Permission {
		h.Name = "x-role"
		return authz.Permission{Headers: []authz.HeaderMatch{h}}
	}
	role := func(values ...string) *authz.Request {
		r := sent(service("api"), "GET", "/")
		r.Header["X-Role"] = values
		if values == nil {
			delete(r.Header, "X-Role")
		}
		return r
	}
	path := func(target string) *authz.Request { return sent(service("api"), "GET", target) }
	for _, tt := range []struct {
		name            string
		of              authz.Permission
		r               *authz.Request
		allows, matches bool // as a permission that allows, and as one that denies
	}{
		{"exact path", authz.Permission{PathExact: "/a"}, path("/a?b=c"), true, true},
		{"exact path, and case", authz.Permission{PathExact: "/a"}, path("/A"), false, false},
		{"exact path, and more", authz.Permission{PathExact: "/a"}, path("/a/b"), false, false},
		{"exact path, odd", authz.Permission{PathExact: "/a"}, path("/b/../a"), true, true},
		{"exact path, two readings", authz.Permission{PathExact: "/a"}, path("/b/..%2fa"), false, true},
		{"a star is a star", authz.Permission{PathExact: "/a*"}, path("/ab"), false, false},
		{"a star itself", authz.Permission{PathExact: "/a*"}, path("/a*"), true, true},
		{"prefix is a string", authz.Permission{PathPrefix: "/a"}, path("/ab/c"), true, true},
		{"prefix, odd", authz.Permission{PathPrefix: "/a"}, path("/a/..;/b"), false, true},
		{"regex", authz.Permission{PathRegex: "/u/[0-9]+"}, path("/u/12"), true, true},
		{"regex of all of it", authz.Permission{PathRegex: "/u/[0-9]+"}, path("/u/12/x"), false, false},
		{"regex with alternatives", authz.Permission{PathRegex: "/a|/b"}, path("/b"), true, true},
		{"regex with alternatives, of all of it", authz.Permission{PathRegex: "/a|/b"}, path("/bc"), false, false},
		{"regex, escaped", authz.Permission{PathRegex: "/admin.*"}, path("/%61dmin/x"), true, true},
		{"regex, two readings", authz.Permission{PathRegex: "/admin.*"}, path("/x/..%2Fadmin"), false, true},
		{"methods", authz.Permission{Methods: []string{"PUT", "GET"}}, path("/"), true, true},
		{"other methods", authz.Permission{Methods: []string{"PUT", "get"}}, path("/"), false, false},
		{"path and method", authz.Permission{PathExact: "/a", Methods: []string{"PUT"}}, path("/a"), false, false},
		{"present", header(authz.HeaderMatch{Present: true}), role("x"), true, true},
		{"present and empty", header(authz.HeaderMatch{Present: true}), role(""), true, true},
		{"not present", header(authz.HeaderMatch{Present: true}), role(), false, false},
		{"inverted present", header(authz.HeaderMatch{Present: true, Invert: true}), role("x"), false, false},
		{"inverted present, absent", header(authz.HeaderMatch{Present: true, Invert: true}), role(), true, true},
		{"exact", header(authz.HeaderMatch{Exact: "admin"}), role("admin"), true, true},
		{"exact, and case", header(authz.HeaderMatch{Exact: "admin"}), role("Admin"), false, false},
		{"exact without case", header(authz.HeaderMatch{Exact: "adMin", IgnoreCase: true}), role("AdmIn"), true, true},
		{"exact, absent", header(authz.HeaderMatch{Exact: "admin"}), role(), false, false},
		{"inverted exact", header(authz.HeaderMatch{Exact: "admin", Invert: true}), role("user"), true, true},
		{"inverted exact, the value", header(authz.HeaderMatch{Exact: "admin", Invert: true}), role("admin"), false, false},
		{"inverted exact, absent", header(authz.HeaderMatch{Exact: "admin", Invert: true}), role(), false, false},
		{"exact, repeated", header(authz.HeaderMatch{Exact: "admin"}), role("admin", "user"), false, true},
		{"exact, joined", header(authz.HeaderMatch{Exact: "admin,user"}), role("admin", "user"), false, true},
		{"inverted exact, repeated", header(authz.HeaderMatch{Exact: "admin", Invert: true}), role("user", "admin"), false, true},
		{"prefix", header(authz.HeaderMatch{Prefix: "ad"}), role("admin"), true, true},
		{"prefix without case", header(authz.HeaderMatch{Prefix: "AD", IgnoreCase: true}), role("admin"), true, true},
		{"suffix", header(authz.HeaderMatch{Suffix: "in"}), role("admin"), true, true},
		{"suffix without case", header(authz.HeaderMatch{Suffix: "IN", IgnoreCase: true}), role("admin"), true, true},
		{"contains", header(authz.HeaderMatch{Contains: "mi"}), role("admin"), true, true},
		{"contains, and case", header(authz.HeaderMatch{Contains: "mi"}), role("adMIn"), false, false},
		{"contains without case", header(authz.HeaderMatch{Contains: "mi", IgnoreCase: true}), role("adMIn"), true, true},
		{"header regex", header(authz.HeaderMatch{Regex: "a.*n"}), role("admin"), true, true},
		{"header regex of all of it", header(authz.HeaderMatch{Regex: "a.*n"}), role("admins"), false, false},
		{"header regex, not UTF-8", header(authz.HeaderMatch{Regex: "a.*n"}), role("a\xffn"), false, true},
		{"inverted header regex, not UTF-8", header(authz.HeaderMatch{Regex: "a.*n", Invert: true}), role("a\xffn"), false, true},
		{"too many values", header(authz.HeaderMatch{Prefix: "a"}), role(strings.Split(strings.Repeat("a ", 70), " ")...), false, true},
	} {
		for _, allow := range []bool{true, false} {
			tt.of.Allow = allow
			list := []authz.Intention{{Principal: "api", Permissions: []authz.Permission{tt.of}}}
			// The default is the other of the two, so that the decision tells whether the permission matched.
			got := intentions(t, authz.Intentions{AllowByDefault: !allow, List: list}).Decide(tt.r)
			want := tt.allows
			if !allow {
				want = !tt.matches
			}
			if got.Allowed != want {
				t.Errorf("%s: with Allow %v: allowed %v (%s), want %v", tt.name, allow, got.Allowed, got.Reason, want)
			}
		}
	}
}

func TestIntentionsBesidePolicies(t *testing.T) {
	list := func() authz.Intentions {
		return authz.Intentions{List: []authz.Intention{{Principal: "api", Allow: true}, {Principal: "old"}}}
	}
	all := authz.Policy{Name: "all", Rules: []authz.Rule{{}}}
	none := authz.Policy{Name: "none"}
	denies := authz.Policy{Name: "no PUT", Action: authz.Deny, Rules: []authz.Rule{{To: []authz.Operation{{Methods: []string{"PUT"}}}}}}
	for _, tt := range []struct {
		name   string
		others []authz.Policy
		r      *authz.Request
		want   bool
		by     string
	}{
		{"an intention alone", nil, sent(service("api"), "GET", "/"), true, "web"},
		{"a Deny policy comes first", []authz.Policy{denies}, sent(service("api"), "PUT", "/"), false, "no PUT"},
		{"an intention denies what an Allow policy allows", []authz.Policy{all}, sent(service("old"), "GET", "/"), false, "web"},
		{"an Allow policy must allow, too", []authz.Policy{none}, sent(service("api"), "GET", "/"), false, ""},
		{"both allow", []authz.Policy{all}, sent(service("api"), "GET", "/"), true, "all"},
		{"a path that cannot be read", nil, sent(service("api"), "GET", "/%zz"), false, ""},
	} {
		if got := intentions(t, list(), tt.others...).Decide(tt.r); got.Allowed != tt.want || got.Policy != tt.by {
			t.Errorf("%s: allowed %v by %q (%s), want %v by %q", tt.name, got.Allowed, got.Policy, got.Reason, tt.want, tt.by)
		}
	}
	dry := authz.Policy{Name: "dry", DryRun: true, Rules: []authz.Rule{{}}}
	if got := intentions(t, list(), dry).Decide(sent(service("old"), "GET", "/")); !got.Shadow.Present || got.Shadow.Allowed {
		t.Errorf("an Allow policy in a dry run would change what an intention denies: %+v", got)
	}
}

func TestIntentionsThatCannotBeEnforced(t *testing.T) {
	for _, tt := range []struct {
		wrong string
		of    authz.Permission
	}{
		{"says nothing", authz.Permission{}},
		{"at most one", authz.Permission{PathExact: "/a", PathPrefix: "/b"}},
		{"begins with a slash", authz.Permission{PathExact: "a"}},
		{"fragment", authz.Permission{PathPrefix: "/a?b"}},
		{"dot segments", authz.Permission{PathExact: "/a/../b"}},
		{"missing closing", authz.Permission{PathRegex: "/a("}},
		{"unexpected )", authz.Permission{PathRegex: "a)|(b"}},
		{"not a method", authz.Permission{Methods: []string{"GE T"}}},
		{"has no name", authz.Permission{Headers: []authz.HeaderMatch{{Present: true}}}},
		{"not the name", authz.Permission{Headers: []authz.HeaderMatch{{Name: ":path", Present: true}}}},
		{"does not pass", authz.Permission{Headers: []authz.HeaderMatch{{Name: "Host", Exact: "a"}}}},
		{"exactly one", authz.Permission{Headers: []authz.HeaderMatch{{Name: "a"}}}},
		{"exactly one", authz.Permission{Headers: []authz.HeaderMatch{{Name: "a", Exact: "a", Prefix: "b"}}}},
		{"ignoreCase", authz.Permission{Headers: []authz.HeaderMatch{{Name: "a", Present: true, IgnoreCase: true}}}},
		{"ignoreCase", authz.Permission{Headers: []authz.HeaderMatch{{Name: "a", Regex: "a", IgnoreCase: true}}}},
		{"missing closing", authz.Permission{Headers: []authz.HeaderMatch{{Name: "a", Regex: "["}}}},
		{"space", authz.Permission{Headers: []authz.HeaderMatch{{Name: "a", Exact: " a"}}}},
	} {
		err := tt.of.Check(authz.Config{})
		in := &authz.Intentions{Peers: anyOf("{*}"), List: []authz.Intention{{Principal: anyOf("a"), Permissions: []authz.Permission{tt.of}}}}
		_, compiled := authz.Compile([]authz.Policy{{Name: "web", Intentions: in}}, authz.Config{})
		if err == nil || compiled == nil || !strings.Contains(err.Error(), tt.wrong) || !strings.HasSuffix(compiled.Error(), err.Error()) {
			t.Errorf("%+v: %v, and %v compiled, want %q", tt.of, err, compiled, tt.wrong)
		}
	}
	for name, p := range map[string]authz.Policy{
		"no form of peers":           {Intentions: &authz.Intentions{}},
		"an entry for nobody":        {Intentions: &authz.Intentions{Peers: anyOf("{*}"), List: []authz.Intention{{}}}},
		"with an action":             {Action: authz.Deny, Intentions: &authz.Intentions{Peers: anyOf("{*}")}},
		"with rules":                 {Rules: []authz.Rule{{}}, Intentions: &authz.Intentions{Peers: anyOf("{*}")}},
		"in a dry run":               {DryRun: true, Intentions: &authz.Intentions{Peers: anyOf("{*}")}},
		"allowing, with permissions": {Intentions: &authz.Intentions{Peers: anyOf("{*}"), List: []authz.Intention{{Principal: anyOf("a"), Allow: true, Permissions: []authz.Permission{{PathExact: "/"}}}}}},
	} {
		p.Name = "web"
		if _, err := authz.Compile([]authz.Policy{p}, authz.Config{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	two := authz.Policy{Name: "web", Intentions: &authz.Intentions{Peers: anyOf("{*}")}}
	if _, err := authz.Compile([]authz.Policy{two, two}, authz.Config{}); err == nil {
		t.Error("two policies with intentions: accepted")
	}
}

// Whatever is allowed would be allowed by a first match under each reading of the path alone: no reading leads to a permission
// that denies.
func TestNoReadingOfAnAllowedRequestIsDenied(t *testing.T) {
	targets := []string{"/", "/a", "/a/b", "/a/../b", "/b/..%2fa", "//a", "/a;x/b", "/%61", "/a/./b", `/a\b`, "/b/a", "/a%2Fb"}
	// What applications make of these, as far as they differ.
	readings := map[string][]string{
		"/a/../b": {"/b"}, "/b/..%2fa": {"/b/..%2Fa", "/a"}, "//a": {"//a", "/a"}, "/a;x/b": {"/a;x/b", "/a/b"}, "/%61": {"/a"}, "/a/./b": {"/a/b"},
		`/a\b`: {"/a/b", `/a\b`}, "/a%2Fb": {"/a%2Fb", "/a/b"},
	}
	matches := func(p authz.Permission, path string) bool {
		switch {
		case p.PathExact != "":
			return path == p.PathExact
		case p.PathPrefix != "":
			return strings.HasPrefix(path, p.PathPrefix)
		}
		return regexp.MustCompile(`^(?:` + p.PathRegex + `)$`).MatchString(path)
	}
	allowed, denied := 0, 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var permissions []authz.Permission
		for range 1 + rng.IntN(4) {
			p := authz.Permission{Allow: rng.IntN(2) == 0}
			switch rng.IntN(3) {
			case 0:
				p.PathExact = []string{"/a", "/b", "/a/b"}[rng.IntN(3)]
			case 1:
				p.PathPrefix = []string{"/a", "/b", "/", "/a/"}[rng.IntN(4)]
			case 2:
				p.PathRegex = []string{"/a(/.*)?", "/[ab]", "/.*b"}[rng.IntN(3)]
			}
			permissions = append(permissions, p)
		}
		fallback := rng.IntN(2) == 0
		a := intentions(t, authz.Intentions{AllowByDefault: fallback, List: []authz.Intention{{Principal: "api", Permissions: permissions}}})
		for _, target := range targets {
			paths := readings[target]
			if paths == nil {
				paths = []string{target}
			}
			all := true
			for _, path := range paths {
				decision := fallback
				if i := slices.IndexFunc(permissions, func(p authz.Permission) bool { return matches(p, path) }); i >= 0 {
					decision = permissions[i].Allow
				}
				all = all && decision
			}
			got := a.Decide(sent(service("api"), "GET", target)).Allowed
			if got && !all {
				t.Fatalf("%s is allowed by %+v, default %v, though a reading of it is denied", target, permissions, fallback)
			}
			if len(paths) == 1 && got != all {
				t.Fatalf("%s: allowed %v by %+v, default %v, want %v", target, got, permissions, fallback, all)
			}
			if got {
				allowed++
			} else {
				denied++
			}
		}
	}
	if allowed < 500 || denied < 500 {
		t.Errorf("%d allowed and %d denied: the permissions test nothing", allowed, denied)
	}
}

func BenchmarkIntentions(b *testing.B) {
	for _, n := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := authz.Intentions{}
			for i := range n {
				in.List = append(in.List, authz.Intention{Principal: fmt.Sprint("caller-", i), Permissions: []authz.Permission{
					{Allow: true, PathPrefix: "/v1/", Methods: []string{"GET"}, Headers: []authz.HeaderMatch{{Name: "x-tenant", Present: true}}},
				}})
			}
			a, r := intentions(b, in), sent(service(fmt.Sprint("caller-", n-1)), "GET", "/v1/charge", "x-tenant", "a")
			b.ReportAllocs()
			for b.Loop() {
				if !a.Decide(r).Allowed {
					b.Fatal("denied")
				}
			}
		})
	}
}
