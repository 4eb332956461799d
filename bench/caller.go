package bench

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
)

// Caller is a way to call a Server.
type Caller struct {
	Name   string
	Client *http.Client
	URLs   []string // what is called, in turn
	Close  func()
}

// documents turn on what a careful operator asks for. The first route is there to be looked at and passed over.
const documents = `
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

// routed returns the documents, with timeouts or without.
func routed(timeouts bool) string {
	var perTry, whole string
	if timeouts {
		perTry, whole = fmt.Sprintf(", perTryTimeout: %v", perTryTimeout), fmt.Sprintf("timeout: %v", callTimeout)
	}
	return fmt.Sprintf(documents, perTry, whole)
}

// NewMesh returns a mesh that knows the endpoints of s, with all its layers at work. Timeouts are an option: they are what
// costs most.
func NewMesh(s *Server, timeouts bool) (*mesh.Mesh, error) {
	known := make([]discovery.Endpoint, len(s.addresses))
	for i, address := range s.addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		known[i].Address = host
		if known[i].Port, err = strconv.Atoi(port); err != nil {
			return nil, err
		}
	}
	var registry discovery.Memory
	registry.Set("user-service", known...)
	return mesh.New(context.Background(),
		mesh.WithPolicy(policy.Source{Name: "bench.yaml", Data: []byte(routed(timeouts))}),
		mesh.WithDiscovery(&registry),
		mesh.WithTransport(s.Transport()),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{}}),
	)
}

// OneConnection is the name of the bare transport that has one connection, to one instance, for all calls.
const OneConnection = "bare, one connection"

// Callers returns every way to call s that is compared: first the bare transport, then, without timeouts and with them,
// the bare transport, failsafe-go and the mesh. "bare, timeouts" has http.Client.Timeout, as one of the meshes without timeouts of
// its own has. The caller closes them.
//
// A transport without a mesh has a connection for each call in flight with HTTP/1.1, which go to all instances. With HTTP/2 it would
// have a single connection for all calls. Then one system call carries the frames of many, but nothing is balanced, so here such a
// transport calls the instances in turn, and has as many connections as a mesh. [OneConnection] shows the difference.
func Callers(s *Server) ([]Caller, error) {
	var callers []Caller
	one := []string{s.URL()}
	spread := one
	if s.protocol == HTTP2 {
		spread = s.Instances()
	}
	for _, timeouts := range []bool{false, true} {
		bare, failsafe, suffix := &http.Client{}, Failsafe, ""
		if timeouts {
			bare.Timeout, failsafe, suffix = callTimeout, FailsafeTimeout, ", timeouts"
		}
		t := s.Spread()
		bare.Transport = t
		callers = append(callers, Caller{"bare" + suffix, bare, spread, t.CloseIdleConnections})

		t = s.Spread()
		client := &http.Client{Transport: failsafe.Wrap(t)}
		callers = append(callers, Caller{"failsafe-go" + suffix, client, spread, t.CloseIdleConnections})

		m, err := NewMesh(s, timeouts)
		if err != nil {
			for _, c := range callers {
				c.Close()
			}
			return nil, err
		}
		callers = append(callers, Caller{"whole mesh" + suffix, m.Client(), one, func() { m.Close() }})
		if !timeouts {
			client := m.Client()
			client.Timeout = callTimeout
			callers = append(callers, Caller{"whole mesh, http.Client.Timeout", client, one, func() {}})
		}
	}
	if s.protocol == HTTP2 {
		t := s.Spread()
		callers = append(callers, Caller{OneConnection, &http.Client{Transport: t}, one, t.CloseIdleConnections})
	}
	return callers, nil
}
