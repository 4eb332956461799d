package mesh_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/policy"
)

// sidecarOf returns a Sidecar of a namespace.
func sidecarOf(namespace, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: %s}\nspec: {%s}\n", namespace, spec)
}

// entryIn returns a ServiceEntry for a host.
func entryIn(namespace, host, location string, e discovery.Endpoint, account string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %q, namespace: %s}\nspec: {hosts: [%q], location: %s, ports: [{number: %d, name: http, protocol: HTTP}], "+
		"resolution: STATIC, endpoints: [{address: %s, serviceAccount: %q}]}\n", host, namespace, host, location, e.Port, e.Address, account)
}

const registryOnly = ", outboundTrafficPolicy: {mode: REGISTRY_ONLY}"

// TestSidecar_RegistryOnly: hosts that the Sidecar does not import are refused, by whatever name they are called, like those that nobody knows.
func TestSidecar_RegistryOnly(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	e := serve(t, says("served"))
	for _, name := range []string{"own", "orders.prod.svc.cluster.local", "db.prod.svc.cluster.local"} {
		registry.Set(name, e)
	}
	for _, refuses := range []bool{true, false} {
		policies := ", outboundTrafficPolicy: {mode: ALLOW_ANY}"
		if refuses {
			policies = registryOnly
		}
		documents := entryIn("ext", "api.example.com", "MESH_EXTERNAL", e, "") +
			sidecarOf("default", "egress: [{hosts: [./*, prod/orders.prod.svc.cluster.local]}]"+policies)
		m := newMesh(t, documents, mesh.WithDiscovery(&registry))
		for _, host := range []string{"own", "own.default", "own.default.svc.cluster.local", "orders.prod", "orders.prod.svc.cluster.local."} {
			if a := get(t, m.Client(), "http://"+host+"/"); a.body != "served" {
				t.Errorf("refuses %v: %s answers %q", refuses, host, a.body)
			}
		}
		for _, host := range []string{"db.prod", "db.prod.svc", "DB.prod.svc.cluster.local.", "api.example.com", "nobody.invalid", addressOf(e)} {
			_, err := try(m.Client(), "http://"+host+"/")
			if got := errors.Is(err, mesh.ErrNotInMesh); got != refuses {
				t.Errorf("refuses %v: %s: %v", refuses, host, err)
			}
			if err != nil && !strings.Contains(err.Error(), "Sidecar default/default does not import ") {
				t.Errorf("%s: the error does not name the Sidecar: %v", host, err)
			}
			conn, err := m.DialContext(t.Context(), "tcp", strings.TrimSuffix(strings.TrimSuffix(host, fmt.Sprint(":", e.Port)), ".")+fmt.Sprint(":", e.Port))
			if err == nil {
				conn.Close()
			}
			if got := errors.Is(err, mesh.ErrNotInMesh); got != refuses {
				t.Errorf("refuses %v: dialling %s: %v", refuses, host, err)
			}
		}
	}
}

