// Command discovery replaces the endpoints of a service while it is being called, without a failed call.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

func main() {
	log.SetFlags(0)
	blueServer, blue := serve("blue")
	greenServer, green := serve("green")
	defer greenServer.Close()

	// A registry in the process. Other resolvers can take its place: discovery.DNS, discovery.Static, or your own.
	var registry discovery.Memory
	registry.Set("shop", blue)

	transport := &balancer.Transport{Resolver: &registry}
	defer transport.Close()
	client := &http.Client{Transport: transport}
	fmt.Println("only blue is registered:", get(client))

	registry.Set("shop", blue, green)
	calls := 1
	for get(client) != "green" {
		calls++
	}
	fmt.Println("green joins, and gets call number", calls)

	// Draining endpoints finish the calls they have and get no new ones.
	blue.Draining = true
	registry.Set("shop", blue, green)
	for inARow := 0; inARow < 30; inARow++ {
		if get(client) != "green" {
			inARow = 0
		}
	}
	blueServer.Close()
	registry.Set("shop", green)
	fmt.Println("blue drains and goes, no call failed:", get(client))

	// DNS has the same interface. Each change of the endpoints is one iteration of the loop.
	for endpoints, err := range (discovery.DNS{}).Watch(context.Background(), discovery.Service{Host: "localhost"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("DNS knows", endpoints[0].Address)
		break
	}
}

// serve starts a server that answers with its name.
func serve(name string) (*httptest.Server, discovery.Endpoint) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }))
	addr := server.Listener.Addr().(*net.TCPAddr)
	return server, discovery.Endpoint{Address: addr.IP.String(), Port: addr.Port}
}

func get(client *http.Client) string {
	resp, err := client.Get("http://shop/")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	return string(body)
}
