package authz_test

import (
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

// A regular expression of an ALLOW rule matches every reading of a path and a header, and all of it; one of a DENY rule matches any reading.
func TestRegexes(t *testing.T) {
	path := func(exprs ...string) rule { return to(authz.Operation{PathRegexes: exprs}) }
	header := func(exprs ...string) rule {
		return when(authz.Condition{Key: "request.headers[x-role]", Regexes: exprs})
	}
	for _, tt := range []struct {
		name           string
		rule           rule
		target         string
		role           []string
		allows, denies bool
	}{
		{"whole path", path("/a"), "/a", nil, true, true},
		{"part of the path", path("/a"), "/ab", nil, false, false},
		{"part of the path, at its end", path("a"), "/a", nil, false, false},
		{"alternatives", path("/a|/b"), "/bc", nil, false, false},
		{"several", path("/a", "/b"), "/b", nil, true, true},
		{"without the query", path("/a"), "/a?/b", nil, true, true},
		{"dots lead elsewhere", path("/a/.*"), "/a/../b", nil, false, false},
		{"dots that are escaped", path("/a/.*"), "/a/%2e%2e/b", nil, false, true},
		{"slashes that are escaped", path("/a/.*"), "/a/..%2fb", nil, false, true},
		{"slashes that are doubled", path("/a/.*"), "//a/x", nil, false, true},
		{"parameters", path("/a/.*"), "/a;x/b", nil, false, true},
		{"an escaped letter", path("/a/.*"), "/%61/b", nil, true, true},
		{"a line feed", path(".*"), "/%0a", nil, true, true},
		{"a line feed beside another escape", path("/a b/.*c"), "/a%20b/%0ac", nil, false, true},
		{"beside a path", to(authz.Operation{Paths: []string{"/a"}, PathRegexes: []string{"/b+"}}), "/bb", nil, true, true},
		{"with a path that is excluded", to(authz.Operation{PathRegexes: []string{"/.*"}, NotPaths: []string{"/a"}}), "/a", nil, false, false},
		{"header", header("a.*"), "/", []string{"admin"}, true, true},
		{"part of a header", header("a"), "/", []string{"admin"}, false, false},
		{"no header", header(".*"), "/", nil, false, false},
		{"an empty header", header(".*"), "/", []string{""}, true, true},
		{"two lines", header("a.*"), "/", []string{"a", "b"}, false, true},
		{"two elements", header("a.*"), "/", []string{"a,b"}, false, true},
		{"not UTF-8", header(".*"), "/", []string{"\xff"}, false, true},
		{"beside a value", when(authz.Condition{Key: "request.headers[x-role]", Values: []string{"b"}, Regexes: []string{"a+"}}), "/", []string{"aa"}, true, true},
	} {
		r := request()
		r.Target = tt.target
		if r.Header = nil; tt.role != nil {
			r.Header = http.Header{"X-Role": tt.role}
		}
		if allowed, denied := judged(t, r, tt.rule); allowed != tt.allows || denied != tt.denies {
			t.Errorf("%s: allowed %v, want %v; denied %v, want %v", tt.name, allowed, tt.allows, denied, tt.denies)
		}
	}
	r := request()
	r.L4 = true
	if allowed, denied := judged(t, r, path(".*")); allowed || !denied {
		t.Errorf("a raw connection: allowed %v, denied %v", allowed, denied)
	}
}

// Escapes that no reading has would make a rule that denies nothing.
func TestRegexes_Escapes(t *testing.T) {
	for expr, valid := range map[string]bool{"/a%20b": true, "/%C3%A9": true, "/100%": true, "/%c3%a9": false, "/%61": false, "/%7E.*": false} {
		rule := authz.Rule{To: []authz.Operation{{PathRegexes: []string{expr}}}}
		if _, err := authz.Compile([]authz.Policy{{Name: "a", Action: authz.Deny, Rules: []authz.Rule{rule}}}, authz.Config{}); (err == nil) != valid {
			t.Errorf("%s: %v", expr, err)
		}
		permission := authz.Permission{PathRegex: expr}
		if err := permission.Check(authz.Config{}); (err == nil) != valid {
			t.Errorf("a permission for %s: %v", expr, err)
		}
	}
}
