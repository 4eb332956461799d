package authz_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

const (
	web   = "cluster.local/ns/default/sa/web"
	admin = "cluster.local/ns/ops/sa/admin"
)

type (
	rules = []authz.Rule
	rule  = authz.Rule
)

func from(s ...authz.Source) rule    { return rule{From: s} }
func to(o ...authz.Operation) rule   { return rule{To: o} }
func when(c ...authz.Condition) rule { return rule{When: c} }

func paths(v ...string) rule    { return to(authz.Operation{Paths: v}) }
func notPaths(v ...string) rule { return to(authz.Operation{NotPaths: v}) }

func allow(r ...rule) authz.Policy {
	return authz.Policy{Name: "default/allow", Action: authz.Allow, Rules: r}
}

func deny(r ...rule) authz.Policy {
	return authz.Policy{Name: "default/deny", Action: authz.Deny, Rules: r}
}

func audit(r ...rule) authz.Policy {
	return authz.Policy{Name: "default/audit", Action: authz.Audit, Rules: r}
}

func dryRun(p authz.Policy) authz.Policy {
	p.Name, p.DryRun = "default/dry-"+p.Name[len("default/"):], true
	return p
}

func compile(t *testing.T, policies ...authz.Policy) *authz.Authorizer {
	t.Helper()
	return compileWith(t, authz.Config{}, policies...)
}

