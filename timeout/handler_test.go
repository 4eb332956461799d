package timeout_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/timeout"
)

func TestHandler(t *testing.T) {
	for _, test := range []struct {
		name   string
		header []string
		want   time.Duration // 0: no deadline
	}{
		{name: "no header"},
		{"a time", []string{"250"}, 250 * time.Millisecond},
		{"no time left", []string{"0"}, 0},
		{"negative", []string{"-1"}, 0},
		{"not a number", []string{"1s"}, 0},
		{"more than there is", []string{"9223372036854775807"}, 0},
		{"two", []string{"250", "10"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := httptest.NewRequest("GET", "/", nil)
				r.Header[timeout.Header] = test.header
				served := false
				(&timeout.Handler{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					served = true
					at, bounded := r.Context().Deadline()
					if bounded != (test.want > 0) || bounded && time.Until(at) != test.want {
						t.Errorf("deadline in %v, %t; want %v", time.Until(at), bounded, test.want)
					}
					if !bounded {
						return
					}
					<-r.Context().Done()
					if kindOf(context.Cause(r.Context())) != timeout.Request {
						t.Errorf("cause %v, want the request timeout", context.Cause(r.Context()))
					}
				})}).ServeHTTP(httptest.NewRecorder(), r)
				if !served {
					t.Error("the request was not served")
				}
			})
		})
	}
}
