package breaker_test

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/nosidecar/mesh/breaker"
)

func ExampleTransport() {
	client := &http.Client{Transport: &breaker.Transport{
		Base:     status(http.StatusServiceUnavailable), // in real life http.DefaultTransport, which nil means
		Config:   breaker.Config{ConsecutiveFailures: 2},
		OnChange: func(key string, c breaker.Change) { fmt.Println(key, "is", c.To) },
	}}
	for range 3 {
		resp, err := client.Get("http://user-service/users/42")
		if err != nil {
			fmt.Println("refused:", errors.Is(err, breaker.ErrOpen))
			continue
		}
		fmt.Println(resp.StatusCode)
		resp.Body.Close() // here the call ends
	}
	// Output:
	// 503
	// 503
	// http://user-service is open
	// refused: true
}

func ExampleCircuit() {
	c, err := breaker.New(breaker.Config{ConsecutiveFailures: 1}, nil)
	if err != nil {
		panic(err)
	}
	lease, err := c.Allow()
	if err != nil {
		panic(err)
	}
	// Make the call, then say how it went.
	lease.Done(breaker.Failure)

	_, err = c.Allow()
	fmt.Println(c.State(), err)
	// Output: open breaker: open
}

func ExampleOutlier() {
	o, err := breaker.NewOutlier(breaker.OutlierConfig{Consecutive5xx: 2}, func(e breaker.Event) {
		fmt.Println(e.Endpoint, "ejected:", e.Ejected, e.Reason)
	})
	if err != nil {
		panic(err)
	}
	good, bad := o.Track("10.0.0.1:80"), o.Track("10.0.0.2:80")
	good.Report(http.StatusOK)
	bad.Report(http.StatusServiceUnavailable)
	bad.Report(breaker.Timeout)
	fmt.Println(good.Ejected(), bad.Ejected())
	// Output:
	// 10.0.0.2:80 ejected: true consecutive_5xx
	// false true
}
