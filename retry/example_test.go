package retry_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/nosidecar/mesh/retry"
)

func ExampleTransport() {
	// A server that is restarting: it answers the third call.
	calls := 0
	server := roundTrip(func(req *http.Request) (*http.Response, error) {
		calls++
		if calls < 3 {
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: http.NoBody, Request: req}, nil
		}
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("hello")), Request: req}, nil
	})

	client := &http.Client{Transport: &retry.Transport{
		Base:   server, // nil for http.DefaultTransport
		Config: retry.Config{Retries: 2, PerTryTimeout: 2 * time.Second},
	}}
	resp, err := client.Get("http://user-service/users/42")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%d %s after %d tries\n", resp.StatusCode, body, retry.Attempts(resp))
	// Output: 200 hello after 3 tries
}

func ExampleParseOn() {
	on, err := retry.ParseOn("connect-failure, refused-stream, 503")
	fmt.Println(on, err)
	// Output: connect-failure,refused-stream,503 <nil>
}
