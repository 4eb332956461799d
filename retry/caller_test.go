package retry_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/retry"
)

// tooLong is the length that is announced for a body that is longer.
const tooLong = 3

// TestMistakesOfTheCallerAreNotRetried sends requests that no server could answer, with everything switched on.
func TestMistakesOfTheCallerAreNotRetried(t *testing.T) {
	srv, tr := newServer(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.ContentLength == tooLong {
			<-r.Context().Done() // an answer might come before net/http sees that the body is longer
		}
	})
	every := retry.Config{Retries: 3, Backoff: -1, AnyMethod: true, On: retry.On{Conditions: retry.ServerError | retry.Reset}}
	for name, spoil := range map[string]func(*http.Request){
		"header name":  func(req *http.Request) { req.Header["bad name"] = []string{"x"} },
		"header value": func(req *http.Request) { req.Header["X"] = []string{"a\nb"} },
		"method":       func(req *http.Request) { req.Method = "BAD METHOD" },
		"trailer":      func(req *http.Request) { req.Trailer = http.Header{"bad name": nil} },
		"failing body": func(req *http.Request) { req.Body = io.NopCloser(errReader{}) },
		"short body":   func(req *http.Request) { req.Body, req.ContentLength = newBody("12345"), 10 },
		"long body":    func(req *http.Request) { req.Body, req.ContentLength = newBody("12345"), tooLong },
		"replayed body": func(req *http.Request) {
			again := func() (io.ReadCloser, error) { return io.NopCloser(errReader{}), nil }
			req.Body, _ = again()
			req.GetBody = again
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := newRequest(t, "POST", srv.URL, nil)
			spoil(req)
			loop := retry.Loop{Policy: policy(t, every)}
			_, summary, err := loop.Do(req, tries(func(req *http.Request, _ int) (*http.Response, error) { return tr.RoundTrip(req) }))
			if err == nil || summary != (retry.Summary{Attempts: 1, Stopped: retry.NotRetriable}) {
				t.Errorf("%+v, %v, want one try", summary, err)
			}
		})
	}
}

// TestCancelChannelEndsTheWaitForARetry uses the deprecated field, which net/http still honours.
func TestCancelChannelEndsTheWaitForARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancel := make(chan struct{})
		req := newRequest(t, "GET", "http://service/", nil)
		req.Cancel = cancel //lint:ignore SA1019 net/http still honours it
		time.AfterFunc(time.Second, func() { close(cancel) })
		loop := retry.Loop{
			Policy: policy(t, retry.Config{Retries: 1, Backoff: time.Hour}),
			Rand:   func() float64 { return 0.9 },
		}
		began := time.Now()
		_, summary, err := loop.Do(req, tries(func(*http.Request, int) (*http.Response, error) { return nil, errDial }))
		if err == nil || summary != (retry.Summary{Attempts: 1, Stopped: retry.CallerGone}) || time.Since(began) != time.Second {
			t.Errorf("%+v, %v after %v, want the end with the channel", summary, err, time.Since(began))
		}
	})
}

// slow yields one byte per second, like an upload over a bad line.
type slow struct{ left int }

func (s *slow) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	time.Sleep(time.Second)
	p[0] = 'x'
	return 1, nil
}

// TestPerTryTimeoutDoesNotCutUploads holds the limit to the wait after the request is sent.
func TestPerTryTimeoutDoesNotCutUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			name  string
			think time.Duration
			err   string
			tries int32
		}{
			{"in time", 2 * time.Second, "", 1},
			{"too slow", 4 * time.Second, "per-try timeout", 2},
		} {
			var made atomic.Int32
			loop := retry.Loop{Policy: policy(t, retry.Config{
				Retries: 1, PerTryTimeout: 3 * time.Second, AnyMethod: true, On: retry.On{Conditions: retry.Reset},
			})}
			began := time.Now()
			_, _, err := loop.Do(newRequest(t, "POST", "http://service/", io.NopCloser(&slow{left: 10})),
				tries(func(req *http.Request, n int) (*http.Response, error) {
					made.Add(1)
					time.Sleep(time.Second) // as for a connection
					if _, err := io.Copy(io.Discard, req.Body); err != nil {
						return nil, err
					}
					select {
					case <-time.After(test.think - time.Second):
						return response(200), nil
					case <-req.Context().Done():
						return nil, req.Context().Err()
					}
				}))
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("%s: %v after %v", test.name, err, time.Since(began))
			}
			if made.Load() != test.tries {
				t.Errorf("%s: %d tries, want %d", test.name, made.Load(), test.tries)
			}
		}
	})
}
