package policy_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// ofAccount is a process of the service account web in the namespace shop.
var ofAccount = policy.Workload{Namespace: "shop", ServiceAccount: "web"}

const targetsFile = `
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: pages, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: web, namespace: shop}
  rules: [{kind: HTTPRouteGroup, name: pages, matches: [read, admin]}]
  sources: [{kind: ServiceAccount, name: api, namespace: shop}, {kind: ServiceAccount, name: robot, namespace: ops}]
---
apiVersion: access.smi-spec.io/v1alpha2
kind: TrafficTarget
metadata: {name: all, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: web, port: 8080}
  rules: [{kind: HTTPRouteGroup, name: early}]
  sources: [{kind: ServiceAccount, name: old, namespace: shop}]
---
apiVersion: access.smi-spec.io/v1alpha1
kind: TrafficTarget
metadata: {name: tcp, namespace: shop}
destination: {kind: ServiceAccount, name: web, port: 9090}
specs: [{kind: TCPRoute, name: plain}]
sources: [{kind: ServiceAccount, name: db, namespace: shop}]
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: ports, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: web}
  rules: [{kind: TCPRoute, name: ports}, {kind: HTTPRouteGroup, name: early}]
  sources: [{kind: ServiceAccount, name: both, namespace: shop}]
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: others, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: other}
  rules: [{kind: TCPRoute, name: plain}]
  sources: [{kind: ServiceAccount, name: stranger, namespace: shop}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: pages, namespace: shop}
spec:
  matches:
  - {name: read, pathRegex: "/pages/.*", methods: [GET, HEAD]}
  - {name: admin, pathRegex: "/admin", headers: {x-role: "ro.*"}}
  - {name: secret, pathRegex: "/secret"}
---
apiVersion: specs.smi-spec.io/v1alpha2
kind: HTTPRouteGroup
metadata: {name: early, namespace: shop}
matches:
- {name: all, methods: ["*"]}
---
apiVersion: specs.smi-spec.io/v1alpha1
kind: TCPRoute
metadata: {name: plain, namespace: shop}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {name: ports, namespace: shop}
spec: {matches: {ports: [8080, 9090]}}
`

// targetsOf compiles documents of files.
func targetsOf(t *testing.T, w policy.Workload, documents string) *policy.Inbound {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "targets.yaml", Data: []byte(documents)}}, w)
	if plan == nil {
		t.Fatal(findings)
	}
	return plan.Inbound()
}

