package policy_test

import (
	"fmt"
	"testing"

	"github.com/nosidecar/mesh/policy"
)

// attachedRoute returns a route of the Gateway API whose rules have this name.
func attachedRoute(kind, namespace, name, day, parents, rules string) string {
	return fmt.Sprintf("---\napiVersion: gateway.networking.k8s.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s, creationTimestamp: \"2026-01-%sT00:00:00Z\"}\n"+
		"spec: {parentRefs: [%s], rules: [%s]}\n", kind, name, namespace, day, parents, rules)
}

// TestAttached_GRPCWhateverItsAge: a VirtualService between the ages of an HTTPRoute and a GRPCRoute does not part them.
func TestAttached_GRPCWhateverItsAge(t *testing.T) {
	const to = `{group: "", kind: Service, name: echo}`
	routes := attachedRoute("HTTPRoute", "shop", "echo", "01", to, "{backendRefs: [{name: v1, port: 80}]}") +
		attachedRoute("GRPCRoute", "shop", "echo", "03", to, "{backendRefs: [{name: v2, port: 80}]}")
	for about, want := range map[string]string{"other": "GRPCRoute shop/echo", "echo": "GRPCRoute shop/echo"} {
		vs := fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop, creationTimestamp: \"2026-01-02T00:00:00Z\"}\n"+
			"spec: {hosts: [%s], http: [{route: [{destination: {host: v3}}]}]}\n", about)
		plan, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(routes + vs)}}, policy.Workload{Namespace: "web"})
		if plan == nil {
			t.Fatal(findings)
		}
		if got := plan.Host("echo.shop").Document; got != want {
			t.Errorf("with a VirtualService about %s: %s routes the service, want %s", about, got, want)
		}
	}
}