func compileWith(t *testing.T, cfg authz.Config, policies ...authz.Policy) *authz.Authorizer {
	t.Helper()
	a, err := authz.Compile(policies, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// request returns a request that the cases below change.
func request() authz.Request {
	return authz.Request{
		Principal:   web,
		Source:      netip.MustParseAddr("10.1.2.3"),
		Remote:      netip.MustParseAddr("203.0.113.7"),
		Destination: netip.MustParseAddrPort("10.9.9.9:8080"),
		SNI:         "shop.example",
		Host:        "shop.example",
		Method:      "GET",
		Target:      "/v1/items?all=1",
		Header:      http.Header{"X-Env": {"prod"}, "X-Empty": {""}},
	}
}

func TestOrder(t *testing.T) {
	none := authz.Match{Rule: -1}
	match := func(policy string, rule int) authz.Match { return authz.Match{Policy: policy, Rule: rule} }
	never := paths("/never")
	for _, tt := range []struct {
		name     string
		policies []authz.Policy
		allowed  bool
		match    authz.Match
	}{
		{"no policy", nil, true, none},
		{"ALLOW matches", []authz.Policy{allow(never, rule{})}, true, match("default/allow", 1)},
		{"no ALLOW matches", []authz.Policy{allow(never)}, false, none},
		{"ALLOW without rules", []authz.Policy{allow()}, false, none},
		{"ALLOW without rules beside one that matches", []authz.Policy{allow(), allow(rule{})}, true, match("default/allow", 0)},
		{"DENY matches", []authz.Policy{deny(never, never, rule{})}, false, match("default/deny", 2)},
		{"DENY does not match", []authz.Policy{deny(never)}, true, none},
		{"DENY without rules", []authz.Policy{deny()}, true, none},
		{"DENY goes before ALLOW", []authz.Policy{allow(rule{}), deny(rule{})}, false, match("default/deny", 0)},
		{"DENY does not match, ALLOW does", []authz.Policy{deny(never), allow(rule{})}, true, match("default/allow", 0)},
		{"AUDIT alone", []authz.Policy{audit(rule{})}, true, none},
		{"AUDIT does not allow", []authz.Policy{audit(rule{}), allow(never)}, false, none},
		{"a dry run of ALLOW alone", []authz.Policy{dryRun(allow(never))}, true, none},
		{"a dry run of DENY", []authz.Policy{dryRun(deny(rule{}))}, true, none},
		{"a dry run does not allow", []authz.Policy{allow(never), dryRun(allow(rule{}))}, false, none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := request()
			d := compile(t, tt.policies...).Decide(&r)
			if d.Allowed != tt.allowed || d.Match != tt.match || d.BadRequest || d.Reason == "" {
				t.Errorf("Decide = %+v, want %v by %v", d, tt.allowed, tt.match)
			}
		})
	}
	t.Run("nil and zero", func(t *testing.T) {
		r := request()
		for _, a := range []*authz.Authorizer{nil, new(authz.Authorizer)} {
			if d := a.Decide(&r); !d.Allowed || d.Match != none {
				t.Errorf("Decide = %+v, want allowed", d)
			}
		}
	})
	t.Run("the first rule in order is named", func(t *testing.T) {
		// Rules of all kinds of index, the first that matches among many.
		var list rules
		for i := range 20 {
			list = append(list, paths(fmt.Sprint("/", i)), from(authz.Source{Principals: []string{fmt.Sprint("td/p", i)}}))
		}
		matching := rules{
			when(authz.Condition{Key: "request.headers[x-env]", Values: []string{"prod"}}),
			paths("/v1/items"), paths("/v1/*"), from(authz.Source{Principals: []string{web}}),
			from(authz.Source{Namespaces: []string{"default"}}), to(authz.Operation{Methods: []string{"GET"}}),
			from(authz.Source{ServiceAccounts: []string{"default/web"}}), from(authz.Source{Principals: []string{"cluster.local/*"}}),
		}
		for first := range matching {
			all := append(append(rules{}, list...), matching[first:]...)
			all = append(all, matching[:first]...)
			r := request()
			if d := compile(t, deny(all...)).Decide(&r); d.Rule != len(list) {
				t.Errorf("rule %d is named, want %d", d.Rule, len(list))
			}
		}
	})
}

func TestAuditAndDryRun(t *testing.T) {
	never := paths("/never")
	r := request()
	d := compile(t, audit(never), audit(never, rule{}), deny(rule{})).Decide(&r)
	if want := (authz.Match{Policy: "default/audit", Rule: 1}); d.Audit != want || d.Allowed {
		t.Errorf("Decide = %+v, want denied and audited by %v", d, want)
	}
	if d := compile(t, audit(never)).Decide(&r); d.Audit.Rule != -1 || d.Audit.Policy != "" || d.Shadow.Present {
		t.Errorf("Decide = %+v, want neither audit nor shadow", d)
	}
	for _, tt := range []struct {
		name     string
		policies []authz.Policy
		allowed  bool
		match    authz.Match
	}{
		{"DENY would deny", []authz.Policy{dryRun(deny(rule{})), allow(rule{})}, false, authz.Match{Policy: "default/dry-deny"}},
		{"DENY would not", []authz.Policy{dryRun(deny(never)), allow(rule{})}, true, authz.Match{Policy: "default/allow"}},
		{"ALLOW would allow", []authz.Policy{dryRun(allow(rule{})), allow(never)}, true, authz.Match{Policy: "default/dry-allow"}},
		{"ALLOW would deny the rest", []authz.Policy{dryRun(allow(never))}, false, authz.Match{Rule: -1}},
		{"an enforced DENY stays", []authz.Policy{dryRun(allow(rule{})), deny(rule{})}, false,
			authz.Match{Policy: "default/deny"}},
		{"an enforced ALLOW stays", []authz.Policy{dryRun(allow(never)), allow(rule{})}, true,
			authz.Match{Policy: "default/allow"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := compile(t, tt.policies...).Decide(&r).Shadow
			if !s.Present || s.Allowed != tt.allowed || s.Match != tt.match || s.Reason == "" {
				t.Errorf("Shadow = %+v, want %v by %v", s, tt.allowed, tt.match)
			}
		})
	}
}

// TestMatch asks of each rule whether it matches a request, in an ALLOW and in a DENY policy.
func TestMatch(t *testing.T) {
	cidr := func(s ...string) (list []netip.Prefix) {
		for _, s := range s {
			p, err := authz.ParsePrefix(s)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		return list
	}
	principals := func(v ...string) rule { return from(authz.Source{Principals: v}) }
	namespaces := func(v ...string) rule { return from(authz.Source{Namespaces: v}) }
	accounts := func(v ...string) rule { return from(authz.Source{ServiceAccounts: v}) }
	hosts := func(v ...string) rule { return to(authz.Operation{Hosts: v}) }
	methods := func(v ...string) rule { return to(authz.Operation{Methods: v}) }
	header := func(name string, v ...string) rule {
		return when(authz.Condition{Key: "request.headers[" + name + "]", Values: v})
	}
	plaintext := func(r *authz.Request) { r.Principal = "" }
	principal := func(p string) func(*authz.Request) { return func(r *authz.Request) { r.Principal = p } }
	target := func(p string) func(*authz.Request) { return func(r *authz.Request) { r.Target = p } }
	host := func(h string) func(*authz.Request) { return func(r *authz.Request) { r.Host = h } }
	for _, tt := range []struct {
		name   string
		rule   rule
		change func(*authz.Request)
		want   bool
	}{
		{"the empty rule", rule{}, nil, true},
		{"from is OR", from(authz.Source{Principals: []string{admin}}, authz.Source{Principals: []string{web}}), nil, true},
		{"to is OR", to(authz.Operation{Methods: []string{"POST"}}, authz.Operation{Methods: []string{"GET"}}), nil, true},
		{"when is AND", when(authz.Condition{Key: "request.headers[x-env]", Values: []string{"prod"}},
			authz.Condition{Key: "destination.port", Values: []string{"80"}}), nil, false},
		{"from AND to", rule{From: principals(web).From, To: methods("POST").To}, nil, false},
		{"from AND to AND when", rule{From: principals(web).From, To: methods("GET").To, When: header("x-env",
			"prod").When}, nil, true},
		{"fields of a source are AND", from(authz.Source{Principals: []string{web}, Namespaces: []string{"ops"}}), nil, false},
		{"fields of an operation are AND", to(authz.Operation{Methods: []string{"GET"}, Ports: []uint16{80}}), nil, false},
		{"values are OR", methods("POST", "GET"), nil, true},
		{"values AND notValues", to(authz.Operation{Paths: []string{"/v1/*"}, NotPaths: []string{"/v1/items"}}), nil, false},
		{"NOT of OR", to(authz.Operation{NotMethods: []string{"POST", "GET"}}), nil, false},

		{"principal exact", principals(web), nil, true},
		{"principal exact, longer", principals(web), principal(web + "2"), false},
		{"principal prefix", principals("cluster.local/ns/default/*"), nil, true},
		{"principal suffix", principals("*/sa/web"), nil, true},
		{"principal any", principals("*"), nil, true},
		{"principal any, plaintext", principals("*"), plaintext, false},
		{"principal suffix, plaintext", principals("*web"), plaintext, false},
		{"only one star is read", paths("*items*"), nil, false},
		{"only one star is read: the suffix", paths("*/items*"), target("/v1/items*"), true},
		{"notPrincipals * catches plaintext", from(authz.Source{NotPrincipals: []string{"*"}}), plaintext, true},
		{"notPrincipals * spares certificates", from(authz.Source{NotPrincipals: []string{"*"}}), nil, false},
		{"a dot is a dot in a principal suffix", principals("*.local/ns/default/sa/web"),
			principal("x/local/ns/default/sa/web"), false},
		{"when source.principal", when(authz.Condition{Key: "source.principal", Values: []string{web}}), nil, true},

		{"namespace", namespaces("default"), nil, true},
		{"namespace is not a prefix", namespaces("defaul"), nil, false},
		{"namespace with stars", namespaces("*fau*"), nil, true},
		{"namespace of a plaintext peer", namespaces("*"), plaintext, false},
		{"notNamespaces of a plaintext peer", from(authz.Source{NotNamespaces: []string{"default"}}), plaintext, true},
		{"a namespace only after /ns/", namespaces("web"), nil, false},
		{"when source.namespace", when(authz.Condition{Key: "source.namespace", NotValues: []string{"ops"}}), nil, true},
		{"service account", accounts("default/web"), nil, true},
		{"service account of another namespace", accounts("ops/web"), nil, false},
		{"service account is not a prefix", accounts("default/we"), nil, false},
		{"namespace of a service account is not a prefix", accounts("defaul/web"), nil, false},
		{"service account with more to its name", accounts("default/web"), principal("td/ns/default/k/v/sa/web/k/v"), true},
		{"service account without trust domain", accounts("default/web"), principal("/ns/default/sa/web"), false},
		{"when source.serviceAccount", when(authz.Condition{Key: "source.serviceAccount",
			Values: []string{"default/web"}}), nil, true},
		{"trust domain", from(authz.Source{TrustDomains: []string{"cluster.local"}}), nil, true},
		{"trust domain is not a prefix", from(authz.Source{TrustDomains: []string{"cluster"}}), nil, false},
		{"trust domain with stars", from(authz.Source{TrustDomains: []string{"*ust*.lo*al"}}), nil, true},
		{"trust domain with stars, the parts apart", from(authz.Source{TrustDomains: []string{"*ster*uster*"}}), nil, false},
		{"stars of a trust domain end with it", from(authz.Source{TrustDomains: []string{"*web*"}}), nil, false},
		{"trust domain of a plaintext peer", from(authz.Source{TrustDomains: []string{"*"}}), plaintext, false},
		{"when source.trustDomain", when(authz.Condition{Key: "source.trustDomain", Values: []string{"cluster.*"}}), nil, true},

		{"ipBlocks is the peer", from(authz.Source{IPBlocks: cidr("10.1.0.0/16")}), nil, true},
		{"ipBlocks is not the client", from(authz.Source{IPBlocks: cidr("203.0.113.0/24")}), nil, false},
		{"notIpBlocks", from(authz.Source{NotIPBlocks: cidr("10.1.2.3")}), nil, false},
		{"remoteIpBlocks is the client", from(authz.Source{RemoteIPBlocks: cidr("203.0.113.0/24")}), nil, true},
		{"notRemoteIpBlocks", from(authz.Source{NotRemoteIPBlocks: cidr("203.0.113.0/24")}), nil, false},
		{"IPv4 in IPv6", from(authz.Source{IPBlocks: cidr("10.1.0.0/16")}),
			func(r *authz.Request) { r.Source = netip.MustParseAddr("::ffff:10.1.2.3") }, true},
		{"a block of IPv4 in IPv6", from(authz.Source{IPBlocks: cidr("::ffff:10.1.0.0/112")}), nil, true},
		{"host bits in a block", from(authz.Source{IPBlocks: cidr("10.1.99.99/16")}), nil, true},
		{"a zone", from(authz.Source{IPBlocks: cidr("fe80::/10")}),
			func(r *authz.Request) { r.Source = netip.MustParseAddr("fe80::1%eth0") }, true},
		{"when source.ip", when(authz.Condition{Key: "source.ip", Values: []string{"10.1.2.3"}}), nil, true},
		{"when remote.ip", when(authz.Condition{Key: "remote.ip", Values: []string{"203.0.113.7/32"}}), nil, true},
		{"when destination.ip", when(authz.Condition{Key: "destination.ip", Values: []string{"10.9.0.0/16"}}), nil, true},
		{"when destination.port", when(authz.Condition{Key: "destination.port", Values: []string{"8080"}}), nil, true},
		{"port", to(authz.Operation{Ports: []uint16{80, 8080}}), nil, true},
		{"notPorts", to(authz.Operation{NotPorts: []uint16{8080}}), nil, false},
		{"when connection.sni", when(authz.Condition{Key: "connection.sni", Values: []string{"*.EXAMPLE"}}), nil, true},
		{"when connection.sni without TLS", when(authz.Condition{Key: "connection.sni", Values: []string{"*"}}),
			func(r *authz.Request) { r.SNI = "" }, false},

		{"method", methods("GET"), nil, true},
		{"method has case", methods("get"), nil, false},
		{"method prefix", methods("G*"), nil, true},
		{"host", hosts("shop.example"), nil, true},
		{"host any", hosts("*"), nil, true},
		{"host prefix, any case", hosts("SHOP.*"), nil, true},
		{"host with another port", hosts("shop.example:*"), host("shop.example:8080"), true},
		{"header", header("x-env", "prod"), nil, true},
		{"header has case", header("x-env", "PROD"), nil, false},
		{"header suffix", header("X-ENV", "*od"), nil, true},
		{"header present", header("x-empty", "*"), nil, true},
		{"header absent", header("x-other", "*"), nil, false},
		{"header absent, notValues", when(authz.Condition{Key: "request.headers[x-other]", NotValues: []string{"1"}}), nil, true},
		{"header empty", header("x-empty", "prod"), nil, false},
		{"header :method", header(":method", "GET"), nil, true},
		{"header Host", header("Host", "shop.example"), nil, true},
		{"header :authority", header(":authority", "shop.example"), nil, true},

		{"path without query", paths("/v1/items"), nil, true},
		{"path prefix", paths("/v1/*"), nil, true},
		{"path suffix", paths("*/items"), nil, true},
		{"path any", paths("*"), nil, true},
		{"path has case", paths("/V1/items"), nil, false},
		{"absolute form", paths("/v1/items"), target("http://shop.example/v1/items?x"), true},
		{"absolute form without path", paths("/"), target("http://shop.example?x"), true},
		{"asterisk form", paths("*"), func(r *authz.Request) { r.Method, r.Target = "OPTIONS", "*" }, true},
		{"CONNECT has no path", paths("*"), func(r *authz.Request) { r.Method, r.Target = "CONNECT", "shop.example:443" }, false},
		{"extended CONNECT has", paths("/chat"), func(r *authz.Request) { r.Method, r.Target = "CONNECT", "/chat" }, true},
		{"dot segments", paths("/b"), target("/a/../b"), true},
		{"backslash", paths("/da"), target(`/\da`), false}, // "//da", which is not the same without merging
		{"an unreserved escape", paths("/v1/items"), target("/v1/%69tems"), true},
		{"an unreserved escape in the value", paths("/v1/%69tems"), nil, true},
		{"a reserved escape", paths("/caf%C3%A9"), target("/caf%c3%a9"), true},
		{"a value with a space", paths("/a%20b"), target("/a%20b"), true},

		// The examples of Istio's documentation for path templates.
		{"{*}", paths("/foo/{*}"), target("/foo/bar"), true},
		{"{*} is one segment", paths("/foo/{*}"), target("/foo/bar/baz"), false},
		{"{*} is not empty", paths("/foo/{*}"), target("/foo/"), false},
		{"{**}/", paths("/foo/{**}/"), target("/foo/bar/baz.txt/"), true},
		{"{**}/ needs its slash", paths("/foo/{**}/"), target("/foo/bar"), false},
		{"{*} and {**}", paths("/foo/{*}/bar/{**}"), target("/foo/buzz/bar/baz"), true},
		{"{**} is also nothing", paths("/foo/{*}/bar/{**}"), target("/foo/buzz/bar/"), true},
		{"{**} after something else", paths("/foo/{*}/bar/{**}"), target("/foo/a/b/bar/c"), false},
		{"{*}/{*}", paths("/{*}/{*}"), target("/a/b"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := request()
			if tt.change != nil {
				tt.change(&r)
			}
			if d := compile(t, allow(tt.rule)).Decide(&r); d.Allowed != tt.want || d.BadRequest {
				t.Errorf("ALLOW: Decide = %+v, want a match: %v", d, tt.want)
			}
			if strings.HasPrefix(tt.name, "backslash") {
				return // where the readings differ
			}
			if d := compile(t, deny(tt.rule)).Decide(&r); d.Allowed != !tt.want || d.BadRequest {
				t.Errorf("DENY: Decide = %+v, want a match: %v", d, tt.want)
			}
		})
	}
}

func TestManyValues(t *testing.T) {
	var many []string
	for i := range 50 {
		many = append(many, fmt.Sprint("/p", i), fmt.Sprintf("/q%d/*", i))
	}
	many = append(many, "/a%3Ab")
	a := compile(t, allow(paths(many...)))
	d := compile(t, deny(paths(many...)))
	for path, want := range map[string]bool{"/p49": true, "/p50": false, "/q7/x": true, "/q77/x": false,
		"/a%3Ab": true, "/x": false} {
		r := request()
		r.Target = path
		if got := a.Decide(&r).Allowed; got != want {
			t.Errorf("ALLOW %s = %v, want %v", path, got, want)
		}
		if got := !d.Decide(&r).Allowed; got != want {
			t.Errorf("DENY %s = %v, want %v", path, got, want)
		}
	}
}

// What net/http decodes is the same to the application, if not to Envoy.
func TestDecodedPath(t *testing.T) {
	for _, tt := range []struct {
		value, target  string
		allows, denies bool
	}{
		{"/things:delete", "/things:delete", true, true},
		{"/things:delete", "/things%3Adelete", false, true},
		{"/things%3Adelete", "/things:delete", false, true},
		{"/things%3adelete", "/things%3Adelete", true, true},
		{"/a%2Fb", "/a%2fb", false, true}, // nor "/a/b"
	} {
		r := request()
		r.Target = tt.target
		if got := compile(t, allow(paths(tt.value))).Decide(&r).Allowed; got != tt.allows {
			t.Errorf("ALLOW %s: %s is allowed: %v", tt.value, tt.target, got)
		}
		if got := !compile(t, deny(paths(tt.value))).Decide(&r).Allowed; got != tt.denies {
			t.Errorf("DENY %s: %s is denied: %v", tt.value, tt.target, got)
		}
	}
}

func TestUnknownAddresses(t *testing.T) {
	block, _ := authz.ParsePrefix("10.0.0.0/8")
	for name, rule := range map[string]rule{
		"ipBlocks":          from(authz.Source{IPBlocks: []netip.Prefix{block}}),
		"notIpBlocks":       from(authz.Source{NotIPBlocks: []netip.Prefix{block}}),
		"notRemoteIpBlocks": from(authz.Source{NotRemoteIPBlocks: []netip.Prefix{block}}),
		"ports":             to(authz.Operation{Ports: []uint16{80}}),
		"notPorts":          to(authz.Operation{NotPorts: []uint16{80}}),
		"destination.ip":    when(authz.Condition{Key: "destination.ip", NotValues: []string{"10.0.0.1"}}),
	} {
		r := request()
		r.Source, r.Remote, r.Destination = netip.Addr{}, netip.Addr{}, netip.AddrPort{}
		if compile(t, allow(rule)).Decide(&r).Allowed {
			t.Errorf("%s: an unknown address is allowed", name)
		}
		if compile(t, deny(rule)).Decide(&r).Allowed {
			t.Errorf("%s: an unknown address is not denied", name)
		}
	}
}

// Envoy's rules see a websocket over HTTP/2 as the GET of HTTP/1.
func TestExtendedCONNECTIsDeniedLikeAGET(t *testing.T) {
	extended := request()
	extended.Method, extended.Header = "CONNECT", http.Header{":protocol": {"websocket"}}
	plain := extended
	plain.Header = nil
	for _, method := range []string{"GET", "CONNECT"} {
		rule := to(authz.Operation{Methods: []string{method}})
		if compile(t, deny(rule)).Decide(&extended).Allowed {
			t.Errorf("DENY of %s does not deny an extended CONNECT", method)
		}
		if got := compile(t, deny(rule)).Decide(&plain).Allowed; got != (method == "GET") {
			t.Errorf("DENY of %s: a plain CONNECT is allowed: %t", method, got)
		}
		if got := compile(t, allow(rule)).Decide(&extended).Allowed; got != (method == "CONNECT") {
			t.Errorf("ALLOW of %s: an extended CONNECT is allowed: %t", method, got)
		}
		if got := compile(t, dryRun(deny(rule))).Decide(&extended); got.Shadow.Allowed {
			t.Errorf("a dry run of DENY %s allows an extended CONNECT", method)
		}
	}
}

// A decision is steady if no rule, enforced or not, depends on headers or hosts.
func TestSteady(t *testing.T) {
	for name, tt := range map[string]struct {
		policies []authz.Policy
		method   string
		want     bool
	}{
		"no policy":                 {nil, http.MethodPost, true},
		"paths":                     {[]authz.Policy{allow(paths("/a"))}, http.MethodPost, true},
		"paths, CONNECT":            {[]authz.Policy{allow(paths("/a"))}, http.MethodConnect, false},
		"principals":                {[]authz.Policy{allow(from(authz.Source{Principals: []string{web}}))}, http.MethodPost, true},
		"hosts":                     {[]authz.Policy{allow(to(authz.Operation{Hosts: []string{"a"}}))}, http.MethodPost, false},
		"hosts of another policy":   {[]authz.Policy{allow(paths("/a")), audit(to(authz.Operation{NotHosts: []string{"a"}}))}, http.MethodPost, false},
		"a header":                  {[]authz.Policy{deny(when(authz.Condition{Key: "request.headers[x]", Values: []string{"a"}}))}, http.MethodPost, false},
		"a header of a dry run":     {[]authz.Policy{dryRun(deny(when(authz.Condition{Key: "request.headers[x]", Values: []string{"a"}})))}, http.MethodPost, false},
		"a server name, not a host": {[]authz.Policy{allow(when(authz.Condition{Key: "connection.sni", Values: []string{"a"}}))}, http.MethodPost, true},
		"a permission with a header": {[]authz.Policy{{Name: "i", Intentions: &authz.Intentions{
			Peers: "cluster.local/ns/default/dc/{*}/svc/{*}",
			List: []authz.Intention{{
				Match: authz.Match{Policy: "i"}, Principal: "cluster.local/ns/default/dc/{*}/svc/{*}",
				Permissions: []authz.Permission{{Allow: true, Headers: []authz.HeaderMatch{{Name: "x", Present: true}}}},
			}},
		}}}, http.MethodPost, false},
	} {
		r := request()
		r.Method = tt.method
		if got := compile(t, tt.policies...).Decide(&r).Steady; got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

func TestRawTCP(t *testing.T) {
	get := authz.Operation{Methods: []string{"GET"}}
	port := authz.Operation{Ports: []uint16{8080}}
	other := authz.Operation{Ports: []uint16{9090}}
	for _, tt := range []struct {
		name          string
		rule          rule
		allow, denies bool
	}{
		{"only L4", to(port), true, true},
		{"only L4, another port", to(other), false, false},
		{"a method", to(get), false, true},
		{"a method, and a port", to(authz.Operation{Methods: []string{"GET"}, Ports: []uint16{8080}}), false, true},
		{"a method, and another port", to(authz.Operation{Methods: []string{"GET"}, Ports: []uint16{9090}}), false, false},
		{"one operation of two needs HTTP", to(get, port), false, true},
		{"notPaths", notPaths("/x"), false, true},
		{"a host", to(authz.Operation{Hosts: []string{"h"}}), false, true},
		{"a header", when(authz.Condition{Key: "request.headers[x]", Values: []string{"1"}}), false, true},
		{"a header and a principal", rule{From: []authz.Source{{Principals: []string{admin}}},
			When: []authz.Condition{{Key: "request.headers[x]", Values: []string{"1"}}}}, false, false},
		{"a server name", when(authz.Condition{Key: "connection.sni", Values: []string{"shop.example"}}), true, true},
		{"remoteIpBlocks",
			from(authz.Source{RemoteIPBlocks: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}), true, true},
	} {
		r := request()
		r.L4, r.Host, r.Method, r.Target, r.Header = true, "", "", "", nil
		if d := compile(t, allow(tt.rule)).Decide(&r); d.Allowed != tt.allow {
			t.Errorf("%s: ALLOW: Decide = %+v", tt.name, d)
		}
		if d := compile(t, deny(tt.rule)).Decide(&r); d.Allowed != !tt.denies {
			t.Errorf("%s: DENY: Decide = %+v", tt.name, d)
		}
		if d := compile(t, audit(tt.rule)).Decide(&r); d.Audit.Policy != "" != tt.denies {
			t.Errorf("%s: AUDIT: Decide = %+v", tt.name, d)
		}
	}
}

// odd is a way to write a path that some reader takes for /admin.
var odd = map[string]string{
	"slashes":                 "//admin",
	"dots":                    "/x/../admin",
	"one dot":                 "/./admin",
	"dots above the top":      "/../../admin",
	"encoded dots":            "/x/%2e%2e/admin",
	"half encoded dots":       "/app/%2E./admin",
	"encoded letter":          "/%61dmin",
	"encoded slash":           "/x/..%2Fadmin",
	"lower case":              "/x/..%2fadmin",
	"leading %2F":             "/%2Fadmin",
	"encoded backslash":       "/x/..%5Cadmin",
	"backslash":               `/x/..\admin`,
	"two backslashes":         `/\admin`,
	"parameters":              "/admin;v=1",
	"parameters of dots":      "/x/..;v=1/admin",
	"slash in parameters":     "/x;%2Fa/..%2Fadmin",
	"backslash in parameters": "/;%5Cx%2Fadmin",
	"encoded semicolon":       "/admin%3Bv=1",
	"fragment":                "/admin#x",
	"dots in a fragment":      "/x#/../admin",
	"empty segments":          "/x//../admin",
	"everything":              `/x;a=b/%2e%2e%5C..%2F/;c\admin;d#e`,
}

// TestPathTricks asks the Authorizer alone; TestPathTricksOverTheWire in http_test.go goes through net/http.
func TestPathTricks(t *testing.T) {
	for name, target := range odd {
		t.Run(name, func(t *testing.T) {
			r := request()
			r.Target = target
			for _, policies := range [][]authz.Policy{
				{deny(paths("/admin"))},
				{deny(paths("/admin*"))},
				{deny(paths("/adm*"))},
				{audit(rule{}), deny(paths("/never"), paths("/{*}", "/{**}/admin"))},
				{allow(paths("/x*", "/app/*", "/public/*"))},
				{allow(notPaths("/admin"))},
				{allow(to(authz.Operation{Paths: []string{"*"}, NotPaths: []string{"/admin"}}))},
			} {
				if d := compile(t, policies...).Decide(&r); d.Allowed {
					t.Errorf("%s: Decide = %+v by %+v", target, d, policies)
				}
			}
			if d := compile(t, audit(paths("/admin"))).Decide(&r); d.Audit.Policy == "" {
				t.Errorf("%s: no audit: %+v", target, d)
			}
			// What all readings agree in is allowed, however odd.
			if d := compile(t, allow(paths("/*")), deny(paths("/private"))).Decide(&r); !d.Allowed {
				t.Errorf("%s: Decide = %+v, want allowed", target, d)
			}
		})
	}
	t.Run("one reading", func(t *testing.T) {
		for _, target := range []string{"/x/../admin", "/./admin", "/%61dmin", "/admin?//x", "/admin#x"} {
			r := request()
			r.Target = target
			if d := compile(t, allow(paths("/admin"))).Decide(&r); !d.Allowed {
				t.Errorf("%s: Decide = %+v, want allowed", target, d)
			}
		}
	})
}

// To the ServeMux of net/http an escaped dot segment is an ordinary one, and it routes by it.
func TestPathTricksAgainstServeMux(t *testing.T) {
	var reached string
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) { reached = "/" })
	mux.HandleFunc("/admin/", func(http.ResponseWriter, *http.Request) { reached = "/admin/" })
	for name, policy := range map[string]authz.Policy{
		"ALLOW": allow(paths("/public/*")), "ALLOW notPaths": allow(notPaths("/admin/*")), "DENY": deny(paths("/admin/*")),
		"ALLOW the root": allow(paths("/", "/public/*")),
	} {
		handler := &authz.Handler{Next: mux, Authorizer: compile(t, policy)}
		for _, target := range []string{
			"/admin/%2e%2e/public/x", "/admin/.%2E/public/x", "/admin/x/%2e%2e/%2e%2e/public/x", "/admin/%2e%2e/public//x",
			"/admin/%2e%2e/public/a%3Ab", "/admin/%2e%2e/public/x;y", `/admin/%2e%2e/public\x`, "/admin/%2e%2e/public/x#y",
			"/admin/%2e/%2e%2e/public/x", "/admin/../admin/%2e%2e/public/x", "/admin/..#", "/admin/.%2e#", "/admin/x%2f..%2f..#", `/admin/x\..\..#`,
		} {
			reached = ""
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", target, nil))
			if reached == "/admin/" {
				t.Errorf("%s: %s got to the handler of /admin/", name, target)
			}
		}
		reached = ""
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("CONNECT", "/admin/../public/x", nil)) // which it does not clean
		if reached == "/admin/" {
			t.Errorf("%s: CONNECT got to the handler of /admin/", name)
		}
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/public/%2e%2e/public/x", nil))
		if reached != "/" {
			t.Errorf("%s: what lies below /public/ by all readings is denied", name)
		}
	}
}

func TestMalformedPathsAreRefused(t *testing.T) {
	for _, target := range []string{
		"/admin%00", "/admin\x00", "/%", "/a%2", "/a%zz", "/%c0%ae", "/a\xff", "/a%ff", "/a#%00", "", "admin", "?x", "http:admin",
		`http://h\x/y`, "http://h#/x", "://h/x", "/" + strings.Repeat("/", 9000),
	} {
		r := request()
		r.Target = target
		for _, policies := range [][]authz.Policy{{allow(rule{})}, {deny(paths("/never"))}, {dryRun(allow()), allow(rule{})}} {
			if d := compile(t, policies...).Decide(&r); d.Allowed || !d.BadRequest || d.Rule != -1 || d.Shadow.Allowed {
				t.Errorf("%q: Decide = %+v, want a bad request", target, d)
			}
		}
	}
	for _, target := range []string{"shop.example:443/admin", `shop.example:443\admin`, "h?x", "h#x"} {
		r := request()
		r.Method, r.Target = "CONNECT", target
		if d := compile(t, allow(rule{})).Decide(&r); !d.BadRequest {
			t.Errorf("CONNECT %q: Decide = %+v, want a bad request", target, d)
		}
	}
	for _, target := range []string{"/?%00", "/a?%zz", "/caf%C3%A9", "/café", "/" + strings.Repeat("a", 9000)} {
		r := request()
		r.Target = target
		if d := compile(t, allow(rule{})).Decide(&r); !d.Allowed {
			t.Errorf("%q: Decide = %+v, want allowed", target, d)
		}
	}
}

// The examples of Istio's documentation for pathNormalization.
func TestNormalization(t *testing.T) {
	for _, tt := range []struct {
		mode          authz.Normalization
		value, target string
		want          bool
	}{
		{authz.Base, "/b", "/a/../b", true},
		{authz.Base, "/a/b", "/a//b", false},
		{authz.MergeSlashes, "/b", "/a/../b", true},
		{authz.MergeSlashes, "/a/b", "/a//b", true},
		{authz.MergeSlashes, "/da", `/\da`, false}, // where Istio rewrites the path; here the application gets the backslash
		{authz.MergeSlashes, "/a/b", "/a%2fb", false},
		{authz.DecodeAndMergeSlashes, "/a/b", "/a%2fb", true},
		{authz.DecodeAndMergeSlashes, "/a/b", "/a%5Cb", true},
		{authz.DecodeAndMergeSlashes, "/a/b", `/a\b`, true},
		{authz.DecodeAndMergeSlashes, "/a/b", "/a%2f/b", true},
		{authz.None, "/b", "/a/../b", false},
		{authz.None, "/a/b", "/a/b", true},
		{authz.None, "/a/*", "/a/./b", true},
	} {
		r := request()
		r.Target = tt.target
		if d := compileWith(t, authz.Config{Normalization: tt.mode}, allow(paths(tt.value))).Decide(&r); d.Allowed != tt.want {
			t.Errorf("mode %d: ALLOW %s: %s is allowed: %v", tt.mode, tt.value, tt.target, d.Allowed)
		}
		// No mode makes a DENY rule narrower than the application's own reading.
		for name, target := range odd {
			r.Target = target
			if d := compileWith(t, authz.Config{Normalization: tt.mode}, deny(paths("/admin"))).Decide(&r); d.Allowed {
				t.Errorf("mode %d: %s passes a DENY of /admin", tt.mode, name)
			}
		}
	}
}

// Routers that look at URL.Path, and do not clean it, find "/admin/..".
func TestNormalizationNone(t *testing.T) {
	for _, target := range []string{"/admin%2F..", "/admin/%2e%2e", "/admin/.."} {
		r := request()
		r.Target = target
		if d := compileWith(t, authz.Config{Normalization: authz.None}, deny(paths("/admin/*"))).Decide(&r); d.Allowed {
			t.Errorf("%s passes a DENY of what is below /admin/", target)
		}
	}
}

func TestSpellingsOfHostsAndHeaders(t *testing.T) {
	host := func(value, sent string) (allowed, denied bool) {
		r := request()
		r.Host = sent
		rule := to(authz.Operation{Hosts: []string{value}})
		return compile(t, allow(rule)).Decide(&r).Allowed, !compile(t, deny(rule)).Decide(&r).Allowed
	}
	for _, tt := range []struct {
		value, sent string
		want        bool
	}{
		{"shop.example", "SHOP.example", true},
		{"SHOP.Example", "shop.example", true},
		{"*.example", "a.EXAMPLE", true},
		{"shop.example", "shopXexample", false},
		{"*.example", "aXexample", false},
		{"shop.example", "shop.example:8080", false},
		{"shop.example:*", "shop.example:8080", true},
		{"*", "", true}, // it is there, though empty
	} {
		if allowed, denied := host(tt.value, tt.sent); allowed != tt.want || denied != tt.want {
			t.Errorf("host %q: %q allowed %v, denied %v, want %v", tt.value, tt.sent, allowed, denied, tt.want)
		}
	}

	for _, tt := range []struct {
		name              string
		values, notValues []string
		sent              []string
		allows, denies    bool
	}{
		{"one value", []string{"a"}, nil, []string{"a"}, true, true},
		{"the same twice is also joined", []string{"a"}, nil, []string{"a", "a"}, false, true},
		{"one of two", []string{"a"}, nil, []string{"a", "b"}, false, true},
		{"two of two, but not joined", []string{"a", "b"}, nil, []string{"a", "b"}, false, true},
		{"all readings", []string{"a", "b", "a,b"}, nil, []string{"a", "b"}, true, true},
		{"joined only", []string{"a,b"}, nil, []string{"a", "b"}, false, true},
		{"a prefix of all", []string{"a*"}, nil, []string{"a1", "a2"}, true, true},
		{"present", []string{"*"}, nil, []string{"", "b"}, true, true},
		{"not, one of two", nil, []string{"a"}, []string{"a", "b"}, false, true},
		{"not, joined", nil, []string{"a,b"}, []string{"a", "b"}, false, true},
		{"not, all readings", nil, []string{"a", "b", "a,b"}, []string{"a", "b"}, false, false},
		{"not, none", nil, []string{"c"}, []string{"a", "b"}, true, true},
		{"absent", []string{"a"}, nil, nil, false, false},
		{"not, absent", nil, []string{"*"}, nil, true, true},
	} {
		r := request()
		r.Header = http.Header{"X-Role": tt.sent}
		rule := when(authz.Condition{Key: "request.headers[x-role]", Values: tt.values, NotValues: tt.notValues})
		if got := compile(t, allow(rule)).Decide(&r).Allowed; got != tt.allows {
			t.Errorf("%s: allowed: %v", tt.name, got)
		}
		if got := !compile(t, deny(rule)).Decide(&r).Allowed; got != tt.denies {
			t.Errorf("%s: denied: %v", tt.name, got)
		}
	}
	t.Run("two conditions on one header", func(t *testing.T) {
		r := request()
		r.Header = http.Header{"X-Role": {"a", "b"}}
		rule := when(authz.Condition{Key: "request.headers[x-role]", Values: []string{"a"}},
			authz.Condition{Key: "request.headers[X-Role]", Values: []string{"b"}})
		if compile(t, allow(rule)).Decide(&r).Allowed {
			t.Error("allowed by two different readings")
		}
		if compile(t, deny(rule)).Decide(&r).Allowed {
			t.Error("not denied, though there is a reading for each condition")
		}
	})
}

func TestCompileErrors(t *testing.T) {
	cond := func(key string, values ...string) rule { return when(authz.Condition{Key: key, Values: values}) }
	for _, tt := range []struct {
		name   string
		policy authz.Policy
		want   string
	}{
		{"no name", authz.Policy{}, "policy 0 has no name"},
		{"action", authz.Policy{Name: "a/b", Action: 9}, "policy a/b: unknown action 9"},
		{"spiffe", allow(from(authz.Source{Principals: []string{"spiffe://td/x"}})),
			"policy default/allow: rule 0: from 0: principals: "},
		{"empty source", allow(rule{}, from(authz.Source{})), "rule 1: from 0: the source is empty"},
		{"empty operation", allow(to(authz.Operation{})), "to 0: the operation is empty"},
		{"empty value", deny(to(authz.Operation{NotPaths: []string{""}})), "notPaths: an empty value"},
		{"account", deny(from(authz.Source{ServiceAccounts: []string{"web"}})), "serviceAccounts: "},
		{"account with a star", deny(from(authz.Source{NotServiceAccounts: []string{"a/*"}})), "notServiceAccounts: "},
		{"prefix", deny(from(authz.Source{IPBlocks: []netip.Prefix{{}}})), "ipBlocks: "},
		{"template", deny(paths("/a/{**}/{*}")), "{**} must be the last operator"},
		{"template and star", deny(paths("/a/{*}/b*")), "a segment of a template"},
		{"template in a segment", deny(paths("/a{*}")), "a segment of a template"},
		{"template without a slash", deny(paths("{*}/b")), "a template begins with a slash"},
		{"template by escapes", deny(paths("/{*}/%7B*%7D")), "a segment of a template"},
		{"unknown key", deny(cond("source.user", "x")), `when 0: unknown key "source.user"`},
		{"claim without a name", deny(cond("request.auth.claims", "x")), "want request.auth.claims[name]"},
		{"claim with an empty name", deny(cond("request.auth.claims[a][]", "x")), "the name of a claim is empty"},
		{"unknown key of tokens", deny(cond("request.auth.user", "x")), "unknown key"},
		{"no values", deny(cond("source.ip")), "source.ip: neither values nor notValues"},
		{"address", deny(cond("source.ip", "10.0.0.300")), `source.ip: "10.0.0.300" is not an address`},
		{"cidr", deny(cond("remote.ip", "10.0.0.1/33")), "is not an address prefix"},
		{"port", deny(cond("destination.port", "65536")), `"65536" is not a port`},
		{"header name", deny(cond("request.headers[]", "x")), "no name"},
		{"header characters", deny(cond("request.headers[a b]", "x")), "not the name of a header"},
		{"pseudo-header", deny(cond("request.headers[:path]", "x")), "not the name of a header"},
		{"path regex", deny(to(authz.Operation{PathRegexes: []string{"("}})), `to 0: pathRegexes: "(": `},
		{"two halves of a path regex", allow(to(authz.Operation{PathRegexes: []string{"a)|(b"}})), "pathRegexes"},
		{"empty path regex", allow(to(authz.Operation{PathRegexes: []string{""}})), "pathRegexes: an empty value"},
		{"header regex", deny(when(authz.Condition{Key: "request.headers[a]", Regexes: []string{"["}})), `request.headers[a]: "["`},
		{"empty header regex", deny(when(authz.Condition{Key: "request.headers[a]", Regexes: []string{""}})), "an empty value"},
		{"regex of an address", deny(when(authz.Condition{Key: "source.ip", Regexes: []string{".*"}})), "source.ip: regular expressions are for headers"},
		{"header that net/http hides", deny(cond("request.headers[Transfer-Encoding]", "x")), "net/http"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := authz.Compile([]authz.Policy{tt.policy}, authz.Config{})
			if err == nil || !strings.HasPrefix(err.Error(), "authz: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Compile = %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := authz.Compile(nil, authz.Config{Normalization: 9}); err == nil {
		t.Error("an unknown normalization is taken")
	}
}

func TestConcurrentUse(t *testing.T) {
	a := compile(t, deny(paths("/admin")), allow(paths("/v1/*")))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, target := range []string{"/v1/x", "/v1//x", "/x/..%2fadmin"} {
				r := request()
				r.Target = target
				if d := a.Decide(&r); d.Allowed != strings.HasPrefix(target, "/v1") {
					t.Errorf("%s: Decide = %+v", target, d)
				}
			}
		})
	}
	wg.Wait()
}
