package policy_test

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy"
)

// kinds are the ways in which documents say something about a service, two for each. One of the documents of one service has a timeout, or what else a
// document of its kind may have that changes.
var kinds = []struct {
	name      string
	documents func(i int, timeout string) []byte
	most      int // the bytes that a service may take
	change    int // the bytes that a change may allocate for each document that stays the same; 0 if that is not bounded
}{
	{"VirtualServices", serviceDocuments, 2 << 10, 100},
	{"delegates", delegatingDocuments, 2 << 10, 0},
	{"profiles", profiledDocuments, 2 << 10, 0},
	{"Services", annotatedDocuments, 4 << 10, 0},
	{"HTTPRoutes", routeDocuments("HTTPRoute", "timeouts: {request: %s}"), 4 << 10, 200},
	{"GRPCRoutes", routeDocuments("GRPCRoute", "name: %s"), 4 << 10, 200},
	{"HTTPRoutes of ServiceEntries", entryDocuments, 4 << 10, 200},
	{"Servers", serverDocuments, 2 << 10, 100},
	{"ServerAuthorizations", authorizationDocuments, 4 << 10, 0},
	{"TrafficTargets", targetDocuments, 2 << 10, 100},
	{"Sidecars", sidecarDocuments, 4 << 10, 400},
	{"mixed", mixedDocuments, 4 << 10, 0},
}

// perService returns a file for each of n services: the documents that of makes for the number of a service and a timeout. One
// of the services has the given timeout.
func perService(n int, timeout string, of func(i int, timeout string) []byte) []policy.Source {
	sources := make([]policy.Source, n)
	for i := range sources {
		seconds := "10s"
		if i == n/2 {
			seconds = timeout
		}
		sources[i] = policy.Source{Name: fmt.Sprintf("service-%d.yaml", i), Data: of(i, seconds)}
	}
	return sources
}

// objects returns the documents of sources as an API server has them, each in a source of its own.
func objects(sources []policy.Source) []policy.Source {
	objects := make([]policy.Source, 0, 2*len(sources))
	for i, source := range sources {
		for j, document := range bytes.Split(bytes.TrimPrefix(source.Data, []byte("---\n")), []byte("---\n")) {
			objects = append(objects, policy.Source{Name: fmt.Sprintf("%d/%d", i, j), Data: document, Alone: true})
		}
	}
	return objects
}

// unchanged returns sources with the texts that they share with others in the same memory, as a feed of objects has them.
func unchanged(others, sources []policy.Source) []policy.Source {
	for i := range sources {
		if bytes.Equal(sources[i].Data, others[i].Data) {
			sources[i].Data = others[i].Data
		}
	}
	return sources
}

// delegatingDocuments are a VirtualService that hands its requests to another one, which has the timeout.
func delegatingDocuments(i int, timeout string) []byte {
	return fmt.Appendf(nil, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: service-%[1]d}
spec:
  hosts: [service-%[1]d]
  http:
  - match: [{uri: {prefix: /v1}}]
    delegate: {name: team-%[1]d}
  - route: [{destination: {host: service-%[1]d}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: team-%[1]d}
spec:
  http:
  - match: [{uri: {prefix: /v1/a}}]
    route: [{destination: {host: service-%[1]d, port: {number: 8080}}, weight: 90}, {destination: {host: other-%[1]d}, weight: 10}]
    timeout: %[2]s
  - route: [{destination: {host: service-%[1]d}}]
`, i, timeout)
}

// profiledDocuments are the VirtualService, with a timeout, and the ServiceProfile of a service.
func profiledDocuments(i int, timeout string) []byte {
	return fmt.Appendf(nil, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: service-%[1]d}
spec:
  hosts: [service-%[1]d]
  http:
  - match: [{uri: {prefix: /v2/}}]
    route: [{destination: {host: service-%[1]d}}]
  - route: [{destination: {host: service-%[1]d}}]
    timeout: %[2]s
---
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: service-%[1]d.default.svc.cluster.local}
spec:
  routes:
  - {name: get, condition: {method: GET, pathRegex: "/users/[^/]*"}, isRetryable: true, timeout: 1s}
  - {name: post, condition: {all: [{method: POST}, {not: {pathRegex: /login}}]}, timeout: 2s}
`, i, timeout)
}

// annotatedDocuments are a Service with annotations of Linkerd, and another one or an HTTPRoute of the first.
func annotatedDocuments(i int, timeout string) []byte {
	const service = `---
apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: default
  annotations: {%s}
spec: {ports: [{name: http, port: 80}]}
`
	name := fmt.Sprintf("service-%d", i)
	text := fmt.Appendf(nil, service, name, "retry.linkerd.io/http: 5xx, timeout.linkerd.io/request: "+timeout)
	if i%2 == 1 {
		return fmt.Appendf(text, service, name+"-v2", "timeout.linkerd.io/request: 7s, balancer.linkerd.io/failure-accrual: consecutive")
	}
	return append(text, attachedRoute("HTTPRoute", "default", name, "01", fmt.Sprintf(`{group: "", kind: Service, name: %s, port: 80}`, name),
		fmt.Sprintf("{backendRefs: [{name: %[1]s, port: 80}]}", name))...)
}

