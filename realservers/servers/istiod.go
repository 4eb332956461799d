package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Istiod is the control plane of Istio.
type Istiod struct {
	HTTP string // the address of its webhooks and its readiness
}

// StartIstiod starts an istiod, which is built if this machine has not built it before. Its API server must have the namespace
// istio-system and the kinds of [IstioCRDs].
func StartIstiod(t testing.TB, kubeconfig string) *Istiod {
	t.Helper()
	path, err := istiodPath()
	if err != nil {
		t.Fatal(err)
	}
	i := new(Istiod)
	start(t, func() (*exec.Cmd, string) {
		at := free(t, 4)
		// Without an address for HTTPS the webhooks are served over HTTP.
		cmd := exec.Command(path, "discovery", "--kubeconfig", kubeconfig, "--registries=Kubernetes", "--grpcAddr", at[0], "--secureGRPCAddr", at[1],
			"--httpAddr", at[2], "--httpsAddr=", "--monitoringAddr", at[3], "--ctrlz_address", "127.0.0.1", "--ctrlz_port", "0")
		cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "POD_NAME=istiod-1", "POD_NAMESPACE=istio-system",
			"SERVICE_ACCOUNT=istiod", "ENABLE_CA_SERVER=false", "VALIDATION_WEBHOOK_CONFIG_NAME=", "INJECTION_WEBHOOK_CONFIG_NAME="}
		i.HTTP = at[2]
		return cmd, "http://" + i.HTTP + "/ready"
	})
	return i
}

var istiodPath = sync.OnceValues(func() (string, error) {
	return build(istiodModule(), "istio.io/istio/pilot/cmd/pilot-discovery", "istiod")
})

// istiodModule returns the folder of the module that builds istiod.
func istiodModule() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "istiod")
}

// IstioCRDs returns the definitions of Istio's kinds, as YAML.
func IstioCRDs(t testing.TB) []byte {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "istio.io/istio")
	cmd.Dir = istiodModule()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod download: %v", err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(module.Dir, "manifests", "charts", "base", "files", "crd-all.gen.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Validate has the webhook decide about an object that is about to be created. It returns why the object is refused, and "" if it
// is not.
func (i *Istiod) Validate(t testing.TB, object []byte) string {
	t.Helper()
	var head struct {
		APIVersion, Kind string
		Metadata         struct{ Namespace, Name string }
	}
	if err := json.Unmarshal(object, &head); err != nil {
		t.Fatal(err)
	}
	group, version, _ := strings.Cut(head.APIVersion, "/")
	kind := map[string]string{"group": group, "version": version, "kind": head.Kind}
	review, err := json.Marshal(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": map[string]any{
		"uid": "a", "kind": kind, "operation": "CREATE", "namespace": head.Metadata.Namespace, "name": head.Metadata.Name, "object": json.RawMessage(object),
	}})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+i.HTTP+"/validate", bytes.NewReader(review))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	var answer struct {
		Response struct {
			Allowed bool
			Status  struct{ Message string }
		}
	}
	if err == nil {
		err = json.Unmarshal(data, &answer)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("istiod: %s: %v: %s", resp.Status, err, data)
	}
	if !answer.Response.Allowed && answer.Response.Status.Message == "" {
		return fmt.Sprintf("no reason: %s", data)
	}
	return answer.Response.Status.Message
}
