package limit_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/reply"
	"github.com/nosidecar/mesh/policy/limit"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	return f(req)
}

func request(method string) (*http.Request, *leak.Body) {
	req := httptest.NewRequest(method, "http://orders/", nil)
	body := &leak.Body{Reader: strings.NewReader("a body")}
	req.Body = body
	return req, body
}

func answer(text string) roundTripper {
	return func(req *http.Request) (*http.Response, error) {
		if req.Body != nil {
			req.Body.Close()
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(text)), Request: req}, nil
	}
}

func TestResponses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		make   func(*http.Request) *http.Response
		method string
		status string
		header string
		text   string
	}{
		{"overflow", reply.Overflow, "POST", "503 Service Unavailable", "x-envoy-overloaded",
			"upstream connect error or disconnect/reset before headers. reset reason: overflow"},
		{"overflow of HEAD", reply.Overflow, "HEAD", "503 Service Unavailable", "x-envoy-overloaded", ""},
		{"rate", reply.RateLimited, "GET", "429 Too Many Requests", "x-envoy-ratelimited", "local_rate_limited"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, _ := request(tt.method)
			resp := tt.make(req)
			text, err := io.ReadAll(resp.Body)
			if err != nil || string(text) != tt.text {
				t.Errorf("body %q, %v, want %q", text, err, tt.text)
			}
			if err := resp.Body.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			if resp.Status != tt.status || resp.Header.Get(tt.header) != "true" || resp.Request != req {
				t.Errorf("got %s with header %v, want %s with %s", resp.Status, resp.Header, tt.status, tt.header)
			}
			if tt.text != "" && resp.ContentLength != int64(len(tt.text)) || !resp.ProtoAtLeast(1, 1) {
				t.Errorf("content length %d, protocol %s", resp.ContentLength, resp.Proto)
			}
		})
	}
}

func TestTransport_Overflow(t *testing.T) {
	rt := &limit.Transport{Base: answer("hello"), Config: limit.PoolConfig{MaxRequests: 1}}
	req, _ := request("GET")
	first, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	// The first call is not over until its body is.
	req, body := request("POST")
	second, err := rt.RoundTrip(req)
	if err != nil || second.StatusCode != 503 || second.Header.Get("x-envoy-overloaded") != "true" {
		t.Fatalf("RoundTrip = %v, %v, want 503 for overflow", second, err)
	}
	if body.Closed.Load() != 1 {
		t.Errorf("the refused request's body was closed %d times, want once", body.Closed.Load())
	}
	io.Copy(io.Discard, first.Body)
	if s := rt.Stats(); s != (limit.Stats{Overflows: 1}) {
		t.Errorf("Stats = %+v after the end of the body", s)
	}
	first.Body.Close()
	req, _ = request("GET")
	if third, err := rt.RoundTrip(req); err != nil || third.StatusCode != 200 {
		t.Errorf("RoundTrip = %v, %v, want 200 again", third, err)
	}
}

func TestTransportReleasesItsSlotOnce(t *testing.T) {
	failure := errors.New("failure")
	for _, tt := range []struct {
		name string
		base roundTripper
		end  func(resp *http.Response, err error) error
	}{
		{"body closed twice", answer("hello"), func(resp *http.Response, _ error) error {
			return errors.Join(resp.Body.Close(), resp.Body.Close())
		}},
		{"body read and closed", answer("hello"), func(resp *http.Response, _ error) error {
			io.Copy(io.Discard, resp.Body)
			return resp.Body.Close()
		}},
		{"no body", func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 204, Body: http.NoBody}, nil
		}, nil},
		{"error", func(req *http.Request) (*http.Response, error) {
			return nil, failure
		}, func(_ *http.Response, err error) error {
			if err != failure {
				return errors.New("the error is not the base's own")
			}
			return nil
		}},
		{"panic", func(*http.Request) (*http.Response, error) { panic("base") }, nil},
		{"exit", func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rt := &limit.Transport{Base: tt.base, Config: limit.PoolConfig{MaxConnections: 1, MaxRequests: 1}}
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() {
					if r := recover(); r != nil && r != "base" {
						t.Errorf("panicked with %v", r)
					}
				}()
				req, _ := request("GET")
				resp, err := rt.RoundTrip(req)
				if tt.end != nil {
					if err := tt.end(resp, err); err != nil {
						t.Error(err)
					}
				}
			}()
			<-done
			if s := rt.Stats(); s != (limit.Stats{}) {
				t.Errorf("Stats = %+v after the call", s)
			}
		})
	}
}

type upgraded struct {
	io.Reader
	io.WriteCloser
}

