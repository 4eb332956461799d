package timeout_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/timeout"
)

// drip is a body that comes a byte a second.
type drip struct{ left int }

func (d *drip) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	d.left--
	time.Sleep(time.Second)
	p[0] = 'x'
	return 1, nil
}

func (*drip) Close() error { return nil }

// slowServer takes the whole request, and then some time.
type slowServer time.Duration

func (s slowServer) RoundTrip(req *http.Request) (*http.Response, error) {
	defer req.Body.Close()
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return nil, err
	}
	select {
	case <-time.After(time.Duration(s)):
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody}, nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

func TestUploadsAreNotCut(t *testing.T) {
	for think, want := range map[time.Duration]time.Duration{2 * time.Second: 12 * time.Second, time.Minute: 13 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			tr := &timeout.Transport{Base: slowServer(think), Config: timeout.Config{Request: 3 * time.Second}}
			began := time.Now()
			_, err := tr.RoundTrip(httptest.NewRequest("POST", "http://a/", &drip{10}))
			if took := time.Since(began); took != want || (err == nil) != (think < 3*time.Second) {
				t.Errorf("a server that takes %v: %v after %v, want the end after %v", think, err, took, want)
			}
		})
	}
}

// TestServersGiveUploadsTime serves a caller that waits 3 s for the answer and takes 10 s to send the request.
func TestServersGiveUploadsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &timeout.Handler{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			began := time.Now()
			if _, err := io.Copy(io.Discard, r.Body); err != nil || r.Context().Err() != nil {
				t.Errorf("the body: %v, %v", err, r.Context().Err())
			}
			<-r.Context().Done()
			if took := time.Since(began); took != 13*time.Second {
				t.Errorf("the context ended after %v, want 3s after the last byte", took)
			}
		})}
		req := httptest.NewRequest("POST", "http://a/", &drip{10})
		req.Header.Set(timeout.Header, "3000")
		h.ServeHTTP(httptest.NewRecorder(), req)
	})
}

// halfTaken answers over HTTP/2 and takes no more of the request. Then nothing but Close ends a read of the response.
type halfTaken struct{ *io.PipeReader }

func (h halfTaken) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, ProtoMajor: 2, Header: http.Header{}, Body: h.PipeReader}, nil
}

func TestUploadsThatNobodyTakesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		time.AfterFunc(time.Hour, func() { w.Close() })
		tr := &timeout.Transport{Base: halfTaken{r}, Config: timeout.Config{Request: 3 * time.Second}}
		resp, err := tr.RoundTrip(httptest.NewRequest("POST", "http://a/", &drip{10}))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		began := time.Now()
		_, err = io.Copy(io.Discard, resp.Body)
		if kind, _ := timeout.Exceeded(err); kind != timeout.Request || time.Since(began) != 3*time.Second {
			t.Errorf("ended with %v after %v", err, time.Since(began))
		}
	})
}
