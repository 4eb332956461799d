package policy_test

import (
	"testing"

	"github.com/nosidecar/mesh/policy"
)

func (f *feed) takesFile(text string) {
	f.t.Helper()
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte(text)})
}

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

// TestAlone_ServiceIntentionsAreOfTheirDestination: the name of the object says nothing about whom it protects.
func TestAlone_ServiceIntentionsAreOfTheirDestination(t *testing.T) {
	intentions := func(destination, sources string) string {
		return "{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceIntentions, metadata: {name: who-may, uid: a}, spec: {destination: " + destination + ", sources: " + sources + "}}"
	}
	for _, test := range []struct {
		destination string
		denies      bool
	}{
		{"{name: web}", true}, {"{name: '*'}", true}, {"{name: [web]}", true}, {"[web]", true}, {"{name: other}", false},
	} {
		f := newFeed(t)
		f.workload.Service = "web"
		f.takesFile(intentions(test.destination, "{name: api}"))
		if d := f.asked("/"); d.Allowed == test.denies {
			t.Errorf("%s: %+v, want a denial: %t", test.destination, d, test.denies)
		}
	}
	f := newFeed(t)
	f.workload.Service = "web"
	f.takesFile(intentions("{name: web}", "[{name: api, action: allow}]"))
	f.refused()
	f.takesFile(intentions("{name: web}", "{name: api}"))
	f.refused("service-intentions default/web: last good")
}
