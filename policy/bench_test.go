package policy_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// documents returns n documents, half of them VirtualServices and half DestinationRules, of the size people write.
func documents(n int) []policy.Source {
	var b bytes.Buffer
	for i := range n / 2 {
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: service-%[1]d
spec:
  hosts:
  - service-%[1]d
  http:
  - match:
    - headers:
        version:
          exact: v2
    route:
    - destination:
        host: service-%[1]d
        subset: v2
  - route:
    - destination:
        host: service-%[1]d
        subset: v1
      weight: 90
    - destination:
        host: service-%[1]d
        subset: v2
      weight: 10
    timeout: 10s
    retries:
      attempts: 3
      perTryTimeout: 2s
      retryOn: 5xx,reset,connect-failure
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: service-%[1]d
spec:
  host: service-%[1]d
  trafficPolicy:
    loadBalancer:
      simple: LEAST_REQUEST
    connectionPool:
      tcp:
        maxConnections: 100
      http:
        http1MaxPendingRequests: 10
    outlierDetection:
      consecutive5xxErrors: 5
      interval: 30s
      baseEjectionTime: 30s
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
    trafficPolicy:
      loadBalancer:
        simple: ROUND_ROBIN
`, i)
	}
	return []policy.Source{{Name: "many.yaml", Data: b.Bytes()}}
}

func BenchmarkCompile(b *testing.B) {
	sources := documents(1000)
	b.ReportAllocs()
	for b.Loop() {
		if plan, findings := policy.Compile(sources, workload); plan == nil || len(findings) > 0 {
			b.Fatal(findings)
		}
	}
}

func BenchmarkHost(b *testing.B) {
	plan, _ := policy.Compile(documents(1000), workload)
	b.ReportAllocs()
	for b.Loop() {
		if plan.Host("service-42.default.svc:8080").Routes == nil {
			b.Fatal("no routes")
		}
	}
}

func BenchmarkCluster(b *testing.B) {
	plan, _ := policy.Compile(documents(1000), workload)
	target := route.Target{Host: "service-42.default.svc.cluster.local", Subset: "v2", Port: 8080}
	b.ReportAllocs()
	for b.Loop() {
		if plan.Cluster(target).Missing {
			b.Fatal("no subset")
		}
	}
}