// TestSidecar_WithRegistryOnly: what the program has closed, no document opens.
func TestSidecar_WithRegistryOnly(t *testing.T) {
	noLeaks(t)
	e := serve(t, says("outside"))
	for _, test := range []struct {
		documents string
		opts      []mesh.Option
		refused   string
	}{
		{"", nil, ""},
		{sidecarOf("default", "outboundTrafficPolicy: {mode: ALLOW_ANY}"), nil, ""},
		{sidecarOf("default", "outboundTrafficPolicy: {mode: ALLOW_ANY}"), []mesh.Option{mesh.WithRegistryOnly()}, "neither a document"},
		{sidecarOf("default", "egress: [{hosts: ['*/*']}]"), []mesh.Option{mesh.WithRegistryOnly()}, "neither a document"},
		{sidecarOf("default", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"), nil, "Sidecar default/default is REGISTRY_ONLY"},
		{sidecarOf("istio-system", "outboundTrafficPolicy: {}"), nil, "Sidecar istio-system/default is REGISTRY_ONLY"},
	} {
		a, err := try(newMesh(t, test.documents, test.opts...).Client(), "http://"+addressOf(e)+"/") // whose discovery is DNS
		if refused := errors.Is(err, mesh.ErrNotInMesh); refused != (test.refused != "") || refused && !strings.Contains(err.Error(), test.refused) || !refused && a.body != "outside" {
			t.Errorf("%s%d options: %q, %v, want refused: %q", test.documents, len(test.opts), a.body, err, test.refused)
		}
	}
}

// TestSidecar_PassesThrough: without REGISTRY_ONLY, a call to a host that is not imported goes where its URL says, without any policy.
func TestSidecar_PassesThrough(t *testing.T) {
	noLeaks(t)
	there, elsewhere := serve(t, says("there")), serve(t, says("elsewhere"))
	elsewhere.Port, there.Port = there.Port, elsewhere.Port // the entry leads elsewhere
	host := fmt.Sprintf("127.0.0.1:%d", elsewhere.Port)
	documents := strings.Replace(entryIn("ext", "api.example.com", "MESH_EXTERNAL", elsewhere, ""), "location:", "addresses: [127.0.0.1], location:", 1)
	documents = strings.Replace(documents, "endpoints: [{", fmt.Sprintf("endpoints: [{ports: {http: %d}, ", there.Port), 1)
	for hosts, want := range map[string]string{"ext/*": "elsewhere", "./*": "there"} {
		if a := get(t, newMesh(t, documents+sidecarOf("default", "egress: [{hosts: ["+hosts+"]}]")).Client(), "http://"+host+"/"); a.body != want {
			t.Errorf("%s: the call goes %s, want %s", hosts, a.body, want)
		}
	}
}

// TestSidecar_KeepsMutualTLS: however little is imported, what secures calls counts, wherever it stands. A call to a host that is not imported does not
// pretend to be one of a workload: it has no identity, and who demands one refuses it.
func TestSidecar_KeepsMutualTLS(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	var served atomic.Int32
	e := w.serve(t, w.member(t, "orders", strict), "orders", func(rw http.ResponseWriter, r *http.Request) {
		served.Add(1)
		whoCalls(rw, r)
	})
	const secured = "spiffe://cluster.local/ns/default/sa/web"
	vm := entryIn("ext", "127.0.0.1", "MESH_INTERNAL", e, "")
	vm = strings.Replace(vm, "location:", "subjectAltNames: ['spiffe://cluster.local/ns/default/sa/orders'], location:", 1)
	vm = strings.Replace(vm, `hosts: ["127.0.0.1"]`, `hosts: [vm.example.com], addresses: [127.0.0.1]`, 1)
	rule := "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: secure, namespace: %s}\nspec: {host: '*', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n"
	route := "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: front, namespace: default}\n" +
		"spec: {hosts: [front.example.com], http: [{route: [{destination: {host: vm.example.com, port: {number: " + fmt.Sprint(e.Port) + "}}}]}]}\n"
	for _, test := range []struct{ documents, hosts, url string }{
		{strict, "./orders.default.svc.cluster.local", "http://orders/"},
		{fmt.Sprintf(rule, "istio-system"), "./orders.default.svc.cluster.local", "http://orders/"},
		{vm + fmt.Sprintf(rule, "istio-system"), "ext/*", "http://" + addressOf(e) + "/"},
		{vm + route + fmt.Sprintf(rule, "istio-system"), "./*", "http://front.example.com/"}, // vm.example.com is not imported
		{vm + route + fmt.Sprintf(rule, "ext"), "./*", "http://front.example.com/"},
	} {
		m := w.member(t, "web", test.documents+sidecarOf("default", "egress: [{hosts: ["+test.hosts+"]}]"+registryOnly))
		if a := get(t, m.Client(), test.url); !strings.HasPrefix(a.body, secured) {
			t.Errorf("%s: the server saw %q, want %s", test.hosts, a.body, secured)
		}
	}
	served.Store(0)
	m := w.member(t, "web", vm+fmt.Sprintf(rule, "ext")+sidecarOf("default", "egress: [{hosts: [./*]}]"))
	_, err := try(m.Client(), "http://"+addressOf(e)+"/")
	if err == nil || served.Load() > 0 || !strings.Contains(err.Error(), "Sidecar default/default does not import this host: no policy applied") {
		t.Errorf("a host that is not imported, and demands mutual TLS, served %d requests: %v", served.Load(), err)
	}
}

// TestSidecar_Reload: a Sidecar comes, changes and goes while calls are made. Those to imported hosts do not notice.
func TestSidecar_Reload(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	e := serve(t, says("served"))
	registry.Set("own", e)
	registry.Set("other.prod.svc.cluster.local", e)
	sidecar := func(spec string) policy.Source {
		return objectOf("networking.istio.io/v1", "Sidecar", "s", "{"+spec+"}")
	}
	feed := newCluster(routeOf("any", "{hosts: [any], http: [{directResponse: {status: 204}}]}"))
	m := newMesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithDiscovery(&registry))
	stop, failed := make(chan struct{}), atomic.Int32{}
	var calling sync.WaitGroup
	for range 2 {
		calling.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if a, err := try(m.Client(), "http://own/"); err != nil || a.body != "served" {
					failed.Add(1)
				}
			}
		})
	}
	for range 5 {
		for _, step := range []struct {
			documents []policy.Source
			refused   bool
		}{
			{nil, false},
			{[]policy.Source{sidecar("egress: [{hosts: [./*]}]" + registryOnly)}, true},
			{[]policy.Source{sidecar("egress: [{hosts: [./*, prod/*]}]" + registryOnly)}, false},
			{[]policy.Source{sidecar("egress: [{host: []}]" + registryOnly)}, false}, // the last good version counts
			{[]policy.Source{sidecar("egress: [{hosts: [./*]}]" + registryOnly)}, true},
		} {
			feed.apply(t, append(step.documents, routeOf("any", "{hosts: [any], http: [{directResponse: {status: 204}}]}"))...)
			if _, err := try(m.Client(), "http://other.prod/"); errors.Is(err, mesh.ErrNotInMesh) != step.refused || !step.refused && err != nil {
				t.Fatalf("%+v: %v, want refused: %v", step.documents, err, step.refused)
			}
		}
	}
	close(stop)
	calling.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d calls to an imported host failed", n)
	}
}

// TestSidecar_LeavesKeysAlone: in Istio the control plane fetches the keys of issuers, which no Sidecar hinders.
func TestSidecar_LeavesKeysAlone(t *testing.T) {
	noLeaks(t)
	var asked atomic.Int32
	keys := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, `{"keys": []}`)
	})
	documents := authentication("issuer: i, jwksUri: 'http://"+addressOf(keys)+"/keys'") +
		strings.Replace(entryIn("ext", "keys.example.com", "MESH_EXTERNAL", keys, ""), "location:", "addresses: [127.0.0.1], location:", 1) +
		sidecarOf("default", "egress: [{hosts: [~/*]}]"+registryOnly)
	m := newMesh(t, documents)
	e := serveMesh(t, m, says("served"))
	token := "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJpc3MiOiJpIn0.AAAA"
	if a := get(t, http.DefaultClient, "http://"+addressOf(e)+"/", "Authorization", "Bearer "+token); a.status != http.StatusUnauthorized {
		t.Errorf("a forged token gets %d", a.status)
	}
	await.True(t, "the keys are asked for", func() bool { return asked.Load() > 0 })
}
