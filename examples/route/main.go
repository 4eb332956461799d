// Command route sends requests to versions of a service, by header, path and weight, with no document involved.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"github.com/nosidecar/mesh/policy/route"
)

func main() {
	log.SetFlags(0)
	first, v1 := serve("v1")
	defer first.Close()
	second, v2 := serve("v2")
	defer second.Close()
	table, err := route.NewTable([]route.Route{
		{ // testers get the new version
			Matches:      []route.Match{{Headers: []route.KeyMatch{{Key: "x-tester", Value: route.StringMatch{Kind: route.Present}}}}},
			Destinations: []route.Destination{{Target: v2}},
		},
		{ // an old address
			Matches:  []route.Match{{URI: route.StringMatch{Kind: route.Prefix, Value: "/old/"}}},
			Redirect: &route.Redirect{PrefixRewrite: "/users/"},
		},
		{ // the service itself does not know its prefix
			Matches:      []route.Match{{URI: route.StringMatch{Kind: route.Prefix, Value: "/users/"}}},
			Rewrite:      route.Rewrite{URI: "/"},
			Destinations: []route.Destination{{Target: v1, Weight: 90}, {Target: v2, Weight: 10}},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: &route.Transport{Table: table}}
	defer client.CloseIdleConnections()

	fmt.Println("GET /users/42           ", get(client, "/users/42"))
	fmt.Println("GET /old/42, redirected ", get(client, "/old/42"))
	fmt.Println("GET /users/42, x-tester ", get(client, "/users/42", "x-tester"))
	fmt.Println("GET /elsewhere          ", get(client, "/elsewhere"))
	tally := map[string]int{}
	for range 1000 {
		tally[get(client, "/users/42")]++
	}
	fmt.Println("1000 calls at 90/10     ", tally)
}

// serve starts a server that answers with its version and the path it sees.
func serve(version string) (*httptest.Server, route.Target) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, version, " at ", r.URL.Path)
	}))
	addr := server.Listener.Addr().(*net.TCPAddr)
	return server, route.Target{Host: addr.IP.String(), Port: addr.Port}
}

func get(client *http.Client, path string, headers ...string) string {
	req, err := http.NewRequest("GET", "http://user-service"+path, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range headers {
		req.Header.Set(name, "1")
	}
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
