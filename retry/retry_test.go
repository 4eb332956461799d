package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/timeout"
)

// statuses answers with the statuses in turn, the last one for ever, and counts.
type statuses struct {
	codes []int
	calls int
}

// attemptHeader is how a request says which try it is.
const attemptHeader = "X-Envoy-Attempt-Count"

func (s *statuses) Attempt(req *http.Request, n int) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	code := s.codes[min(s.calls, len(s.codes)-1)]
	s.calls++
	return response(code), nil
}

func (s *statuses) RoundTrip(req *http.Request) (*http.Response, error) { return s.Attempt(req, 0) }

func TestExhaustedReturnsLastResponse(t *testing.T) {
	calls := 0
	rt := &retry.Transport{
		Config: retry.Config{Retries: 2, Backoff: -1},
		Base: roundTrip(func(req *http.Request) (*http.Response, error) {
			calls++
			resp := response(503)
			resp.Body = io.NopCloser(strings.NewReader(fmt.Sprint("answer ", calls)))
			resp.Request = req
			return resp, nil
		}),
	}
	req := newRequest(t, "GET", "http://service/", nil)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if string(body) != "answer 3" || err != nil || resp.StatusCode != 503 {
		t.Errorf("response %d %q, %v, want the third 503", resp.StatusCode, body, err)
	}
	if got := retry.Attempts(resp); got != 3 {
		t.Errorf("Attempts = %d, want 3", got)
	}
	if resp.Request.URL != req.URL || resp.Request.Header.Get(attemptHeader) != "" {
		t.Errorf("Request = %+v, want the caller's view", resp.Request)
	}
}

func TestAttempts(t *testing.T) {
	if got := retry.Attempts(response(200)); got != 1 {
		t.Errorf("Attempts of a response without request = %d, want 1", got)
	}
	req := newRequest(t, "GET", "http://service/", nil)
	for _, test := range []struct {
		name  string
		codes []int
		want  int
	}{{"first try", []int{200}, 1}, {"second try", []int{503, 200}, 2}} {
		inner := &retry.Transport{Base: &statuses{codes: test.codes}, Config: retry.Config{Retries: 2, Backoff: -1}}
		// A wrapper that copies the request and puts the caller's back: as a per-try timeout does.
		outer := &retry.Transport{Base: inner, Config: retry.Config{Retries: 1, PerTryTimeout: time.Hour}}
		resp, err := outer.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := retry.Attempts(resp); got != test.want {
			t.Errorf("%s: Attempts = %d, want %d", test.name, got, test.want)
		}
		if resp.Request.URL != req.URL || resp.Request.Context().Err() != nil {
			t.Errorf("%s: Request is not the caller's view", test.name)
		}
		// The number belongs to that response, and not to a request that a program makes within the same context.
		next, err := (&retry.Transport{Base: &statuses{codes: []int{200}}}).RoundTrip(newRequest(t, "GET", "http://service/", nil).WithContext(resp.Request.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if got := retry.Attempts(next); got != 1 {
			t.Errorf("%s: Attempts of the next call = %d, want 1", test.name, got)
		}
	}
}

func TestRequestUntouchedBodyClosedOnce(t *testing.T) {
	fail := func(err error) tries { return func(*http.Request, int) (*http.Response, error) { return nil, err } }
	answer := func(codes ...int) tries {
		return func(_ *http.Request, n int) (*http.Response, error) { return response(codes[n-1]), nil }
	}
	read := func(next tries) tries {
		return func(req *http.Request, n int) (*http.Response, error) {
			if b, err := io.ReadAll(req.Body); string(b) != "payload" || err != nil {
				t.Errorf("try %d got body %q, %v", n, b, err)
			}
			return next(req, n)
		}
	}
	noBudget, err := retry.NewBudget(retry.BudgetConfig{Ratio: -1, MinPerSecond: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		attempt tries
		budget  *retry.Budget
		config  retry.Config
		want    int
		stopped retry.Reason
	}{
		{name: "success", attempt: read(answer(200)), want: 1},
		{name: "unread success", attempt: answer(200), want: 1},
		{name: "retried", attempt: read(answer(503, 503, 200)), want: 3},
		{name: "unread and retried", attempt: answer(503, 200), want: 2},
		{name: "exhausted", attempt: read(answer(503, 503, 503)), want: 3, stopped: retry.LimitReached},
		{name: "errors", attempt: read(fail(errReset)), want: 3, stopped: retry.LimitReached},
		{name: "unread errors", attempt: fail(errDial), want: 3, stopped: retry.LimitReached},
		{name: "refusal", attempt: fail(refusal.New("no")), want: 1, stopped: retry.NotRetriable},
		{name: "budget", attempt: read(answer(503)), budget: noBudget, want: 1, stopped: retry.BudgetRefused},
		{name: "no retries", attempt: read(answer(503)), config: retry.Config{Retries: -1}, want: 1},
		{name: "with a limit a try", attempt: read(answer(503, 200)), config: retry.Config{PerTryTimeout: time.Hour}, want: 2},
		{name: "nothing kept", attempt: read(answer(503, 200)), config: retry.Config{BodyLimit: -1}, want: 1,
			stopped: retry.BodyCommitted},
		{name: "nothing kept, nothing read", attempt: answer(503, 200), config: retry.Config{BodyLimit: -1}, want: 2},
	} {
		for _, getBody := range []bool{false, true} {
			name := fmt.Sprintf("%s/getBody=%v", test.name, getBody)
			config := test.config
			config.Retries = max(0, config.Retries+2)
			if test.config.Retries < 0 {
				config.Retries = 0
			}
			want, stopped := test.want, test.stopped
			if getBody && stopped == retry.BodyCommitted {
				want, stopped = 2, retry.Succeeded
			}
			body := newBody("payload")
			req := newRequest(t, "PUT", "http://service/x", body)
			req.Header.Set("X-Mine", "1")
			var copies []*leak.Body
			if getBody {
				req.GetBody = func() (io.ReadCloser, error) {
					c := newBody("payload")
					copies = append(copies, c)
					return c, nil
				}
			}
			header, u, getBodyBefore := req.Header.Clone(), *req.URL, req.GetBody != nil
			loop := retry.Loop{Policy: policy(t, config), Budget: test.budget}
			_, summary, _ := loop.Do(req, test.attempt)
			if summary != (retry.Summary{Attempts: want, Stopped: stopped}) {
				t.Errorf("%s: %+v, want %d tries and %v", name, summary, want, stopped)
			}
			if n := body.Closed.Load(); n != 1 {
				t.Errorf("%s: body closed %d times", name, n)
			}
			for i, c := range copies {
				if n := c.Closed.Load(); n != 1 {
					t.Errorf("%s: copy %d of the body closed %d times", name, i, n)
				}
			}
			if req.Body != io.ReadCloser(body) || *req.URL != u || fmt.Sprint(req.Header) != fmt.Sprint(header) ||
				(req.GetBody != nil) != getBodyBefore {
				t.Errorf("%s: request was changed: %+v", name, req)
			}
		}
	}
}

func TestFirstTryIsTheCallersRequest(t *testing.T) {
	req := newRequest(t, "PUT", "http://service/", strings.NewReader("payload")) // sets GetBody
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 2})}
	var seen []*http.Request
	_, _, err := loop.Do(req, tries(func(r *http.Request, n int) (*http.Response, error) {
		seen = append(seen, r)
		return response([]int{503, 200}[n-1]), nil
	}))
	if err != nil || len(seen) != 2 || seen[0] != req || seen[1] == req {
		t.Fatalf("tries %v, %v, want the request itself and then a copy", seen, err)
	}
	if got := seen[1].Header.Get("X-Envoy-Attempt-Count"); got != "2" {
		t.Errorf("x-envoy-attempt-count = %q, want 2", got)
	}
}

