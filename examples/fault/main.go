// Command fault delays and aborts some calls on purpose, to test how the caller copes.
package main

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/policy/fault"
)

func main() {
	log.SetFlags(0)
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests.Add(1) }))
	defer server.Close()

	client := &http.Client{Transport: &fault.Transport{Config: fault.Config{
		Delay: fault.Delay{Fraction: 0.1, Fixed: 20 * time.Millisecond},
		Abort: fault.Abort{Fraction: 0.25, HTTPStatus: http.StatusServiceUnavailable},
	}}}

	const calls = 200
	var slow, aborted int
	for range calls {
		start := time.Now()
		resp, err := client.Get(server.URL)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		if time.Since(start) >= 20*time.Millisecond {
			slow++
		}
		if resp.StatusCode == http.StatusServiceUnavailable {
			aborted++
		}
	}
	fmt.Printf("of %d calls %d took 20 ms or more: about 10%% were delayed\n", calls, slow)
	fmt.Printf("of %d calls %d were aborted with 503: about 25%%\n", calls, aborted)
	fmt.Printf("the server got %d requests: an aborted call is never sent\n", requests.Load())
}
