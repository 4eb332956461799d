package retry_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/nosidecar/mesh/retry"
)

// noop answers without doing anything, so that what is measured is the layer.
type noop struct{ resp *http.Response }

func (n noop) RoundTrip(*http.Request) (*http.Response, error) { return n.resp, nil }

func newNoop() noop {
	return noop{&http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}}}
}

func BenchmarkTransport(b *testing.B) {
	base := newNoop()
	for _, bench := range []struct {
		name string
		rt   http.RoundTripper
	}{
		{"bare", base},
		{"retry", &retry.Transport{Base: base, Config: retry.Config{Retries: 2}}},
		{"retry_no_budget", &retry.Transport{
			Base: base, Config: retry.Config{Retries: 2}, Budget: retry.BudgetConfig{Off: true},
		}},
		{"retry_per_try_timeout", &retry.Transport{
			Base: base, Config: retry.Config{Retries: 2, PerTryTimeout: time.Second},
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			req, err := http.NewRequest("GET", "http://service/", nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				resp, err := bench.rt.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		})
	}
}

// BenchmarkLoopParallel has all goroutines share a policy and a budget.
func BenchmarkLoopParallel(b *testing.B) {
	budget, err := retry.NewBudget(retry.BudgetConfig{})
	if err != nil {
		b.Fatal(err)
	}
	loop := retry.Loop{Policy: policy(b, retry.Config{Retries: 2}), Budget: budget}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		req, err := http.NewRequest("GET", "http://service/", nil)
		if err != nil {
			b.Error(err)
			return
		}
		resp := response(200)
		var a retry.Attempter = tries(func(*http.Request, int) (*http.Response, error) { return resp, nil })
		for pb.Next() {
			if _, _, err := loop.Do(req, a); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkParseOn(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := retry.ParseOn("connect-failure,refused-stream,unavailable,cancelled,503"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTransport_NoAllocationsOnTheHappyPath(t *testing.T) {
	req, err := http.NewRequest("GET", "http://service/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		config retry.Config
		want   float64
	}{
		{"retries", retry.Config{Retries: 2}, 0},
		// The try, its context and cancel function, its timer and callback, the copy of the request.
		{"per-try timeout", retry.Config{Retries: 2, PerTryTimeout: time.Second}, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			rt := &retry.Transport{Base: newNoop(), Config: test.config}
			got := testing.AllocsPerRun(100, func() {
				if _, err := rt.RoundTrip(req); err != nil {
					t.Fatal(err)
				}
			})
			if got > test.want {
				t.Errorf("%v allocations a call, want at most %v", got, test.want)
			}
		})
	}
}

// A Loop may be created per call, for example if budgets are kept by destination and policies by route.
func TestLoop_NoAllocationsOnTheHappyPath(t *testing.T) {
	req, err := http.NewRequest("GET", "http://service/", nil)
	if err != nil {
		t.Fatal(err)
	}
	budget, err := retry.NewBudget(retry.BudgetConfig{})
	if err != nil {
		t.Fatal(err)
	}
	limiter, err := retry.NewLimiter(retry.LimiterConfig{Fraction: 0.2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, retry.Config{Retries: 2})
	resp := response(200)
	var a retry.Attempter = tries(func(*http.Request, int) (*http.Response, error) { return resp, nil })
	if n := testing.AllocsPerRun(100, func() {
		loop := retry.Loop{Policy: p, Budget: budget, Limiter: limiter}
		if _, _, err := loop.Do(req, a); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