func TestPanicAndGoexitPassThrough(t *testing.T) {
	limiter, err := retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := newBody("x")
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1, PerTryTimeout: time.Hour}), Limiter: limiter}
	var ctx context.Context
	func() {
		defer func() {
			if got := recover(); got != errBoom {
				t.Errorf("recovered %v, want the panic of the try", got)
			}
		}()
		_, _, _ = loop.Do(newRequest(t, "PUT", "http://service/", body),
			tries(func(r *http.Request, n int) (*http.Response, error) {
				ctx = r.Context()
				if n == 2 {
					panic(errBoom)
				}
				return response(503), nil
			}))
	}()
	if !limiter.Acquire() {
		t.Error("the slot of the limiter was not released")
	}
	if body.Closed.Load() != 1 {
		t.Errorf("body closed %d times", body.Closed.Load())
	}
	if ctx.Err() == nil {
		t.Error("the context of the try lives on")
	}
}

// TestPanicOfGetBody: neither a slot of the limiter nor the response that was to be given up is left behind.
func TestPanicOfGetBody(t *testing.T) {
	limiter, err := retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1}), Limiter: limiter}
	req := newRequest(t, "PUT", "http://service/", newBody("x"))
	req.GetBody = func() (io.ReadCloser, error) { panic(errBoom) }
	answer := newBody("no")
	func() {
		defer func() {
			if got := recover(); got != errBoom {
				t.Errorf("recovered %v, want the panic of GetBody", got)
			}
		}()
		_, _, _ = loop.Do(req, tries(func(*http.Request, int) (*http.Response, error) {
			resp := response(503)
			resp.Body = answer
			return resp, nil
		}))
	}()
	if !limiter.Acquire() {
		t.Error("the slot of the limiter was not released")
	}
	if answer.Closed.Load() != 1 {
		t.Errorf("the response was closed %d times", answer.Closed.Load())
	}
}

func TestPostOnlyIfUnprocessed(t *testing.T) {
	key := func(r *http.Request) { r.Header.Set("Idempotency-Key", "k") }
	for _, test := range []struct {
		name   string
		method string
		edit   func(*http.Request)
		config retry.Config
		err    error
		want   bool
	}{
		{name: "POST 503", method: "POST"},
		{name: "PATCH 503", method: "PATCH"},
		{name: "unknown method 503", method: "FROB"},
		{name: "POST reset", method: "POST", err: errReset},
		{name: "POST dial", method: "POST", err: errDial, want: true},
		{name: "PATCH dial", method: "PATCH", err: errDial, want: true},
		{name: "POST 503 with key", method: "POST", edit: key, want: true},
		{name: "POST reset with key", method: "POST", edit: key, err: errReset, want: true},
		{name: "POST 503 any method", method: "POST", config: retry.Config{AnyMethod: true}, want: true},
		{name: "POST refusal any method", method: "POST", config: retry.Config{AnyMethod: true}, err: refusal.New("no")},
		{name: "GET 503", method: "GET", want: true},
		{name: "PUT 503", method: "PUT", want: true},
		{name: "DELETE reset", method: "DELETE", err: errReset, want: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.config.Retries = 1
			loop := retry.Loop{Policy: policy(t, test.config)}
			req := newRequest(t, test.method, "http://service/", strings.NewReader("x"))
			if test.edit != nil {
				test.edit(req)
			}
			_, summary, _ := loop.Do(req, tries(func(*http.Request, int) (*http.Response, error) {
				if test.err != nil {
					return nil, test.err
				}
				return response(503), nil
			}))
			if got := summary.Attempts == 2; got != test.want {
				t.Errorf("%d tries (%v), want a retry: %v", summary.Attempts, summary.Stopped, test.want)
			}
		})
	}
}

