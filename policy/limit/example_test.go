package limit_test

import (
	"fmt"
	"net/http"

	"github.com/nosidecar/mesh/policy/limit"
)

func ExampleTransport() {
	client := &http.Client{Transport: &limit.Transport{
		Base:   answer("hello"), // stands for the destination
		Config: limit.PoolConfig{MaxRequests: 1},
	}}
	first, _ := client.Get("http://orders/")
	second, _ := client.Get("http://orders/")
	fmt.Println(first.StatusCode, second.StatusCode, second.Header.Get("x-envoy-overloaded"))

	first.Body.Close() // the end of the first call
	third, _ := client.Get("http://orders/")
	fmt.Println(third.StatusCode)
	// Output:
	// 200 503 true
	// 200
}

func ExampleRateTransport() {
	client := &http.Client{Transport: &limit.RateTransport{
		Base:   answer("hello"), // stands for the destination
		Config: limit.RateConfig{PerSecond: 0.001, Burst: 1},
	}}
	for range 2 {
		resp, _ := client.Get("http://orders/")
		resp.Body.Close()
		fmt.Println(resp.StatusCode)
	}
	// Output:
	// 200
	// 429
}
