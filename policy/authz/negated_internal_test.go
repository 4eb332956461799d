package authz

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestNegatedPathsAgree holds rules that are only about what a path is not, of which there are enough for an index, against the
// reference.
func TestNegatedPathsAgree(t *testing.T) {
	paths := []string{"/a/b", "/a/../b", "/a%2Fb", "/a;x/b", "/a#/../b", `/a\..\b`, "/%61", "//a//b", "/x/..%2Fb", "/a%20b", "/b"}
	outcomes := make(map[string]int)
	for seed := range uint64(24) {
		rng := rand.New(rand.NewPCG(seed, 4))
		cfg := Config{Normalization: Normalization(seed % 4)}
		policies := []Policy{{Name: "ns/deny", Action: Deny}, {Name: "ns/allow"}, {Name: "ns/audit", Action: Audit}}
		for i := range policies {
			for range minIndexed + rng.IntN(6) {
				var rule Rule
				for len(rule.To) == 0 || rng.IntN(3) == 0 {
					o := Operation{NotPaths: append(some(rng, 1, pathVals...), some(rng, 0.7, "/a*", "/*", "*b")...), Methods: some(rng, 0.2, "GET", "P*")}
					if _, err := compileOperation(&o, cfg.Normalization); err == nil {
						rule.To = append(rule.To, o)
					}
				}
				if rng.IntN(8) == 0 {
					rule.To[0].NotPaths, rule.To[0].Ports = nil, []uint16{81}
				}
				policies[i].Rules = append(policies[i].Rules, rule)
			}
		}
		a, err := Compile(policies, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			r := randomRequest(rng, pick(rng, paths...))
			got, want := decide(t, a, rng, &r), refDecide(policies, cfg, &r)
			if got != want {
				t.Fatalf("Decide(%+v)\n of %+v\n = %+v,\nwant %+v", r, policies, got, want)
			}
			outcomes[fmt.Sprint(got.Reason, got.Rule > 0)]++
		}
	}
	for _, outcome := range []string{reasonDenied + "true", reasonDenied + "false", reasonAllowed + "true", reasonUnmatched + "false"} {
		if outcomes[outcome] < 3 {
			t.Errorf("%q was decided %d times: the policies test little; %v", outcome, outcomes[outcome], outcomes)
		}
	}
}

// TestOperationsOfOneRule has a rule that matches by another of its operations under each reading of the path.
func TestOperationsOfOneRule(t *testing.T) {
	for action, rule := range map[Action]Rule{
		Allow: {To: []Operation{{NotPaths: []string{"/a*"}}, {NotPaths: []string{"/b*"}}}},
		Deny:  {To: []Operation{{NotPaths: []string{"/a*", "/c*"}}, {NotPaths: []string{"/*"}}}},
	} {
		policy := Policy{Name: "ns/p", Action: action}
		for range minIndexed {
			policy.Rules = append(policy.Rules, Rule{To: []Operation{{NotPaths: []string{"/*"}}}})
		}
		policy.Rules = append(policy.Rules, rule)
		a, err := Compile([]Policy{policy}, Config{})
		if err != nil {
			t.Fatal(err)
		}
		r := Request{Method: "GET", Target: "/a/..%2Fb", Host: "h"} // or /b
		if d := a.Decide(&r); d.Rule != minIndexed || d.Allowed != (action == Allow) {
			t.Errorf("%v: Decide = %+v, want the last rule", action, d)
		}
	}
}
