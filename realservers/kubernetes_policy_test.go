package realservers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	cluster "github.com/nosidecar/mesh/discovery/kubernetes"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	kubepolicy "github.com/nosidecar/mesh/policy/kubernetes"
	"github.com/nosidecar/mesh/realservers/servers"
)

// istioCluster starts an API server with Istio's kinds and the namespaces istio-system and shop.
func istioCluster(t *testing.T) *servers.Kubernetes {
	t.Helper()
	k := servers.StartKubernetes(t, servers.KubernetesConfig{})
	k.InstallCRDs(t, string(servers.IstioCRDs(t)))
	k.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}", "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
	return k
}

// kubernetesClient returns the client of a service account of the namespace shop that may read documents there and in istio-system.
func kubernetesClient(t *testing.T, k *servers.Kubernetes, name string) *cluster.Client {
	t.Helper()
	token := k.ServiceAccount(t, "shop", name)
	rights := []string{"services", "virtualservices.networking.istio.io", "destinationrules.networking.istio.io", "serviceentries.networking.istio.io",
		"sidecars.networking.istio.io", "workloadentries.networking.istio.io", "workloadgroups.networking.istio.io", "envoyfilters.networking.istio.io",
		"proxyconfigs.networking.istio.io", "authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io",
		"requestauthentications.security.istio.io", "telemetries.telemetry.istio.io", "wasmplugins.extensions.istio.io", "trafficextensions.extensions.istio.io"}
	k.Grant(t, "shop/"+name, "shop", rights...)
	k.Grant(t, "shop/"+name, "istio-system", rights[1:]...)
	client, err := cluster.Kubeconfig(k.Kubeconfig(t, token, "shop"), "")
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// followed is what a feed has yielded.
type followed struct {
	mu   sync.Mutex
	sets []string // names of sources, sorted
	errs []string
	last []policy.Source
}

// followDocuments follows a feed until the test is over.
func followDocuments(t *testing.T, feed *kubepolicy.Feed) *followed {
	f := &followed{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sources, err := range feed.Watch(ctx) {
			f.mu.Lock()
			if err != nil {
				f.errs = append(f.errs, err.Error())
			} else {
				var names []string
				for _, s := range sources {
					names = append(names, s.Name)
				}
				slices.Sort(names) // their order depends on the second in which they were created
				f.sets, f.last = append(f.sets, strings.Join(names, " ")), sources
			}
			f.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

// await waits until the last set is this one.
func (f *followed) await(t *testing.T, want string) {
	t.Helper()
	await.True(t, "the documents to be "+want, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.sets) > 0 && f.sets[len(f.sets)-1] == want
	})
}

// awaitError waits until an error says something.
func (f *followed) awaitError(t *testing.T, text string) {
	t.Helper()
	await.True(t, "an error that says "+text, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.ContainsFunc(f.errs, func(s string) bool { return strings.Contains(s, text) })
	})
}

// text returns the text of a document of the last set.
func (f *followed) text(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.last {
		if s.Name == name {
			return string(s.Data)
		}
	}
	return ""
}

func virtualService(name, timeout string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s, namespace: shop}
spec: {hosts: [%s], http: [{timeout: %s, route: [{destination: {host: %s}}]}]}
`, name, name, timeout, name)
}

func TestKubernetesPolicy_FollowsWhatIsAppliedChangedAndDeleted(t *testing.T) {
	leak.Check(t)
	k := istioCluster(t)
	k.Apply(t, virtualService("reviews", "1s"))
	f := followDocuments(t, &kubepolicy.Feed{Client: kubernetesClient(t, k, "web")})
	f.await(t, "shop/VirtualService/reviews")
	k.Apply(t, virtualService("reviews", "2s"))
	await.True(t, "the timeout to change", func() bool { return strings.Contains(f.text("shop/VirtualService/reviews"), `"2s"`) })
	if text := f.text("shop/VirtualService/reviews"); strings.Contains(text, "managedFields") || strings.Contains(text, "resourceVersion") {
		t.Errorf("the document has what only the API server needs: %s", text)
	}
	k.Apply(t, `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
{apiVersion: v1, kind: Service, metadata: {name: reviews, namespace: shop}, spec: {ports: [{name: grpc, port: 80}]}}
`)
	f.await(t, "istio-system/PeerAuthentication/default shop/Service/reviews shop/VirtualService/reviews")
	report := policy.Check(f.last, policy.Workload{Namespace: "shop"})
	if report.Documents != 3 || report.Findings.Err() != nil {
		t.Errorf("mesh check: %d documents, %v", report.Documents, report.Findings)
	}
	k.Delete(t, "networking.istio.io/v1", "VirtualService", "shop", "reviews")
	f.await(t, "istio-system/PeerAuthentication/default shop/Service/reviews")

	// What ends all watches of a kind, and makes every version of it unknown: somebody edits its definition.
	const crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/virtualservices.networking.istio.io"
	edit := func(patch string) {
		t.Helper()
		if status, answer, err := k.Do(t.Context(), http.MethodPatch, crd, "application/json-patch+json", []byte(patch)); err != nil || status != http.StatusOK {
			t.Fatalf("%d %v: %s", status, err, answer)
		}
	}
	edit(`[{"op":"add","path":"/spec/names/shortNames/-","value":"vsvc"}]`)
	k.Apply(t, virtualService("ratings", "1s"))
	f.await(t, "istio-system/PeerAuthentication/default shop/Service/reviews shop/VirtualService/ratings")
	// The version that was read is served no more: another one is.
	edit(`[{"op":"test","path":"/spec/versions/0/name","value":"v1"},{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/2/storage","value":true},{"op":"replace","path":"/spec/versions/0/served","value":false}]`)
	k.Apply(t, strings.Replace(virtualService("ratings", "3s"), "networking.istio.io/v1", "networking.istio.io/v1beta1", 1))
	await.True(t, "the document in another version", func() bool {
		text := f.text("shop/VirtualService/ratings")
		return strings.Contains(text, `"3s"`) && strings.Contains(text, `networking.istio.io/v1beta1`)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, set := range f.sets[len(f.sets)-3:] {
		if !strings.Contains(set, "PeerAuthentication") {
			t.Errorf("while a definition changed, the documents were %q", set)
		}
	}
}

func TestKubernetesPolicy_RightsThatAreTakenAway(t *testing.T) {
	leak.Check(t)
	k := istioCluster(t)
	k.Apply(t, virtualService("reviews", "1s"))
	client := kubernetesClient(t, k, "web")
	f := followDocuments(t, &kubepolicy.Feed{Client: client})
	f.await(t, "shop/VirtualService/reviews")
	k.Delete(t, "rbac.authorization.k8s.io/v1", "RoleBinding", "shop", "shop-web")
	// Open watches go on. The server that starts again asks for the rights.
	k.Kill()
	k.Restart(t)
	f.awaitError(t, "denied")
	f.await(t, "shop/VirtualService/reviews")

	// Nobody may start without knowing what is forbidden.
	_, err := mesh.New(t.Context(), mesh.WithPolicyFeed(&kubepolicy.Feed{Client: client}), mesh.WithEmptyPolicy(), mesh.WithDiscovery(&discovery.Memory{}),
		mesh.WithWorkload(policy.Workload{Namespace: "shop"}))
	if err == nil || !strings.Contains(err.Error(), "AuthorizationPolicy in shop") || !strings.Contains(err.Error(), "denied") {
		t.Errorf("New: %v, want a denial that names the kind", err)
	}

	k.Apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {namespace: shop, name: shop-web}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: shop-web}
subjects: [{kind: ServiceAccount, namespace: shop, name: web}]
`, virtualService("ratings", "1s"))
	f.await(t, "shop/VirtualService/ratings shop/VirtualService/reviews")
}

func TestKubernetesPolicy_ServerThatIsAway(t *testing.T) {
	leak.Check(t)
	k := istioCluster(t)
	k.Apply(t, virtualService("reviews", "1s"))
	client := kubernetesClient(t, k, "web")
	f := followDocuments(t, &kubepolicy.Feed{Client: client})
	f.await(t, "shop/VirtualService/reviews")
	k.Kill()
	f.awaitError(t, "cannot read")

	// New waits for it, and says why it waited in vain.
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := func(ctx context.Context) (*mesh.Mesh, error) {
		return mesh.New(ctx, mesh.WithPolicyFeed(&kubepolicy.Feed{Client: client}), mesh.WithEmptyPolicy(), mesh.WithDiscovery(&discovery.Memory{}),
			mesh.WithWorkload(policy.Workload{Namespace: "shop"}))
	}
	if _, err := start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("New: %v, want the end of the context", err)
	}
	started := make(chan error, 1)
	go func() {
		m, err := start(t.Context())
		if err == nil {
			err = m.Close()
		}
		started <- err
	}()
	k.Restart(t)
	k.Apply(t, virtualService("ratings", "1s"))
	f.await(t, "shop/VirtualService/ratings shop/VirtualService/reviews")
	if err := await.Receive(t, "New", started); err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.sets, "") {
		t.Errorf("while the server was away the documents were empty: %q", f.sets)
	}
}

// A canary gets more and more of the calls of several meshes, by editing a VirtualService, while a server is killed and others
// write documents with mistakes. No call fails.
func TestKubernetesPolicy_Canary(t *testing.T) {
	leak.Check(t)
	k := istioCluster(t)
	k.Apply(t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: shop}
spec: {host: shop, subsets: [{name: stable, labels: {version: stable}}, {name: canary, labels: {version: canary}}]}
`, splitShop(0))
	resolver := new(discovery.Memory)
	var endpoints []discovery.Endpoint
	for _, name := range []string{"stable", "canary"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
		t.Cleanup(s.Close)
		at := s.Listener.Addr().(*net.TCPAddr)
		endpoints = append(endpoints, discovery.Endpoint{Address: at.IP.String(), Port: at.Port, Labels: map[string]string{"version": name}})
	}
	resolver.Set("shop.shop", endpoints...)

	const meshes = 4
	client := kubernetesClient(t, k, "web")
	callers := make([]*shopper, meshes)
	for i := range callers {
		m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(&kubepolicy.Feed{Client: client}), mesh.WithEmptyPolicy(), mesh.WithDiscovery(resolver),
			mesh.WithWorkload(policy.Workload{Namespace: "shop"}), mesh.WithObserver(mesh.Observer{}))
		if err != nil {
			t.Fatal(err)
		}
		callers[i] = startShopper(t, m)
	}
	share := func(percent int) {
		t.Helper()
		for _, c := range callers {
			c.awaitShare(t, percent)
		}
	}
	share(0)
	for _, percent := range []int{20, 50, 100} {
		k.Apply(t, splitShop(percent))
		share(percent)
		// Another team's mistake changes nothing.
		k.Apply(t, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: broken-%d, namespace: shop}
spec: {hosts: ["other:80"], http: [{route: [{destination: {host: other}}]}]}
`, percent))
		if percent == 50 {
			k.Kill()
			k.Restart(t)
		}
	}
	for i, c := range callers {
		if c.failed.Load() > 0 {
			t.Errorf("mesh %d: %d of %d calls failed, as by %v", i, c.failed.Load(), c.calls.Load(), c.err.Load())
		}
		t.Logf("mesh %d: %d calls", i, c.calls.Load())
	}
}

// splitShop has so many percent of the calls to shop go to the canary.
func splitShop(percent int) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop]
  http: [{route: [{destination: {host: shop, subset: stable}, weight: %d}, {destination: {host: shop, subset: canary}, weight: %d}]}]
`, 100-percent, percent)
}

// shopper calls the service shop all the time.
type shopper struct {
	calls, failed atomic.Int64
	err           atomic.Value

	mu   sync.Mutex
	last []string // the answers of the last calls
}

const window = 200 // calls whose answers a shopper keeps

// startShopper has a mesh make calls until the test is over.
func startShopper(t *testing.T, m *mesh.Mesh) *shopper {
	c := &shopper{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			name, err := callShop(ctx, m.Client())
			if ctx.Err() != nil {
				return
			}
			c.calls.Add(1)
			if err != nil {
				c.failed.Add(1)
				c.err.Store(err.Error())
			}
			c.mu.Lock()
			c.last = append(c.last[max(0, len(c.last)-window+1):], name)
			c.mu.Unlock()
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// awaitShare waits until the last calls are shared as they should be. Of 200 calls, seven standard deviations are 25 points at most.
func (c *shopper) awaitShare(t *testing.T, percent int) {
	t.Helper()
	await.True(t, fmt.Sprintf("%d%% of the calls to go to the canary", percent), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		canary := 0
		for _, name := range c.last {
			if name == "canary" {
				canary++
			}
		}
		got := 100 * canary / window
		if len(c.last) < window {
			return false
		}
		if percent == 0 || percent == 100 {
			return got == percent
		}
		return got > percent-15 && got < percent+15
	})
}
