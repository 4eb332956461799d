package realservers

import (
	"context"
	"net/http"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/realservers/servers"
)

// What the other tests take for granted of the API server: rights, data that outlives a crash, and a list of what was asked for.
func TestKubernetesServer(t *testing.T) {
	leak.Check(t)
	k := servers.StartKubernetes(t, servers.KubernetesConfig{})
	admin := k.Token
	token := k.ServiceAccount(t, "shop", "caller")
	k.Grant(t, "shop/caller", "shop", "services", "endpointslices.discovery.k8s.io")
	as := func(token, method, path string) int {
		t.Helper()
		k.Token = token
		defer func() { k.Token = admin }()
		status, _, err := k.Do(t.Context(), method, path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	const services = "/api/v1/namespaces/shop/services"
	for path, want := range map[string]int{services: 200, "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices": 200,
		"/api/v1/namespaces/shop/pods": 403, "/api/v1/namespaces/default/services": 403} {
		if got := as(token, http.MethodGet, path); got != want {
			t.Errorf("GET %s as the service account: %d, want %d", path, got, want)
		}
	}
	if got := as("nobody", http.MethodGet, services); got != 401 {
		t.Errorf("GET %s with a bad token: %d, want 401", services, got)
	}

	k.Apply(t, `# two of them
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: orders}
spec: {clusterIP: None}
---
{"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "users"}, "spec": {"ports": [{"port": 80}]}}
`)
	k.Kill()
	if status, _, err := k.Do(context.Background(), http.MethodGet, "/readyz", "", nil); err == nil {
		t.Errorf("a server that was killed answers %d", status)
	}
	k.KillEtcd()
	k.RestartEtcd(t)
	k.Restart(t)
	for _, name := range []string{"orders", "users"} {
		if got := as(token, http.MethodGet, services+"/"+name); got != 403 { // get is no right of it
			t.Errorf("%s: %d, want 403", name, got)
		}
		if got := as(admin, http.MethodGet, services+"/"+name); got != 200 {
			t.Errorf("%s: %d, want 200", name, got)
		}
	}
	k.Delete(t, "v1", "Service", "shop", "orders")
	if got := as(admin, http.MethodGet, services+"/orders"); got != 404 {
		t.Errorf("a deleted service: %d, want 404", got)
	}

	asked := k.Requests(t, "system:serviceaccount:shop:caller")
	want := servers.KubernetesRequest{User: "system:serviceaccount:shop:caller", Verb: "list", URI: services}
	if len(asked) != 6 || !slices.Contains(asked, want) {
		t.Errorf("asked for %+v, want 6 requests, and %+v among them", asked, want)
	}
}
