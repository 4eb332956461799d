package policy_test

import (
	"math/rand/v2"
	"testing"

	"github.com/nosidecar/mesh/policy"
)

// TestAlone_NobodyElseIsEverAuthorized: whatever comes, breaks, is mended and goes, in one feed or in two that differ for a while, nobody but web
// is authorized as long as there is a version of the document that protects the workload, however broken.
func TestAlone_NobodyElseIsEverAuthorized(t *testing.T) {
	const mtls, network, linkerd = "MeshTLSAuthentication of policy.linkerd.io/v1alpha1", "NetworkAuthentication of policy.linkerd.io/v1alpha1", "AuthorizationPolicy of policy.linkerd.io/v1alpha1"
	const web = "sources: [{kind: ServiceAccount, name: web, namespace: shop}]"
	type changing struct {
		kind     string
		versions []string // the last one is broken
	}
	for name, documents := range map[string][]changing{ // the first of them protects
		"Linkerd": {
			{"Server", []string{"{podSelector: {matchLabels: {app: web}}, port: 80}", "{podSelector: {}, port: 80, proxyProtocol: HTTP/1}", "{podSelector: {}, port: http}", "{podSelector: {matchLabels: {app: other}}, externalWorkloadSelector: {matchLabels: {app: web}}, port: 80}"}},
			{"ServerAuthorization", []string{"{server: {name: x}, client: {meshTLS: {serviceAccounts: [{name: web}]}}}", "{server: {selector: {}}, client: {meshTLS: {identities: ['spiffe://cluster.local/ns/shop/sa/web']}}}",
				"{server: {name: x}, client: {unauthenticated: true, networks: [{cidr: 192.168.0.0/16}]}}", "{server: {name: x}, client: {unauthenticated: true, networks: []}}"}},
			{linkerd, []string{"{targetRef: {group: policy.linkerd.io, kind: Server, name: x}, requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: x}]}",
				"{targetRef: {kind: Namespace, name: shop}, requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: NetworkAuthentication, name: x}]}", "{targetRef: {kind: Namespace, name: shop}, requiredAuthenticationRefs: [{kind: x}]}"}},
			{mtls, []string{"{identityRefs: [{kind: ServiceAccount, name: web}]}", "{identities: [web.shop.serviceaccount.identity.linkerd.cluster.local]}", "{}"}},
			{network, []string{"{networks: [{cidr: 10.0.0.0/8, except: [10.0.0.0/24]}]}", "{networks: [{cidr: '::/0'}]}", "{networks: [{cidr: 0.0.0.0/0, except: [x]}]}"}},
		},
		"SMI": {
			{"TrafficTarget", []string{"{destination: {kind: ServiceAccount, name: pay}, rules: [{kind: HTTPRouteGroup, name: x}], " + web + "}", "{destination: {kind: ServiceAccount, name: pay}, rules: [{kind: TCPRoute, name: x}], " + web + "}",
				"{destination: {kind: ServiceAccount, name: pay}, rules: [], targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: x}, " + web + "}"}},
			{"HTTPRouteGroup", []string{"{matches: [{name: a, pathRegex: /}]}", "{matches: [{name: b, methods: [GET]}]}", "{matches: [{name: a, pathRegex: '('}]}"}},
			{"TCPRoute of specs.smi-spec.io/v1alpha4", []string{"{matches: {ports: []}}", "{matches: {ports: [80]}}", "{}"}},
		},
	} {
		r := rand.New(rand.NewPCG(1, 2))
		f := newFeed(t)
		f.workload.ServiceAccount = "pay"
		state := make([][2]int, len(documents)) // of each document in each feed: 0 if it is gone, otherwise 1 + the version
		allowed := 0
		for step := range 500 {
			state[r.IntN(len(state))][r.IntN(2)] = r.IntN(5)
			if r.IntN(50) == 0 {
				f.plan = nil // as after a restart
			}
			var sources []policy.Source
			for feed := range 2 {
				for i, d := range documents {
					if v := state[i][feed]; v > 0 {
						source := object{kind: d.kind, name: "x", uid: 7, created: 1, spec: d.versions[min(v, len(d.versions))-1]}.source()
						source.Name += string(rune('a' + feed))
						sources = append(sources, source)
					}
				}
			}
			r.Shuffle(len(sources), func(i, j int) { sources[i], sources[j] = sources[j], sources[i] })
			f.takes(sources...)
			if f.asked("/", "cluster.local/ns/shop/sa/web").Allowed {
				allowed++
			}
			if state[0] == [2]int{} {
				continue
			}
			for _, other := range [][]string{nil, {"cluster.local/ns/shop/sa/other"}, {"other.local/ns/shop/sa/web"}} {
				if d := f.asked("/", other...); d.Allowed {
					t.Fatalf("%s, step %d: %v is allowed (%s) with %v\n%v", name, step, other, d.Reason, state, f.findings)
				}
			}
		}
		if allowed < 50 {
			t.Errorf("%s: web was allowed only %d times", name, allowed)
		}
	}
}
