// Package body tells a layer when a call is over, and closes the bodies of requests.
//
// A call does not end when RoundTrip returns: it ends when the response body reaches EOF, fails or is closed, whichever
// is first. Slots are released, outcomes recorded and contexts cancelled there, exactly once.
package body

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

// Ender is told, exactly once, that a call is over.
type Ender interface {
	// End receives nil when the body was read to its end or closed, and the read error otherwise. It runs on the
	// goroutine that read or closed the body.
	End(err error)
}

// Reader is a response body that reports its end. It is meant to be embedded in the value that a layer allocates for a
// call, so that watching the body costs no allocation of its own. The zero value is ready for Attach.
type Reader struct {
	rc      io.ReadCloser
	end     Ender
	closing atomic.Bool // the caller closes the body, or has
	ended   atomic.Bool
}

// Attach puts r in front of resp.Body. A response that has no body ends before Attach returns. A body that can also be
// written to (101 Switching Protocols) still can be, and half-closed. r must not be attached twice.
func (r *Reader) Attach(resp *http.Response, end Ender) {
	r.rc, r.end = resp.Body, end
	if resp.Body == nil || resp.Body == http.NoBody {
		r.finish(nil)
		return
	}
	if w, ok := resp.Body.(io.Writer); ok {
		resp.Body = &upgraded{Reader: r, Writer: w}
		return
	}
	resp.Body = r
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.rc.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		r.finish(nil)
	case !r.closing.Load():
		r.finish(err)
	default:
		// It is Close that woke this Read. Close reports the end.
	}
	return n, err
}

// Close implements io.Closer. It may be called while a Read is under way, and more than once.
func (r *Reader) Close() error {
	if !r.ended.Load() { // as it has when it was read to its end
		r.closing.Store(true)
	}
	// Deferred, so that a body that panics in Close still ends.
	defer r.finish(nil)
	return r.rc.Close()
}

func (r *Reader) finish(err error) {
	if !r.ended.Load() && r.ended.CompareAndSwap(false, true) {
		r.end.End(err)
	}
}

// upgraded is the body of a 101 response, which net/http promises to be an io.ReadWriteCloser.
type upgraded struct {
	*Reader
	io.Writer
}

// CloseWrite tells the peer that nothing more will be written; reading goes on. It fails with an error that is
// http.ErrNotSupported where the connection cannot be half-closed.
func (u *upgraded) CloseWrite() error {
	half, ok := u.Writer.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("CloseWrite: %w", http.ErrNotSupported)
	}
	return half.CloseWrite()
}

// CloseRequest closes the body of a request that is not sent, as every http.RoundTripper must.
func CloseRequest(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
