package limit_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/policy/limit"
)

func TestHandler(t *testing.T) {
	ask := func(h http.Handler) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		return w
	}
	t.Run("requests at once", func(t *testing.T) {
		entered, leave := make(chan bool), make(chan bool)
		h := &limit.Handler{MaxRequests: 2, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			entered <- true
			<-leave
		})}
		for range 2 {
			go ask(h)
			<-entered
		}
		if w := ask(h); w.Code != http.StatusServiceUnavailable || w.Header().Get("X-Envoy-Overloaded") != "true" {
			t.Errorf("the third got %d %v, want 503 with x-envoy-overloaded", w.Code, w.Header())
		}
		leave <- true
		leave <- true
	})
	t.Run("a handler that panics leaves its place", func(t *testing.T) {
		h := &limit.Handler{MaxRequests: 1, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("x") })}
		for range 3 {
			func() {
				defer func() {
					if recover() != "x" {
						t.Error("the panic did not pass")
					}
				}()
				ask(h)
			}()
		}
	})
	t.Run("requests each second", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := &limit.Handler{Rate: limit.RateConfig{PerSecond: 2}, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
			counts := func() (served int) {
				for range 5 {
					if w := ask(h); w.Code == http.StatusOK {
						served++
					} else if w.Code != http.StatusTooManyRequests {
						t.Errorf("got %d, want 429", w.Code)
					}
				}
				return served
			}
			if got := counts(); got != 2 {
				t.Errorf("%d of 5 were served, want 2", got)
			}
			time.Sleep(time.Second)
			if got := counts(); got != 2 {
				t.Errorf("a second later %d of 5 were served, want 2", got)
			}
		})
	})
	t.Run("settings out of range", func(t *testing.T) {
		if w := ask(&limit.Handler{MaxRequests: -1}); w.Code != http.StatusInternalServerError {
			t.Errorf("got %d, want 500", w.Code)
		}
	})
}
