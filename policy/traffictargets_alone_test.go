package policy_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// targetParts are documents that stand alone, of which one allows each of a few requests to the other's account.
var targetParts = []object{
	{kind: "TrafficTarget", name: "x", uid: 1, spec: "{destination: {kind: ServiceAccount, name: web}, rules: [{kind: HTTPRouteGroup, name: g}], sources: [{kind: ServiceAccount, name: api, namespace: shop}]}"},
	{kind: "TrafficTarget", name: "y", uid: 2, spec: "{destination: {kind: ServiceAccount, name: web}, rules: [{kind: HTTPRouteGroup, name: g}, {kind: TCPRoute, name: p}], sources: [{kind: ServiceAccount, name: db, namespace: shop}]}"},
	{kind: "HTTPRouteGroup", name: "g", uid: 3, spec: "{matches: [{name: a, pathRegex: /a}]}"},
	{kind: "TCPRoute of specs.smi-spec.io/v1alpha4", name: "p", uid: 4, spec: "{matches: {ports: [80]}}"},
}

// TestAlone_TrafficTargets has documents arrive, break and go away in every order: as long as a TrafficTarget is there, nothing is allowed that
// those that are valid do not allow.
func TestAlone_TrafficTargets(t *testing.T) {
	const absent, good, broken = 0, 1, 2
	total := 0
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		f := newFeed(t)
		f.workload = ofAccount
		state, last := [4]int{}, [4]bool{} // what there is of each, and whether a good version was there before
		for range 20 {
			i := rng.IntN(4)
			state[i] = rng.IntN(3)
			last[i] = state[i] == good || state[i] == broken && last[i]
			var objects []object
			for i, o := range targetParts {
				switch state[i] {
				case broken:
					o.spec = strings.Replace(strings.Replace(o.spec, "kind: ServiceAccount, name: web", "kind: ServiceAccount, name: web, prot: 1", 1), "matches: ", "match: ", 1)
					fallthrough
				case good:
					objects = append(objects, o)
				}
			}
			rng.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
			f.yields(objects...)
			closed := state[0] == broken && !last[0] || state[1] == broken && !last[1]
			on := state[0] != absent || state[1] != absent
			for _, r := range []*authz.Request{
				requestFrom("shop/api", "GET", "/a", 80), requestFrom("shop/api", "GET", "/a", 8080), requestFrom("shop/db", "GET", "/a", 80),
				requestFrom("shop/db", "GET", "/a", 8080), requestFrom("shop/db", "tcp", "", 80), requestFrom("shop/api", "GET", "/b", 80), requestFrom("", "GET", "/a", 80),
			} {
				matches := r.Target == "/a" && state[2] != absent && last[2]
				want := !on || !closed && (state[0] != absent && strings.HasSuffix(r.Principal, "/api") && matches ||
					state[1] != absent && strings.HasSuffix(r.Principal, "/db") && matches && state[3] != absent && last[3] && r.Destination.Port() == 80)
				if d := f.plan.Inbound().Authorize(r); d.Allowed != want {
					t.Fatalf("seed %d, states %v, good before %v: %s %s at %d by %q: %+v, want %t", seed, state, last, r.Method, r.Target, r.Destination.Port(), r.Principal, d, want)
				}
				total++
			}
		}
	}
	if total != 30*20*7 {
		t.Errorf("%d requests were decided about", total)
	}
}

// TestAlone_TrafficTargetOfAnotherAccount: a refused one closes only the workloads of its destination, if that can be read.
func TestAlone_TrafficTargetOfAnotherAccount(t *testing.T) {
	for spec, denies := range map[string]bool{
		"{destination: {kind: ServiceAccount, name: web}}":                           true,
		"{destination: {kind: ServiceAccount, name: other}}":                         false,
		"{destination: {kind: ServiceAccount, name: other, name: web}}":              true,
		"{destination: {kind: ServiceAccount, name: [other]}}":                       true,
		"{destination: {kind: ServiceAccount, name: Web}}":                           true,
		"{destination: {kind: IdentityBinding, name: other}}":                        true,
		"{destination: {name: other}}":                                               true,
		"{destination: {kind: ServiceAccount}}":                                      true,
		"{destination: other}":                                                       true,
		"{}":                                                                         true,
		"[]":                                                                         true,
		"{destination: {kind: ServiceAccount, name: other, namespace: ops}}":         false,
		"{destination: {kind: ServiceAccount, name: web, namespace: ops}}":           true,
		"{Destination: {kind: ServiceAccount, name: other}}":                         true,
		"{destination: {kind: ServiceAccount, name: other}, destination: {}}":        true,
		"{destination: {kind: ServiceAccount, name: other}}, destination: {name: a}": true,
		"{destination: {kind: ServiceAccount, name: web}, targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: a}}": true,
	} {
		f := newFeed(t)
		f.workload = ofAccount
		f.yields(object{kind: "TrafficTarget", name: "x", spec: spec})
		if got := !f.asked("/").Allowed; got != denies {
			t.Errorf("%s denies: %t, want %t", spec, got, denies)
		}
		f.yields()
		f.allows("/")
	}
}

// TestAlone_TwoVersionsOfOneTrafficTarget: of two versions of one object, the one that was in force before counts; otherwise nobody is allowed.
func TestAlone_TwoVersionsOfOneTrafficTarget(t *testing.T) {
	sources := func(specs ...object) (all []policy.Source) {
		for i, o := range specs {
			s := o.source()
			s.Name = fmt.Sprint("feed", i)
			all = append(all, s)
		}
		return all
	}
	x, g := targetParts[0], targetParts[2]
	wider := x
	wider.spec = strings.Replace(x.spec, "name: api", "name: evil", 1)
	for _, order := range [][]object{{x, wider, g}, {wider, x, g}} {
		f := newFeed(t)
		f.workload = ofAccount
		f.takes(sources(order...)...)
		f.denies("TrafficTarget shop/x")
		f.takes(sources(x, x, g)...)
		f.takes(sources(order...)...)
		for account, want := range map[string]bool{"api": true, "evil": false} {
			if d := f.asked("/a", "cluster.local/ns/shop/sa/"+account); d.Allowed != want {
				t.Errorf("%s: %+v", account, d)
			}
		}
	}
}

// What an API server dropped from an HTTPRouteGroup may have been what restricted it.
func TestAlone_PrunedHTTPRouteGroup(t *testing.T) {
	f := newFeed(t)
	f.workload = ofAccount
	x, g := targetParts[0], targetParts[2]
	const caller = "cluster.local/ns/shop/sa/api"
	f.yields(x, g)
	if d := f.asked("/a", caller); !d.Allowed {
		t.Fatal(d.Reason)
	}
	g.uid, g.spec = 9, "{matches: [{name: a}]}"
	g.annotations = `kubectl.kubernetes.io/last-applied-configuration: '{"apiVersion":"specs.smi-spec.io/v1alpha4","kind":"HTTPRouteGroup",` +
		`"metadata":{"name":"g","namespace":"shop"},"spec":{"matches":[{"name":"a","pathRegexp":"/a"}]}}'`
	f.yields(x, g)
	f.refused("HTTPRouteGroup shop/g: nothing")
	for _, path := range []string{"/a", "/b"} {
		if f.asked(path, caller).Allowed {
			t.Errorf("%s is allowed", path)
		}
	}
}
