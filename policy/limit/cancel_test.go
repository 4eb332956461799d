package limit_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/policy/limit"
)

// TestCancelChannelEndsTheWaitForATurn uses the deprecated field, which net/http still honours.
func TestCancelChannelEndsTheWaitForATurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		_, template := serveInMemory(t, func(http.ResponseWriter, *http.Request) { <-release })
		tr := &limit.Transport{Base: template, Config: limit.PoolConfig{MaxConnections: 1}}
		defer tr.CloseIdleConnections()
		first := make(chan error, 1)
		go func() {
			resp, err := tr.RoundTrip(httptest.NewRequest("GET", "http://a/", nil))
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			first <- err
		}()
		synctest.Wait()
		cancel := make(chan struct{})
		second := httptest.NewRequest("GET", "http://a/", nil)
		//lint:ignore SA1019 deprecated, but still honoured by net/http
		second.Cancel = cancel
		time.AfterFunc(time.Second, func() { close(cancel) })
		time.AfterFunc(time.Hour, func() { close(release) })
		began := time.Now()
		if resp, err := tr.RoundTrip(second); err == nil {
			resp.Body.Close()
			t.Error("a call that was canceled in line got an answer")
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("waited %v, want until the channel was closed", took)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}
