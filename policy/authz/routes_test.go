package authz_test

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

func pathRule(list ...string) authz.Rule { return authz.Rule{To: []authz.Operation{{Paths: list}}} }

func allowing(account string, of ...int) authz.Rule {
	return authz.Rule{From: []authz.Source{{Principals: []string{"td/ns/a/sa/" + account}}}, Of: of}
}

// routed has a public path, one for alice and one that only those may use who may use all.
var routed = []authz.Policy{
	{Name: "routes", Routes: []authz.Rule{pathRule("/alice"), pathRule("/nobody"), pathRule("/public*")}},
	{Name: "grants", Rules: []authz.Rule{allowing("alice", 0, 2), allowing("bob", 2), allowing("root")}},
}

func TestRoutes(t *testing.T) {
	a, err := authz.Compile(routed, authz.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		account, method, target string
		want                    int
	}{
		{"alice", "GET", "/alice", 200},
		{"alice", "GET", "/public/x", 200},
		{"alice", "GET", "/nobody", 403},
		{"bob", "GET", "/alice", 403},
		{"bob", "GET", "/public", 200},
		{"root", "GET", "/nobody", 200},
		{"root", "GET", "/other", 404},
		{"", "GET", "/public", 403},
		{"", "GET", "/other", 404},
		{"bob", "GET", "/public/../alice", 403},
		{"bob", "GET", "/public/..%2Falice", 403},
		{"bob", "GET", "/public;/../other", 404},
		{"alice", "GET", "/public/..%2Falice", 403}, // each of the two routes would allow her, but neither has all readings
		{"root", "GET", "/public/%zz", 400},
	} {
		r := httptest.NewRequest(tt.method, "/", nil)
		r.RequestURI = tt.target
		principal := ""
		if tt.account != "" {
			principal = "td/ns/a/sa/" + tt.account
		}
		view := authz.NewRequest(r, principal, 0)
		d, got := a.Decide(&view), 200
		if !d.Allowed {
			w := httptest.NewRecorder()
			d.Refuse(w, r)
			got = w.Code
		}
		if got != tt.want || d.NotFound != (tt.want == 404) {
			t.Errorf("%s %s %s: %d, %+v, want %d", tt.account, tt.method, tt.target, got, d, tt.want)
		}
	}
	raw := authz.Request{L4: true, Principal: "td/ns/a/sa/root"}
	if d := a.Decide(&raw); !d.Allowed {
		t.Errorf("a raw connection: %+v", d)
	}
	raw.Principal = "td/ns/a/sa/alice"
	if d := a.Decide(&raw); d.Allowed || d.NotFound {
		t.Errorf("a raw connection of one who may use some routes: %+v", d)
	}
}

func TestRoutes_WebsocketOverHTTP2(t *testing.T) {
	get := authz.Rule{To: []authz.Operation{{Methods: []string{"GET"}}}}
	a, err := authz.Compile([]authz.Policy{{Name: "a", Routes: []authz.Rule{get, {}}}, {Name: "b", Rules: []authz.Rule{{Of: []int{1}}}}}, authz.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r := authz.Request{Method: "CONNECT", Target: "/", Header: http.Header{}}
	if d := a.Decide(&r); !d.Allowed {
		t.Errorf("CONNECT: %+v", d)
	}
	r.Header[":protocol"] = []string{"websocket"}
	if d := a.Decide(&r); d.Allowed {
		t.Errorf("a websocket, which is a GET to others, is allowed by %+v", d.Match)
	}
}

func TestCompile_Routes(t *testing.T) {
	one := []authz.Rule{pathRule("/")}
	for _, tt := range []struct {
		policies []authz.Policy
		want     string
	}{
		{[]authz.Policy{{Name: "a", Routes: one}, {Name: "b", Routes: one}}, "policy b: there are routes in another policy already"},
		{[]authz.Policy{{Name: "a", Routes: one, Action: authz.Deny}}, "policy a: a policy with routes allows"},
		{[]authz.Policy{{Name: "a", Routes: one, DryRun: true}}, "policy a: a policy with routes allows"},
		{[]authz.Policy{{Name: "a", Routes: []authz.Rule{allowing("x")}}}, "policy a: route 0: it says who is allowed"},
		{[]authz.Policy{{Name: "a", Routes: []authz.Rule{{}, pathRule("/a//b")}}}, "policy a: route 1: to 0: paths"},
		{[]authz.Policy{{Name: "a", Routes: one}, {Name: "b", Rules: []authz.Rule{allowing("x", 1)}}}, "policy b: rule 0: there is no route 1"},
		{[]authz.Policy{{Name: "b", Rules: []authz.Rule{allowing("x", 0)}}}, "policy b: rule 0: there is no route 0"},
		{[]authz.Policy{{Name: "a", Routes: one}, {Name: "b", Action: authz.Deny, Rules: []authz.Rule{allowing("x", 0)}}}, "policy b: rule 0: only a rule that allows"},
	} {
		_, err := authz.Compile(tt.policies, authz.Config{Normalization: authz.MergeSlashes})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}

// FuzzRoutes asks about the readings of a path one by one: what is allowed must be allowed under each, by the route that this reading belongs to.
func FuzzRoutes(f *testing.F) {
	for _, target := range []string{"/alice", "/public/../alice", "//alice", "/public/..%2Falice", "/public;x/%2e%2e/nobody", `/public\..\alice`, "/public#/../alice"} {
		f.Add(target, uint64(1))
	}
	f.Fuzz(func(t *testing.T, target string, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		all := []string{"/alice", "/nobody", "/public*", "/*", "/a*", "/public/b"}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:1+r.IntN(len(all))]
		policies := []authz.Policy{{Name: "routes"}, {Name: "grants"}}
		var granted, one []bool
		for i, path := range all {
			policies[0].Routes = append(policies[0].Routes, pathRule(path))
			if granted = append(granted, r.IntN(2) == 0); granted[i] {
				policies[1].Rules = append(policies[1].Rules, authz.Rule{Of: []int{i}})
			}
		}
		a, err := authz.Compile(policies, authz.Config{})
		if err != nil {
			t.Fatal(err)
		}
		q := authz.Request{Method: "GET", Target: target}
		d := a.Decide(&q)
		if !d.Allowed {
			return
		}
		// Each route alone, as a rule that denies what has a reading of it.
		for i, path := range all {
			deny, err := authz.Compile([]authz.Policy{{Name: "a", Action: authz.Deny, Rules: []authz.Rule{pathRule(path)}}}, authz.Config{})
			if err != nil {
				t.Fatal(err)
			}
			one = append(one, !deny.Decide(&q).Allowed)
			every, err := authz.Compile([]authz.Policy{{Name: "a", Rules: []authz.Rule{pathRule(path)}}}, authz.Config{})
			if err != nil {
				t.Fatal(err)
			}
			if one[i] && !granted[i] {
				t.Fatalf("%q is allowed by %+v, but has a reading of %s, which is not granted; before it: %v", target, d, path, all[:i])
			}
			if every.Decide(&q).Allowed {
				return // no reading is left for the routes after it
			}
		}
		t.Fatalf("%q is allowed, but no route of %v has all of its readings, only %v", target, all, slices.Index(one, true))
	})
}
