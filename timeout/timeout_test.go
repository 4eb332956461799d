package timeout_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/timeout"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func newRequest(t testing.TB, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://service/", body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// stream writes a tick every pause, and hangs for ever after the last.
func stream(ticks int, pause time.Duration, hang bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for range ticks {
			_, _ = io.WriteString(w, "tick ")
			w.(http.Flusher).Flush()
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
				return
			}
		}
		if hang {
			<-r.Context().Done()
		}
	}
}

func TestLimits(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		config  timeout.Config
		caller  time.Duration // the caller's own deadline
		reader  time.Duration // pause of the reader between reads
		body    string
		kind    timeout.Kind // 0: no error of ours
		err     error
		at      time.Duration // when it is over
	}{
		{name: "no limits", handler: stream(3, 100*ms, false), body: "tick tick tick ", at: 300 * ms},
		{name: "in time", handler: stream(3, 100*ms, false), config: timeout.Config{Request: time.Second, BodyIdle: 150 * ms},
			body: "tick tick tick ", at: 300 * ms},
		{name: "no headers", handler: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			config: timeout.Config{Request: 200 * ms}, kind: timeout.Request, at: 200 * ms},
		{name: "request limit holds for the body", handler: stream(9, 100*ms, false),
			config: timeout.Config{Request: 250 * ms, BodyIdle: time.Second},
			body:   "tick tick tick ", kind: timeout.Request, at: 250 * ms},
		{name: "stalled body", handler: stream(2, 100*ms, true), config: timeout.Config{BodyIdle: 150 * ms},
			body: "tick tick ", kind: timeout.BodyIdle, at: 250 * ms},
		{name: "stalled body, request limit far", handler: stream(2, 100*ms, true),
			config: timeout.Config{Request: time.Hour, BodyIdle: 150 * ms},
			body:   "tick tick ", kind: timeout.BodyIdle, at: 250 * ms},
		{name: "slow reader", handler: stream(3, 1, false), config: timeout.Config{BodyIdle: 150 * ms}, reader: time.Minute,
			body: "tick tick tick ", at: 4 * time.Minute},
		{name: "the caller's deadline comes first", handler: stream(9, 100*ms, false),
			config: timeout.Config{Request: time.Second, BodyIdle: time.Second}, caller: 150 * ms, body: "tick tick ",
			err: context.DeadlineExceeded, at: 150 * ms},
		{name: "ours comes first", handler: stream(9, 100*ms, false), config: timeout.Config{Request: 150 * ms},
			caller: time.Second, body: "tick tick ", kind: timeout.Request, at: 150 * ms},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				req := newRequest(t, nil)
				if test.caller > 0 {
					ctx, cancel := context.WithTimeout(req.Context(), test.caller)
					defer cancel()
					req = req.WithContext(ctx)
				}
				rt := &timeout.Transport{Base: memnet.Transport(t, test.handler), Config: test.config}
				began := time.Now()
				resp, err := rt.RoundTrip(req)
				var got strings.Builder
				if err == nil {
					defer resp.Body.Close()
					buf := make([]byte, 5)
					for err == nil {
						var n int
						n, err = io.ReadFull(resp.Body, buf)
						got.Write(buf[:n])
						time.Sleep(test.reader)
					}
					if err == io.EOF {
						err = nil
					}
				}
				if d := time.Since(began).Truncate(ms); d != test.at {
					t.Errorf("over after %v, want %v", d, test.at)
				}
				if got.String() != test.body {
					t.Errorf("body %q, want %q", got.String(), test.body)
				}
				switch {
				case test.kind != 0:
					if kindOf(err) != test.kind {
						t.Errorf("error %v, want %v", err, test.kind)
					}
				case !errors.Is(err, test.err) || kindOf(err) != 0:
					t.Errorf("error %v, want %v", err, test.err)
				}
			})
		})
	}
}

