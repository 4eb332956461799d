// Command timeout bounds calls in time: as a whole, and in the silence of a response body. Servers learn how long their
// caller will wait, and can give up when it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/nosidecar/mesh/timeout"
)

func main() {
	log.SetFlags(0)
	mux := http.NewServeMux()
	mux.HandleFunc("/quick", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "the server was told: %s: %s", timeout.Header, r.Header.Get(timeout.Header))
	})
	mux.HandleFunc("/hangs", func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	})
	mux.HandleFunc("/stalls", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half of the answ")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	server := httptest.NewServer(mux)
	defer server.Close()

	client := &http.Client{Transport: &timeout.Transport{
		Config: timeout.Config{Request: 600 * time.Millisecond, BodyIdle: 200 * time.Millisecond},
	}}
	defer client.CloseIdleConnections()

	for _, path := range []string{"/quick", "/hangs", "/stalls"} {
		start := time.Now()
		body, err := get(client, server.URL+path)
		fmt.Printf("%-8s %q\n", path, body)

		// The error says which limit it was; and it is a context.DeadlineExceeded, as from a deadline of the caller's own.
		if kind, _ := timeout.Exceeded(err); kind != 0 {
			fmt.Printf("         %v (a body that stalls: %t; DeadlineExceeded: %t; after %v)\n", err,
				kind == timeout.BodyIdle, errors.Is(err, context.DeadlineExceeded), time.Since(start).Round(10*time.Millisecond))
		} else if err != nil {
			log.Fatal(err)
		}
	}
}

func get(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
