package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// Documents decide what becomes of a call. Here they retry what a server fails to answer.
func ExampleNew() {
	calls := 0
	orders := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "%s, at the second attempt", r.URL.Path)
	}))
	defer orders.Close()

	m, err := mesh.New(context.Background(),
		mesh.WithDiscovery(discovery.Static{"orders": {at(orders)}}),
		mesh.WithPolicy(policy.Source{Name: "orders.yaml", Data: []byte(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
  - route: [{destination: {host: orders}}]
    retries: {attempts: 2, retryOn: 5xx}
`)}))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	resp, err := m.Client().Get("http://orders/orders/42")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(text))
	// Output: 200 /orders/42, at the second attempt
}

// Documents are tested with servers of the test as endpoints: does the header choose the version? If the endpoints are those of
// a ServiceEntry, let the DialContext of WithTransport connect to the test's servers. If they take mTLS only, a tlsid.DevCA has
// identities for both ends. In a bubble of testing/synctest, timeouts and waits take no time.
func ExampleWithPolicyDir() {
	var endpoints []discovery.Endpoint
	for _, version := range []string{"v1", "v2"} {
		users := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, version) }))
		defer users.Close()
		endpoint := at(users)
		endpoint.Labels = map[string]string{"version": version}
		endpoints = append(endpoints, endpoint)
	}
	m, err := mesh.New(context.Background(),
		mesh.WithPolicyDir("examples/quickstart/mesh.d/01-istio-routing-destination-retry-timeout.yaml"),
		mesh.WithDiscovery(discovery.Static{"user-service": endpoints}))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	req, _ := http.NewRequest(http.MethodGet, "http://user-service/users/42", nil)
	req.Header.Set("version", "v2")
	resp, err := m.Client().Do(req)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(string(text))
	// Output: v2
}

// A document that cannot be enforced is an error, which names the place and the remedy.
func ExampleNew_badDocument() {
	_, err := mesh.New(context.Background(), mesh.WithPolicy(policy.Source{Name: "orders.yaml", Data: []byte(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
  - route: [{destination: {host: orders}}]
    timeout: 5
`)}))
	fmt.Println(err)
	// Output: orders.yaml:9: VirtualService default/orders: spec.http[0].timeout: error: must be a duration with a unit: write "5s" for seconds
}

// Status says what is in force: here after a good load, one that was refused, and a call.
func ExampleMesh_Status() {
	orders := httptest.NewServer(http.NotFoundHandler())
	defer orders.Close()
	documents := func(text string) policy.Source { return policy.Source{Name: "orders.yaml", Data: []byte(text)} }
	m, err := mesh.New(context.Background(),
		mesh.WithDiscovery(discovery.Static{"orders": {at(orders)}}),
		mesh.WithPolicy(documents("apiVersion: v1\nkind: Service\nmetadata: {name: orders}\nspec: {ports: [{port: 80}]}\n")))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	_ = m.Apply(documents("kind: Service\n"))
	resp, err := m.Client().Get("http://orders/")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()

	s := m.Status() // for a page: json.NewEncoder(w).Encode(m.Status())
	fmt.Println("ready:", s.Ready, s.NotReady)
	fmt.Println("load:", s.Documents.Number, "with", s.Documents.Count, "document")
	fmt.Println("refused:", s.Documents.Refused.Number, s.Documents.Refused.Error)
	for _, service := range s.Services {
		fmt.Println(service.Host, service.Port, "has", len(service.Endpoints), "endpoint, healthy:", service.Endpoints[0].Healthy)
	}
	// Output:
	// ready: true []
	// load: 1 with 1 document
	// refused: 2 orders.yaml:1: Service: apiVersion: error: missing: say which API the document belongs to, such as networking.istio.io/v1
	// orders.default.svc.cluster.local 80 has 1 endpoint, healthy: true
}

// Apply replaces the documents while the mesh runs. If one of them is wrong, nothing changes.
func ExampleMesh_Apply() {
	m, err := mesh.New(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	unavailable := policy.Source{Name: "maintenance.yaml", Data: []byte(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
  - directResponse: {status: 503, body: {string: "back at noon"}}
`)}
	if err := m.Apply(unavailable); err != nil {
		log.Fatal(err)
	}
	resp, err := m.Client().Get("http://orders/orders/42")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(text))
	// Output: 503 back at noon
}

// Handler and Listen are the inbound side. Here a request arrives without a certificate, so no peer that the policy names sent it.
func ExampleMesh_Handler() {
	ca, err := tlsid.NewDevCA("cluster.local") // for tests; see tlsid.Files and tlsid/spiffe
	if err != nil {
		log.Fatal(err)
	}
	m, err := mesh.New(context.Background(),
		mesh.WithIdentity(ca.Source("shop", "orders")),
		mesh.WithWorkload(policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "orders"}}),
		mesh.WithPolicy(policy.Source{Name: "orders.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
`)}))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: m.Handler(http.NotFoundHandler())}
	go srv.Serve(m.Listen(ln))
	defer srv.Close()

	resp, err := http.Get("http://" + ln.Addr().String() + "/orders/42")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, strings.TrimSpace(string(text)))
	// Output: 403 RBAC: access denied
}

// WithProtection adds settings that no document can express. The error of a refused call says which layer ended it, and why.
func ExampleWithProtection() {
	down := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer down.Close()

	m, err := mesh.New(context.Background(),
		mesh.WithDiscovery(discovery.Static{"orders": {at(down)}}),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 2}}, "orders"))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	for range 3 {
		resp, err := m.Client().Get("http://orders/orders/42")
		var failure *mesh.Error
		switch {
		case errors.As(err, &failure):
			fmt.Println(failure.Layer, failure.Flags, errors.Is(err, breaker.ErrOpen))
		case err == nil:
			fmt.Println(resp.StatusCode)
			resp.Body.Close()
		}
	}
	// Output:
	// 500
	// 500
	// breaker UO true
}

// at returns a server as an endpoint.
func at(srv *httptest.Server) discovery.Endpoint {
	address := srv.Listener.Addr().(*net.TCPAddr)
	return discovery.Endpoint{Address: address.IP.String(), Port: address.Port}
}
