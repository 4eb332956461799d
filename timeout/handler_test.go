package timeout_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
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

// TestHandler_LeavesNothing: the context that the handler had ends with it, and net/http finds the form that the handler parsed, whose
// files it removes.
func TestHandler_LeavesNothing(t *testing.T) {
	r := httptest.NewRequest("POST", "/", strings.NewReader("--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"))
	r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	r.Header[timeout.Header] = []string{"3600000"}
	var ctx context.Context
	(&timeout.Handler{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx = r.Context()
		if err := r.ParseMultipartForm(1 << 10); err != nil {
			t.Error(err)
		}
	})}).ServeHTTP(httptest.NewRecorder(), r)
	if ctx.Err() == nil {
		t.Error("the context of the handler lives on")
	}
	if r.MultipartForm == nil || r.MultipartForm.Value["a"] == nil {
		t.Errorf("the form of the request is %v, want that which the handler parsed", r.MultipartForm)
	}
}
