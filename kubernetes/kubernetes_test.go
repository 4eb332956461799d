package kubernetes_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
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
	rules     = kube.Resource{Group: "networking.istio.io", Version: "v1", Plural: "destinationrules", Kind: "DestinationRule"}
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

// serve answers with a name, over HTTP/1 or over HTTP/2 without TLS, and returns its port.
func serve(t *testing.T, name string, http2 bool) (port int) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, name, " ", r.Proto)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(!http2)
	s.Config.Protocols.SetUnencryptedHTTP2(http2)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// slice returns an EndpointSlice of a service in the namespace shop, with one endpoint on this machine.
func slice(name, service, port string, number int, more string) string {
	return fmt.Sprintf(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: %s, labels: {kubernetes.io/service-name: %s}},
  addressType: IPv4, ports: [{name: %s, port: %d, protocol: TCP}], endpoints: [{addresses: [127.0.0.1], %s}]}`, name, service, port, number, more)
}

// asks returns the answers to calls, each once.
func asks(t *testing.T, m *mesh.Mesh, url string) string {
	t.Helper()
	var all []string
	for range 20 {
		resp, err := m.Client().Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(all, string(body)) {
			all = append(all, string(body))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// Where the process runs decides which endpoints get its calls: those of its zone if a DestinationRule says so, and those that the cluster
// means for its zone.
func TestConfig_Locality(t *testing.T) {
	near, far := serve(t, "near", false), serve(t, "far", false)
	hint := func(zone string) string { return "zone: " + zone + ", hints: {forZones: [{name: " + zone + "}]}" }
	server := kubetest.New(services, endpoints, rules)
	server.Token = "secret"
	server.Apply(
		"{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: zones}, spec: {ports: [{name: http, port: 80}]}}",
		slice("a", "zones", "http", near, "zone: z1"), slice("b", "zones", "http", far, "zone: z2"),
		"{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: hints}, spec: {ports: [{name: http, port: 80}]}}",
		slice("c", "hints", "http", near, hint("z1")), slice("d", "hints", "http", far, hint("z2")),
		`{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {namespace: shop, name: zones}, spec: {host: zones, trafficPolicy: {
  outlierDetection: {consecutive5xxErrors: 5}, loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: true}}}}}`)
	path := kubeconfig(t, server)
	for _, test := range []struct {
		place        discovery.Locality
		zones, hints string
	}{
		{discovery.Locality{}, "far HTTP/1.1, near HTTP/1.1", "far HTTP/1.1, near HTTP/1.1"},
		{discovery.Locality{Region: "eu", Zone: "z1"}, "near HTTP/1.1", "near HTTP/1.1"},
		{discovery.Locality{Region: "eu", Zone: "z2"}, "far HTTP/1.1", "far HTTP/1.1"},
		{discovery.Locality{Region: "eu", Zone: "z3"}, "far HTTP/1.1, near HTTP/1.1", "far HTTP/1.1, near HTTP/1.1"},
	} {
		m, err := mesh.New(t.Context(), kubernetes.Config{Kubeconfig: path, Locality: test.place}.Option())
		if err != nil {
			t.Fatal(err)
		}
		if got := asks(t, m, "http://zones/"); got != test.zones {
			t.Errorf("in %v, calls by zone are answered by %s, want %s", test.place, got, test.zones)
		}
		if got := asks(t, m, "http://hints/"); got != test.hints {
			t.Errorf("in %v, calls by hints are answered by %s, want %s", test.place, got, test.hints)
		}
		m.Close()
	}
}

// The protocol of a port is that of appProtocol, or else of its name.
func TestConfig_ProtocolOfPorts(t *testing.T) {
	one, two := serve(t, "one", false), serve(t, "two", true)
	server := kubetest.New(services, endpoints)
	server.Token = "secret"
	server.Apply(
		`{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: api}, spec: {ports: [{name: http, port: 80}, {name: web, port: 81, appProtocol: kubernetes.io/h2c},
  {name: grpc-api, port: 82}, {name: http2, port: 83, appProtocol: http}]}}`,
		slice("a", "api", "http", one, ""), slice("b", "api", "web", two, ""), slice("c", "api", "grpc-api", two, ""), slice("d", "api", "http2", one, ""))
	m, err := mesh.New(t.Context(), kubernetes.Config{Kubeconfig: kubeconfig(t, server)}.Option())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for port, want := range map[int]string{80: "one HTTP/1.1", 81: "two HTTP/2.0", 82: "two HTTP/2.0", 83: "one HTTP/1.1"} {
		if got := asks(t, m, fmt.Sprintf("http://api:%d/", port)); got != want {
			t.Errorf("port %d: %s, want %s", port, got, want)
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