func TestTransport_KeepsUpgradedBody(t *testing.T) {
	rt := &limit.Transport{Base: roundTripper(func(*http.Request) (*http.Response, error) {
		_, w := io.Pipe()
		return &http.Response{StatusCode: 101, Body: upgraded{strings.NewReader(""), w}}, nil
	})}
	req, _ := request("GET")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := resp.Body.(io.ReadWriteCloser); !ok {
		t.Error("the body of a 101 cannot be written to")
	}
	if n := rt.Stats().Active; n != 1 {
		t.Errorf("%d calls active, want 1", n)
	}
	resp.Body.Close()
	if n := rt.Stats().Active; n != 0 {
		t.Errorf("%d calls active, want 0", n)
	}
}

func TestTransport_Pending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveInMemory(t, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Second)
			io.WriteString(w, "hello")
		})
		rt := &limit.Transport{
			Base:   template,
			Config: limit.PoolConfig{MaxConnections: 1, MaxPendingRequests: 1, IdleTimeout: time.Minute},
		}
		defer rt.CloseIdleConnections()
		client := &http.Client{Transport: rt}
		type result struct {
			status int
			after  time.Duration
		}
		results := make(chan result)
		begin := time.Now()
		for range 3 {
			go func() {
				resp, err := client.Get("http://orders/")
				if err != nil {
					t.Error(err)
					results <- result{}
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				results <- result{resp.StatusCode, time.Since(begin)}
			}()
		}
		for _, want := range []result{{503, 0}, {200, time.Second}, {200, 2 * time.Second}} {
			if got := <-results; got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}

		// A call that gives up while it waits fails with its context's cause.
		go func() {
			resp, err := client.Get("http://orders/")
			if err == nil {
				resp.Body.Close()
			}
			results <- result{}
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		req, body := request("POST")
		if _, err := rt.RoundTrip(req.WithContext(ctx)); err != context.DeadlineExceeded || body.Closed.Load() != 1 {
			t.Errorf("RoundTrip = %v with the body closed %d times, want the deadline and once", err, body.Closed.Load())
		}
		<-results
	})
}

// A destination that has no room for another connection overflows, too, if the calls do not wait for one another.
func TestTransport_ConnectionOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveInMemory(t, func(w http.ResponseWriter, req *http.Request) {
			w.(http.Flusher).Flush()
			<-req.Context().Done()
		})
		rt := &limit.Transport{Base: template, Config: limit.PoolConfig{MaxConnections: 1}, Multiplexed: true}
		first, err := rt.RoundTrip(httptest.NewRequest("GET", "http://orders", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer first.Body.Close()
		resp, err := rt.RoundTrip(httptest.NewRequest("GET", "http://orders", nil))
		if err != nil || resp.StatusCode != 503 {
			t.Errorf("RoundTrip = %v, %v, want 503", resp, err)
		}
	})
}

func TestTransport_Errors(t *testing.T) {
	for name, rt := range map[string]*limit.Transport{
		"bad config":                 {Base: answer(""), Config: limit.PoolConfig{MaxRequests: -1}},
		"nothing to set timeouts on": {Base: answer(""), Config: limit.PoolConfig{ConnectTimeout: time.Second}},
		"bad template":               {Base: &http.Transport{MaxConnsPerHost: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				req, body := request("POST")
				if _, err := rt.RoundTrip(req); err == nil || body.Closed.Load() != 1 {
					t.Errorf("RoundTrip = %v with the body closed %d times, want an error and once", err, body.Closed.Load())
				}
			}
			rt.CloseIdleConnections()
			rt.Stats()
		})
	}
}

// idler counts calls of CloseIdleConnections.
type idler struct {
	roundTripper
	closed int
}

func (i *idler) CloseIdleConnections() {
	i.closed++
}

func TestTransports_ForwardCloseIdleConnections(t *testing.T) {
	base := &idler{}
	for _, rt := range []http.RoundTripper{&limit.Transport{Base: base}, &limit.RateTransport{Base: base}} {
		(&http.Client{Transport: rt}).CloseIdleConnections()
	}
	if base.closed != 2 {
		t.Errorf("forwarded %d times, want 2", base.closed)
	}
}

func TestRateTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &limit.RateTransport{Base: answer("hello"), Config: limit.RateConfig{PerSecond: 1, Burst: 2}}
		for i, step := range []struct {
			after  time.Duration
			status int
		}{{0, 200}, {0, 200}, {0, 429}, {time.Second, 200}, {0, 429}} {
			time.Sleep(step.after)
			req, body := request("POST")
			resp, err := rt.RoundTrip(req)
			if err != nil || resp.StatusCode != step.status || body.Closed.Load() != 1 {
				t.Errorf("call %d: %v, %v with the body closed %d times, want %d and once",
					i, resp, err, body.Closed.Load(), step.status)
			}
		}
	})
	bad := &limit.RateTransport{Base: answer(""), Config: limit.RateConfig{PerSecond: -1}}
	req, body := request("POST")
	if _, err := bad.RoundTrip(req); err == nil || body.Closed.Load() != 1 {
		t.Errorf("RoundTrip = %v with the body closed %d times, want an error and once", err, body.Closed.Load())
	}
}
