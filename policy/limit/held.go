package limit

import (
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
)

var errNotAgain = errors.New("limit: the connection was lost, and the request has no GetBody to be sent again")

// held is the body of a request that may have to be sent over another connection. As long as that is possible, Close does not
// close a body that was not read.
type held struct {
	source io.ReadCloser

	mu       sync.Mutex
	read     bool
	closed   bool // Close was called; the source may still be open
	released bool
}

// hold returns the request to send, and its body, if it has one.
func hold(req *http.Request) (*http.Request, *held) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	out := &struct { // one allocation for both
		http.Request
		held
	}{Request: *req, held: held{source: req.Body}}
	out.Request.Body = &out.held
	return &out.Request, &out.held
}

func (b *held) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.read = true
	b.mu.Unlock()
	return b.source.Read(p)
}

func (b *held) Close() error {
	b.mu.Lock()
	b.closed = true
	now := b.read || b.released
	b.mu.Unlock()
	if !now {
		return nil
	}
	return b.source.Close()
}

// release allows the body to be closed: the request was sent, or will not be sent at all.
func (b *held) release() {
	if b == nil {
		return
	}
	b.mu.Lock()
	due := b.closed && !b.read
	b.released = true
	b.mu.Unlock()
	if due {
		b.source.Close()
	}
}

// again returns the request to send after an attempt to send it failed. It has the same body, or a new one from GetBody if the body
// was read. If again returns an error, the body is closed.
func (b *held) again(req *http.Request) (*http.Request, error) {
	if b == nil {
		return req, nil
	}
	b.mu.Lock()
	read, closed := b.read, b.closed
	b.mu.Unlock()
	if !read {
		return req, nil
	}
	if !closed {
		body.CloseRequest(req)
	}
	if req.GetBody == nil {
		return nil, errNotAgain
	}
	fresh, err := caller.BodyAgain(req.GetBody)
	if err != nil {
		return nil, err
	}
	next := *req
	next.Body = fresh
	return &next, nil
}
