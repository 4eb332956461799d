package mesh_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/route"
)

// entryOf is a ServiceEntry of db.example at e, with the given ports.
func entryOf(e discovery.Endpoint, ports ...int) string {
	var list []string
	for _, port := range ports {
		list = append(list, fmt.Sprintf("{number: %d, name: http-%d, protocol: HTTP, targetPort: %d}", port, port, e.Port))
	}
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example, "*.db.example"]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [%s]
  endpoints: [{address: %s}]
`, strings.Join(list, ", "), e.Address)
}

// TestPortThatTheEntryDoesNotHave: it is not dialled, whatever is outside the mesh, and the error says which ports there are.
func TestPortThatTheEntryDoesNotHave(t *testing.T) {
	e := serve(t, says("db"))
	for name, opts := range map[string][]mesh.Option{"AllowAny": nil, "RegistryOnly": {mesh.WithRegistryOnly()}} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			m := newMesh(t, entryOf(e, 8080, 9090), opts...)
			check := func(what string, err error) {
				t.Helper()
				const want = "ServiceEntry default/db has no port %s, it has 8080, 9090"
				var failure *mesh.Error
				if !errors.As(err, &failure) || !strings.Contains(err.Error(), fmt.Sprintf(want, what)) || failure.Layer != "route" ||
					failure.Flags != mesh.FlagNoCluster || failure.Attempts != 0 {
					t.Errorf("port %s: %v, want that there is no such port, and nothing sent", what, err)
				}
			}
			for _, host := range []string{"db.example", "replica.db.example"} {
				for _, port := range []string{"8080", "9090"} {
					if a := get(t, m.Client(), "http://"+host+":"+port+"/"); a.body != "db" {
						t.Errorf("%s:%s answers %q", host, port, a.body)
					}
				}
				_, err := try(m.Client(), "http://"+host+"/")
				check("80", err)
				_, err = try(m.Client(), "https://"+host+"/")
				check("443", err)
				_, err = try(m.Client(), fmt.Sprintf("http://%s:%d/", host, e.Port))
				check(fmt.Sprint(e.Port), err)
				_, err = m.DialContext(t.Context(), "tcp", host+":5432")
				check("5432", err)
			}
			if n := mesh.Clusters(m); n != 4 {
				t.Errorf("%d targets are kept, want those with a port that there is", n)
			}
		})
	}
}

// TestPortOfTheEntryChanges: a reload that takes a port away refuses the next calls to it, and gives it back.
func TestPortOfTheEntryChanges(t *testing.T) {
	noLeaks(t)
	e := serve(t, says("db"))
	m := newMesh(t, entryOf(e, 8080, 9090))
	for _, step := range []struct {
		ports []int
		want  bool
	}{{[]int{8080, 9090}, true}, {[]int{8080}, false}, {[]int{8080, 9090}, true}} {
		if err := m.Apply(yaml(entryOf(e, step.ports...))...); err != nil {
			t.Fatal(err)
		}
		if _, err := try(m.Client(), "http://db.example:9090/"); (err == nil) != step.want {
			t.Errorf("ports %v: the call to 9090: %v", step.ports, err)
		}
	}
}

// TestRouteToAPort: a destination without a port means the only port, as in Istio. A port that does not exist is refused.
func TestRouteToAPort(t *testing.T) {
	e := serve(t, says("db"))
	routed := func(port string) string {
		return entryOf(e, 8080) + "---" + strings.ReplaceAll(yamlOf("web"), "{host: web}", "{host: db.example"+port+"}")
	}
	if a := get(t, newMesh(t, routed("")).Client(), "http://web/"); a.body != "db" {
		t.Errorf("a route without a port: %q", a.body)
	}
	if _, err := try(newMesh(t, routed(", port: {number: 80}")).Client(), "http://web/"); err == nil || !strings.Contains(err.Error(), "has no port 80, it has 8080") {
		t.Errorf("a route to port 80: %v", err)
	}
	dropped := make(chan error, 1)
	mirrored := entryOf(e, 8080) + "---" + strings.Replace(yamlOf("web"), "{route:", "{mirror: {host: db.example, port: {number: 80}}, route:", 1)
	m := newMesh(t, mirrored, mesh.WithDiscovery(discovery.Static{"web": {e}}),
		mesh.WithObserver(mesh.Observer{MirrorDropped: func(_ route.Target, err error) { dropped <- err }}))
	get(t, m.Client(), "http://web/")
	if err := next(t, dropped); !strings.Contains(err.Error(), "has no port 80, it has 8080") {
		t.Errorf("a mirror to port 80: %v", err)
	}
}

// TestPortThatSomeEndpointsDoNotServe: while a rollout adds a port, only the endpoints that have it get the calls to it.
func TestPortThatSomeEndpointsDoNotServe(t *testing.T) {
	noLeaks(t)
	young, old := serve(t, says("young")), serve(t, says("old"))
	grpc := discovery.Endpoint{Address: young.Address, OnlyPorts: true, Ports: []discovery.Port{{Number: 80, Target: young.Port}, {Number: 90, Target: young.Port}}}
	http := discovery.Endpoint{Address: old.Address, OnlyPorts: true, Ports: []discovery.Port{{Number: 80, Target: old.Port}}}
	m := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"web": {grpc, http}, "late": {http}}), mesh.WithEmptyPolicy())
	all := map[string]int{}
	for range 40 {
		all[get(t, m.Client(), "http://web/").body]++
		if a := get(t, m.Client(), "http://web:90/"); a.body != "young" {
			t.Fatalf("a call to a port that one endpoint serves goes to the %s", a.body)
		}
	}
	if all["young"] == 0 || all["old"] == 0 {
		t.Errorf("calls to a port that both serve: %v, want both", all)
	}
	var failure *mesh.Error
	if _, err := try(m.Client(), "http://late:90/"); !errors.As(err, &failure) || !errors.Is(err, balancer.ErrNoEndpoints) ||
		!strings.Contains(err.Error(), "none of the 1 that there are serves port 90") {
		t.Errorf("a call to a port that none serves: %v", err)
	}
}

// TestSubsetWithoutThePort: the endpoints have the labels of the subset, so the error names the port that they do not serve.
func TestSubsetWithoutThePort(t *testing.T) {
	e := serve(t, says("v1"))
	e.OnlyPorts, e.Ports, e.Labels = true, []discovery.Port{{Number: 80, Target: e.Port}}, map[string]string{"version": "v1"}
	const documents = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http: [{route: [{destination: {host: web, subset: %s}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
`
	for _, test := range []struct{ subset, port, want string }{
		{"v1", "80", ""},
		{"v1", "90", "none of the 1 that there are has the labels version=v1 and serves port 90"},
		{"v2", "90", "none of the 1 that there are has the labels version=v2"},
	} {
		m := newMesh(t, fmt.Sprintf(documents, test.subset), mesh.WithDiscovery(discovery.Static{"web": {e}}))
		_, err := try(m.Client(), "http://web:"+test.port+"/")
		if (err == nil) != (test.want == "") || err != nil && !strings.HasSuffix(err.Error(), test.want+" [UH]") {
			t.Errorf("subset %s, port %s: %v, want %q", test.subset, test.port, err, test.want)
		}
	}
}