func TestErrorSaysWhoseTimeoutItWas(t *testing.T) {
	for kind, word := range map[timeout.Kind]string{
		timeout.Request: "request timeout", timeout.PerTry: "per-try timeout", timeout.BodyIdle: "body idle timeout",
	} {
		var err error = &deadline.Error{Kind: deadline.Kind(kind), Limit: 1500 * time.Millisecond}
		wrapped := &url.Error{Op: "Get", URL: "http://service/", Err: err}
		var netErr net.Error
		if !errors.Is(wrapped, context.DeadlineExceeded) || !wrapped.Timeout() ||
			!errors.As(err, &netErr) || !netErr.Timeout() {
			t.Errorf("%v is not a timeout for everybody", err)
		}
		if !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), "1.5s") || kind.String() != word {
			t.Errorf("%q does not say %q and how long", err, word)
		}
	}
}

func TestNoLimitIsNoTimeout(t *testing.T) {
	if kind, _ := timeout.Exceeded(context.DeadlineExceeded); kind.String() != "none" {
		t.Errorf("the limit that a caller's deadline exceeds is %q", kind)
	}
}

func TestCallersCancelStaysTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("user closed the window")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		rt := &timeout.Transport{
			Base:   memnet.Transport(t, stream(1, 0, true)),
			Config: timeout.Config{Request: time.Minute, BodyIdle: time.Minute},
		}
		resp, err := rt.RoundTrip(newRequest(t, nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		if !errors.Is(err, cause) || kindOf(err) != 0 {
			t.Errorf("read error %v, want the caller's cause", err)
		}
	})
}

// TestErrContextLostCause has a transport that reports only ctx.Err.
func TestErrContextLostCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &timeout.Transport{Config: timeout.Config{Request: time.Second},
			Base: roundTrip(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				if err := r.Context().Err(); err != context.DeadlineExceeded {
					t.Errorf("Err = %v", err)
				}
				return nil, errors.New("canceled")
			})}
		_, err := rt.RoundTrip(newRequest(t, nil))
		if kind, limit := timeout.Exceeded(err); kind != timeout.Request || limit != time.Second {
			t.Errorf("error %#v, want our timeout", err)
		}
	})
}

func TestHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			name   string
			config timeout.Config
			caller time.Duration
			want   string
		}{
			{name: "no deadline"},
			{name: "ours", config: timeout.Config{Request: 1500 * time.Millisecond}, want: "1500"},
			{name: "the caller's", caller: 2 * time.Second, want: "2000"},
			{name: "the lesser", config: timeout.Config{Request: time.Second}, caller: 2 * time.Second, want: "1000"},
			{name: "the lesser is the caller's", config: timeout.Config{Request: 2 * time.Second},
				caller: time.Second, want: "1000"},
			{name: "at least 1", config: timeout.Config{Request: 10 * time.Microsecond}, want: "1"},
			{name: "whole milliseconds", config: timeout.Config{Request: 2999 * time.Microsecond}, want: "2"},
			{name: "off", config: timeout.Config{Request: time.Second, NoPropagation: true}},
			{name: "off, the caller's", config: timeout.Config{NoPropagation: true}, caller: time.Second},
		} {
			var got string
			rt := &timeout.Transport{Config: test.config, Base: roundTrip(func(r *http.Request) (*http.Response, error) {
				got = r.Header.Get(timeout.Header)
				return &http.Response{StatusCode: 200, Body: http.NoBody, Request: r}, nil
			})}
			req := newRequest(t, nil)
			if test.caller > 0 {
				ctx, cancel := context.WithTimeout(req.Context(), test.caller)
				defer cancel()
				req = req.WithContext(ctx)
			}
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("%s: %s = %q, want %q", test.name, timeout.Header, got, test.want)
			}
			if len(req.Header) != 0 || resp.Request != req {
				t.Errorf("%s: the caller's request was changed or lost: %v", test.name, req.Header)
			}
		}
	})
}

func TestContextEndsWithTheBody(t *testing.T) {
	for name, end := range map[string]func(*http.Response){
		"EOF":   func(r *http.Response) { _, _ = io.ReadAll(r.Body) },
		"Close": func(r *http.Response) { r.Body.Close() },
	} {
		synctest.Test(t, func(t *testing.T) {
			var ctx context.Context
			rt := &timeout.Transport{
				Config: timeout.Config{Request: time.Hour, BodyIdle: time.Minute},
				Base: roundTrip(func(r *http.Request) (*http.Response, error) {
					ctx = r.Context()
					return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("data"))}, nil
				}),
			}
			resp, err := rt.RoundTrip(newRequest(t, nil))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Minute) // nobody reads: not idle
			if ctx.Err() != nil {
				t.Errorf("%s: context ended before the body: %v", name, context.Cause(ctx))
			}
			if at, ok := ctx.Deadline(); !ok || time.Until(at) != 50*time.Minute {
				t.Errorf("%s: Deadline = %v, %v", name, at, ok)
			}
			end(resp)
			if ctx.Err() != context.Canceled {
				t.Errorf("%s: context after the body: %v", name, ctx.Err())
			}
		})
	}
}

