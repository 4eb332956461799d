package policy_test

import (
	"net/netip"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// linkerdRoutes has a Server and two routes, of which the second one has a policy for everybody.
func linkerdRoutes(access, first, second string) string {
	to := "spec: {parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}], rules: [{matches: "
	return `---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web, namespace: shop}
spec: {podSelector: {}, port: 80, accessPolicy: ` + access + `}
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: first, namespace: shop}
` + to + first + `}]}
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: second, namespace: shop}
` + to + second + `}]}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: second, namespace: shop}
spec: {targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: second}, requiredAuthenticationRefs: []}
`
}

func askRoutes(t *testing.T, text, target string) authz.Decision {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "x.yaml", Data: []byte(text)}}, policy.Workload{Namespace: "shop"})
	if plan == nil {
		t.Fatal(findings)
	}
	return plan.Inbound().Authorize(&authz.Request{Method: "GET", Target: target, Host: "web", Destination: netip.MustParseAddrPort("10.0.0.1:80")})
}

// What a policy of the route authorizes is not marked.
func TestRoutes_Audit(t *testing.T) {
	text := linkerdRoutes("audit", "[{path: {value: /first}}]", "[{path: {value: /second}}]")
	const server = "shop/web (accessPolicy audit)"
	for target, want := range map[string][2]string{
		"/first":              {server, server},
		"/second":             {"shop/second", ""},
		"/second/../first":    {server, server},
		"/x/../second":        {"shop/second", ""},
		"/other":              {"", ""},
		"/second/..%2Fsecond": {"shop/second", ""},
	} {
		d := askRoutes(t, text, target)
		if got := [2]string{d.Policy, d.Audit.Policy}; got != want || d.Allowed == d.NotFound {
			t.Errorf("%s: by %q, %+v, want %q", target, got, d, want)
		}
	}
}

// However a star at the end of a path is spelt, a broader route does not take the request.
func TestRoutes_StarInPath(t *testing.T) {
	for _, path := range []string{"/a*", "/a%20b*"} {
		text := linkerdRoutes("deny", "[{path: {type: Exact, value: '"+path+"'}}]", "[{path: {value: /}}]")
		for _, target := range []string{path, path[:len(path)-1] + "%2A", path[:len(path)-1] + "%2a"} {
			if d := askRoutes(t, text, target); d.Allowed {
				t.Errorf("%s is allowed by %s, but belongs to the route for %s", target, d.Policy, path)
			}
		}
	}
	text := linkerdRoutes("deny", "[{path: {value: /x}}]", "[{path: {type: Exact, value: '/a*'}}]")
	for _, target := range []string{"/a*", "/a%2A"} {
		if d := askRoutes(t, text, target); !d.Allowed {
			t.Errorf("%s: %s", target, d.Reason)
		}
	}
}