// routeDocuments returns a function that makes two routes of the Gateway API, for two services.
func routeDocuments(kind, field string) func(i int, timeout string) []byte {
	return func(i int, timeout string) []byte {
		var text strings.Builder
		for _, name := range []string{fmt.Sprintf("service-%d", i), fmt.Sprintf("service-%d-v2", i)} {
			text.WriteString(attachedRoute(kind, "default", name, "01", fmt.Sprintf(`{group: "", kind: Service, name: %s, port: 80}`, name),
				fmt.Sprintf("{matches: [{headers: [{name: version, value: v2}]}], backendRefs: [{name: %[1]s-v2, port: 80}]}, "+
					"{backendRefs: [{name: %[1]s, port: 80, weight: 90}, {name: %[1]s-v2, port: 80, weight: 10}], %[2]s}", name, fmt.Sprintf(field, timeout))))
		}
		return []byte(text.String())
	}
}

// entryDocuments are a ServiceEntry and an HTTPRoute that is attached to it.
func entryDocuments(i int, timeout string) []byte {
	name := fmt.Sprintf("service-%d", i)
	return append(fmt.Appendf(nil, `---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s, namespace: default}
spec:
  hosts: [%[1]s.example.com]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2}]
`, name), attachedRoute("HTTPRoute", "default", name, "01", fmt.Sprintf(`{group: networking.istio.io, kind: ServiceEntry, name: %s}`, name),
		fmt.Sprintf("{backendRefs: [{name: %[1]s, port: 80}], timeouts: {request: %[2]s}}", name, timeout))...)
}

// serverDocuments are a Server of other workloads and a policy for it.
func serverDocuments(i int, timeout string) []byte {
	return fmt.Appendf(nil, `---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: service-%[1]d, namespace: n%[3]d}
spec:
  podSelector: {matchLabels: {app: service-%[1]d}}
  port: 8080
  proxyProtocol: HTTP/1
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: service-%[1]d, namespace: n%[3]d}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: service-%[1]d}
  requiredAuthenticationRefs: [{kind: ServiceAccount, name: caller-%[2]s}]
`, i, timeout, i%100)
}

// authorizationDocuments are an authentication and a policy that requires it, for the one Server of the workload.
func authorizationDocuments(i int, timeout string) []byte {
	server := ""
	if i == 0 {
		server = `---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: own, namespace: default}
spec:
  podSelector: {matchLabels: {app: order-service}}
  port: 8080
`
	}
	return fmt.Appendf(nil, server+`---
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: {name: service-%[1]d, namespace: default}
spec:
  identities: [web.service-%[1]d.serviceaccount.identity.linkerd.cluster.local, web.service-%[2]s.serviceaccount.identity.linkerd.cluster.local]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: service-%[1]d, namespace: default}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: own}
  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: service-%[1]d}]
`, i, timeout)
}

// targetDocuments are a TrafficTarget and an HTTPRouteGroup.
func targetDocuments(i int, timeout string) []byte {
	return fmt.Appendf(nil, `---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: service-%[1]d, namespace: default}
spec:
  destination: {kind: ServiceAccount, name: service-%[3]d}
  rules: [{kind: HTTPRouteGroup, name: service-%[1]d}]
  sources: [{kind: ServiceAccount, name: caller-%[2]s, namespace: default}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: service-%[1]d, namespace: default}
spec:
  matches: [{name: get, methods: [GET], pathRegex: "/users/[^/]*"}, {name: post, methods: [POST]}]
`, i, timeout, i)
}

// sidecarDocuments are two Sidecars of other workloads.
func sidecarDocuments(i int, timeout string) []byte {
	var text []byte
	for _, name := range []string{"a", "b"} {
		text = fmt.Appendf(text, `---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: service-%[1]d-%[3]s, namespace: default}
spec:
  workloadSelector: {labels: {app: service-%[1]d-%[3]s}}
  egress: [{hosts: ["./*", "istio-system/*", "*/service-%[2]s.example.com"]}]
`, i, timeout, name)
	}
	return text
}

// mixedDocuments are documents of a kind that differs from service to service.
func mixedDocuments(i int, timeout string) []byte {
	of := []func(int, string) []byte{serviceDocuments, delegatingDocuments, profiledDocuments, routeDocuments("HTTPRoute", "timeouts: {request: %s}"),
		routeDocuments("GRPCRoute", "name: %s"), entryDocuments, serverDocuments, targetDocuments}
	return of[i%len(of)](i, timeout)
}

// BenchmarkReload changes one of 10,000 documents, in files and as objects that stand alone.
func BenchmarkReload(b *testing.B) {
	for _, kind := range kinds {
		for _, form := range []string{"files", "alone"} {
			b.Run(kind.name+"/"+form, func(b *testing.B) {
				n := 5000
				if kind.name == "Sidecars" {
					n = 500
				}
				benchmarkReload(b, n, form == "alone", kind.documents)
			})
		}
	}
}

// benchmarkReload changes a document of one of n services.
func benchmarkReload(b *testing.B, n int, alone bool, documents func(i int, timeout string) []byte) {
	sets := [][]policy.Source{perService(n, "1s", documents), perService(n, "2s", documents)}
	if alone {
		sets[0] = objects(sets[0])
		sets[1] = unchanged(sets[0], objects(sets[1]))
	}
	plan, findings := policy.Compile(sets[1], workload)
	if plan == nil {
		b.Fatal(findings)
	}
	b.ReportAllocs()
	began, i := processorTime(), 0
	for b.Loop() {
		if plan, findings = policy.Recompile(plan, sets[i%2], workload); plan == nil {
			b.Fatal(findings)
		}
		i++
	}
	b.ReportMetric(float64((processorTime()-began).Microseconds())/1000/float64(i), "cpu-ms/op")
}

// processorTime returns the time for which processors have run for this process.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
