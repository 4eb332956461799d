package engine_test

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// A call that is refused after it has got a slot of the pool gives that back: a pool that fills with refusals would refuse all calls, later.
func TestRefusedCallsHoldNothing(t *testing.T) {
	const oneConnection = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}
`
	const strict = `---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`
	for _, test := range []struct {
		name       string
		documents  string
		protection mesh.Protection
		empty      bool // there are no endpoints
		layer      string
	}{
		{"by the circuit", oneConnection, mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Hour}}, false, "breaker"},
		{"without an endpoint", oneConnection, mesh.Protection{}, true, "balancer"},
		{"without an identity", oneConnection + strict, mesh.Protection{}, false, "identity"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				var list []discovery.Endpoint
				if !test.empty {
					list = append(list, f.Add(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
				}
				f.Registry.Set("web", list...)
				m := f.Mesh(t, test.documents, mesh.WithProtection(test.protection, "web"))
				for i := range 5 {
					status, err := ask(t, m, "http://web/")
					if i == 0 && test.layer == "breaker" { // which opens the circuit
						continue
					}
					if failed := layerOf(err); failed != test.layer {
						t.Errorf("call %d: %q, %v, of the layer %q; want a refusal of %s", i, status, err, failed, test.layer)
					}
				}
				synctest.Wait()
				nothingHeld(t, m)
			})
		})
	}
}

func layerOf(err error) string {
	failed, ok := errors.AsType[*mesh.Error](err)
	if !ok {
		return ""
	}
	return failed.Layer
}
