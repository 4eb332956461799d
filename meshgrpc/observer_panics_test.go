package meshgrpc_test

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	routes "github.com/nosidecar/mesh/policy/route"
)

// observedEcho has a service of one endpoint, which is ejected at its first failure. Calls to it are retried.
const observedEcho = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo}
spec:
  hosts: [echo.test]
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  endpoints: [{address: %[1]s, ports: {grpc: %[2]d}}, {address: %[1]s, ports: {grpc: %[2]d}, labels: {version: two}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo.test]
  http: [{retries: {attempts: 1, retryOn: unavailable}, route: [{destination: {host: echo.test}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo.test
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 1, interval: 1h, baseEjectionTime: 1h, maxEjectionPercent: 100}}
`

// A panic of an observer passes through the call on whose goroutine it happens, and leaves nothing in flight.
func TestPanicsOfObserversLeaveNothingBehind(t *testing.T) {
	leak.Check(t)
	down := serve(t, &grpctest.Service{Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
		return nil, status.Error(codes.Unavailable, "down")
	}})
	for hook, observer := range map[string]mesh.Observer{
		"CallStart":    {CallStart: func(context.Context, *mesh.Call) context.Context { panic("observer") }},
		"CallEnd":      {CallEnd: func(context.Context, *mesh.Call) { panic("observer") }},
		"CallMessage":  {CallMessage: func(context.Context, *mesh.Call, bool) { panic("observer") }},
		"AttemptStart": {AttemptStart: func(context.Context, *mesh.Attempt) context.Context { panic("observer") }},
		"AttemptEnd":   {AttemptEnd: func(context.Context, *mesh.Attempt) { panic("observer") }},
		"Ejection":     {Ejection: func(routes.Target, breaker.Event) { panic("observer") }},
		"Circuit":      {Circuit: func(routes.Target, breaker.Change) { panic("observer") }},
		"Endpoints":    {Endpoints: func(routes.Target, int) { panic("observer") }},
	} {
		t.Run(hook, func(t *testing.T) {
			m := meshtest.New(t, fmt.Sprintf(observedEcho, down.Address, down.Port), mesh.WithObserver(observer),
				mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 1}}, "echo.test"))
			client := grpctest.NewClient(connect(t, m, "mesh:///echo.test"))
			func() {
				defer func() {
					if recover() == nil {
						t.Error("the panic did not pass through")
					}
				}()
				_, _ = client.UnaryCall(t.Context(), &grpctest.Request{})
			}()
			for _, s := range m.Status().Services {
				if s.InFlight != 0 || s.Pool.Active != 0 || s.Pool.Pending != 0 {
					t.Errorf("in flight: %d calls, %d in the pool, %d pending", s.InFlight, s.Pool.Active, s.Pool.Pending)
				}
				for _, e := range s.Endpoints {
					if e.InFlight != 0 {
						t.Errorf("%d attempts are in flight at %s", e.InFlight, e.Address)
					}
				}
			}
		})
	}
}
