// Package caller observes the caller's side of a call in flight: how the request body is read, whether net/http can send the
// request at all, and when the caller cancels it through Request.Cancel, which predates contexts.
package caller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
)

// Clock is a time limit that is paused while a request body is sent.
type Clock interface {
	Pause()
	Resume()
}

// Upload is a Clock that pauses for each Read of the body. Sending is called after each Read, when the transport has bytes to send.
type Upload interface {
	Clock
	Sending()
}

// ErrCommitted is returned by a GetBody of this module that cannot return the body again. The caller is not to blame for it.
var ErrCommitted = errors.New("request body cannot be sent again")

// Sent watches the body of a request while it is sent. All bodies that GetBody returns share it.
type Sent struct {
	length int64 // announced; 0 or less if none is
	get    func() (io.ReadCloser, error)
	clock  Clock  // nil if there is none
	upload Upload // clock, if it is one

	mu    sync.Mutex
	fault error
}

// Watched reports whether a layer above already watches the body of req.
func Watched(req *http.Request) bool {
	_, ok := req.Body.(*sending)
	return ok
}

// Watch wraps the body of req, which must be a copy of the caller's request, in a Sent. It pauses clock, which may be nil, when the
// transport begins to read the body, and resumes it when the transport has read everything or closed the body. An Upload is paused for
// each Read, and its Sending is called after each.
func Watch(req *http.Request, clock Clock) {
	first := &struct { // one allocation for both
		Sent
		sending
	}{Sent: Sent{length: req.ContentLength, get: req.GetBody, clock: clock}}
	first.upload, _ = clock.(Upload)
	first.sending = sending{Sent: &first.Sent, source: req.Body}
	req.Body = &first.sending
	if req.GetBody != nil {
		req.GetBody = first.Sent.again
	}
}

// inMemory is the size in bytes up to which a body in memory counts as sent when the call begins.
const inMemory = 64 << 10

// ToWatch reports whether the body of req needs to be watched. A small body in memory does not: it cannot fail and takes no time to read.
// net/http sends it together with the header, but only if it can see the type of the reader.
func ToWatch(req *http.Request) bool {
	return req.Body != nil && toWatch(req)
}

func toWatch(req *http.Request) bool {
	if req.Body == http.NoBody {
		return false
	}
	size, ok := SizeInMemory(req.Body)
	return !ok || size > inMemory || int64(size) != req.ContentLength
}

// The types that io.NopCloser returns for readers without and with WriteTo.
var (
	nopCloser         = reflect.TypeOf(io.NopCloser(nil))
	nopCloserWriterTo = reflect.TypeOf(io.NopCloser(struct {
		io.Reader
		io.WriterTo
	}{}))
)

// SizeInMemory returns the size of a body that http.NewRequest made from a reader in memory.
func SizeInMemory(body io.Reader) (int, bool) {
	if t := reflect.TypeOf(body); t == nopCloser || t == nopCloserWriterTo {
		body, _ = reflect.ValueOf(body).Field(0).Interface().(io.Reader)
	}
	switch r := body.(type) {
	case *bytes.Reader:
		return r.Len(), true
	case *bytes.Buffer:
		return r.Len(), true
	case *strings.Reader:
		return r.Len(), true
	}
	return 0, false
}

// Fault returns what is wrong with the caller's body of req: reading it failed, or its length is not the announced one. It returns nil
// if the body is not watched.
func Fault(req *http.Request) error {
	b, ok := req.Body.(*sending)
	if !ok {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fault
}

func (s *Sent) blame(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault == nil {
		s.fault = err
	}
}

// again is the GetBody of the watched request.
func (s *Sent) again() (io.ReadCloser, error) {
	source, err := BodyAgain(s.get)
	if err != nil {
		if !errors.Is(err, ErrCommitted) {
			s.blame(err)
		}
		return nil, err
	}
	return &sending{Sent: s, source: source}, nil
}

// BodyAgain calls a GetBody. Its error is not nil if there is no body: a request without one would be another request.
func BodyAgain(getBody func() (io.ReadCloser, error)) (io.ReadCloser, error) {
	again, err := getBody()
	if err == nil && again == nil {
		err = errors.New("the GetBody of the request returned no body and no error")
	}
	return again, err
}

// sending is the body of the request each time it is sent.
type sending struct {
	*Sent
	source io.ReadCloser
	read   int64
	begun  bool
	closed atomic.Bool
}

func (b *sending) Read(p []byte) (int, error) {
	if !b.begun || b.upload != nil && !b.over() {
		b.begun = true
		b.pause()
	}
	n, err := b.source.Read(p)
	b.read += int64(n)
	switch {
	case b.length > 0 && (b.read > b.length || err == io.EOF && b.read < b.length):
		b.blame(fmt.Errorf("request body of %d bytes or more, not the %d announced", b.read, b.length))
	case err != nil && err != io.EOF && !b.closed.Load(): // and not a consequence of Close
		b.blame(err)
	}
	if err != nil || b.over() {
		b.resume()
	} else if b.upload != nil {
		b.upload.Sending()
	}
	return n, err
}

// over reports whether nothing more will be sent.
func (b *sending) over() bool {
	return b.closed.Load() || b.length > 0 && b.read >= b.length
}

func (b *sending) Close() error {
	b.closed.Store(true)
	defer b.resume()
	return b.source.Close()
}

func (b *sending) pause() {
	if b.clock != nil {
		b.clock.Pause()
	}
}

func (b *sending) resume() {
	if b.clock != nil {
		b.clock.Resume()
	}
}