func TestRetryAfterForms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now().UTC() // synctest begins at midnight of 2000-01-01, a Saturday
		in3s := start.Add(3 * time.Second)
		for _, test := range []struct {
			name    string
			value   string
			config  retry.Config
			timeout time.Duration
			want    time.Duration
			stopped retry.Reason
		}{
			{name: "none"},
			{name: "seconds", value: "3", want: 3 * time.Second},
			{name: "zero", value: "0"},
			{name: "IMF-fixdate", value: in3s.Format(http.TimeFormat), want: 3 * time.Second},
			{name: "RFC 850", value: in3s.Format("Monday, 02-Jan-06 15:04:05 GMT"), want: 3 * time.Second},
			{name: "asctime", value: in3s.Format(time.ANSIC), want: 3 * time.Second},
			{name: "negative", value: "-3"},
			{name: "plus", value: "+3"},
			{name: "garbage", value: "soon"},
			{name: "empty", value: ""},
			{name: "fraction", value: "1.5"},
			{name: "past date", value: "Fri, 31 Dec 1999 23:00:00 GMT"},
			{name: "beyond int64", value: "99999999999999999999"},
			{name: "beyond Duration", value: "9223372037"},
			{name: "at the cap", value: "10", want: 10 * time.Second},
			{name: "beyond the cap", value: "11", stopped: retry.OutOfTime},
			{name: "own cap", value: "60", config: retry.Config{MaxRetryAfter: time.Minute}, want: time.Minute},
			{name: "beyond own cap", value: "2", config: retry.Config{MaxRetryAfter: time.Second}, stopped: retry.OutOfTime},
			{name: "date beyond the cap", value: "Sun, 02 Jan 2000 00:00:00 GMT", stopped: retry.OutOfTime},
			{name: "beyond the deadline", value: "3", timeout: 2 * time.Second, stopped: retry.OutOfTime},
			{name: "before the deadline", value: "3", timeout: 4 * time.Second, want: 3 * time.Second},
			{name: "off", value: "3", config: retry.Config{MaxRetryAfter: -1}},
		} {
			// All dates are relative to the start, so each case has its own bubble below.
			t.Log(test.name)
			elapsed, summary := retryAfterOnce(t, test.value, test.config, test.timeout, start)
			if elapsed != test.want || summary.Stopped != test.stopped {
				t.Errorf("%s: waited %v and stopped with %v, want %v and %v", test.name, elapsed, summary.Stopped,
					test.want, test.stopped)
			}
		}
	})
}

// retryAfterOnce answers 503 with the header and then 200, and returns the time between. Dates in the header count from
// start, so they are moved to now.
func retryAfterOnce(t *testing.T, value string, config retry.Config, timeout time.Duration, start time.Time) (
	time.Duration, retry.Summary) {
	for _, layout := range []string{http.TimeFormat, "Monday, 02-Jan-06 15:04:05 GMT", time.ANSIC} {
		if at, err := time.Parse(layout, value); err == nil {
			value = time.Now().UTC().Add(at.Sub(start)).Format(layout)
		}
	}
	ctx := t.Context()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	config.Retries = 1
	loop := retry.Loop{Policy: policy(t, config)}
	began := time.Now()
	resp, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil).WithContext(ctx),
		tries(func(_ *http.Request, n int) (*http.Response, error) {
			if n == 2 {
				return response(200), nil
			}
			return response(503, "Retry-After", value), nil
		}))
	if err != nil || (summary.Attempts == 1) != (resp.StatusCode == 503) {
		t.Errorf("Retry-After %q: %v, %v, %+v", value, resp, err, summary)
	}
	return time.Since(began), summary
}

func TestBackoffWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			name   string
			config retry.Config
			rand   float64
			want   []time.Duration // between the tries
		}{
			{"upper end", retry.Config{Retries: 5, Backoff: 10 * time.Millisecond}, 1 - 1e-12,
				[]time.Duration{10e6, 30e6, 70e6, 100e6, 100e6}},
			{"middle", retry.Config{Retries: 2, Backoff: 10 * time.Millisecond}, 0.5,
				[]time.Duration{5 * time.Millisecond, 15 * time.Millisecond}},
			{"lower end", retry.Config{Retries: 2, Backoff: 10 * time.Millisecond}, 0, []time.Duration{0, 0}},
			{"own maximum", retry.Config{Retries: 2, Backoff: 10 * time.Millisecond, MaxBackoff: 20 * time.Millisecond}, 0.5,
				[]time.Duration{5 * time.Millisecond, 10 * time.Millisecond}},
			{"off", retry.Config{Retries: 2, Backoff: -1}, 0.9, []time.Duration{0, 0}},
			{"huge", retry.Config{Retries: 1, Backoff: 1 << 62}, 0.25, []time.Duration{1 << 60}},
		} {
			var at []time.Time
			loop := retry.Loop{Policy: policy(t, test.config), Rand: func() float64 { return test.rand }}
			_, _, err := loop.Do(newRequest(t, "GET", "http://service/", nil),
				tries(func(*http.Request, int) (*http.Response, error) {
					at = append(at, time.Now())
					return response(503), nil
				}))
			if err != nil {
				t.Fatal(err)
			}
			end := time.Now()
			var got []time.Duration
			for i := 1; i < len(at); i++ {
				got = append(got, at[i].Sub(at[i-1]).Round(time.Microsecond))
			}
			for i := range test.want {
				test.want[i] = test.want[i].Round(time.Microsecond)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%s: waits %v, want %v", test.name, got, test.want)
			}
			if last := at[len(at)-1]; !end.Equal(last) {
				t.Errorf("%s: waited %v after the last try", test.name, end.Sub(last))
			}
		}
	})
}

func TestBackoffBeyondDeadlineNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		loop := retry.Loop{
			Policy: policy(t, retry.Config{Retries: 3, Backoff: 20 * time.Millisecond}),
			Rand:   func() float64 { return 0.5 },
		}
		began := time.Now()
		resp, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil).WithContext(ctx),
			&statuses{codes: []int{503}})
		if err != nil || resp.StatusCode != 503 || summary != (retry.Summary{Attempts: 1, Stopped: retry.OutOfTime}) {
			t.Errorf("%v, %+v, %v, want the first response at once", resp, summary, err)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("slept %v", d)
		}
	})
}

func TestBackoffEndsWithTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, codes := range [][]int{{503}, {503, 503}} {
			limiter, err := retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := time.AfterFunc(time.Duration(len(codes))*time.Second-time.Millisecond, func() { cancel(errBoom) })
			loop := retry.Loop{
				Policy: policy(t, retry.Config{Retries: len(codes), Backoff: time.Second, MaxBackoff: time.Second}),
				Rand:   func() float64 { return 0.999999999999 }, Limiter: limiter,
			}
			_, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil).WithContext(ctx), &statuses{codes: codes})
			if !errors.Is(err, errBoom) || summary != (retry.Summary{Attempts: len(codes), Stopped: retry.CallerGone}) {
				t.Errorf("%+v, %v, want the caller's cause after %d tries", summary, err, len(codes))
			}
			var e *retry.Error
			if errors.As(err, &e) != (len(codes) > 1) {
				t.Errorf("after %d tries the error is %#v", len(codes), err)
			}
			if !limiter.Acquire() {
				t.Errorf("after %d tries the slot of the limiter was not released", len(codes))
			}
			stop.Stop()
			cancel(nil)
		}
	})
}

func TestBudgetBoundsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &statuses{codes: []int{503}}
		var refused int
		rt := &retry.Transport{
			Base: base, Config: retry.Config{Retries: 2, Backoff: -1},
			Observe: func(_ *http.Request, s retry.Summary) {
				if s.Stopped == retry.BudgetRefused {
					refused++
				}
			},
		}
		for range 100 {
			resp, err := rt.RoundTrip(newRequest(t, "GET", "http://service/", nil))
			if err != nil || resp.StatusCode != 503 {
				t.Fatalf("%v, %v, want the original 503", resp, err)
			}
		}
		if base.calls < 110 || base.calls > 130 {
			t.Errorf("%d calls, want 100 and at most 30 retries", base.calls)
		}
		if refused < 70 {
			t.Errorf("%d refusals observed", refused)
		}
		// A second later there are ten more.
		before := base.calls
		time.Sleep(time.Second)
		for range 20 {
			_, _ = rt.RoundTrip(newRequest(t, "GET", "http://service/", nil))
		}
		if got := base.calls - before - 20; got < 10 || got > 14 {
			t.Errorf("%d retries after a second, want 10 and 20%% of 20", got)
		}
	})
}

func TestBudgetReservedBeforeBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget, err := retry.NewBudget(retry.BudgetConfig{Ratio: -1, MinPerSecond: 1})
		if err != nil {
			t.Fatal(err)
		}
		loop := retry.Loop{
			Policy: policy(t, retry.Config{Retries: 1, Backoff: time.Minute, MaxBackoff: time.Minute}), Budget: budget,
			Rand: func() float64 { return 0.5 },
		}
		done := make(chan retry.Summary, 2)
		for range 2 {
			go func() {
				_, s, _ := loop.Do(newRequest(t, "GET", "http://service/", nil), &statuses{codes: []int{503}})
				done <- s
			}()
			synctest.Wait()
		}
		// The first holds the only retry though it still waits, so the second comes back at once.
		if s := <-done; s.Stopped != retry.BudgetRefused {
			t.Errorf("first back: %+v, want a refusal", s)
		}
		if s := <-done; s.Attempts != 2 {
			t.Errorf("second back: %+v, want a retry", s)
		}
	})
}

func TestLimiter(t *testing.T) {
	for _, test := range []struct {
		name   string
		config retry.LimiterConfig
		active int64
		want   int // slots
	}{
		{"fixed", retry.LimiterConfig{MaxRetries: 2}, 1000, 2},
		{"percent", retry.LimiterConfig{Fraction: 0.2}, 100, 20},
		{"percent, few calls", retry.LimiterConfig{Fraction: 0.2}, 2, 3},
		{"percent, own minimum", retry.LimiterConfig{Fraction: 0.2, MinConcurrency: 1}, 2, 1},
	} {
		l, err := retry.NewLimiter(test.config, func() int64 { return test.active })
		if err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			got := 0
			for l.Acquire() {
				got++
			}
			if got != test.want {
				t.Errorf("%s, round %d: %d slots, want %d", test.name, round, got, test.want)
			}
			for range got {
				l.Release()
			}
		}
	}
	for name, config := range map[string]retry.LimiterConfig{
		"negative":           {MaxRetries: -1},
		"negative minimum":   {Fraction: 0.01, MinConcurrency: -1},
		"above 100":          {Fraction: 1.01},
		"both":               {Fraction: 0.01, MaxRetries: 1},
		"minimum of nothing": {MinConcurrency: 1},
	} {
		if _, err := retry.NewLimiter(config, nil); err == nil {
			t.Errorf("%s: NewLimiter(%+v) gave no error", name, config)
		}
	}
	if l, err := retry.NewLimiter(retry.LimiterConfig{}, nil); l != nil || err != nil || !l.Acquire() {
		t.Errorf("NewLimiter of nothing = %v, %v, want no limit", l, err)
	}
}

func TestLimiterBoundsRetriesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, err := retry.NewLimiter(retry.LimiterConfig{Fraction: 0.2, MinConcurrency: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		loop := retry.Loop{
			Policy:  policy(t, retry.Config{Retries: 1, Backoff: time.Second, MaxBackoff: time.Second}),
			Limiter: limiter, Rand: func() float64 { return 0.5 },
		}
		const calls = 20
		var stopped [calls]retry.Reason
		for i := range calls {
			go func() {
				_, s, _ := loop.Do(newRequest(t, "GET", "http://service/", nil),
					tries(func(*http.Request, int) (*http.Response, error) {
						time.Sleep(time.Second)
						return response(503), nil
					}))
				stopped[i] = s.Stopped
			}()
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		retried := 0
		for _, r := range stopped {
			switch r {
			case retry.LimitReached:
				retried++
			case retry.LimiterRefused:
			default:
				t.Errorf("stopped with %v", r)
			}
		}
		// Refused calls leave while others still decide, so the share is of between 4 and 20 calls.
		if retried < 1 || retried > 4 {
			t.Errorf("%d of %d calls retried at a time, want at most 20%%", retried, calls)
		}
		if !limiter.Acquire() {
			t.Error("slots were not released")
		}
	})
}

