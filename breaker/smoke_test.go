package breaker_test

import (
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/breaker"
)

func TestDefaultTrips(t *testing.T) {
	c, err := breaker.New(breaker.Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		l, err := c.Allow()
		if err != nil {
			t.Fatal(err)
		}
		l.Done(breaker.Failure)
	}
	if c.State() != breaker.Open {
		t.Fatal("not open")
	}
}

type rt func(*http.Request) (*http.Response, error)

func (f rt) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
