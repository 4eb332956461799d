package mesh_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
)

// benchDocuments turn on what a careful operator asks for, with room for a per-try timeout and one for the whole call. The
// first route is there to be looked at and passed over.
const benchDocuments = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: user-service}
spec:
  hosts: [user-service]
  http:
  - name: admin
    match:
    - uri: {prefix: /admin}
      headers: {x-role: {exact: operator}}
    route:
    - destination: {host: user-service}
  - name: users
    match:
    - uri: {prefix: /users}
    route:
    - destination: {host: user-service}
    retries: {attempts: 2, retryOn: "connect-failure,refused-stream,503"%s}
    %s
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: user-service}
spec:
  host: user-service
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    outlierDetection: {consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s}
    connectionPool:
      http: {http1MaxPendingRequests: 1024, http2MaxRequests: 4096, maxRetries: 64}
`

// noopTransport answers every request at once. The response has a body, since its end is the end of the call.
type noopTransport struct{}

func (noopTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: noopHeader, Body: noopBody{}, ContentLength: -1, Request: req,
	}, nil
}

var noopHeader = http.Header{"Content-Type": {"application/json"}}

type noopBody struct{}

func (noopBody) Read([]byte) (int, error) { return 0, io.EOF }
func (noopBody) Close() error             { return nil }

// benchSide is one way to call the noopTransport.
type benchSide struct {
	name   string
	allocs float64 // of a call, at most, beyond the bare noopTransport
	rt     http.RoundTripper
}

// benchSides are the bare noopTransport and the mesh around it, with more and more turned on.
func benchSides(tb testing.TB) []benchSide {
	plan, timeout := fmt.Sprintf(benchDocuments, "", ""), fmt.Sprintf(benchDocuments, "", "timeout: 5s")
	timeouts := fmt.Sprintf(benchDocuments, ", perTryTimeout: 2s", "timeout: 5s")
	circuit := mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{}})
	calls := mesh.WithObserver(mesh.Observer{
		CallStart: func(ctx context.Context, _ *mesh.Call) context.Context { return ctx },
		CallEnd:   func(context.Context, *mesh.Call) {},
	})
	traceparent := []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
	tries := mesh.WithObserver(mesh.Observer{
		AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			a.Sent.SetHeader("Traceparent", string(traceparent)) // as a tracer does for a call that is not sampled
			return ctx
		},
		AttemptEnd: func(context.Context, *mesh.Attempt) {},
	})
	return []benchSide{
		{"bare", 0, noopTransport{}},
		{"plan", 1, noopMesh(tb, plan)},
		{"plan+circuit", 1, noopMesh(tb, plan, circuit)},
		{"plan+circuit+calls observed", 1, noopMesh(tb, plan, circuit, calls)},
		{"plan+circuit+calls and tries observed", 4, noopMesh(tb, plan, circuit, calls, tries)},
		{"plan+circuit+timeout of the route", 3, noopMesh(tb, timeout, circuit)},
		{"plan+circuit+timeouts", 3, noopMesh(tb, timeouts, circuit)},
	}
}

// noopMesh returns a mesh that knows three endpoints, all of which are the noopTransport.
func noopMesh(tb testing.TB, documents string, opts ...mesh.Option) http.RoundTripper {
	var registry discovery.Memory
	registry.Set("user-service",
		discovery.Endpoint{Address: "10.0.0.1", Port: 8080},
		discovery.Endpoint{Address: "10.0.0.2", Port: 8080},
		discovery.Endpoint{Address: "10.0.0.3", Port: 8080})
	m := newMesh(tb, documents, append(opts, mesh.WithDiscovery(&registry))...)
	mesh.ReplaceConnections(m, noopTransport{})
	return m.Transport()
}

// noopCall makes one call and reads the response to its end.
func noopCall(tb testing.TB, rt http.RoundTripper, req *http.Request, buf []byte) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := resp.Body.Read(buf); err != io.EOF {
		tb.Fatal(err)
	}
	resp.Body.Close()
}

func noopRequest(tb testing.TB) *http.Request {
	req, err := http.NewRequest(http.MethodGet, "http://user-service/users/42", nil)
	if err != nil {
		tb.Fatal(err)
	}
	req.Header["User-Agent"] = []string{"bench"}
	req.Header["Accept"] = []string{"application/json"}
	return req
}

// BenchmarkMesh shows what the whole mesh adds to a call.
func BenchmarkMesh(b *testing.B) {
	for _, side := range benchSides(b) {
		b.Run(side.name, func(b *testing.B) {
			req, buf := noopRequest(b), make([]byte, 512)
			b.ReportAllocs()
			for b.Loop() {
				noopCall(b, side.rt, req, buf)
			}
		})
	}
}

// BenchmarkMeshParallel shows how much callers on several processors slow each other down.
func BenchmarkMeshParallel(b *testing.B) {
	for _, side := range benchSides(b) {
		b.Run(side.name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				req, buf := noopRequest(b), make([]byte, 512)
				for pb.Next() {
					noopCall(b, side.rt, req, buf)
				}
			})
		})
	}
}

func TestAllocations(t *testing.T) {
	noLeaks(t)
	var bare float64
	for _, side := range benchSides(t) {
		req, buf := noopRequest(t), make([]byte, 512)
		got := testing.AllocsPerRun(1000, func() { noopCall(t, side.rt, req, buf) })
		if side.name == "bare" {
			bare = got
		}
		if got -= bare; got > side.allocs {
			t.Errorf("%s: %v allocations a call beyond the bare transport, want at most %v", side.name, got, side.allocs)
		}
	}
}
