// Command retry calls a server that is restarting: its first two answers are 503, and the caller sees none of them.
package main

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/retry"
)

func main() {
	log.SetFlags(0)
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) <= 2 {
			http.Error(w, "restarting", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()

	client := &http.Client{Transport: &retry.Transport{
		Config: retry.Config{Retries: 2, PerTryTimeout: 2 * time.Second},
		Observe: func(req *http.Request, s retry.Summary) {
			fmt.Printf("  tries: %d, then: %s\n", s.Attempts, s.Stopped)
		},
	}}
	call := func(what string, req *http.Request) {
		requests.Store(0)
		fmt.Println(what)
		resp, err := client.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Printf("  the caller gets %d; the server got %d requests\n", resp.StatusCode, requests.Load())
	}

	call("GET is idempotent, so it is tried again:", request("GET", server.URL))
	call("POST is not, and the server did answer:", request("POST", server.URL))

	keyed := request("POST", server.URL)
	keyed.Header.Set("Idempotency-Key", "order-17")
	call("POST with an Idempotency-Key may be repeated, body and all:", keyed)
}

func request(method, url string) *http.Request {
	req, err := http.NewRequest(method, url, strings.NewReader("one order"))
	if err != nil {
		log.Fatal(err)
	}
	return req
}