func TestPanicPassesThrough(t *testing.T) {
	var ctx context.Context
	rt := &timeout.Transport{Config: timeout.Config{Request: time.Hour},
		Base: roundTrip(func(r *http.Request) (*http.Response, error) {
			ctx = r.Context()
			panic("boom")
		})}
	defer func() {
		if got := recover(); got != "boom" || ctx.Err() == nil {
			t.Errorf("recovered %v, context %v", got, ctx.Err())
		}
	}()
	_, _ = rt.RoundTrip(newRequest(t, nil))
}

func TestInvalidConfig(t *testing.T) {
	for _, config := range []timeout.Config{{Request: -1}, {BodyIdle: -1}} {
		body := &leak.Body{Reader: strings.NewReader("x")}
		rt := &timeout.Transport{Config: config, Base: roundTrip(func(*http.Request) (*http.Response, error) {
			t.Error("base called")
			return nil, io.ErrUnexpectedEOF
		})}
		if _, err := rt.RoundTrip(newRequest(t, body)); err == nil || config.Validate() == nil {
			t.Errorf("%+v: no error", config)
		}
		if body.Closed.Load() != 1 {
			t.Errorf("body closed %d times", body.Closed.Load())
		}
	}
}

func TestUpgradedConnectionWorks(t *testing.T) {
	// Over the loopback interface: an upgraded connection outlives both limits.
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "echo")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := rw.ReadString('\n')
		_, _ = rw.WriteString(line)
		rw.Flush()
	}))
	defer srv.Close()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	rt := &timeout.Transport{Base: tr, Config: timeout.Config{Request: time.Hour, BodyIdle: time.Hour}}
	req := newRequest(t, nil)
	req.URL, _ = url.Parse(srv.URL)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatalf("body is a %T", resp.Body)
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); string(b) != "hello\n" || err != nil {
		t.Errorf("echo %q, %v", b, err)
	}
}

func TestUpgradeIsBoundNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ctx context.Context
		client, server := net.Pipe()
		defer server.Close()
		rt := &timeout.Transport{
			Config: timeout.Config{Request: time.Second, BodyIdle: time.Second},
			Base: roundTrip(func(r *http.Request) (*http.Response, error) {
				ctx = r.Context()
				return &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: client}, nil
			}),
		}
		resp, err := rt.RoundTrip(newRequest(t, nil))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if ctx.Err() != nil {
			t.Errorf("context of an upgraded connection: %v", context.Cause(ctx))
		}
		resp.Body.Close()
		if ctx.Err() == nil {
			t.Error("context did not end with the connection")
		}
	})
}

func TestCloseIdleConnections(t *testing.T) {
	base := &idleCloser{}
	(&http.Client{Transport: &timeout.Transport{Base: base}}).CloseIdleConnections()
	if base.closed != 1 {
		t.Error("CloseIdleConnections was not forwarded")
	}
	(&timeout.Transport{Base: roundTrip(nil)}).CloseIdleConnections() // of a base that has none
}

type idleCloser struct {
	roundTrip
	closed int
}

func (c *idleCloser) CloseIdleConnections() { c.closed++ }

// endless is a body that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
func (endless) Close() error               { return nil }

func TestBodyIdle_NoAllocationsToRead(t *testing.T) {
	rt := &timeout.Transport{Config: timeout.Config{BodyIdle: time.Hour},
		Base: roundTrip(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: endless{}}, nil
		})}
	resp, err := rt.RoundTrip(newRequest(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := resp.Body.Read(buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a read", n)
	}
}

// kindOf returns which of our limits caused err.
func kindOf(err error) timeout.Kind {
	kind, _ := timeout.Exceeded(err)
	return kind
}
