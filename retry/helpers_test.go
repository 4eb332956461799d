package retry_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
)

// tries is an Attempter or, with n from a count of its own, a RoundTripper.
type tries func(req *http.Request, n int) (*http.Response, error)

func (f tries) Attempt(req *http.Request, n int) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	return f(req, n)
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func response(status int, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: http.NoBody}
}

func newBody(s string) *leak.Body { return &leak.Body{Reader: strings.NewReader(s)} }

var (
	errDial  = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	errReset = &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	errBoom  = errors.New("boom")
)

func newRequest(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// policy compiles config, without a wait between tries unless it asks for one.
func policy(t testing.TB, config retry.Config) *retry.Policy {
	t.Helper()
	if config.Backoff == 0 {
		config.Backoff = -1
	}
	p, err := retry.NewPolicy(config)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
