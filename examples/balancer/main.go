// Command balancer spreads calls over the endpoints of a service: in turn, by load, and by user.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

func main() {
	log.SetFlags(0)
	// Three endpoints of one service. c is slow.
	services := discovery.Static{}
	for name, takes := range map[string]time.Duration{"a": 0, "b": 0, "c": 50 * time.Millisecond} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(takes)
			io.WriteString(w, name)
		}))
		defer server.Close()
		addr := server.Listener.Addr().(*net.TCPAddr)
		services["greeter"] = append(services["greeter"], discovery.Endpoint{Address: addr.IP.String(), Port: addr.Port})
	}

	for _, config := range []balancer.Config{
		{Algorithm: balancer.RoundRobin},
		{Algorithm: balancer.LeastRequest}, // the default: the slow one gets fewer calls
		{Algorithm: balancer.RingHash, HashKey: balancer.HashKey{Source: balancer.HeaderKey, Name: "x-user-id"}},
	} {
		transport := &balancer.Transport{Resolver: services, Config: config}
		fmt.Printf("%-14v %v\n", config.Algorithm, spread(&http.Client{Transport: transport}))
		transport.Close()
	}
}

// spread has 6 users make 10 calls each, all users at once, and returns which endpoints served whom.
func spread(client *http.Client) string {
	var (
		mu    sync.Mutex
		calls = map[string]int{}
		seen  = map[string]bool{}
		users sync.WaitGroup
	)
	for user := range 6 {
		users.Go(func() {
			for range 10 {
				endpoint := get(client, "http://greeter/", "user-"+strconv.Itoa(user))
				mu.Lock()
				calls[endpoint]++
				seen[fmt.Sprint(user, endpoint)] = true
				mu.Unlock()
			}
		})
	}
	users.Wait()
	return fmt.Sprintf("calls by endpoint: %v; endpoints a user met: %.1f on average", calls, float64(len(seen))/6)
}

func get(client *http.Client, url, user string) string {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		log.Fatal(err)
	}
	req.Header.Set("x-user-id", user)
	resp, err := client.Do(req)
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
