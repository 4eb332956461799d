package bench

import (
	"net/http"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	failsafetimeout "github.com/failsafe-go/failsafe-go/timeout"
	"github.com/sony/gobreaker/v2"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/retry"
)

// Peer is one way to protect calls.
type Peer struct {
	Name string
	Wrap func(http.RoundTripper) http.RoundTripper
}

// All sides retry twice and open a circuit after five failures in a row.
const (
	retries       = 2
	perTryTimeout = 2 * time.Second
	callTimeout   = 5 * time.Second // all tries together
)

// Bare adds nothing: what the others are measured by.
var Bare = Peer{"bare", func(base http.RoundTripper) http.RoundTripper { return base }}

// Layers returns the layers of this library, used by hand, and what does the same elsewhere.
func Layers() []Peer {
	return []Peer{
		{"retry", func(base http.RoundTripper) http.RoundTripper {
			return &retry.Transport{Base: base, Config: retry.Config{Retries: retries}}
		}},
		{"breaker", func(base http.RoundTripper) http.RoundTripper {
			return &breaker.Transport{Base: base}
		}},
		{"gobreaker", func(base http.RoundTripper) http.RoundTripper {
			return gobreakerTransport{base, gobreaker.NewCircuitBreaker[*http.Response](gobreaker.Settings{})}
		}},
		{"retry, breaker", func(base http.RoundTripper) http.RoundTripper {
			return &retry.Transport{Base: &breaker.Transport{Base: base}, Config: retry.Config{Retries: retries}}
		}},
		Failsafe,
		{"retry with a per-try timeout, breaker", func(base http.RoundTripper) http.RoundTripper {
			return &retry.Transport{
				Base:   &breaker.Transport{Base: base},
				Config: retry.Config{Retries: retries, PerTryTimeout: perTryTimeout},
			}
		}},
		FailsafeTimeout,
	}
}

// Failsafe is failsafe-go with a retry policy and a circuit breaker, FailsafeTimeout the same with a timeout on each try.
var (
	Failsafe = Peer{"failsafe-go: retry, breaker", func(base http.RoundTripper) http.RoundTripper {
		return failsafehttp.NewRoundTripper(base, failsafehttp.NewRetryPolicyBuilder().Build(), failsafeBreaker())
	}}
	FailsafeTimeout = Peer{"failsafe-go: retry with a per-try timeout, breaker", func(base http.RoundTripper) http.RoundTripper {
		return failsafehttp.NewRoundTripper(base, failsafehttp.NewRetryPolicyBuilder().Build(), failsafeBreaker(),
			failsafetimeout.New[*http.Response](perTryTimeout))
	}}
)

func failsafeBreaker() circuitbreaker.CircuitBreaker[*http.Response] {
	return circuitbreaker.NewBuilder[*http.Response]().
		WithFailureThreshold(5).
		WithDelay(30 * time.Second).
		HandleIf(func(resp *http.Response, err error) bool {
			return err != nil || resp != nil && resp.StatusCode >= 500
		}).
		Build()
}

// gobreakerTransport uses gobreaker as its documentation does: the call is over when RoundTrip returns.
type gobreakerTransport struct {
	base    http.RoundTripper
	breaker *gobreaker.CircuitBreaker[*http.Response]
}

func (t gobreakerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.breaker.Execute(func() (*http.Response, error) { return t.base.RoundTrip(req) })
}
