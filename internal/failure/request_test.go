package failure_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/failure"
)

// failing is a request body that fails after some bytes.
type failing struct{ io.Reader }

func (failing) Close() error { return nil }

var errBody = errors.New("the disk is gone")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBody }

// TestMistakesOfTheCallerAreItsOwn makes net/http refuse or give up requests that no server could have answered, over each
// protocol.
func TestMistakesOfTheCallerAreItsOwn(t *testing.T) {
	header := func(name, value string) func(*http.Request) {
		return func(req *http.Request) { req.Header[name] = []string{value} }
	}
	body := func(r io.Reader, length int64) func(*http.Request) {
		return func(req *http.Request) {
			req.Method, req.Body, req.ContentLength = "POST", failing{r}, length
		}
	}
	const both, http1, http2 = "", "HTTP/1", "HTTP/2"
	for _, test := range []struct {
		name string
		over string
		make func(*http.Request)
	}{
		{"header name", both, header("bad name", "x")},
		{"header value", both, header("X", "a\nb")},
		{"trailer name", both, func(req *http.Request) { req.Trailer = http.Header{"bad name": nil} }},
		{"trailer value", both, func(req *http.Request) { req.Trailer = http.Header{"X": {"a\x00"}} }},
		{"trailer of the framing", both, func(req *http.Request) {
			body(strings.NewReader("x"), -1)(req)
			req.Trailer = http.Header{"Content-Length": nil}
		}},
		{"method", both, func(req *http.Request) { req.Method = "BAD METHOD" }},
		{"scheme", both, func(req *http.Request) { req.URL.Scheme = "ftp" }},
		{"no host", both, func(req *http.Request) { req.URL.Host = "" }},
		{"no URL", both, func(req *http.Request) { req.URL = nil }},
		{"no header", both, func(req *http.Request) { req.Header = nil }},
		{"control character in the path", http1, func(req *http.Request) { req.URL.Opaque = "/a\nb" }},
		{"length without body", http1, func(req *http.Request) { req.ContentLength = 5 }},
		{"host", http2, func(req *http.Request) { req.Host = "a b" }},
		{"upgrade", http2, func(req *http.Request) {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "tcp")
		}},
		{"connection options", http2, header("Connection", "X-Hop")},
		{"transfer encoding", http2, header("Transfer-Encoding", "gzip")},
		{"header list larger than the server takes", http2, header("X", strings.Repeat("x", 64<<10))},
		{"body fails at once", both, body(errReader{}, -1)},
		{"body fails later", both, body(io.MultiReader(strings.NewReader(strings.Repeat("x", 100_000)), errReader{}), -1)},
		{"body fails within the announced length", both, body(io.MultiReader(strings.NewReader("x"), errReader{}), 10)},
		{"body shorter than announced", both, body(strings.NewReader("12345"), 10)},
		{"body longer than announced", both, body(strings.NewReader("12345"), 3)},
		{"body in memory shorter than announced", both, func(req *http.Request) {
			req.Method, req.Body, req.ContentLength = "POST", io.NopCloser(strings.NewReader("12345")), 10
		}},
		{"body in memory longer than announced", both, func(req *http.Request) {
			req.Method, req.Body, req.ContentLength = "POST", io.NopCloser(strings.NewReader("12345")), 3
		}},
	} {
		for _, protocol := range []string{http1, http2} {
			if test.over != both && test.over != protocol {
				continue
			}
			t.Run(test.name+" over "+protocol, func(t *testing.T) {
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						panic(http.ErrAbortHandler)
					}
					if r.ContentLength == 3 {
						<-r.Context().Done() // an answer might come before net/http sees that the body is longer
					}
				}))
				srv.Config.ErrorLog = log.New(io.Discard, "", 0)
				srv.Config.MaxHeaderBytes = 32 << 10
				srv.Config.Protocols = new(http.Protocols)
				srv.Config.Protocols.SetHTTP1(protocol == http1)
				srv.Config.Protocols.SetUnencryptedHTTP2(protocol == http2)
				srv.Start()
				defer srv.Close()
				tr := &http.Transport{Protocols: srv.Config.Protocols}
				defer tr.CloseIdleConnections()
				// The settings of an HTTP/2 server are known after the first answer.
				if resp, err := tr.RoundTrip(httptest.NewRequest("GET", srv.URL, nil)); err != nil {
					t.Fatal(err)
				} else {
					resp.Body.Close()
				}
				req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				test.make(req)
				if caller.ToWatch(req) {
					caller.Watch(req, nil)
				}
				resp, err := tr.RoundTrip(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err == nil {
					t.Fatal("no error")
				}
				if got := failure.Of(t.Context(), req, err); got != failure.BadRequest {
					t.Errorf("Of(%v) = %v, want %v", err, got, failure.BadRequest)
				}
			})
		}
	}
}

// TestClosedBodyIsNoMistake closes the body beneath the transport's read, as the end of a connection does.
func TestClosedBodyIsNoMistake(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	req := httptest.NewRequest("POST", "http://a/", r)
	caller.Watch(req, nil)
	done := make(chan error)
	go func() {
		_, err := req.Body.Read(make([]byte, 1))
		done <- err
	}()
	req.Body.Close()
	if err := <-done; err != io.ErrClosedPipe {
		t.Errorf("Read = %v", err)
	}
	if got := failure.Of(t.Context(), req, errors.New("connection reset")); got != failure.Reset {
		t.Errorf("Of = %v, want %v", got, failure.Reset)
	}
}

func TestFailingGetBodyBeneathIsTheCallers(t *testing.T) {
	req := httptest.NewRequest("POST", "http://a/", failing{strings.NewReader("x")})
	req.GetBody = func() (io.ReadCloser, error) { return nil, caller.ErrCommitted }
	caller.Watch(req, nil)
	_, err := req.GetBody()
	if got := failure.Of(t.Context(), req, err); got != failure.Reset {
		t.Errorf("a GetBody of ours: Of = %v, want %v", got, failure.Reset)
	}
	req = httptest.NewRequest("POST", "http://a/", failing{strings.NewReader("x")})
	req.GetBody = func() (io.ReadCloser, error) { return nil, errBody }
	caller.Watch(req, nil)
	_, err = req.GetBody()
	if got := failure.Of(t.Context(), req, err); got != failure.BadRequest {
		t.Errorf("a GetBody of the caller: Of = %v, want %v", got, failure.BadRequest)
	}
}

func TestCancelChannelIsTheCallers(t *testing.T) {
	cancel := make(chan struct{})
	req := httptest.NewRequest("GET", "http://a/", nil)
	req.Cancel = cancel //lint:ignore SA1019 net/http still honours it
	boom := errors.New("boom")
	if got := failure.Of(t.Context(), req, boom); got != failure.Reset {
		t.Errorf("Of = %v, want %v", got, failure.Reset)
	}
	close(cancel)
	if got := failure.Of(t.Context(), req, boom); got != failure.Canceled {
		t.Errorf("Of = %v, want %v", got, failure.Canceled)
	}
	var past context.Context = almostOver{t.Context()}
	if got := failure.Of(past, req, boom); got != failure.RequestTimeout {
		t.Errorf("of http.Client.Timeout: Of = %v, want %v", got, failure.RequestTimeout)
	}
}