func TestNestedLayersDoNotMultiply(t *testing.T) {
	stack := func(base http.RoundTripper, nested bool) http.RoundTripper {
		for range 3 {
			base = &retry.Transport{
				Base: base, Config: retry.Config{Retries: 2, Backoff: -1, NestedRetries: nested},
				Budget: retry.BudgetConfig{Off: true},
			}
		}
		return base
	}
	for _, test := range []struct {
		name   string
		nested bool
		header string
		want   int
	}{
		{"stopped", false, "", 7},
		{"first try by its header", false, "1", 7},
		{"garbage in the header", false, "x", 7},
		{"itself a retry", false, "2", 1},
		{"switched off", true, "", 27},
		{"switched off, itself a retry", true, "2", 27},
	} {
		base := &statuses{codes: []int{503}}
		req := newRequest(t, "GET", "http://service/", nil)
		if test.header != "" {
			req.Header.Set(attemptHeader, test.header)
		}
		if _, err := stack(base, test.nested).RoundTrip(req); err != nil {
			t.Fatal(err)
		}
		if base.calls != test.want {
			t.Errorf("%s: %d calls, want %d", test.name, base.calls, test.want)
		}
	}
}

func TestNewRequestWithinARetry(t *testing.T) {
	calls := 0
	inner := retry.Loop{Policy: policy(t, retry.Config{Retries: 2})}
	outer := retry.Loop{Policy: policy(t, retry.Config{Retries: 2})}
	_, _, err := outer.Do(newRequest(t, "GET", "http://a/", nil), tries(func(r *http.Request, _ int) (*http.Response, error) {
		resp, _, err := inner.Do(newRequest(t, "GET", "http://b/", nil).WithContext(r.Context()),
			tries(func(*http.Request, int) (*http.Response, error) {
				calls++
				return response(503), nil
			}))
		return resp, err
	}))
	if err != nil || calls != 5 {
		t.Errorf("%d calls, %v, want 3 within the first try and 1 within each retry", calls, err)
	}
}

func TestLimiterSlotOfARefusedBudget(t *testing.T) {
	budget, err := retry.NewBudget(retry.BudgetConfig{Ratio: -1, MinPerSecond: -1})
	if err != nil {
		t.Fatal(err)
	}
	limiter, err := retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1}), Budget: budget, Limiter: limiter}
	for range 2 {
		_, summary, _ := loop.Do(newRequest(t, "GET", "http://service/", nil), &statuses{codes: []int{503}})
		if summary.Stopped != retry.BudgetRefused {
			t.Errorf("stopped with %v, want the budget's refusal", summary.Stopped)
		}
	}
}

func TestEndlessAndStalledBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		endless := &countingBody{read: func(p []byte) (int, error) { return len(p), nil }}
		stalled := &countingBody{closing: make(chan struct{})}
		stalled.read = func([]byte) (int, error) {
			<-stalled.closing
			return 0, io.ErrClosedPipe
		}
		long := &countingBody{read: endless.read}
		bodies := []*countingBody{endless, stalled, long}
		loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 3})}
		began := time.Now()
		resp, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil),
			tries(func(_ *http.Request, n int) (*http.Response, error) {
				if n > len(bodies) {
					return response(200), nil
				}
				resp := response(503)
				resp.Body, resp.ContentLength = bodies[n-1], -1
				if bodies[n-1] == long {
					resp.ContentLength = 1 << 30
				}
				return resp, nil
			}))
		if err != nil || resp.StatusCode != 200 || summary.Attempts != 4 {
			t.Fatalf("%v, %+v, %v", resp, summary, err)
		}
		for i, b := range bodies {
			if b.closed == 0 {
				t.Errorf("body %d was not closed", i)
			}
		}
		if endless.n > 128<<10 {
			t.Errorf("%d bytes of an endless body drained", endless.n)
		}
		if long.n != 0 {
			t.Errorf("%d bytes drained of a body known to be too long", long.n)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("a stalled body held up the call for %v", d)
		}
	})
}

type countingBody struct {
	read    func([]byte) (int, error)
	closing chan struct{}
	n       int
	closed  int
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.read(p)
	b.n += n
	return n, err
}

func (b *countingBody) Close() error {
	if b.closed++; b.closed == 1 && b.closing != nil {
		close(b.closing)
	}
	return nil
}

func TestCallerCancelIsNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := tries(func(r *http.Request, _ int) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err() // the cause is lost
		})
		loop := retry.Loop{Policy: policy(t, retry.Config{
			Retries: 2, On: retry.On{Conditions: retry.Reset}, PerTryTimeout: 100 * time.Millisecond})}

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		_, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil).WithContext(ctx), hang)
		if summary != (retry.Summary{Attempts: 1, Stopped: retry.CallerGone}) || !errors.Is(err, context.Canceled) ||
			errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller's cancel: %+v, %v", summary, err)
		}

		ctx, cancel = context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		_, summary, err = loop.Do(newRequest(t, "GET", "http://service/", nil).WithContext(ctx), hang)
		if summary != (retry.Summary{Attempts: 2, Stopped: retry.OutOfTime}) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller's deadline in the second try: %+v, %v", summary, err)
		}

		_, summary, err = loop.Do(newRequest(t, "GET", "http://service/", nil), hang)
		var e *retry.Error
		if summary != (retry.Summary{Attempts: 3, Stopped: retry.LimitReached}) || !errors.As(err, &e) || e.Attempts != 3 {
			t.Errorf("per-try timeouts: %+v, %v", summary, err)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !(&url.Error{Err: err}).Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		if !strings.Contains(err.Error(), "per-try timeout") || !strings.Contains(err.Error(), "100ms") {
			t.Errorf("%q does not say which limit", err)
		}
	})
}

func TestCallerGoneWithAResponse(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1})}
	resp, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil).WithContext(ctx),
		tries(func(*http.Request, int) (*http.Response, error) {
			cancel()
			return response(503), nil
		}))
	if err != nil || resp.StatusCode != 503 || summary != (retry.Summary{Attempts: 1, Stopped: retry.CallerGone}) {
		t.Errorf("%v, %+v, %v, want the response as it is", resp, summary, err)
	}
}

