package realservers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/kubernetes"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/realservers/servers"
	"github.com/nosidecar/mesh/tlsid"
)

// TestKubernetesExample has a real API server take the manifests of the example as kubectl would apply them, and mesh check its documents. Then
// its services call each other with the rights that they have there.
func TestKubernetesExample(t *testing.T) {
	const folder = "../examples/kubernetes/manifests"
	k := servers.StartKubernetes(t, servers.KubernetesConfig{})
	k.InstallCRDs(t, string(servers.IstioCRDs(t)))
	create := creator(t, k)
	files, err := filepath.Glob(folder + "/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%q, %v", files, err)
	}
	objects := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(document), &object); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			data, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			if _, refused := create(collection(t, object), data); refused != "" {
				t.Errorf("%s: the API server refuses\n%s\n%s", file, document, refused)
			}
			objects++
		}
	}
	sources, err := policy.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	report := policy.Check(sources, policy.Workload{Namespace: "myapp", Labels: map[string]string{"app": "user-service"}})
	if err := report.Findings.Err(); err != nil || report.Documents != objects {
		t.Errorf("mesh check: %d documents, want %d: %v", report.Documents, objects, err)
	}
	useExample(t, k)
}

// useExample has the services of the example call each other, with the rights and the documents of its manifests.
func useExample(t *testing.T, k *servers.Kubernetes) {
	t.Helper()
	leak.Check(t)
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "198.18.0.1:3000" {
			return nil, fmt.Errorf("nothing listens at %s", address)
		}
		return new(net.Dialer).DialContext(ctx, network, listener.Addr().String())
	}
	start := func(account string) *mesh.Mesh {
		config := kubernetes.Config{Kubeconfig: k.Kubeconfig(t, k.ServiceAccount(t, "myapp", account), "myapp")}
		m, err := mesh.New(t.Context(), config.Option(), mesh.WithWorkload(policy.Workload{Namespace: "myapp", Labels: map[string]string{"app": account, "version": "v1"}}),
			mesh.WithIdentity(ca.Source("myapp", account)), mesh.WithTransport(transport))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		// Definitions that are new may be refused for a moment.
		if documents := m.Status().Documents; documents.Refused.Number > documents.Number || len(documents.Alone) > 0 || documents.Count < 4 {
			t.Errorf("%s: the documents in force are %+v", account, documents)
		}
		return m
	}
	called := start("user-service")
	server := &http.Server{Handler: called.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, mesh.PeerID(r.Context())) }))}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(called.Listen(listener))
	}()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
	putPod(t, k, "myapp", "user-service", "198.18.0.1", 3000)
	for account, want := range map[string]int{"order-service": http.StatusOK, "user-service": http.StatusForbidden} {
		caller := called
		if account != "user-service" {
			caller = start(account)
		}
		for again := range 3 {
			resp, err := caller.Client().Get("http://user-service:3000/api/users/42")
			if err != nil {
				t.Fatalf("%s: %v", account, err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusServiceUnavailable && again < 2 {
				continue // the fault injection of the example aborts one call in ten thousand
			}
			if err != nil || resp.StatusCode != want || want == http.StatusOK && string(body) != "spiffe://cluster.local/ns/myapp/sa/"+account {
				t.Errorf("%s: %s %q, %v, want %d", account, resp.Status, body, err, want)
			}
			break
		}
	}
}

// collection returns the path that an object is created at.
func collection(t *testing.T, object map[string]any) string {
	t.Helper()
	kind, _ := object["kind"].(string)
	version, _ := object["apiVersion"].(string)
	plural := map[string]string{"AuthorizationPolicy": "authorizationpolicies"}[kind]
	if plural == "" {
		plural = strings.ToLower(kind) + "s"
	}
	base := "/apis/" + version
	if !strings.Contains(version, "/") {
		base = "/api/" + version
	}
	metadata, _ := object["metadata"].(map[string]any)
	if namespace, _ := metadata["namespace"].(string); namespace != "" {
		base += "/namespaces/" + namespace
	} else if kind != "Namespace" {
		t.Fatalf("%s %v has no namespace", kind, metadata["name"])
	}
	return base + "/" + plural
}
