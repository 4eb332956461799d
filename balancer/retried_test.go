package balancer_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/memnet"
	pool "github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/timeout"
)

// A retry goes to another endpoint, whatever is between the layers: nobody has to tell them.
func TestTransport_RetriesGoElsewhere(t *testing.T) {
	never := breaker.Config{ConsecutiveFailures: 1000}
	for name, between := range map[string]func(http.RoundTripper) http.RoundTripper{
		"nothing": func(b http.RoundTripper) http.RoundTripper { return b },
		"breaker": func(b http.RoundTripper) http.RoundTripper { return &breaker.Transport{Base: b, Config: never} },
		"timeout": func(b http.RoundTripper) http.RoundTripper {
			return &timeout.Transport{Base: b, Config: timeout.Config{Request: time.Hour, BodyIdle: time.Hour}}
		},
		"a timeout for each try": func(b http.RoundTripper) http.RoundTripper {
			return &timeout.Transport{Base: b, Config: timeout.Config{Request: time.Second}}
		},
		"limit and timeout and breaker": func(b http.RoundTripper) http.RoundTripper {
			return &pool.Transport{Base: &timeout.Transport{Base: &breaker.Transport{Base: b, Config: never}, Config: timeout.Config{Request: time.Hour}}}
		},
	} {
		for _, bad := range []string{"failing", "breaking", "hanging", "gone"} {
			t.Run(name+"/"+bad, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testRetriesGoElsewhere(t, between, bad) })
			})
		}
	}
}

func testRetriesGoElsewhere(t *testing.T, between func(http.RoundTripper) http.RoundTripper, bad string) {
	var network memnet.Network
	endpoint := func(name string) discovery.Endpoint { return discovery.Endpoint{Address: name, Port: 80} }
	for name, serve := range map[string]http.HandlerFunc{
		"good":     func(http.ResponseWriter, *http.Request) {},
		"failing":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
		"breaking": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"hanging":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		network.Serve(t, name+":80", serve)
	}
	b := &balancer.Transport{
		Base:     &http.Transport{DialContext: network.DialContext},
		Config:   balancer.Config{Algorithm: balancer.Random},
		Resolver: discovery.Static{"orders": {endpoint(bad), endpoint("failing"), endpoint("good")}, "down": {endpoint(bad)}},
	}
	defer b.Close()
	r := &retry.Transport{
		Base: between(b), Config: retry.Config{Retries: 2, Backoff: -1, PerTryTimeout: time.Second}, Budget: retry.BudgetConfig{Off: true},
	}
	for range 20 {
		resp, err := r.RoundTrip(httptest.NewRequest("GET", "http://orders/", nil))
		if err != nil {
			t.Error(err)
			continue
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d after %d attempts", resp.StatusCode, retry.Attempts(resp))
		}
	}

	// Without another endpoint, the last try is what it would be without a balancer.
	req := httptest.NewRequest("GET", "http://down/", nil)
	resp, err := r.RoundTrip(req)
	failed, _ := errors.AsType[*retry.Error](err)
	switch {
	case bad == "failing":
		if err != nil || resp.StatusCode != 503 || retry.Attempts(resp) != 3 || resp.Request.URL != req.URL {
			t.Fatalf("no other endpoint: %v, %v", resp, err)
		}
		resp.Body.Close()
	case failed == nil || failed.Attempts != 3:
		t.Errorf("no other endpoint: %v", err)
	case bad == "gone":
		if _, as := failed.Last.(*net.OpError); !as {
			t.Errorf("the last error is a %T, want the one of net/http", failed.Last)
		}
	case bad == "hanging":
		if k, _ := timeout.Exceeded(err); k != timeout.PerTry && k != timeout.Request {
			t.Error(err)
		}
	}
}

// What a balancer tells the layers above does not hide what http.Client wants to know.
func TestTransport_ErrorsKeepTheirMeaning(t *testing.T) {
	plain := newBackend(t, nil, (*httptest.Server).Start)
	hanging := newBackend(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, (*httptest.Server).Start)
	b := &balancer.Transport{
		Resolver: discovery.Static{"orders": {plain.endpoint}, "hanging": {hanging.endpoint}},
		Base:     &http.Transport{ResponseHeaderTimeout: 20 * time.Millisecond},
	}
	defer b.Close()
	client := &http.Client{Transport: b}
	if _, err := client.Get("https://orders/"); !errors.Is(err, http.ErrSchemeMismatch) {
		t.Errorf("%v, want %v", err, http.ErrSchemeMismatch)
	}
	_, err := client.Get("http://hanging/")
	if e, ok := err.(net.Error); !ok || !e.Timeout() {
		t.Errorf("%v, want a timeout", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	left := newBackend(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() }, (*httptest.Server).Start)
	patient := &balancer.Transport{Resolver: discovery.Static{"orders": {left.endpoint}}}
	defer patient.Close()
	req := httptest.NewRequest("GET", "http://orders/", nil).WithContext(ctx)
	if _, err := patient.RoundTrip(req); err != context.Canceled {
		t.Errorf("%T, want context.Canceled itself, as without a balancer", err)
	}
}
