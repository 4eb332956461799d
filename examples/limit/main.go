// Command limit bounds what a process sends to a server: the number of concurrent calls, and their rate. Further calls are
// answered in place of the server, in Envoy's words.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/nosidecar/mesh/policy/limit"
)

func main() {
	log.SetFlags(0)
	gate := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/waits" {
			<-gate
		}
		io.WriteString(w, "done")
	}))
	defer server.Close()

	fmt.Println("One connection, one call waiting for it, five calls at once:")
	pool := &limit.Transport{Config: limit.PoolConfig{MaxConnections: 1, MaxPendingRequests: 1}}
	client := &http.Client{Transport: pool}
	answers := make(chan string)
	for range 5 {
		go func() { answers <- get(client, server.URL+"/waits") }()
	}
	for i := range 5 {
		if i == 3 {
			close(gate) // three were refused at once; now the server answers the others
		}
		fmt.Println(" ", <-answers)
	}
	fmt.Printf("  refused so far: %d\n", pool.Stats().Overflows)
	pool.CloseIdleConnections()

	fmt.Println("A bucket of two tokens that gains one a minute:")
	client = &http.Client{Transport: &limit.RateTransport{Config: limit.RateConfig{PerSecond: 1. / 60, Burst: 2}}}
	for range 3 {
		fmt.Println(" ", get(client, server.URL))
	}
}

func get(client *http.Client, url string) string {
	resp, err := client.Get(url)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	answer := fmt.Sprintf("%s: %s", resp.Status, body)
	for name, values := range resp.Header {
		if strings.HasPrefix(name, "X-Envoy-") {
			answer += fmt.Sprintf(" (%s: %s)", strings.ToLower(name), values[0])
		}
	}
	return answer
}
