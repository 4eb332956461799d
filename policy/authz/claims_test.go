package authz_test

import (
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

// token is claims by path, the names of which are joined by ">".
type token map[string][]string

func (t token) Values(path ...string) []string { return t[strings.Join(path, ">")] }

// Request principals are matched as Istio splits them: at the last slash.
func TestRequestPrincipals(t *testing.T) {
	user := func(issuer, subject string) token { return token{"iss": {issuer}, "sub": {subject}} }
	for _, tt := range []struct {
		pattern string
		token   token
		want    bool
	}{
		{"*", user("i", "s"), true},
		{"*", user("", "s"), false},
		{"*", user("i", ""), false},
		{"*", token{"iss": {"i"}}, false},
		{"*", token{"sub": {"s"}}, false},
		{"*", nil, false},
		{"https://i/s", user("https://i", "s"), true},
		{"https://i/s", user("https://i", "ss"), false},
		{"https://i/s", user("https://i/", "s"), false},
		{"https://i/realm/s", user("https://i/realm", "s"), true},
		{"https://i/realm/s", user("https://i", "realm/s"), false}, // split at the last slash
		{"i/*", user("i", "s"), true},
		{"i/*", token{"iss": {"i"}}, false},
		{"i/a*", user("i", "alice"), true},
		{"i/a*", user("i", "bob"), false},
		{"i/a*", user("ii", "alice"), false},
		{"acc*", user("accounts", "anybody"), true},
		{"acc*", user("bank", "acc"), false},
		{"acc*", token{"iss": {"accounts"}}, false},
		{"*/s", user("anybody", "s"), true},
		{"*/s", user("anybody", "ss"), false},
		{"*i/s", user("https://i", "s"), true},
		{"*i/s", user("https://j", "s"), false},
		{"*@example.com", user("anybody", "a@example.com"), true},
		{"*@example.com", user("anybody", "a@example.org"), false},
	} {
		for key, rule := range map[string]rule{
			"requestPrincipals":      from(authz.Source{RequestPrincipals: []string{"x/x", tt.pattern}}),
			"request.auth.principal": when(authz.Condition{Key: "request.auth.principal", Values: []string{"x/x", tt.pattern}}),
		} {
			r := request()
			if tt.token != nil {
				r.Claims = tt.token
			}
			if got := compile(t, allow(rule)).Decide(&r).Allowed; got != tt.want {
				t.Errorf("%s %q: %v is allowed: %v", key, tt.pattern, tt.token, got)
			}
			if got := !compile(t, deny(rule)).Decide(&r).Allowed; got != tt.want {
				t.Errorf("%s %q: %v is denied: %v", key, tt.pattern, tt.token, got)
			}
		}
		r := request()
		if tt.token != nil {
			r.Claims = tt.token
		}
		if got := compile(t, allow(from(authz.Source{NotRequestPrincipals: []string{tt.pattern}}))).Decide(&r).Allowed; got == tt.want {
			t.Errorf("notRequestPrincipals %q: %v is allowed: %v", tt.pattern, tt.token, got)
		}
	}
}

// A condition on a claim matches one of its strings. Without a token there is nothing to match, and nothing that is excluded.
func TestConditionsOnClaims(t *testing.T) {
	claims := token{"aud": {"a", "https://b/"}, "azp": {"client"}, "groups": {"admin", "dev"}, "realm>roles": {"writer"}, "a.b": {"dotted"}, "empty": {""}}
	for _, tt := range []struct {
		key               string
		values, notValues []string
		want, without     bool
	}{
		{"request.auth.audiences", []string{"a"}, nil, true, false},
		{"request.auth.audiences", []string{"https://b/"}, nil, true, false},
		{"request.auth.audiences", []string{"b"}, nil, false, false},
		{"request.auth.presenter", []string{"cli*"}, nil, true, false},
		{"request.auth.presenter", nil, []string{"client"}, false, true},
		{"request.auth.claims[groups]", []string{"dev"}, nil, true, false},
		{"request.auth.claims[groups]", []string{"*min"}, nil, true, false},
		{"request.auth.claims[groups]", []string{"admin,dev"}, nil, false, false},
		{"request.auth.claims[groups]", []string{"*"}, nil, true, false},
		{"request.auth.claims[groups]", []string{"dev"}, []string{"admin"}, false, false},
		{"request.auth.claims[groups]", nil, []string{"root"}, true, true},
		{"request.auth.claims[realm][roles]", []string{"writer"}, nil, true, false},
		{"request.auth.claims[realm]", []string{"*"}, nil, false, false},
		{"request.auth.claims[a.b]", []string{"dotted"}, nil, true, false},
		{"request.auth.claims[a][b]", []string{"dotted"}, nil, false, false},
		{"request.auth.claims[empty]", []string{"*"}, nil, false, false},
		{"request.auth.claims[missing]", nil, []string{"*"}, true, true},
	} {
		rule := when(authz.Condition{Key: tt.key, Values: tt.values, NotValues: tt.notValues})
		for with, want := range map[bool]bool{true: tt.want, false: tt.without} {
			r := request()
			if with {
				r.Claims = claims
			}
			if allowed, denied := compile(t, allow(rule)).Decide(&r).Allowed, !compile(t, deny(rule)).Decide(&r).Allowed; allowed != want || denied != want {
				t.Errorf("%s %v, not %v: with a token %v: allowed %v, denied %v, want %v", tt.key, tt.values, tt.notValues, with, allowed, denied, want)
			}
		}
	}
}

// A raw connection has no token. An ALLOW rule that asks for one does not match it, a DENY rule matches without it.
func TestTokensOfRawConnections(t *testing.T) {
	for _, rule := range []rule{
		from(authz.Source{RequestPrincipals: []string{"*"}}), from(authz.Source{NotRequestPrincipals: []string{"i/s"}}),
		when(authz.Condition{Key: "request.auth.claims[x]", Values: []string{"y"}}), when(authz.Condition{Key: "request.auth.principal", Values: []string{"*"}}),
	} {
		r := request()
		r.L4 = true
		if compile(t, allow(rule)).Decide(&r).Allowed || compile(t, deny(rule)).Decide(&r).Allowed {
			t.Errorf("%+v: allowed", rule)
		}
	}
}

// A pattern that describes nobody is an error where it should deny, since it would deny nothing.
func TestPatternsOfNobody(t *testing.T) {
	for _, pattern := range []string{"*/*", "https://host*", "https://host", "issuer", "https://issuer/", "/s", "*i/*"} {
		for _, rule := range []rule{
			from(authz.Source{RequestPrincipals: []string{pattern}}), when(authz.Condition{Key: "request.auth.principal", Values: []string{pattern}}),
		} {
			if _, err := authz.Compile([]authz.Policy{deny(rule)}, authz.Config{}); err == nil || !strings.Contains(err.Error(), "matches nobody") {
				t.Errorf("DENY %q: %v", pattern, err)
			}
			if _, err := authz.Compile([]authz.Policy{allow(rule)}, authz.Config{}); err != nil {
				t.Errorf("ALLOW %q: %v", pattern, err)
			}
		}
	}
}