// from returns a request. The identity is written as NAMESPACE/ACCOUNT, and "tcp" is the method of a raw connection.
func requestFrom(account, method, target string, port uint16, header ...string) *authz.Request {
	r := &authz.Request{Method: method, Target: target, Host: "web", Header: http.Header{}, L4: method == "tcp",
		Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port)}
	if namespace, name, ok := strings.Cut(account, "/"); ok {
		r.Principal = "cluster.local/ns/" + namespace + "/sa/" + name
	} else {
		r.Principal = account
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func TestTrafficTargets(t *testing.T) {
	in := targetsOf(t, ofAccount, targetsFile)
	if !in.Authorizes() {
		t.Error("it does not authorize")
	}
	for _, test := range []struct {
		name string
		r    *authz.Request
		by   string // the document that allows it
	}{
		{"a match", requestFrom("shop/api", "GET", "/pages/1", 80), "pages"},
		{"another source", requestFrom("ops/robot", "HEAD", "/pages/1", 80), "pages"},
		{"another namespace", requestFrom("ops/api", "GET", "/pages/1", 80), ""},
		{"another service account", requestFrom("shop/robot", "GET", "/pages/1", 80), ""},
		{"another trust domain", requestFrom("td/ns/shop/sa/api", "GET", "/pages/1", 80), ""},
		{"more than the identity", requestFrom("cluster.local/ns/shop/sa/api/x", "GET", "/pages/1", 80), ""},
		{"no identity", requestFrom("", "GET", "/pages/1", 80), ""},
		{"another method", requestFrom("shop/api", "POST", "/pages/1", 80), ""},
		{"another path", requestFrom("shop/api", "GET", "/other", 80), ""},
		{"the start of a path only", requestFrom("shop/api", "GET", "/x/pages/1", 80), ""},
		{"a match that is not named", requestFrom("shop/api", "GET", "/secret", 80), ""},
		{"a header", requestFrom("shop/api", "PUT", "/admin/x", 80, "x-role", "root"), "pages"},
		{"without the header", requestFrom("shop/api", "PUT", "/admin/x", 80), ""},
		{"a part of the header", requestFrom("shop/api", "PUT", "/admin/x", 80, "x-role", "not root"), ""},
		{"two headers", requestFrom("shop/api", "PUT", "/admin/x", 80, "x-role", "root", "x-role", "user"), ""},
		{"dots", requestFrom("shop/api", "GET", "/pages/../secret", 80), ""},
		{"escaped dots", requestFrom("shop/api", "GET", "/pages/%2e%2e/secret", 80), ""},
		{"escaped slashes", requestFrom("shop/api", "GET", "/pages/..%2Fsecret", 80), ""},
		{"backslashes", requestFrom("shop/api", "GET", `/pages/..\secret`, 80), ""},
		{"parameters", requestFrom("shop/api", "GET", "/pages;/../secret", 80), ""},
		{"malformed", requestFrom("shop/api", "GET", "/pages/%", 80), ""},
		{"a raw connection", requestFrom("shop/api", "tcp", "", 80), ""},
		{"the port", requestFrom("shop/old", "PATCH", "/any", 8080), "all"},
		{"another port", requestFrom("shop/old", "PATCH", "/any", 80), ""},
		{"an unknown port", requestFrom("shop/old", "PATCH", "/any", 0), ""},
		{"a raw connection, if matches are of HTTP", requestFrom("shop/old", "tcp", "", 8080), ""},
		{"a raw connection", requestFrom("shop/db", "tcp", "", 9090), "tcp"},
		{"a raw connection to another port", requestFrom("shop/db", "tcp", "", 8080), ""},
		{"a request, if all traffic is allowed", requestFrom("shop/db", "POST", "/", 9090), "tcp"},
		{"a port of the TCPRoute", requestFrom("shop/both", "GET", "/", 9090), "ports"},
		{"another port than those of the TCPRoute", requestFrom("shop/both", "GET", "/", 80), ""},
		{"a raw connection to a port of requests", requestFrom("shop/both", "tcp", "", 8080), ""},
		{"a source of another destination", requestFrom("shop/stranger", "GET", "/", 80), ""},
	} {
		d, want := in.Authorize(test.r), test.by
		if want != "" {
			want = "TrafficTarget shop/" + want
		}
		if d.Allowed != (want != "") || d.Policy != want {
			t.Errorf("%s: allowed %t by %q (%s), want by %q", test.name, d.Allowed, d.Policy, d.Reason, want)
		}
	}
	for name, w := range map[string]policy.Workload{
		"another service account":   {Namespace: "shop", ServiceAccount: "third"},
		"that of another namespace": {Namespace: "ops", ServiceAccount: "web"},
	} {
		if d := targetsOf(t, w, targetsFile).Authorize(requestFrom("", "GET", "/", 80)); !d.Allowed {
			t.Errorf("%s: no TrafficTarget is about the workload, and a request is denied: %s", name, d.Reason)
		}
	}
}

// A request must be allowed by AuthorizationPolicies, too.
func TestTrafficTargetsBesideAuthorizationPolicies(t *testing.T) {
	const policies = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec: {rules: [{to: [{operation: {paths: [/pages/1, /other]}}]}]}
`
	in := targetsOf(t, ofAccount, targetsFile+policies)
	for path, want := range map[string]bool{"/pages/1": true, "/pages/2": false, "/other": false} {
		if d := in.Authorize(requestFrom("shop/api", "GET", path, 80)); d.Allowed != want {
			t.Errorf("%s: %+v", path, d)
		}
	}
}

// While the service account is not known, a TrafficTarget of the namespace closes the workload, and says what to set.
func TestTrafficTargetsForAnUnknownAccount(t *testing.T) {
	for _, test := range []struct {
		w      policy.Workload
		denies bool
	}{
		{policy.Workload{Namespace: "shop"}, true},
		{policy.Workload{Namespace: "ops"}, false},
		{ofAccount, false},
	} {
		_, rest, _ := strings.Cut(targetsFile, "---\n")
		plan, findings := policy.Compile([]policy.Source{{Name: "targets.yaml", Data: []byte(rest)}}, test.w)
		if plan == nil {
			t.Fatal(findings)
		}
		if said := strings.Contains(findings.Error(), "set ServiceAccount in mesh.WithWorkload, or the variable SERVICE_ACCOUNT"); said != test.denies {
			t.Errorf("%+v: the findings are %v", test.w, findings)
		}
		d := plan.Inbound().Authorize(requestFrom("shop/old", "GET", "/", 8080))
		if d.Allowed == test.denies || !plan.Inbound().Authorizes() && test.denies {
			t.Errorf("%+v: %+v", test.w, d)
		}
		if test.denies && !strings.Contains(d.Reason, "the service account of the process is not known, so TrafficTarget shop/all may be about it") {
			t.Errorf("the reason is %q", d.Reason)
		}
	}
	_, findings := policy.Compile(nil, policy.Workload{ServiceAccount: "shop/web"})
	if !strings.Contains(findings.Error(), `"shop/web" is not the name of a service account`) {
		t.Errorf("the findings are %v", findings)
	}
}
