package retry_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
)

// TestReplay_NoTryWithPartOfTheBody: a transport may close the body of a try after it has returned. What can no longer be sent as a whole
// is not sent again even then.
func TestReplay_NoTryWithPartOfTheBody(t *testing.T) {
	const limit = 64 << 10
	for _, test := range []struct {
		name string
		body io.Reader
	}{
		{"more was read than is kept", bytes.NewReader(make([]byte, 2*limit))},
		{"the body broke", io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(errors.New("disk")))},
	} {
		t.Run(test.name, func(t *testing.T) {
			body := &leak.Body{Reader: test.body}
			loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 3, Backoff: -1})}
			var first io.Closer
			resp, summary, err := loop.Do(newRequest(t, "PUT", "http://service/", body),
				retryAttempt(func(r *http.Request, n int) (*http.Response, error) {
					if n > 1 {
						t.Errorf("try %d was made", n)
					} else {
						first = r.Body
					}
					_, _ = io.CopyN(io.Discard, r.Body, limit+1)
					return response(503), nil
				}))
			if err != nil || resp.StatusCode != 503 || summary.Stopped != retry.BodyCommitted {
				t.Errorf("%v, %+v, %v, want the first response, for the reason %v", resp, summary, err, retry.BodyCommitted)
			}
			if first.Close(); body.Closed.Load() != 1 {
				t.Errorf("body closed %d times", body.Closed.Load())
			}
		})
	}
}

// TestReplay_EarlierTryTakesNothing has a transport that goes on with the body of a try that is over, when no more can be kept.
func TestReplay_EarlierTryTakesNothing(t *testing.T) {
	const limit = 64 << 10
	data := bytes.Repeat([]byte("0123456789abcdef"), 2*limit/16)
	var earlier io.ReadCloser
	loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 1, Backoff: -1})}
	_, summary, err := loop.Do(newRequest(t, "PUT", "http://service/", &leak.Body{Reader: bytes.NewReader(data)}),
		retryAttempt(func(r *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				earlier = r.Body
				_, _ = io.CopyN(io.Discard, r.Body, limit)
				return response(503), nil
			}
			defer r.Body.Close()
			_, _ = earlier.Read(make([]byte, 100))
			if got, err := io.ReadAll(r.Body); !bytes.Equal(got, data) || err != nil {
				t.Errorf("the second try got %d bytes, %v, want all %d", len(got), err, len(data))
			}
			return response(200), nil
		}))
	if err != nil || summary.Attempts != 2 {
		t.Errorf("%+v, %v", summary, err)
	}
}

// TestReplay_WaitOfAnEarlierTryEnds: a transport may wait until its reads of a body have ended.
func TestReplay_WaitOfAnEarlierTryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		loop := retry.Loop{Policy: policy(t, retry.Config{Retries: 2, Backoff: -1})}
		waited := make(chan error, 1)
		_, summary, err := loop.Do(newRequest(t, "PUT", "http://service/", pr), retryAttempt(func(r *http.Request, n int) (*http.Response, error) {
			switch n {
			case 1: // reads until there is something
				go func() { _, _ = io.ReadAll(r.Body) }()
			case 2: // waits for that read
				go func() {
					_, err := r.Body.Read(make([]byte, 1))
					waited <- err
				}()
			case 3:
				if err := <-waited; err == nil {
					t.Error("the read of the second try got something")
				}
				go func() {
					_, _ = pw.Write([]byte("payload"))
					pw.Close()
				}()
				defer r.Body.Close()
				if got, err := io.ReadAll(r.Body); string(got) != "payload" || err != nil {
					t.Errorf("the third try got %q, %v", got, err)
				}
				return response(200), nil
			}
			synctest.Wait()
			return response(503), nil
		}))
		if err != nil || summary.Attempts != 3 {
			t.Errorf("%+v, %v", summary, err)
		}
	})
}
