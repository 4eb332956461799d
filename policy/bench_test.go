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
		b.Write(serviceDocuments(i, "10s"))
	}
	return []policy.Source{{Name: "many.yaml", Data: b.Bytes()}}
}

// serviceDocuments returns the two documents of a service.
func serviceDocuments(i int, timeout string) []byte {
	return fmt.Appendf(nil, `---
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
    timeout: %[2]s
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
`, i, timeout)
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

// BenchmarkCompile_Combined compiles services that four kinds of documents speak of.
func BenchmarkCompile_Combined(b *testing.B) {
	var text bytes.Buffer
	for i := range 250 {
		text.Write(profiledDocuments(i, "10s"))
		fmt.Fprintf(&text, `---
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: service-%[1]d}
spec:
  service: service-%[1]d
  backends: [{service: service-%[1]d-v1, weight: 90}, {service: service-%[1]d-v2, weight: 10}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: service-%[1]d}
spec:
  hosts: [service-%[1]d.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.0.0.1, labels: {version: v1}}, {address: 10.0.0.2}]
`, i)
	}
	sources := []policy.Source{{Name: "many.yaml", Data: text.Bytes()}}
	b.ReportAllocs()
	for b.Loop() {
		if plan, findings := policy.Compile(sources, workload); plan == nil || len(findings) > 0 {
			b.Fatal(findings)
		}
	}
}

// security returns n documents, half of them PeerAuthentications and half AuthorizationPolicies, of which every fourth is
// about the workload.
func security(n int) []policy.Source {
	var b bytes.Buffer
	for i := range n / 2 {
		app := fmt.Sprintf("service-%d", i)
		if i%4 == 0 {
			app = "order-service"
		}
		fmt.Fprintf(&b, `---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  namespace: default
  name: service-%[1]d
spec:
  selector:
    matchLabels:
      app: service-%[1]d
  mtls:
    mode: STRICT
  portLevelMtls:
    8080:
      mode: PERMISSIVE
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  namespace: default
  name: service-%[1]d
spec:
  selector:
    matchLabels:
      app: %[2]s
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/caller-%[1]d", "cluster.local/ns/ops/sa/admin"]
    to:
    - operation:
        methods: ["GET", "POST"]
        paths: ["/api/%[1]d/*", "/users/{*}/orders"]
  - from:
    - source:
        namespaces: ["monitoring"]
    to:
    - operation:
        paths: ["/metrics"]
    when:
    - key: request.headers[x-team]
      values: ["sre"]
`, i, app)
	}
	return []policy.Source{{Name: "security.yaml", Data: b.Bytes()}}
}

// BenchmarkCompile_Security compiles as many documents as BenchmarkCompile, all of them about who may call whom.
func BenchmarkCompile_Security(b *testing.B) {
	sources := security(1000)
	b.ReportAllocs()
	for b.Loop() {
		if plan, findings := policy.Compile(sources, workload); plan == nil || len(findings) > 0 {
			b.Fatal(findings)
		}
	}
}

// BenchmarkCompile_Mixed compiles documents of four kinds.
func BenchmarkCompile_Mixed(b *testing.B) {
	sources := append(documents(500), security(500)...)
	b.ReportAllocs()
	for b.Loop() {
		if plan, findings := policy.Compile(sources, workload); plan == nil || len(findings) > 0 {
			b.Fatal(findings)
		}
	}
}

// BenchmarkAuthorize asks 125 policies, of which the last allows.
func BenchmarkAuthorize(b *testing.B) {
	plan, _ := policy.Compile(security(1000), workload)
	in := plan.Inbound()
	view := request{principal: "cluster.local/ns/default/sa/caller-496", port: 80, path: "/api/496/a"}.view()
	b.ReportAllocs()
	for b.Loop() {
		if d := in.Authorize(view); !d.Allowed || d.Policy != "default/service-496" {
			b.Fatal(d)
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
