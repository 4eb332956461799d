package retry_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/retry"
)

// TestLimiter_SlotsAreGivenBackOnce, however a call with retries ends: a slot given back twice would let too many retries through later.
func TestLimiter_SlotsAreGivenBackOnce(t *testing.T) {
	limiter, err := retry.NewLimiter(retry.LimiterConfig{MaxRetries: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 2, Backoff: -1, On: retry.On{Status: retry.Codes(503)}}), Limiter: limiter}
	failure := errors.New("boom") // which is not retried
	for name, outcomes := range map[string][]any{
		"a response after a retry":    {503, 200},
		"the last response":           {503, 503, 503},
		"an error after a retry":      {503, failure},
		"a response without a retry":  {200},
		"an error that ends the call": {failure},
	} {
		_, _, err := loop.Do(newRequest(t, "GET", "http://service/", nil), tries(func(_ *http.Request, n int) (*http.Response, error) {
			if err, failed := outcomes[n-1].(error); failed {
				return nil, err
			}
			return response(outcomes[n-1].(int)), nil
		}))
		if err != nil && !errors.Is(err, failure) {
			t.Errorf("%s: %v", name, err)
		}
		if active, _ := limiter.Retries(); active != 0 {
			t.Fatalf("%s: %d retries are in flight afterwards, want 0", name, active)
		}
	}
}

// TestLimiter_CallsThatEndedDoNotCount: a fraction is one of the calls in flight.
func TestLimiter_CallsThatEndedDoNotCount(t *testing.T) {
	limiter, err := retry.NewLimiter(retry.LimiterConfig{Fraction: 0.5, MinConcurrency: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1}), Limiter: limiter}
	for range 100 {
		_, _, _ = loop.Do(newRequest(t, "GET", "http://service/", nil), &statuses{codes: []int{200}})
	}
	if _, most := limiter.Retries(); most != 1 {
		t.Errorf("%d retries are permitted without a call in flight, want 1", most)
	}
}
