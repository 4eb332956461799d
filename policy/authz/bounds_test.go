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

// What is too much to read could mean anything: an ALLOW rule does not match it, and a DENY rule does.
func TestTooMuchToRead(t *testing.T) {
	role := func(values, notValues []string) rule {
		return when(authz.Condition{Key: "request.headers[x-role]", Values: values, NotValues: notValues})
	}
	hosts := slices.Repeat([]string{"a.example"}, 20)
	for _, tt := range []struct {
		name   string
		header http.Header
		rule   rule
	}{
		{"elements of a list", http.Header{"X-Role": {strings.Repeat("user,", 100)}}, role([]string{"user"}, nil)},
		{"elements, for a negation", http.Header{"X-Role": {strings.Repeat("user,", 100)}}, role(nil, []string{"admin"})},
		{"lines", http.Header{"X-Role": slices.Repeat([]string{"user"}, 100)}, role([]string{"user"}, nil)},
		{"hosts of an operation", http.Header{"Host": hosts}, to(authz.Operation{Hosts: []string{"a.example", "shop.example"}})},
		{"hosts of a condition", http.Header{"Host": hosts}, when(authz.Condition{Key: "request.headers[host]", Values: []string{"a.example", "shop.example"}})},
	} {
		r := request()
		r.Header = tt.header
		if allowed, denied := judged(t, r, tt.rule); allowed || !denied {
			t.Errorf("%s: allowed %v, denied %v, want it not allowed, and denied", tt.name, allowed, denied)
		}
	}
}

// The index finds a rule under every spelling of a binary header.
func TestManyRulesOnOneBinaryHeader(t *testing.T) {
	var list rules
	for i := range 30 {
		list = append(list, when(authz.Condition{Key: "request.headers[x-role-bin]", Values: []string{fmt.Sprint("role-", i)}}))
	}
	list[17].When[0].Values[0] = "admin"
	for _, sent := range []string{"YWRtaW4=", "YWRtaW4", "dXNlcg==,YWRtaW4="} {
		r := request()
		r.Header = http.Header{"X-Role-Bin": {sent}}
		if d := compile(t, deny(list...)).Decide(&r); d.Allowed || d.Rule != 17 {
			t.Errorf("%q: Decide = %+v, want a denial by rule 17", sent, d)
		}
	}
}

// A dot segment is one also right before the query.
func TestDotsBeforeTheQuery(t *testing.T) {
	for _, target := range []string{"/v1/..", "/v1/..?x", "/v1/.?x", "/v1/../?x"} {
		r := request()
		r.Target = target
		if allowed, _ := judged(t, r, paths("/v1/*")); allowed != strings.HasPrefix(target, "/v1/.?") {
			t.Errorf("%q under /v1/*: allowed %v", target, allowed)
		}
		if _, denied := judged(t, r, paths("/", "/v1/")); !denied {
			t.Errorf("%q is not denied like the path that it is", target)
		}
	}
}

// A permission of an intention is compared with what a path means, like the rules of policies.
func TestPermissionsWithEscapes(t *testing.T) {
	a := intentions(t, authz.Intentions{AllowByDefault: true, List: []authz.Intention{
		{Principal: "web", Permissions: []authz.Permission{{PathExact: "/a%3Ab"}, {PathPrefix: "/c%40"}}},
	}})
	for target, want := range map[string]bool{"/a%3Ab": false, "/a%3ab": false, "/a:b": false, "/c@d": false, "/c%40d": false, "/a": true} {
		if got := a.Decide(sent(service("web"), "GET", target)); got.Allowed != want {
			t.Errorf("%s: allowed %v (%s), want %v", target, got.Allowed, got.Reason, want)
		}
	}
}

// Nobody would decide about the requests on a connection that goes on with HTTP/2.
func TestHandlerLetsNoHTTP2Begin(t *testing.T) {
	served := 0
	h := &authz.Handler{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if served++; r.Header.Get("Upgrade") != "" {
			t.Errorf("the handler sees Upgrade: %s", r.Header.Get("Upgrade"))
		}
	})}
	preface := httptest.NewRequest("PRI", "*", nil)
	preface.Proto, preface.ProtoMajor, preface.ProtoMinor, preface.RequestURI = "HTTP/2.0", 2, 0, "*"
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, preface); w.Code != http.StatusBadRequest || served != 0 {
		t.Errorf("the preface of HTTP/2 gets %d, and %d requests were served; want 400 and none", w.Code, served)
	}
	upgrade := httptest.NewRequest("GET", "/", nil)
	upgrade.Header = http.Header{"Connection": {"Upgrade, HTTP2-Settings"}, "Upgrade": {"websocket, h2c"}, "Http2-Settings": {"AAMAAABkAAQAAP__"}}
	w = httptest.NewRecorder()
	if h.ServeHTTP(w, upgrade); w.Code != http.StatusOK || served != 1 || upgrade.Header.Get("Upgrade") == "" {
		t.Errorf("an upgrade to h2c gets %d, and %d requests were served; want 200 and one, and the caller's header as it was", w.Code, served)
	}
}
