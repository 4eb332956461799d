// Command breaker stops calls to a server that fails, and probes it until it has recovered.
package main

import (
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/breaker"
)

func main() {
	log.SetFlags(0)
	var broken atomic.Bool
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if broken.Load() {
			http.Error(w, "out of order", http.StatusInternalServerError)
		}
	}))
	defer server.Close()

	config := breaker.Config{ConsecutiveFailures: 3, OpenDuration: 500 * time.Millisecond}
	client := &http.Client{Transport: &breaker.Transport{
		Config: config,
		OnChange: func(_ string, change breaker.Change) {
			fmt.Printf("  circuit: %v -> %v\n", change.From, change.To)
		},
	}}
	call := func() {
		resp, err := client.Get(server.URL)
		switch {
		case errors.Is(err, breaker.ErrOpen):
			fmt.Println("  refused at once, nothing was sent")
		case err != nil:
			log.Fatal(err)
		default:
			resp.Body.Close()
			fmt.Println(" ", resp.Status)
		}
	}

	fmt.Println("The server breaks down:")
	broken.Store(true)
	for range 5 {
		call()
	}
	fmt.Printf("It got %d requests, and gets no more for %v. It recovers meanwhile:\n", requests.Load(), config.OpenDuration)
	broken.Store(false)
	time.Sleep(config.OpenDuration)
	for range 2 {
		call()
	}
}
