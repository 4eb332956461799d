package breaker_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/breaker"
)

type failingBody struct{}

func (failingBody) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }
func (failingBody) Close() error             { return nil }

// TestMistakesOfTheCallerDoNotOpenTheCircuit sends requests that no server could answer.
func TestMistakesOfTheCallerDoNotOpenTheCircuit(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	base := srv.Client().Transport.(*http.Transport)
	defer base.CloseIdleConnections()
	for name, spoil := range map[string]func(*http.Request){
		"header value": func(req *http.Request) { req.Header["X"] = []string{"a\nb"} },
		"method":       func(req *http.Request) { req.Method = "BAD METHOD" },
		"failing body": func(req *http.Request) { req.Body, req.ContentLength = failingBody{}, -1 },
		"short body": func(req *http.Request) {
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader("12345")), 10
		},
	} {
		tr := &breaker.Transport{Base: base, Config: breaker.Config{ConsecutiveFailures: 1}}
		req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		spoil(req)
		if resp, err := tr.RoundTrip(req); err == nil {
			resp.Body.Close()
			t.Errorf("%s: no error", name)
		}
		for key, state := range tr.States() {
			if state != breaker.Closed {
				t.Errorf("%s: the circuit of %s is %v", name, key, state)
			}
		}
	}
}
