package kubernetes_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/kubernetes"
	"github.com/nosidecar/mesh/policy"

	kube "github.com/nosidecar/mesh/internal/kubernetes"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

var (
	routes    = kube.Resource{Group: "networking.istio.io", Version: "v1", Plural: "virtualservices", Kind: "VirtualService"}
	policies  = kube.Resource{Group: "security.istio.io", Version: "v1", Plural: "authorizationpolicies", Kind: "AuthorizationPolicy"}
	services  = kube.Resource{Version: "v1", Plural: "services", Kind: "Service"}
	endpoints = kube.Resource{Group: "discovery.k8s.io", Version: "v1", Plural: "endpointslices", Kind: "EndpointSlice"}
)

// kubeconfig serves, and writes a kubeconfig with which a client may read.
func kubeconfig(t *testing.T, server *kubetest.Server) string {
	t.Helper()
	cfg := server.Serve(t)
	text := fmt.Sprintf(`
apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, certificate-authority-data: %q}}]
users: [{name: test, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: test, namespace: shop}}]
`, cfg.Server, base64.StdEncoding.EncodeToString(cfg.CA), cfg.Token)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// One option has documents and endpoints of a cluster in force.
func TestConfig_DocumentsAndEndpoints(t *testing.T) {
	server := kubetest.New(routes, services, endpoints)
	server.Token = "secret"
	server.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{directResponse: {status: 203}}]}
`)
	m, err := mesh.New(t.Context(), kubernetes.Config{Kubeconfig: kubeconfig(t, server)}.Option())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	resp, err := m.Client().Get("http://web/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNonAuthoritativeInfo {
		t.Errorf("status %d, want that of the document", resp.StatusCode)
	}
}

// The namespace of a kubeconfig stays that of the workload if the program says more about the workload. Without one it is default, as for
// kubectl.
func TestConfig_NamespaceOfTheKubeconfig(t *testing.T) {
	for _, test := range []struct{ in, want string }{{", namespace: shop", "shop"}, {"", "default"}} {
		server := kubetest.New(policies, services, endpoints)
		server.Token = "secret"
		server.Apply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: root, namespace: mesh-config}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/root]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: own, namespace: ` + test.want + `}
spec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {paths: [/own]}}]}]}
`)
		path := kubeconfig(t, server)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), ", namespace: shop", test.in, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		options := []mesh.Option{
			kubernetes.Config{Kubeconfig: path}.Option(),
			mesh.WithWorkload(policy.Workload{RootNamespace: "mesh-config", Labels: map[string]string{"app": "web"}}),
		}
		for range 2 {
			m, err := mesh.New(t.Context(), options...)
			if err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]int{"/root": http.StatusForbidden, "/own": http.StatusForbidden, "/": http.StatusNotFound} {
				w := httptest.NewRecorder()
				m.Handler(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
				if w.Code != want {
					t.Errorf("a request for %s is answered with %d, want %d", path, w.Code, want)
				}
			}
			for _, r := range server.Requests() {
				if strings.Contains(r, "/authorizationpolicies") && !strings.Contains(r, "/namespaces/") {
					t.Errorf("all namespaces are read: %s", r)
				}
			}
			m.Close()
			slices.Reverse(options)
		}
	}
}

// A process outside of a cluster, and one whose labels are unknown, do not start.
func TestInCluster_NamesWhatIsMissing(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := mesh.New(t.Context(), kubernetes.InCluster()); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("New outside of a cluster: %v", err)
	}
	if _, err := mesh.New(t.Context(), kubernetes.Config{Kubeconfig: "/no/such/file"}.Option()); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("New with a kubeconfig that is not there: %v", err)
	}
}
