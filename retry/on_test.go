package retry_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/retry"
)

func TestParseOn(t *testing.T) {
	for _, test := range []struct {
		list string
		want retry.On
		text string // "" means list
	}{
		{list: ""},
		{list: "5xx", want: retry.On{Conditions: retry.ServerError}},
		{list: "gateway-error", want: retry.On{Conditions: retry.GatewayError}},
		{list: "reset", want: retry.On{Conditions: retry.Reset}},
		{list: "reset-before-request", want: retry.On{Conditions: retry.ResetBeforeRequest}},
		{list: "connect-failure", want: retry.On{Conditions: retry.ConnectFailure}},
		{list: "refused-stream", want: retry.On{Conditions: retry.RefusedStream}},
		{list: "retriable-4xx", want: retry.On{Conditions: retry.Retriable4xx}},
		{list: "retriable-status-codes", want: retry.On{Conditions: retry.RetriableStatusCodes}},
		{list: "retriable-headers", want: retry.On{Conditions: retry.RetriableHeaders}},
		{list: "envoy-ratelimited", want: retry.On{Conditions: retry.RateLimited}},
		{list: "cancelled", want: retry.On{Conditions: retry.Cancelled}},
		{list: "deadline-exceeded", want: retry.On{Conditions: retry.DeadlineExceeded}},
		{list: "resource-exhausted", want: retry.On{Conditions: retry.ResourceExhausted}},
		{list: "internal", want: retry.On{Conditions: retry.Internal}},
		{list: "unavailable", want: retry.On{Conditions: retry.Unavailable}},
		{list: "503", want: retry.On{Status: retry.Codes(503)}},
		{list: "511,100", want: retry.On{Status: retry.Codes(100, 511)}, text: "100,511"},
		{list: "5xx, reset ,503", want: retry.On{Conditions: retry.ServerError | retry.Reset, Status: retry.Codes(503)},
			text: "5xx,reset,503"},
		{list: "reset,5xx,5xx", want: retry.On{Conditions: retry.ServerError | retry.Reset}, text: "5xx,reset"},
		{list: "retriable-status-codes,429,503", want: retry.On{Status: retry.Codes(429, 503)}, text: "429,503"},
		{list: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", want: retry.On{
			Conditions: retry.ConnectFailure | retry.RefusedStream | retry.Unavailable | retry.Cancelled |
				retry.RetriableStatusCodes},
			text: "connect-failure,refused-stream,retriable-status-codes,cancelled,unavailable"},
	} {
		on, err := retry.ParseOn(test.list)
		if err != nil || on != test.want {
			t.Errorf("ParseOn(%q) = %+v, %v, want %+v", test.list, on, err, test.want)
		}
		if test.text == "" {
			test.text = test.list
		}
		if got := on.String(); got != test.text {
			t.Errorf("ParseOn(%q).String() = %q, want %q", test.list, got, test.text)
		}
	}
	for _, list := range []string{
		"5XX", "nonsense", "gateway_error", "5xx,", ",", "5xx,,reset", "http3-post-connect-failure", "099", "0503", "+503", "-1", "600",
		"599", "1000", "5x", "99999999999999999999", "5xx reset",
	} {
		if on, err := retry.ParseOn(list); err == nil || list == "gateway_error" && !strings.Contains(err.Error(), "one of 5xx, gateway-error, reset,") {
			t.Errorf("ParseOn(%q) = %+v, %v, want an error with the remedy", list, on, err)
		}
	}
}

func FuzzParseOn(f *testing.F) {
	for _, seed := range []string{"5xx,reset,503", "", " ", "gateway-error, 429", "retriable-status-codes", "599,100", "a,,b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		on, err := retry.ParseOn(list)
		if err != nil {
			if on != (retry.On{}) {
				t.Fatalf("ParseOn(%q) = %+v with error %v", list, on, err)
			}
			return
		}
		again, err := retry.ParseOn(on.String())
		if err != nil || again != on {
			t.Fatalf("ParseOn(%q) = %+v, but its String %q gives %+v, %v", list, on, on.String(), again, err)
		}
	})
}

func TestCodes(t *testing.T) {
	s := retry.Codes(100, 163, 164, 503, 599, 99, 600, -1, 1<<40)
	for code := range 700 {
		want := code == 100 || code == 163 || code == 164 || code == 503 || code == 599
		if has(s, code) != want {
			t.Errorf("Has(%d) = %v, want %v", code, !want, want)
		}
	}
	if has(s, -1) {
		t.Error("Has(-1)")
	}
	for _, code := range []int{99, 600, -1, 0, 1 << 40} {
		if err := (retry.Config{On: retry.On{Status: retry.Codes(503, code)}}).Validate(); err == nil || !strings.Contains(err.Error(), "Config.On.Status") {
			t.Errorf("code %d: %v", code, err)
		}
	}
	if err := (retry.Config{On: retry.On{Status: retry.Codes(100, 599)}}).Validate(); err != nil {
		t.Error(err)
	}
}

// TestOn holds the conditions to Envoy's meaning: each condition against each outcome.
func TestOn(t *testing.T) { synctest.Test(t, testOn) }

