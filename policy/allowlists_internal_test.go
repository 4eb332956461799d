package policy

import (
	"net/netip"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

func allowPath(name, path string, dry bool) authz.Policy {
	return authz.Policy{Name: name, DryRun: dry, Rules: []authz.Rule{{To: []authz.Operation{{Paths: []string{path}}}}}}
}

// All allowlists must allow a request, whichever comes first, and whichever of them denies it says why.
func TestAllowlists_AllMustAllow(t *testing.T) {
	const none = ""
	for _, test := range []struct {
		name                    string
		first, second, third    authz.Policy // the first in place of the AuthorizationPolicies; without a name, there is none
		path                    string
		allowed                 bool
		policy, reason          string
		shadowAllowed, badInput bool
	}{
		{"all allow", allowPath("a", "/*", false), allowPath("b", "/*", false), allowPath("c", "/*", false), "/x", true, "a", "matched an ALLOW policy", false, false},
		{"the first denies", allowPath("a", "/y", false), allowPath("b", "/*", false), allowPath("c", "/*", false), "/x", false, none, "no ALLOW policy matched", false, false},
		{"the second denies", allowPath("a", "/*", false), allowPath("b", "/y", false), allowPath("c", "/*", false), "/x", false, none, "by the second", false, false},
		{"the last denies", allowPath("a", "/*", false), allowPath("b", "/*", false), allowPath("c", "/y", false), "/x", false, none, "by the third", false, false},
		{"nothing in the first", authz.Policy{}, allowPath("b", "/*", false), authz.Policy{}, "/x", true, "b", "matched an ALLOW policy", false, false},
		{"nothing in the first, denied", authz.Policy{}, allowPath("b", "/y", false), authz.Policy{}, "/x", false, none, "by the second", false, false},
		{"a path that cannot be read", authz.Policy{}, allowPath("b", "/*", false), authz.Policy{}, "/%zz", false, none, "malformed path or method", false, true},
		{"dry run denies nothing", allowPath("a", "/y", true), allowPath("b", "/*", false), authz.Policy{}, "/x", true, "b", "matched an ALLOW policy", false, false},
		{"dry run that would allow", allowPath("a", "/x", true), allowPath("b", "/*", false), authz.Policy{}, "/x", true, "b", "matched an ALLOW policy", true, false},
		{"dry run that would allow what another denies", allowPath("a", "/x", true), allowPath("b", "/y", false), authz.Policy{}, "/x", false, none, "by the second", false, false},
	} {
		in := new(Inbound)
		if test.first.Name != "" {
			in.authorizer = must(authz.Compile([]authz.Policy{test.first}, authz.Config{}))
		}
		for _, more := range []struct {
			policy authz.Policy
			reason string
		}{{test.second, "by the second"}, {test.third, "by the third"}} {
			if more.policy.Name == "" {
				continue
			}
			if err := in.require(allowlist{denied: more.reason}, []authz.Policy{more.policy}, authz.Config{}); err != nil {
				t.Fatal(err)
			}
		}
		r := &authz.Request{Method: "GET", Target: test.path, Destination: netip.MustParseAddrPort("127.0.0.1:80")}
		d := in.Authorize(r)
		if d.Allowed != test.allowed || d.Policy != test.policy || d.Reason != test.reason || d.BadRequest != test.badInput || d.Shadow.Allowed != test.shadowAllowed {
			t.Errorf("%s: allowed %t by %q, since %q, bad request %t, shadow %+v", test.name, d.Allowed, d.Policy, d.Reason, d.BadRequest, d.Shadow)
		}
	}
}

// What an AuthorizationPolicy denies stays denied in the shadow, too, if an allowlist denies it.
func TestAllowlists_Shadow(t *testing.T) {
	in := &Inbound{authorizer: must(authz.Compile([]authz.Policy{allowPath("a", "/y", false), allowPath("dry", "/x", true)}, authz.Config{}))}
	r := &authz.Request{Method: "GET", Target: "/x"}
	if d := in.Authorize(r); d.Allowed || !d.Shadow.Allowed {
		t.Fatalf("without allowlists: %+v", d)
	}
	if err := in.require(allowlist{denied: "the list"}, []authz.Policy{allowPath("b", "/z", false)}, authz.Config{}); err != nil {
		t.Fatal(err)
	}
	if d := in.Authorize(r); d.Allowed || d.Reason != "no ALLOW policy matched" || d.Shadow.Allowed || d.Shadow.Reason != "the list" {
		t.Errorf("with one: %+v", d)
	}
	if !in.Authorizes() {
		t.Error("it does not authorize")
	}
}

// Of several allowlists for ports, those about the port of a request count, and all of them if it is not known. What one audits is marked.
func TestAllowlists_Ports(t *testing.T) {
	for _, first := range []*authz.Authorizer{nil, must(authz.Compile([]authz.Policy{allowPath("all", "/*", false)}, authz.Config{}))} {
		in := &Inbound{authorizer: first}
		for _, f := range []allowlist{{port: 1, denied: "one"}, {port: 2, denied: "two", audited: "a"}, {port: 2, denied: "second of two", audited: "b"}} {
			path := "/one"
			if f.port == 2 {
				path = "/two"
			}
			if err := in.require(f, []authz.Policy{allowPath("a", path, false), allowPath("b", "/x", false)}, authz.Config{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, test := range []struct {
			port         uint16
			path, reason string // "" if it is allowed
			audit        string
		}{
			{1, "/one", "", ""}, {1, "/two", "one", ""}, {2, "/one", "two", ""}, {2, "/two", "", "a"}, {2, "/x", "", "b"},
			{3, "/three", "", ""}, {0, "/one", "two", ""}, {0, "/two", "one", ""}, {0, "/x", "", "b"},
		} {
			d := in.Authorize(&authz.Request{Method: "GET", Target: test.path, Destination: netip.AddrPortFrom(netip.Addr{}, test.port)})
			if d.Allowed != (test.reason == "") || !d.Allowed && d.Reason != test.reason || d.Audit.Policy != test.audit {
				t.Errorf("%s at %d: %+v", test.path, test.port, d)
			}
		}
	}
}

// A decision that depends on a header is not steady, whichever allowlist makes it.
func TestAllowlists_Steady(t *testing.T) {
	plain := allowPath("a", "/*", false)
	header := authz.Policy{Name: "b", Rules: []authz.Rule{{When: []authz.Condition{{Key: "request.headers[x-a]", Values: []string{"b"}}}}}}
	for _, test := range []struct {
		name     string
		policies []authz.Policy
		want     bool
	}{
		{"none", []authz.Policy{plain, plain}, true},
		{"the first", []authz.Policy{header, plain}, false},
		{"the last", []authz.Policy{plain, header}, false},
		{"one for another port", []authz.Policy{plain, plain, header}, true},
	} {
		in := new(Inbound)
		for i, policy := range test.policies {
			l := allowlist{}
			if i == 2 {
				l.port = 81
			}
			if err := in.require(l, []authz.Policy{policy}, authz.Config{}); err != nil {
				t.Fatal(err)
			}
		}
		r := &authz.Request{Method: "GET", Target: "/x", Header: map[string][]string{"X-A": {"b"}}, Destination: netip.MustParseAddrPort("127.0.0.1:80")}
		if d := in.Authorize(r); !d.Allowed || d.Steady != test.want {
			t.Errorf("%s: %+v, want steady: %t", test.name, d, test.want)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