func TestNilHeader(t *testing.T) {
	req := newRequest(t, "GET", "http://service/", nil)
	req.Header = nil
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1})}
	_, _, err := loop.Do(req, tries(func(r *http.Request, n int) (*http.Response, error) {
		if got := r.Header.Get(attemptHeader); n == 2 && got != "2" {
			t.Errorf("%s = %q", attemptHeader, got)
		}
		return response(503), nil
	}))
	if err != nil || req.Header != nil {
		t.Errorf("%v, header %v", err, req.Header)
	}
}

func TestPerTryTimeout_LateHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := newBody("late")
		loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1, PerTryTimeout: time.Second})}
		resp, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil),
			tries(func(r *http.Request, n int) (*http.Response, error) {
				resp := response(200)
				if n == 1 {
					<-r.Context().Done()
					resp.Body = late
				}
				return resp, nil
			}))
		if err != nil || resp.StatusCode != 200 || summary.Attempts != 2 {
			t.Errorf("%v, %+v, %v, want the second try's response", resp, summary, err)
		}
		if late.Closed.Load() != 1 {
			t.Errorf("late body closed %d times", late.Closed.Load())
		}
	})
}

func TestTimeoutBelowBoundsATry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		})
		rt := &retry.Transport{
			Base:   &timeout.Transport{Base: hang, Config: timeout.Config{Request: time.Second}},
			Config: retry.Config{Retries: 2, Backoff: -1},
		}
		_, err := rt.RoundTrip(newRequest(t, "GET", "http://service/", nil))
		var e *retry.Error
		if !errors.As(err, &e) || e.Attempts != 3 {
			t.Errorf("%v, want three tries", err)
		}

		// The other way round it bounds them all.
		calls := 0
		all := &timeout.Transport{Config: timeout.Config{Request: time.Second}, Base: &retry.Transport{
			Base: roundTrip(func(r *http.Request) (*http.Response, error) {
				calls++
				return hang(r)
			}),
			Config: retry.Config{Retries: 2, Backoff: -1, PerTryTimeout: 600 * time.Millisecond},
		}}
		_, err = all.RoundTrip(newRequest(t, "GET", "http://service/", nil))
		if kindOf(err) != timeout.Request || calls != 2 {
			t.Errorf("%v after %d tries, want the request timeout in the second", err, calls)
		}
	})
}

func TestPerTryTimeoutBeyondTheDeadlineIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req := newRequest(t, "GET", "http://service/", nil).WithContext(ctx)
		loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1, PerTryTimeout: time.Second})}
		_, _, _ = loop.Do(req, tries(func(r *http.Request, n int) (*http.Response, error) {
			if n == 1 && r != req {
				t.Error("the first try is not the request itself")
			}
			return response(200), nil
		}))
	})
}

func TestRefusalIsNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := refusal.New("breaker: open")
		loop := retry.Loop{Policy: policy(t, retry.Config{
			Retries: 3, On: retry.On{Conditions: retry.ServerError}, Backoff: time.Second, AnyMethod: true})}
		began := time.Now()
		_, summary, err := loop.Do(newRequest(t, "GET", "http://service/", nil),
			tries(func(*http.Request, int) (*http.Response, error) { return nil, fmt.Errorf("cluster: %w", open) }))
		if summary != (retry.Summary{Attempts: 1, Stopped: retry.NotRetriable}) || !errors.Is(err, open) ||
			time.Since(began) != 0 {
			t.Errorf("%+v, %v after %v, want one try and no wait", summary, err, time.Since(began))
		}
	})
}

func TestError(t *testing.T) {
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1})}
	_, _, err := loop.Do(newRequest(t, "GET", "http://service/", nil),
		tries(func(*http.Request, int) (*http.Response, error) { return nil, errReset }))
	var e *retry.Error
	if !errors.As(err, &e) || e.Attempts != 2 || e.Last != error(errReset) || !errors.Is(err, errReset) || e.Timeout() {
		t.Errorf("error after a retry = %#v", err)
	}
	_, _, err = (&retry.Loop{Policy: policy(t, retry.Config{})}).Do(newRequest(t, "GET", "http://service/", nil),
		tries(func(*http.Request, int) (*http.Response, error) { return nil, errReset }))
	if err != error(errReset) {
		t.Errorf("error of the only try = %#v, want it as it is", err)
	}
}

// TestFailingGetBodyKeepsTheOutcome: what there is, is better than the news that it cannot be tried again.
func TestFailingGetBodyKeepsTheOutcome(t *testing.T) {
	for name, failure := range map[string]error{"an error": errBoom, "no body": nil} {
		t.Run(name, func(t *testing.T) { keepsTheOutcome(t, failure) })
	}
}

// keepsTheOutcome makes calls with a GetBody that returns no body and failure.
func keepsTheOutcome(t *testing.T, failure error) {
	newPut := func() *http.Request {
		req := newRequest(t, "PUT", "http://service/", newBody("x"))
		req.GetBody = func() (io.ReadCloser, error) { return nil, failure }
		return req
	}
	limiter, err := retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 3}), Limiter: limiter}
	kept := newBody("come back later")
	resp, summary, err := loop.Do(newPut(), tries(func(*http.Request, int) (*http.Response, error) {
		resp := response(503)
		resp.Body = kept
		return resp, nil
	}))
	if err != nil || summary != (retry.Summary{Attempts: 1, Stopped: retry.BodyCommitted}) {
		t.Fatalf("%+v, %v, want the response", summary, err)
	}
	if text, err := io.ReadAll(resp.Body); string(text) != "come back later" || err != nil || kept.Closed.Load() != 0 {
		t.Errorf("body of the response: %q, %v", text, err)
	}
	_, summary, err = loop.Do(newPut(), tries(func(*http.Request, int) (*http.Response, error) { return nil, errDial }))
	if !errors.Is(err, errDial) || summary != (retry.Summary{Attempts: 1, Stopped: retry.BodyCommitted}) {
		t.Errorf("%+v, %v, want the error of the try", summary, err)
	}
	if active, _ := limiter.Retries(); active != 0 {
		t.Errorf("%d slots of the limiter were not released", active)
	}
}

