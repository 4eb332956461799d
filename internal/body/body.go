// Package body notifies a layer of the end of a call, and closes the bodies of requests.
//
// A call does not end when RoundTrip returns. It ends when the response body reaches EOF, fails or is closed, whichever is first. At that
// point, exactly once, slots are released, outcomes are recorded and contexts are cancelled.
package body

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

// Ender is notified, exactly once, of the end of a call.
type Ender interface {
	// End is called with nil if the body was read to its end or closed, and with the read error otherwise. It runs on the goroutine
	// that read or closed the body.
	End(err error)
}

// Reader is a response body that reports its end. A layer embeds it in the value that it allocates for a call, so that watching the body
// needs no further allocation. The zero value is ready for Attach.
type Reader struct {
	rc    io.ReadCloser
	end   Ender
	state atomic.Uint64 // the bits below, and above them the number of bytes that were read
}

const (
	closing  = 1 << iota // Close was called
	ended                // End was called, or is about to be
	counting             // the bytes are counted
	complete             // see Complete
	oneByte              // the unit of the count
)

// Count makes the reader count the bytes that are read. It must be called before Attach.
func (r *Reader) Count() { r.state.Or(counting) }

// Bytes returns the number of bytes that were read, if Count was called.
func (r *Reader) Bytes() int64 { return int64(r.state.Load() / oneByte) }

// Complete reports whether the body was read to its end, or there is none.
func (r *Reader) Complete() bool { return r.state.Load()&complete != 0 }

// Attach puts r in front of resp.Body. The call of a response without a body ends before Attach returns. The body of a 101
// response (Switching Protocols), which is also an io.Writer, remains one, and can be half-closed. r must not be attached twice.
func (r *Reader) Attach(resp *http.Response, end Ender) {
	r.rc, r.end = resp.Body, end
	if resp.Body == nil || resp.Body == http.NoBody {
		r.finish(complete, nil)
		return
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = r.upgrade()
		return
	}
	resp.Body = r
}

// upgrade returns r as the body of a 101 response.
func (r *Reader) upgrade() io.ReadCloser {
	if w, ok := r.rc.(io.Writer); ok {
		return &upgraded{Reader: r, Writer: w}
	}
	return r
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
		r.finish(complete, nil)
	case state&closing == 0:
		r.finish(0, err)
	default:
		// Close interrupted this Read, and reports the end.
	}
	return n, err
}

// Close implements io.Closer. It may be called during a Read, and more than once.
func (r *Reader) Close() error {
	if r.state.Load()&ended != 0 { // the body was read to its end
		return r.rc.Close()
	}
	r.state.Or(closing)
	// Deferred, so that a body that panics in Close still ends.
	defer r.finish(0, nil)
	return r.rc.Close()
}

// finish reports the end, unless that has been done. how is complete or 0.
func (r *Reader) finish(how uint64, err error) {
	if r.state.Load()&ended == 0 && r.state.Or(ended|how)&ended == 0 {
		r.end.End(err)
	}
}

// Counter is a body that counts the bytes that are read.
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

// Bytes returns the number of bytes that were read.
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

// Written returns the number of bytes that were written.
func (u *upgraded) Written() int64 { return u.written.Load() }

// CloseWrite tells the peer that nothing more will be written. Reading is still possible. The error wraps http.ErrNotSupported if the
// connection cannot be half-closed.
func (u *upgraded) CloseWrite() error {
	half, ok := u.Writer.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("CloseWrite: %w", http.ErrNotSupported)
	}
	return half.CloseWrite()
}

// CloseRequest closes the body of a request that is not sent, which every http.RoundTripper must do.
func CloseRequest(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
