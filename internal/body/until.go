package body

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
)

// Until has the body of resp, the response to req, closed at the end of the context of req, if req may still be under way over HTTP/2: while the peer
// takes no more of a request, net/http waits for the peer alone, and so does whoever reads the response.
func Until(req *http.Request, resp *http.Response) {
	ctx := req.Context()
	if resp.ProtoMajor == 1 || req.Body == nil || req.Body == http.NoBody || resp.Body == nil || resp.Body == http.NoBody || ctx.Done() == nil {
		return
	}
	u := &until{ReadCloser: resp.Body, ctx: ctx}
	u.stop = context.AfterFunc(ctx, u.abort)
	resp.Body = u
}

// until is a body that is closed at the end of a context.
type until struct {
	io.ReadCloser
	ctx     context.Context
	stop    func() bool
	aborted atomic.Bool
}

func (u *until) abort() {
	u.aborted.Store(true)
	u.ReadCloser.Close()
}

// Read implements io.Reader.
func (u *until) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil {
		u.stop()
		if err != io.EOF && u.aborted.Load() { // net/http says that the body is closed
			err = u.ctx.Err()
		}
	}
	return n, err
}

// Close implements io.Closer.
func (u *until) Close() error {
	u.stop()
	return u.ReadCloser.Close()
}