// TestCallerGoneBeforeARetry: the body that GetBody made for the retry is closed.
func TestCallerGoneBeforeARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		again := newBody("x")
		req := newRequest(t, "PUT", "http://service/", newBody("x")).WithContext(ctx)
		req.GetBody = func() (io.ReadCloser, error) { return again, nil }
		loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1, Backoff: time.Minute}), Rand: func() float64 { return 0.5 }}
		time.AfterFunc(time.Second, cancel)
		if _, summary, err := loop.Do(req, &statuses{codes: []int{503}}); summary.Stopped != retry.CallerGone {
			t.Errorf("%+v, %v, want that the caller is gone", summary, err)
		}
		if again.Closed.Load() != 1 {
			t.Errorf("the body of the retry was closed %d times", again.Closed.Load())
		}
	})
}

// TestPanicWithTheBodyOpen: the source of a body without GetBody is closed, although the try that panicked did not close its own.
func TestPanicWithTheBodyOpen(t *testing.T) {
	body := newBody("x")
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1})}
	func() {
		defer func() {
			if got := recover(); got != errBoom {
				t.Errorf("recovered %v, want the panic of the try", got)
			}
		}()
		_, _, _ = loop.Do(newRequest(t, "PUT", "http://service/", body),
			retryAttempt(func(*http.Request, int) (*http.Response, error) { panic(errBoom) }))
	}()
	if body.Closed.Load() != 1 {
		t.Errorf("the body was closed %d times", body.Closed.Load())
	}
}

func TestBrokenRequestBodyIsNotRetried(t *testing.T) {
	body := &leak.Body{Reader: io.MultiReader(strings.NewReader("x"), errReader{})}
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 3, On: retry.On{Conditions: retry.Reset}})}
	_, summary, err := loop.Do(newRequest(t, "PUT", "http://service/", body),
		tries(func(r *http.Request, _ int) (*http.Response, error) {
			_, err := io.Copy(io.Discard, r.Body)
			return nil, err
		}))
	if !errors.Is(err, errBoom) || summary != (retry.Summary{Attempts: 1, Stopped: retry.NotRetriable}) {
		t.Errorf("%+v, %v, want the body's error at once", summary, err)
	}
	if body.Closed.Load() != 1 {
		t.Errorf("body closed %d times", body.Closed.Load())
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBoom }

// TestReplay has tries that read parts of a body of known size, and looks at what the last one gets.
func TestReplay(t *testing.T) {
	const limit = 64 << 10
	for _, test := range []struct {
		name   string
		size   int
		length int64 // Content-Length; 0: unknown
		reads  []int // bytes read by each failing try; -1: all
		want   int   // tries
	}{
		{name: "empty", size: 0, reads: []int{-1}, want: 2},
		{name: "all kept", size: 1000, reads: []int{-1, -1}, want: 3},
		{name: "partly read", size: 1000, reads: []int{10, 500}, want: 3},
		{name: "less each time", size: 1000, reads: []int{-1, 10}, want: 3},
		{name: "long but hardly read", size: 10 * limit, reads: []int{100, 0, 200}, want: 4},
		{name: "up to the limit", size: 10 * limit, reads: []int{limit}, want: 2},
		{name: "exactly the limit", size: limit, reads: []int{-1}, want: 2},
		{name: "one more than the limit", size: limit + 1, reads: []int{-1}, want: 1},
		{name: "beyond the limit", size: 10 * limit, reads: []int{limit + 1}, want: 1},
		{name: "beyond it in the second", size: 10 * limit, reads: []int{10, limit + 1}, want: 2},
		{name: "known to be too long", size: 10 * limit, length: 10 * limit, reads: []int{1}, want: 1},
		{name: "known to be too long, unread", size: 10 * limit, length: 10 * limit, reads: []int{0}, want: 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			data := bytes.Repeat([]byte("0123456789abcdef"), test.size/16+1)[:test.size]
			body := &leak.Body{Reader: bytes.NewReader(data)}
			req := newRequest(t, "PUT", "http://service/", body)
			req.ContentLength = test.length
			loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 5})}
			resp, summary, err := loop.Do(req, tries(func(r *http.Request, n int) (*http.Response, error) {
				if n <= len(test.reads) {
					if count := test.reads[n-1]; count < 0 {
						_, _ = io.Copy(io.Discard, r.Body)
					} else {
						_, _ = io.CopyN(io.Discard, r.Body, int64(count))
					}
					return response(503), nil
				}
				// As a transport does on a connection that turns out to be stale.
				again, err := r.GetBody()
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(again)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("try %d got %d bytes, %v, want the whole body", n, len(got), err)
				}
				again.Close()
				return response(200), nil
			}))
			if err != nil || summary.Attempts != test.want || (resp.StatusCode == 200) != (test.want > len(test.reads)) {
				t.Errorf("%v, %+v, %v, want %d tries", resp, summary, err, test.want)
			}
			if n := body.Closed.Load(); n != 1 {
				t.Errorf("body closed %d times", n)
			}
		})
	}
}

// TestReplay_EarlierTry has a transport that goes on with the body of a try that is over.
func TestReplay_EarlierTry(t *testing.T) {
	var earlier io.ReadCloser
	body := newBody("payload")
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1})}
	_, _, err := loop.Do(newRequest(t, "PUT", "http://service/", body),
		retryAttempt(func(r *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				earlier = r.Body
				return response(503), nil
			}
			if n, err := earlier.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read for the earlier try = %d, %v, want an error", n, err)
			}
			earlier.Close()
			if n, err := earlier.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read after Close = %d, %v, want an error", n, err)
			}
			if n, err := r.Body.Read(nil); n != 0 || err != nil {
				t.Errorf("empty read = %d, %v", n, err)
			}
			if got, err := io.ReadAll(r.Body); string(got) != "payload" || err != nil {
				t.Errorf("the second try got %q, %v", got, err)
			}
			if body.Closed.Load() != 0 {
				t.Error("the earlier try closed the body")
			}
			r.Body.Close()
			return response(200), nil
		}))
	if err != nil || body.Closed.Load() != 1 {
		t.Errorf("%v, body closed %d times", err, body.Closed.Load())
	}
}

