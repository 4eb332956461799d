package breaker_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/nosidecar/mesh/breaker"
)

// noop answers every request with the same body, which needs no reset because nothing reads it.
type noop struct{}

var noopBody = io.NopCloser(strings.NewReader(""))

func (noop) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: noopBody, Request: req}, nil
}

func newRequest(tb testing.TB) *http.Request {
	req, err := http.NewRequest(http.MethodGet, "http://user-service/users/42", nil)
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

func roundTrip(tb testing.TB, rt http.RoundTripper, req *http.Request) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		tb.Fatal(err)
	}
	resp.Body.Close()
}

// gobreakerTransport is the least one can do with gobreaker: the outcome counts when RoundTrip returns.
type gobreakerTransport struct {
	*gobreaker.TwoStepCircuitBreaker[struct{}]
}

func (t gobreakerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	done, err := t.Allow()
	if err != nil {
		return nil, err
	}
	resp, err := noop{}.RoundTrip(req)
	done(err)
	return resp, err
}

func BenchmarkTransport(b *testing.B) {
	for _, bench := range []struct {
		name string
		rt   http.RoundTripper
	}{
		{"bare", noop{}},
		{"gobreaker", gobreakerTransport{gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{})}},
		{"mesh", &breaker.Transport{Base: noop{}}},
		{"mesh-rate", &breaker.Transport{Base: noop{}, Config: breaker.Config{FailureFraction: 0.5}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			req := newRequest(b)
			b.ReportAllocs()
			for b.Loop() {
				roundTrip(b, bench.rt, req)
			}
		})
	}
}

func BenchmarkCircuit(b *testing.B) {
	for _, bench := range []struct {
		name string
		cfg  breaker.Config
	}{
		{"default", breaker.Config{}},
		{"failure-rate", breaker.Config{FailureFraction: 0.5}},
		{"slow-call-rate", breaker.Config{SlowCallFraction: 0.5, SlowCall: time.Second}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c, err := breaker.New(bench.cfg, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				lease, err := c.Allow()
				if err != nil {
					b.Fatal(err)
				}
				lease.Done(breaker.Success)
			}
		})
	}
	b.Run("gobreaker", func(b *testing.B) {
		c := gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{})
		b.ReportAllocs()
		for b.Loop() {
			done, err := c.Allow()
			if err != nil {
				b.Fatal(err)
			}
			done(nil)
		}
	})
}

func BenchmarkTrackerReport(b *testing.B) {
	for _, bench := range []struct {
		name   string
		cfg    breaker.OutlierConfig
		result breaker.Result
	}{
		{"success", breaker.OutlierConfig{}, http.StatusOK},
		{"success-rate", breaker.OutlierConfig{SuccessRate: true}, http.StatusOK},
		{"failure", breaker.OutlierConfig{Consecutive5xx: -1}, http.StatusInternalServerError},
	} {
		b.Run(bench.name, func(b *testing.B) {
			o, err := breaker.NewOutlier(bench.cfg, nil)
			if err != nil {
				b.Fatal(err)
			}
			tracker := o.Track("10.0.0.1:80")
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					tracker.Report(bench.result)
				}
			})
		})
	}
}

func BenchmarkOutlier(b *testing.B) {
	o, err := breaker.NewOutlier(breaker.OutlierConfig{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	resp := &http.Response{StatusCode: http.StatusOK}
	b.Run("ejected+report", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !o.Ejected("10.0.0.1:80") {
				o.Report("10.0.0.1:80", resp, nil)
			}
		}
	})
	b.Run("sweep-not-due", func(b *testing.B) {
		now := time.Now()
		b.ReportAllocs()
		for b.Loop() {
			o.Sweep(now)
		}
	})
}