func testOn(t *testing.T) {
	fail := func(err error) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return nil, err }
	}
	answer := func(status int, header ...string) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return response(status, header...), nil }
	}
	status := func(code string) func(*http.Request) (*http.Response, error) {
		return answer(200, "Content-Type", "application/grpc+proto", "Grpc-Status", code)
	}
	hang := func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	outcomes := map[string]func(*http.Request) (*http.Response, error){
		"200": answer(200), "404": answer(404), "409": answer(409), "429": answer(429),
		"500": answer(500), "502": answer(502), "503": answer(503), "504": answer(504), "599": answer(599),
		"dial": fail(errDial), "reset": fail(errReset), "other": fail(errBoom), "per-try": hang,
		"refusal":     fail(refusal.New("breaker: open")),
		"overloaded":  answer(503, "X-Envoy-Overloaded", "true"),
		"ratelimited": answer(503, "X-Envoy-Ratelimited", "true"),
		"header":      answer(200, "X-Again", ""),
		"grpc 0":      status("0"), "grpc 1": status("1"), "grpc 2": status("2"), "grpc 4": status("4"),
		"grpc 8": status("8"), "grpc 13": status("13"), "grpc 14": status("14"),
		"grpc-status on json": answer(200, "Content-Type", "application/json", "Grpc-Status", "14"),
	}
	failures := []string{"dial", "reset", "other", "per-try"}
	for _, test := range []struct {
		on   string
		want []string
	}{
		{"5xx", append([]string{"500", "502", "503", "504", "599"}, failures...)},
		{"gateway-error", append([]string{"502", "503", "504"}, failures...)},
		{"reset", failures},
		// A transport that does not say that it began to write has sent nothing.
		{"reset-before-request", []string{"dial", "reset", "other"}},
		{"connect-failure", []string{"dial"}},
		{"refused-stream", nil},
		{"retriable-4xx", []string{"409"}},
		{"retriable-status-codes", nil},
		{"429", []string{"429"}},
		{"503", []string{"503"}}, // of the server only: no failure
		{"retriable-headers", []string{"header"}},
		{"envoy-ratelimited", []string{"ratelimited"}},
		{"cancelled", []string{"grpc 1"}},
		{"deadline-exceeded", []string{"grpc 4"}},
		{"resource-exhausted", []string{"grpc 8"}},
		{"internal", []string{"grpc 13"}},
		{"unavailable", []string{"grpc 14"}},
		{"", append([]string{"502", "503", "504"}, failures...)}, // the default
	} {
		on, err := retry.ParseOn(test.on)
		if err != nil {
			t.Fatal(err)
		}
		config := retry.Config{Retries: 1, On: on, PerTryTimeout: time.Millisecond}
		if on.Conditions&retry.RetriableHeaders != 0 {
			config.RetriableHeaders = []string{"x-other", "x-again"}
		}
		loop := retry.Loop{Policy: policy(t, config)}
		for name, outcome := range outcomes {
			want := false
			for _, w := range test.want {
				want = want || w == name
			}
			_, summary, _ := loop.Do(newRequest(t, "GET", "http://service/", nil),
				tries(func(req *http.Request, _ int) (*http.Response, error) { return outcome(req) }))
			if got := summary.Attempts == 2; got != want {
				t.Errorf("%q: %s: %d tries (%v), want a retry: %v", test.on, name, summary.Attempts, summary.Stopped, want)
			}
		}
	}
}

func TestCompile_Errors(t *testing.T) {
	for name, config := range map[string]retry.Config{
		"negative retries":          {Retries: -1},
		"negative per-try timeout":  {PerTryTimeout: -1},
		"negative max backoff":      {MaxBackoff: -1},
		"max below base":            {Backoff: 2, MaxBackoff: 1},
		"max below default base":    {MaxBackoff: time.Millisecond},
		"unknown condition":         {On: retry.On{Conditions: 1 << 31}},
		"bad header":                {On: retry.On{Conditions: retry.RetriableHeaders}, RetriableHeaders: []string{"a b"}},
		"empty header":              {On: retry.On{Conditions: retry.RetriableHeaders}, RetriableHeaders: []string{"a", ""}},
		"headers without condition": {RetriableHeaders: []string{"a"}},
	} {
		if _, err := retry.NewPolicy(config); err == nil {
			t.Errorf("%s: NewPolicy(%+v) gave no error", name, config)
		}
		body := newBody("x")
		rt := &retry.Transport{Config: config, Base: roundTrip(func(*http.Request) (*http.Response, error) {
			t.Errorf("%s: base called", name)
			return nil, errors.New("called")
		})}
		for range 2 {
			if _, err := rt.RoundTrip(newRequest(t, "PUT", "http://service/", body)); err == nil {
				t.Errorf("%s: RoundTrip gave no error", name)
			}
		}
		if n := body.Closed.Load(); n != 2 {
			t.Errorf("%s: body closed %d times in 2 calls", name, n)
		}
	}
}

func TestCompile_Defaults(t *testing.T) {
	got := policy(t, retry.Config{Retries: 2, Backoff: 25 * time.Millisecond}).Config()
	want := retry.Config{
		Retries: 2,
		On: retry.On{
			Conditions: retry.GatewayError | retry.ConnectFailure | retry.RefusedStream,
		},
		Backoff: 25 * time.Millisecond, MaxBackoff: 250 * time.Millisecond, MaxRetryAfter: 10 * time.Second,
		BodyLimit: 64 << 10,
	}
	if !got.Equal(want) {
		t.Errorf("Config() = %+v, want %+v", got, want)
	}
}

// has reports whether a response with the code is retried for it.
func has(s retry.StatusSet, code int) bool { return retry.On{Status: s}.HTTP(code) }
