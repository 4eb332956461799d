package policy_test

import "testing"

// TestAlone_SecondOfOneNameDeniesForGood: the last good version of the first document is not one of the second.
func TestAlone_SecondOfOneNameDeniesForGood(t *testing.T) {
	f := newFeed(t)
	first := object{kind: "AuthorizationPolicy", name: "x", created: 1, spec: "{rules: [{}]}"}
	second := object{kind: "AuthorizationPolicy", name: "x", created: 2, spec: "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}"}
	for range 3 {
		f.yields(first, second)
		f.refused("AuthorizationPolicy shop/x: denial")
		f.denies("AuthorizationPolicy shop/x")
	}
}
