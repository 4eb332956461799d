package fault_test

import (
	"fmt"
	"io"
	"net/http"

	"github.com/nosidecar/mesh/policy/fault"
)

func ExampleTransport() {
	client := &http.Client{Transport: &fault.Transport{
		Config: fault.Config{Abort: fault.Abort{Fraction: 1, HTTPStatus: 503}},
	}}
	resp, err := client.Get("http://orders/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Printf("%s: %s\n", resp.Status, text)
	// Output: 503 Service Unavailable: fault filter abort
}
