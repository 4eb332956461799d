// Command web is a client in the mesh: it calls a service by its name, and the documents decide the rest.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/file"
	"github.com/nosidecar/mesh/tlsid"
)

func main() {
	m, err := mesh.New(context.Background(),
		mesh.WithPolicyFeed(file.New("mesh.d")),
		mesh.WithIdentity(tlsid.Files{Dir: "certs/shop/web"}),
		mesh.WithWorkload(policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}}),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	client := m.Client()
	get(client, "http://orders/orders/42") // 200: order 42 for spiffe://cluster.local/ns/shop/sa/web
	get(client, "http://orders/admin")     // 403: RBAC: access denied
}

func get(client *http.Client, url string) {
	resp, err := client.Get(url)
	if err != nil {
		log.Fatal(err) // which layer ended the call, for which destination, and why
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", resp.Status, bytes.TrimSpace(text))
}
