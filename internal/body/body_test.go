package body_test

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/nosidecar/mesh/internal/body"
)

// ends records what an Ender is told.
type ends struct {
	mu   sync.Mutex
	errs []error
}

func (e *ends) End(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.errs = append(e.errs, err)
}

func (e *ends) want(t *testing.T, err error) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.errs) != 1 || e.errs[0] != err {
		t.Errorf("ends = %v, want one: %v", e.errs, err)
	}
}

// blocking is a body whose Read fails once it is closed, as that of net/http does.
type blocking struct {
	reading chan struct{}
	closed  chan struct{}
	read    chan struct{} // closed when Read has returned to the caller
}

func (b *blocking) Read([]byte) (int, error) {
	close(b.reading)
	<-b.closed
	return 0, http.ErrBodyReadAfterClose
}

func (b *blocking) Close() error {
	close(b.closed)
	<-b.read // the reader is woken, and is quicker than whoever closes
	return nil
}

// TestCloseDuringReadIsTheEnd is what every websocket does: one goroutine reads until another closes.
func TestCloseDuringReadIsTheEnd(t *testing.T) {
	b := &blocking{reading: make(chan struct{}), closed: make(chan struct{}), read: make(chan struct{})}
	var r body.Reader
	var e ends
	resp := &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: b}
	r.Attach(resp, &e)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(b.read)
		if _, err := resp.Body.Read(make([]byte, 1)); err != http.ErrBodyReadAfterClose {
			t.Errorf("Read = %v", err)
		}
	})
	<-b.reading
	resp.Body.Close()
	wg.Wait()
	e.want(t, nil)
}

func TestReadErrorBeforeCloseIsAFailure(t *testing.T) {
	boom := errors.New("boom")
	var r body.Reader
	var e ends
	resp := &http.Response{Body: io.NopCloser(errReader{boom})}
	r.Attach(resp, &e)
	resp.Body.Read(make([]byte, 1))
	resp.Body.Close()
	e.want(t, boom)
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// stream is the body of a 101 response.
type stream struct {
	io.ReadWriteCloser
	halfClosed int
}

func (s *stream) CloseWrite() error {
	s.halfClosed++
	return nil
}

type readWriteCloser struct {
	io.ReadCloser
	io.Writer
}

func TestUpgradedStreamCanBeHalfClosed(t *testing.T) {
	inner := &stream{ReadWriteCloser: readWriteCloser{http.NoBody, io.Discard}}
	resp := &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: inner}
	var outer, nested body.Reader
	var e, f ends
	nested.Attach(resp, &e)
	outer.Attach(resp, &f)
	half, ok := resp.Body.(interface{ CloseWrite() error })
	if !ok {
		t.Fatalf("%T has no CloseWrite", resp.Body)
	}
	if err := half.CloseWrite(); err != nil || inner.halfClosed != 1 {
		t.Errorf("CloseWrite = %v, %d calls beneath", err, inner.halfClosed)
	}

	resp = &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: readWriteCloser{http.NoBody, io.Discard}}
	new(body.Reader).Attach(resp, &e)
	if err := resp.Body.(interface{ CloseWrite() error }).CloseWrite(); !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("CloseWrite = %v, want http.ErrNotSupported", err)
	}
}
