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
	rc    io.ReadCloser
	end   Ender
	state atomic.Uint64 // the bits below, and above them the number of bytes that were read
}

const (
	closing  = 1 << iota // the caller closes the body, or has
	ended                // End was called, or is
	counting             // somebody wants to know how much is read
	oneByte
)

// Count has the reader count what is read. It must be called before Attach.
func (r *Reader) Count() { r.state.Or(counting) }

// Bytes returns how much was read, if that is counted.
func (r *Reader) Bytes() int64 { return int64(r.state.Load() / oneByte) }

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
	state := r.state.Load()
	if state&counting != 0 && n > 0 {
		state = r.state.Add(uint64(n) * oneByte)
	}
	switch {
	case err == nil:
	case err == io.EOF:
		r.finish(nil)
	case state&closing == 0:
		r.finish(err)
	default:
		// It is Close that woke this Read. Close reports the end.
	}
	return n, err
}

// Close implements io.Closer. It may be called while a Read is under way, and more than once.
func (r *Reader) Close() error {
	if r.state.Load()&ended == 0 { // as it has when it was read to its end
		r.state.Or(closing)
	}
	// Deferred, so that a body that panics in Close still ends.
	defer r.finish(nil)
	return r.rc.Close()
}

func (r *Reader) finish(err error) {
	if r.state.Load()&ended == 0 && r.state.Or(ended)&ended == 0 {
		r.end.End(err)
	}
}

// Counter counts what is read of a body that it stands in front of.
type Counter struct {
	io.ReadCloser
	bytes atomic.Int64
}

// Read implements io.Reader.
func (c *Counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}

// Bytes returns how much was read.
func (c *Counter) Bytes() int64 { return c.bytes.Load() }

// upgraded is the body of a 101 response, which net/http promises to be an io.ReadWriteCloser.
type upgraded struct {
	*Reader
	io.Writer
	written atomic.Int64
}

// Write implements io.Writer.
func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.Writer.Write(p)
	u.written.Add(int64(n))
	return n, err
}

// Written returns how much was written.
func (u *upgraded) Written() int64 { return u.written.Load() }

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
