package timeout_test

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/timeout"
)

func ExampleTransport() {
	// A server that looks at how long its caller will wait.
	server := roundTrip(func(r *http.Request) (*http.Response, error) {
		ms, _ := strconv.Atoi(r.Header.Get(timeout.Header))
		if ms > 1900 && ms <= 2000 {
			fmt.Println("the server has 2 s")
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("hello"))}, nil
	})
	client := &http.Client{Transport: &timeout.Transport{
		Base:   server, // nil for http.DefaultTransport
		Config: timeout.Config{Request: 2 * time.Second, BodyIdle: 500 * time.Millisecond},
	}}
	resp, err := client.Get("http://user-service/users/42")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(string(body))
	// Output:
	// the server has 2 s
	// hello
}
