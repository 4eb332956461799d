// Command linkerd enforces documents of Linkerd and of the Gateway API with no sidecar: a canary, and who may send which requests.
//
// It prints what was measured next to what the documents in the folder mesh.d specify. If the two differ, it says so and exits with status 1.
//
//	go run ./examples/linkerd
package main

import (
	"context"
	"embed"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

func main() {
	log.SetFlags(0)
	// A limit for the case that something hangs. Nothing here takes nearly as long.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if !run(ctx) {
		fmt.Println("Something DID NOT MATCH the documents.")
		os.Exit(1)
	}
	fmt.Println("Everything matched the documents.")
}

// run makes the calls, and reports whether their answers are those that the documents specify.
func run(ctx context.Context) bool {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		log.Fatal(err)
	}
	var services discovery.Memory
	var at discovery.Endpoint // of v2
	for _, version := range []string{"v1", "v2"} {
		endpoint, stop := serve(ctx, ca, version)
		defer stop()
		services.Set("catalog-"+version, endpoint)
		at = endpoint
	}
	matched := true
	row := func(specified string, ok bool, measured string) {
		mark := "  "
		if !ok {
			mark, matched = "! ", false
		}
		fmt.Printf(" %s%-48s %s\n", mark, specified, measured)
	}

	shop := newMesh(ctx, "canary.yaml", mesh.WithDiscovery(&services), mesh.WithIdentity(ca.Source("default", "shop")))
	defer shop.Close()
	admin := newMesh(ctx, "canary.yaml", mesh.WithDiscovery(&services), mesh.WithIdentity(ca.Source("default", "admin")))
	defer admin.Close()

	const calls = 500
	answers := make(map[string]int)
	for range calls {
		answers[ask(ctx, shop.Client(), "GET", "http://catalog/products", "")]++
	}
	row("500 calls: 90% to v1, 10% to v2", answers["200 v1"] > 400 && answers["200 v2"] > 15 && answers["200 v1"]+answers["200 v2"] == calls, fmt.Sprint(answers))
	answer := ask(ctx, shop.Client(), "GET", "http://catalog/products", "true")
	row("a tester: to v2", answer == "200 v2", answer)

	stranger := fmt.Sprintf("http://%s:%d", at.Address, at.Port)
	plain := new(http.Client)
	defer plain.CloseIdleConnections()
	for _, test := range []struct {
		who, method, url string
		client           *http.Client
		want             string
	}{
		{"the shop", "POST", "http://catalog/products", shop.Client(), "403 RBAC: access denied"},
		{"the admin", "POST", "http://catalog/products", admin.Client(), "200 v2"},
		{"the admin", "GET", "http://catalog/secrets", admin.Client(), "404 Not Found"},
		{"a stranger", "GET", stranger + "/products", plain, "403 RBAC: access denied"},
		{"the kubelet", "GET", stranger + "/healthz", plain, "200 v2"},
	} {
		answer := ask(ctx, test.client, test.method, test.url, "true")
		row(fmt.Sprintf("%s: %s: %s", test.who, test.method, test.want), answer == test.want, answer)
	}
	return matched
}

// serve starts a version of the catalog, behind the inbound side of a mesh.
func serve(ctx context.Context, ca *tlsid.DevCA, version string) (at discovery.Endpoint, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	m := newMesh(ctx, "servers.yaml", mesh.WithIdentity(ca.Source("default", "catalog")), mesh.WithWorkload(policy.Workload{
		Namespace: "default",
		Labels:    map[string]string{"app": "catalog"},
		Ports:     map[string]int{"http": port}, // which port the Server means
	}))
	server := &http.Server{Handler: m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, version) }))}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if err := server.Serve(m.Listen(listener)); err != http.ErrServerClosed {
			log.Fatal(err)
		}
	}()
	at = discovery.Endpoint{Address: "127.0.0.1", Port: port, ServiceAccount: "catalog"}
	at.Labels = map[string]string{"security.istio.io/tlsMode": "istio"} // calls are mTLS
	return at, func() {
		server.Close()
		<-stopped
		m.Close()
	}
}

//go:embed mesh.d
var documents embed.FS

func newMesh(ctx context.Context, file string, options ...mesh.Option) *mesh.Mesh {
	data, err := documents.ReadFile("mesh.d/" + file)
	if err != nil {
		log.Fatal(err)
	}
	m, err := mesh.New(ctx, append(options, mesh.WithPolicy(policy.Source{Name: "mesh.d/" + file, Data: data}))...)
	if err != nil {
		log.Fatal(err)
	}
	return m
}

// ask sends a request, and returns the status and the body of the answer.
func ask(ctx context.Context, client *http.Client, method, url, tester string) string {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	req.Header.Set("x-tester", tester)
	resp, err := client.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body))
}
