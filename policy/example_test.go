package policy_test

import (
	"fmt"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/route"
)

func ExampleCompile() {
	documents := policy.Source{Name: "user-service.yaml", Data: []byte(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: user-service
spec:
  hosts: [user-service]
  http:
  - route:
    - destination: {host: user-service, subset: v1}
    timeout: 10s
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: "5xx,reset"}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: user-service
spec:
  host: user-service
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 7, maxEjectionPercent: 50}
  subsets:
  - name: v1
    labels: {version: v1}
`)}
	plan, findings := policy.Compile([]policy.Source{documents}, policy.Workload{})
	if err := findings.Err(); err != nil {
		fmt.Println(err)
		return
	}
	host := plan.Host("user-service:8080")
	routed := host.Routes.Rule(0).Route
	cluster := plan.Cluster(routed.Destinations[0].Target)
	fmt.Println(host.Service.Host)
	fmt.Println(routed.Timeout, routed.Retry.Retries, routed.Retry.On)
	fmt.Println(cluster.Subset["version"], cluster.Outlier.Consecutive5xx)
	fmt.Println(plan.Cluster(route.Target{Host: "order-service", Subset: "v9"}).Missing)
	// Output:
	// user-service.default.svc.cluster.local
	// 10s 3 5xx,reset
	// v1 7
	// true
}

func ExampleInbound_Authorize() {
	documents := policy.Source{Name: "payment-service.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
spec:
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: payment-service
spec:
  selector:
    matchLabels: {app: payment-service}
  rules:
  - from:
    - source: {principals: [cluster.local/ns/default/sa/order-service]}
    to:
    - operation: {methods: [POST], paths: [/v1/charge]}
`)}
	plan, findings := policy.Compile([]policy.Source{documents}, policy.Workload{Labels: map[string]string{"app": "payment-service"}})
	if err := findings.Err(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(plan.Inbound().Mode(8080))
	for _, principal := range []string{"cluster.local/ns/default/sa/order-service", "cluster.local/ns/default/sa/web", ""} {
		d := plan.Inbound().Authorize(&authz.Request{Principal: principal, Method: "POST", Target: "/v1/charge"})
		fmt.Println(d.Allowed, d.Policy, d.Reason)
	}
	// Output:
	// STRICT
	// true default/payment-service matched an ALLOW policy
	// false  no ALLOW policy matched
	// false  PeerAuthentication STRICT: the peer has no identity
}

func ExampleCompile_findings() {
	documents := policy.Source{Name: "user-service.yaml", Data: []byte(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: user-service
spec:
  hosts: [user-service]
  http:
  - route:
    - destination: {host: user-service}
    retries: {attempts: 3, perTryTimout: 2s}
    timeout: 0s
`)}
	_, findings := policy.Compile([]policy.Source{documents}, policy.Workload{})
	for _, finding := range findings {
		fmt.Println(finding)
	}
	// Output:
	// user-service.yaml:11: VirtualService default/user-service: spec.http[0].retries.perTryTimout: error: unknown field "perTryTimout", did you mean "perTryTimeout"?
}
