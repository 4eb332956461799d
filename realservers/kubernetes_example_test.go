package realservers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/realservers/servers"
)

// TestKubernetesExample has a real API server take the manifests of the example as kubectl would apply them, and mesh check its documents.
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
