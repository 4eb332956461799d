// Command errors makes calls that fail in different ways, and tells them apart.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
)

const document = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - route: [{destination: {host: shop}}]
    timeout: 200ms
`

func main() {
	log.SetFlags(0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	addr := server.Listener.Addr().(*net.TCPAddr)
	services := discovery.Static{
		"shop":  {{Address: addr.IP.String(), Port: addr.Port}}, // never answers
		"gone":  {{Address: "127.0.0.1", Port: 1}},              // nobody listens there
		"empty": {},
	}

	m, err := mesh.New(context.Background(),
		mesh.WithPolicy(policy.Source{Name: "shop.yaml", Data: []byte(document)}),
		mesh.WithDiscovery(services),
		mesh.WithRegistryOnly(),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 3}}, "gone"),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	client := m.Client()

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	impatient, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://shop/", nil)
	if err != nil {
		log.Fatal(err)
	}
	explain(client.Do(impatient))
	explain(client.Get("http://shop/"))
	explain(client.Get("http://stranger/"))
	explain(client.Get("http://empty/"))
	explain(client.Get("http://gone/"))
	explain(client.Get("http://gone/"))
}

func explain(resp *http.Response, err error) {
	if err == nil {
		log.Fatal(resp.Status, ", though every call here should fail")
	}
	fmt.Println(err)
	// errors.Is finds the states that a program branches on, through all wrappers.
	switch {
	case errors.Is(err, mesh.ErrNotInMesh):
		fmt.Println("  nobody knows this host: a typo, or a missing document")
	case errors.Is(err, balancer.ErrNoEndpoints):
		fmt.Println("  the service has no endpoints now")
	case errors.Is(err, breaker.ErrOpen):
		fmt.Println("  the service has failed too often lately, nothing was sent")
	case errors.Is(err, context.DeadlineExceeded):
		fmt.Println("  it took too long")
	}
	// A *mesh.Error has the details. Without one, the caller's own context ended.
	var failure *mesh.Error
	switch {
	case !errors.As(err, &failure):
		fmt.Println("  and we did not want to wait longer")
	case failure.Layer != "endpoint":
		fmt.Printf("  this was decided here, by the layer %q\n", failure.Layer)
	case failure.Flags&mesh.FlagConnectFailure != 0:
		fmt.Println("  there was no connection: the server has not seen the call")
	}
}
