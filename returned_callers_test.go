package mesh_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
)

// An ordeal has callers that send any request, and end their calls in any way.

// body returns the body of a request, of about 16 kB, or of any length.
func (o *ordeal) body() io.ReadCloser {
	b := &leak.Body{Reader: &oddBody{o: o, left: o.n(1 << 15)}}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bodies = append(o.bodies, b)
	return b
}

// oddBody is a body that may be slow, and may fail.
type oddBody struct {
	o    *ordeal
	left int
}

var errOdd = errors.New("the body fails")

func (b *oddBody) Read(p []byte) (int, error) {
	if b.o.one(20) {
		b.o.pause()
	}
	if b.o.one(200) {
		return 0, errOdd
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(b.left, len(p), 4096)
	clear(p[:n])
	b.left -= n
	return n, nil
}

func (o *ordeal) request(ctx context.Context) *http.Request {
	method := []string{"GET", "GET", "POST", "PUT", "HEAD", "DELETE"}[o.n(6)]
	req, _ := http.NewRequestWithContext(ctx, method, "http://api/", nil)
	if method != "GET" && method != "HEAD" && o.n(5) > 0 {
		b := o.body()
		req.Body, req.ContentLength = b, -1
		if o.one(2) {
			req.ContentLength = int64(b.(*leak.Body).Reader.(*oddBody).left)
		} else if o.one(8) {
			req.ContentLength = 100
		}
		if o.one(2) {
			req.GetBody = func() (io.ReadCloser, error) {
				if o.one(10) {
					return nil, errOdd
				}
				return o.body(), nil
			}
		}
		if o.one(4) {
			req.Header.Set("Expect", "100-continue")
		}
	}
	if o.one(20) {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "any")
	}
	return req
}

// call makes a call as some caller may.
func (o *ordeal) call() {
	ctx, cancel := context.WithCancel(o.Context())
	defer cancel()
	var canceling *time.Timer
	c := o.m.Client()
	switch o.n(8) {
	case 0:
		canceling = time.AfterFunc(o.while(), cancel)
	case 1:
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, o.while())
		defer stop()
	case 2:
		c.Timeout = 1 + o.while()
	case 3:
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
			if o.one(4) {
				cancel()
			}
		}})
	}
	req := o.request(ctx)
	if o.one(20) {
		gone := make(chan struct{})
		//lint:ignore SA1019 deprecated, but callers use it
		req.Cancel = gone
		time.AfterFunc(o.while(), func() { close(gone) })
	}
	resp, err := c.Do(req)
	if canceling != nil {
		defer canceling.Stop()
	}
	if err != nil {
		return
	}
	switch o.n(6) {
	case 0:
		resp.Body.Close()
		resp.Body.Close()
	case 1:
		if o.proto == "HTTP/2.0" { // net/http's other bodies are closed with a lock held, so time in the bubble would stand still
			go resp.Body.Close()
			go resp.Body.Close()
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	case 2:
		cancel()
		o.pause()
	case 3:
		_, _ = resp.Body.Read(make([]byte, 1))
		o.pause()
	default:
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	resp.Body.Close()
	_, _ = resp.Body.Read(make([]byte, 1))
}