// TestReplay_BodyOutlivesTheCall has a transport that answers before it has sent all of the body, as in a dialogue.
func TestReplay_BodyOutlivesTheCall(t *testing.T) {
	body := newBody("payload")
	var sent io.ReadCloser
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1})}
	_, _, err := loop.Do(newRequest(t, "PUT", "http://service/", body),
		retryAttempt(func(r *http.Request, _ int) (*http.Response, error) {
			sent = r.Body
			return response(200), nil
		}))
	if err != nil || body.Closed.Load() != 0 {
		t.Fatalf("%v, body closed %d times with the response", err, body.Closed.Load())
	}
	if got, err := io.ReadAll(sent); string(got) != "payload" || err != nil {
		t.Errorf("rest of the body %q, %v", got, err)
	}
	sent.Close()
	sent.Close()
	if n := body.Closed.Load(); n != 1 {
		t.Errorf("body closed %d times", n)
	}
}

// TestReplay_ReadUnderWay has a transport that answers while it still reads the body.
func TestReplay_ReadUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1})}
		req := newRequest(t, "PUT", "http://service/", pr)
		go func() {
			time.Sleep(time.Second)
			_, _ = pw.Write([]byte("payload"))
			pw.Close()
		}()
		_, summary, err := loop.Do(req, retryAttempt(func(r *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				go func() { _, _ = io.ReadAll(r.Body) }()
				synctest.Wait() // until it reads
				return response(503), nil
			}
			defer r.Body.Close()
			if got, err := io.ReadAll(r.Body); string(got) != "payload" || err != nil {
				t.Errorf("the second try got %q, %v", got, err)
			}
			return response(200), nil
		}))
		if err != nil || summary.Attempts != 2 {
			t.Errorf("%+v, %v", summary, err)
		}
	})
}

// TestReplay_CloseUnblocksRead has a transport that closes the body while it reads it and waits for the read to end.
func TestReplay_CloseUnblocksRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		defer pw.Close()
		loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1, On: retry.On{Conditions: retry.Reset}})}
		_, summary, err := loop.Do(newRequest(t, "PUT", "http://service/", pr),
			retryAttempt(func(r *http.Request, n int) (*http.Response, error) {
				done := make(chan struct{})
				go func() {
					_, _ = io.ReadAll(r.Body)
					close(done)
				}()
				synctest.Wait()
				r.Body.Close()
				<-done
				return nil, errReset
			}))
		if !errors.Is(err, errReset) || summary.Attempts != 1 {
			t.Errorf("%+v, %v, want the error of the first try", summary, err)
		}
	})
}

// retryAttempt is an Attempter that closes bodies itself.
type retryAttempt func(*http.Request, int) (*http.Response, error)

func (f retryAttempt) Attempt(req *http.Request, n int) (*http.Response, error) { return f(req, n) }

func TestNoRedundantIdleClose(t *testing.T) {
	base := &idleCloser{statuses: statuses{codes: []int{503}}}
	rt := &retry.Transport{Base: base, Config: retry.Config{Retries: 2, Backoff: -1}}
	if _, err := rt.RoundTrip(newRequest(t, "GET", "http://service/", nil)); err != nil {
		t.Fatal(err)
	}
	if base.closed != 0 {
		t.Error("idle connections closed as a side effect")
	}
	(&http.Client{Transport: rt}).CloseIdleConnections()
	if base.closed != 1 {
		t.Error("CloseIdleConnections was not forwarded")
	}
	(&retry.Transport{Base: newNoop()}).CloseIdleConnections() // of a base that has none
}

type idleCloser struct {
	statuses
	closed int
}

func (c *idleCloser) CloseIdleConnections() { c.closed++ }

func TestReason_String(t *testing.T) {
	seen := map[string]bool{}
	for r := retry.Succeeded; r <= retry.CallerGone; r++ {
		seen[r.String()] = true
	}
	if len(seen) != int(retry.CallerGone)+1 || seen["unknown"] || retry.Reason(99).String() != "unknown" {
		t.Errorf("names are not distinct: %v", seen)
	}
}

// A gRPC server that says when to come back is taken at its word: neither earlier nor later, and not at all if it says never.
func TestGRPCPushback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			name   string
			values []string
			other  bool // not gRPC
			want   time.Duration
			tries  int
		}{
			{name: "a time", values: []string{"1500"}, want: 1500 * time.Millisecond, tries: 2},
			{name: "at once", values: []string{"0"}, tries: 2},
			{name: "never", values: []string{"-1"}, tries: 1},
			{name: "words", values: []string{"soon"}, tries: 1},
			{name: "two", values: []string{"1", "2"}, tries: 1},
			{name: "not gRPC", values: []string{"-1"}, other: true, want: 10 * time.Second, tries: 2},
		} {
			policy, err := retry.NewPolicy(retry.Config{
				Retries: 1, AnyMethod: true, On: retry.On{Conditions: retry.Unavailable | retry.ServerError}, MaxRetryAfter: -1,
				Backoff: 10 * time.Second, MaxBackoff: 10 * time.Second,
			})
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://service/", nil)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			loop := retry.Loop{Policy: policy, Rand: func() float64 { return 0.9999999999 }}
			_, summary, err := loop.Do(req, tries(func(*http.Request, int) (*http.Response, error) {
				resp := &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{
					"Content-Type": {"application/grpc"}, "Grpc-Status": {"14"}, "Grpc-Retry-Pushback-Ms": test.values,
				}}
				if test.other {
					resp.StatusCode, resp.Header["Content-Type"] = 503, []string{"text/plain"}
				}
				return resp, nil
			}))
			if took := time.Since(start).Round(time.Millisecond); err != nil || took != test.want || summary.Attempts != test.tries {
				t.Errorf("%s: %d tries in %v, %v; want %d in %v", test.name, summary.Attempts, took, err, test.tries, test.want)
			}
		}
	})
}

// kindOf returns which of our limits caused err.
func kindOf(err error) timeout.Kind {
	kind, _ := timeout.Exceeded(err)
	return kind
}
