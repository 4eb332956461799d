// Package caller knows what the caller of a call does while it is under way: how its request body is read, whether the
// request can be sent at all, and when it gives up in the way that was usual before contexts.
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

// Clock is what stands still while a request body is sent.
type Clock interface {
	Pause()
	Resume()
}

// Upload is a Clock that is also told when the transport has some of the body to send, until it pauses again.
type Upload interface {
	Clock
	Sending()
}

// ErrCommitted is the error of a GetBody of ours that cannot give the body once more: it is not the caller's.
var ErrCommitted = errors.New("request body cannot be sent again")

// Sent is the body of a request, watched while the request is sent. It is shared by the copies of the body that GetBody
// returns.
type Sent struct {
	length int64 // announced; 0 or less if none is
	get    func() (io.ReadCloser, error)
	clock  Clock  // nil if there is none
	upload Upload // clock, if it is one

	mu    sync.Mutex
	fault error
}

// Watched reports whether a layer above watches the body of req already.
func Watched(req *http.Request) bool {
	_, ok := req.Body.(*sending)
	return ok
}

// Watch puts a Sent in front of the body of req, which must be a copy, if there is anything to watch. It tells clock, which
// may be nil, to pause when the transport begins to read the body, and to resume when it has it all or gives it up. An Upload
// pauses for each Read, and is told of what was read.
func Watch(req *http.Request, clock Clock) {
	first := &struct { // at once
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

// inMemory is the size up to which a body in memory is as good as sent when the call begins.
const inMemory = 64 << 10

// ToWatch reports whether there is anything to watch about the body of req. A small body in memory cannot fail, and takes
// no time; net/http sends it together with the header, as long as it can see what it is.
func ToWatch(req *http.Request) bool {
	if req.Body == nil || req.Body == http.NoBody {
		return false
	}
	size, ok := sizeInMemory(req.Body)
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

// sizeInMemory returns the size of a body that http.NewRequest has made of a reader in memory.
func sizeInMemory(body io.Reader) (int, bool) {
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

// Fault returns what the caller did wrong with the body of req, if that is watched: it failed, or it has another length
// than announced.
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

// again is GetBody of the watched request.
func (s *Sent) again() (io.ReadCloser, error) {
	source, err := s.get()
	if err != nil {
		if !errors.Is(err, ErrCommitted) {
			s.blame(err)
		}
		return nil, err
	}
	return &sending{Sent: s, source: source}, nil
}

// sending is the body of one sending of the request.
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
