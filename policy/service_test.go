package policy_test

import (
	"fmt"
	"testing"

	"github.com/nosidecar/mesh/policy/route"
)

// A port of a Service has the protocol that Istio takes it to have: of appProtocol, or else of its name.
func TestService_ProtocolOfPorts(t *testing.T) {
	for _, test := range []struct {
		name, appProtocol string
		http2             bool
	}{
		{"http", "", false}, {"http2", "", true}, {"grpc", "", true}, {"grpc-api", "", true}, {"grpc-web", "", true}, {"grpcs", "", false}, {"tcp-http2", "", false}, {"h2c", "", false},
		{"web", "http", false}, {"web", "grpc", true}, {"web", "GRPC", true}, {"web", "grpc-api", true}, {"web", "http2", true}, {"web", "grpc-web", true},
		{"web", "kubernetes.io/h2c", true}, {"web", "kubernetes.io/h2c-x", false}, {"web", "kubernetes.io/ws", false}, {"web", "kubernetes.io/wss", false}, {"web", "h2c", false}, {"web", "tcp", false},
		{"web", "example.com/http2", false}, {"grpc", "http", false}, {"http2", "tcp", false}, {"http", "kubernetes.io/h2c", true},
	} {
		plan := compile(t, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80, name: %q, appProtocol: %q}, {port: 81, name: other}]}\n", test.name, test.appProtocol))
		const host = "web.default.svc.cluster.local"
		if got := plan.Cluster(route.Target{Host: host, Port: 80}).UpgradeHTTP2; got != test.http2 {
			t.Errorf("a port %q with appProtocol %q: HTTP/2 %v, want %v", test.name, test.appProtocol, got, test.http2)
		}
		if plan.Cluster(route.Target{Host: host, Port: 81}).UpgradeHTTP2 {
			t.Errorf("a port beside %q with appProtocol %q is HTTP/2", test.name, test.appProtocol)
		}
	}
}
