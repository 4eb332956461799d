package realservers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/kubernetes"
	"github.com/nosidecar/mesh/realservers/servers"
)

// TestKubernetesPolicy_RightsInTheDocs runs a mesh with the rights that the documentation gives, as they stand there, and looks at what it
// asked for: it needs all of them, and nothing else.
func TestKubernetesPolicy_RightsInTheDocs(t *testing.T) {
	leak.Check(t)
	k := istioCluster(t)
	token := k.ServiceAccount(t, "shop", "web")
	k.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: billing}}")
	text, err := os.ReadFile("../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	granted := map[string]bool{}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(block[1], "verbs: [list, watch]") {
			continue
		}
		k.Apply(t, block[1])
		namespace := regexp.MustCompile(`name: mesh\S*, namespace: ([a-z-]+)`).FindStringSubmatch(block[1])[1]
		for _, resources := range regexp.MustCompile(`resources: \[(.*?)\]`).FindAllStringSubmatch(block[1], -1) {
			for resource := range strings.SplitSeq(resources[1], ", ") {
				granted[namespace+"/"+resource] = true
			}
		}
	}
	if len(granted) < 30 {
		t.Fatalf("the documentation grants only %v", granted)
	}
	useRights(t, k, token)
	used := map[string]bool{}
	for _, r := range k.Requests(t, "system:serviceaccount:shop:web") {
		if r.Verb != "list" && r.Verb != "watch" && !regexp.MustCompile(`^/apis?(/[^/]+){0,2}$`).MatchString(r.URI) {
			t.Errorf("%s %s, want only lists and watches", r.Verb, r.URI)
		}
		if at := regexp.MustCompile(`/namespaces/([^/]+)/([^/?]+)`).FindStringSubmatch(r.URI); at != nil {
			used[at[1]+"/"+at[2]] = true
		}
	}
	for right := range granted {
		if !used[right] {
			t.Errorf("nothing asks for %s", right)
		}
	}
	for right := range used {
		if !granted[right] {
			t.Errorf("%s is asked for, and not granted", right)
		}
	}
}

// useRights has the owner of a token, in the namespace shop, call a service of its own namespace and one of billing.
func useRights(t *testing.T, k *servers.Kubernetes, token string) {
	t.Helper()
	dial := make(map[string]string)
	for i, service := range []string{"shop/reviews", "billing/pay"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }))
		t.Cleanup(s.Close)
		address := fmt.Sprintf("198.18.0.%d", i+1)
		dial[net.JoinHostPort(address, "8080")] = s.Listener.Addr().String()
		namespace, name, _ := strings.Cut(service, "/")
		runPod(t, k, namespace, name, address)
	}
	// A document of the namespace that is called.
	k.Apply(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pay, namespace: billing}
spec: {hosts: [pay], http: [{headers: {response: {set: {x-by: billing}}}, route: [{destination: {host: pay}}]}]}
`)
	var mu sync.Mutex
	var failures []string
	started := false
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, dial[address])
	}
	m, err := mesh.New(t.Context(), kubernetes.Config{Kubeconfig: k.Kubeconfig(t, token, "shop")}.Option(), mesh.WithTransport(transport),
		mesh.WithObserver(mesh.Observer{PolicyLoad: func(load mesh.PolicyLoad) {
			mu.Lock()
			defer mu.Unlock()
			if load.Err != nil && started { // a definition that is new takes a moment
				failures = append(failures, load.Err.Error())
			}
		}, Started: func(*mesh.Mesh) {
			mu.Lock()
			defer mu.Unlock()
			started = true
		}}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	call := func(url string) (by string) {
		t.Helper()
		resp, err := m.Client().Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", url, resp.Status)
		}
		return resp.Header.Get("x-by")
	}
	call("http://reviews/")
	if by := call("http://pay.billing/"); by != "billing" {
		t.Errorf("the first call to a namespace is not under its documents: header x-by %q", by)
	}
	mu.Lock()
	defer mu.Unlock()
	if failures != nil {
		t.Errorf("documents could not be read: %q", failures)
	}
}

// runPod makes what a cluster makes of a service with one pod.
func runPod(t *testing.T, k *servers.Kubernetes, namespace, name, address string) {
	t.Helper()
	k.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec: {selector: {app: %[2]s}, ports: [{name: http, port: 80, targetPort: 8080}]}
`, namespace, name))
	putPod(t, k, namespace, name, address, 8080)
}

// putPod makes a pod of a service, and its endpoint.
func putPod(t *testing.T, k *servers.Kubernetes, namespace, name, address string, port int) {
	t.Helper()
	k.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[2]s-0, namespace: %[1]s, labels: {app: %[2]s}}
spec: {serviceAccountName: %[2]s, containers: [{name: service, image: service}]}
`, namespace, name))
	status, answer, err := k.Do(t.Context(), http.MethodGet, "/api/v1/namespaces/"+namespace+"/pods/"+name+"-0", "", nil)
	var pod struct{ Metadata struct{ UID string } }
	if err != nil || status != http.StatusOK || json.Unmarshal(answer, &pod) != nil {
		t.Fatalf("%d %v: %s", status, err, answer)
	}
	k.Apply(t, fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[2]s-1, namespace: %[1]s, labels: {kubernetes.io/service-name: %[2]s}}
addressType: IPv4
ports: [{name: http, port: %[5]d, protocol: TCP}]
endpoints: [{addresses: [%[3]s], conditions: {ready: true}, targetRef: {kind: Pod, namespace: %[1]s, name: %[2]s-0, uid: %[4]s}}]
`, namespace, name, address, pod.Metadata.UID, port))
}
