package limit

import (
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/caller"
)

var errNotAgain = errors.New("limit: the connection was lost, and the request has no GetBody to be sent again")

// held is the body of a request that may have to be sent over another connection. As long as that is possible, Close does not
// close a body that was not read.
type held struct {
	source io.ReadCloser
	get    func() (io.ReadCloser, error) // GetBody of the request, nil if nobody needs to know of its bodies
	later  *held                         // what get has returned last to net/http, which may lose it

	mu       sync.Mutex
	read     bool
	closed   bool // Close was called
	shut     bool // the source is closed
	released bool
}

// hold returns the request to send, and its body, if it has one that has to be held. net/http sends a small body in memory together with the header,
// but only if it can see the type of the reader. Nobody needs to know whether that is read or closed, if GetBody returns it again.
func hold(req *http.Request) (*http.Request, *held) {
	if req.Body == nil || req.Body == http.NoBody || req.GetBody != nil && !caller.ToWatch(req) {
		return req, nil
	}
	out := &struct { // one allocation for both
		http.Request
		held
	}{Request: *req, held: held{source: req.Body}}
	out.Request.Body = &out.held
	if req.GetBody != nil && caller.ToWatch(req) {
		out.held.get, out.Request.GetBody = req.GetBody, out.held.fresh
	}
	return &out.Request, &out.held
}

// fresh is the GetBody of the request that is sent. net/http calls it, if at all, before RoundTrip returns, when it has done with the body
// before.
func (b *held) fresh() (io.ReadCloser, error) {
	again, err := caller.BodyAgain(b.get)
	if err != nil {
		return nil, err
	}
	b.last().end()
	b.later = &held{source: again}
	return b.later, nil
}

// last returns the body that net/http has got last.
func (b *held) last() *held {
	if b.later != nil {
		return b.later
	}
	return b
}

func (b *held) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.closed && !b.read { // the source stays as it is, so that it can be sent again
		b.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	b.read = true
	b.mu.Unlock()
	return b.source.Read(p)
}

func (b *held) Close() error {
	b.mu.Lock()
	b.closed = true
	now := !b.shut && (b.read || b.released)
	b.shut = b.shut || now
	b.mu.Unlock()
	if !now {
		return nil
	}
	return b.source.Close()
}

// end closes the source, unless that has been done.
func (b *held) end() {
	b.mu.Lock()
	b.released = true
	b.mu.Unlock()
	b.Close()
}

// release allows the body to be closed: the request was sent, or will not be sent at all. err is the error of the call.
func (b *held) release(err error) {
	if b == nil {
		return
	}
	last := b.last()
	last.mu.Lock()
	due := last.closed || err != nil && last != b // HTTP/2 of net/http loses the body of a repetition that does not take place
	last.released = true
	last.mu.Unlock()
	if due {
		last.Close()
	}
}

// again returns the request to send after an attempt to send it failed. It has the same body, or a new one from GetBody if the body
// was read. If again returns an error, the body is closed.
func (b *held) again(req *http.Request) (*http.Request, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	next := *req
	if b != nil {
		last := b.last()
		last.mu.Lock()
		read := last.read
		last.mu.Unlock()
		switch {
		case !read && last == b:
			return req, nil
		case !read: // the one before cannot be read any more
			next.Body = last.source
			return &next, nil
		}
		last.end()
		if req.GetBody == nil {
			return nil, errNotAgain
		}
	}
	fresh, err := caller.BodyAgain(req.GetBody)
	if err != nil {
		return nil, err
	}
	next.Body = fresh
	return &next, nil
}
