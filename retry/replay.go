package retry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/caller"
)

// errCommitted is what a transport gets when it asks for a request body again and it is too late.
var errCommitted = fmt.Errorf("retry: %w", caller.ErrCommitted)

// errDetached is what a transport gets when it reads the body of a try that is over.
var errDetached = errors.New("retry: read of the request body of an earlier try")

// replay lets several tries read a body that can be read only once. It keeps what is read, up to a limit. A try first gets what
// was kept and then, straight from the source, the rest. So the first try starts at once, and a try that failed early can be
// repeated although most of the body was not read by then.
//
// A transport may read the body of a try even after RoundTrip has returned, so a read for an earlier try can be in progress
// when the next one starts. What that read returns is kept too, and the new try waits for it.
type replay struct {
	source io.ReadCloser
	limit  int

	mu        sync.Mutex
	idle      sync.Cond // signalled when busy becomes false, and on close
	kept      []byte
	err       error // the end of the source: io.EOF or worse
	busy      bool  // a read of the source is in progress
	committed bool  // more than limit has been read, or is being read
	current   *cursor
	final     bool // no try can follow the current one
	closed    bool // the source is closed
}

func newReplay(source io.ReadCloser, limit int) *replay {
	r := &replay{source: source, limit: max(0, limit)}
	r.idle.L = &r.mu
	return r
}

// next returns the body for the next try and detaches the one before. It fails if the body cannot be replayed.
func (r *replay) next() (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.replayableLocked() {
		return nil, errCommitted
	}
	r.current = &cursor{r: r}
	r.idle.Broadcast()
	return r.current, nil
}

// replayable reports whether next can succeed.
func (r *replay) replayable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replayableLocked()
}

func (r *replay) replayableLocked() bool {
	return !r.committed && !r.closed && (r.err == nil || r.err == io.EOF)
}

// finish says that there is no further try. The source is closed with the current try's body: now if that is closed already,
// or if abort is set.
func (r *replay) finish(abort bool) {
	r.mu.Lock()
	r.final = true
	closing := !r.closed && (abort || r.current == nil || r.current.closed)
	r.closed = r.closed || closing
	r.mu.Unlock()
	if closing {
		r.source.Close()
	}
}

// cursor is the body of one try.
type cursor struct {
	r      *replay
	at     int  // in r.kept
	closed bool // guarded by r.mu
}

func (c *cursor) Read(p []byte) (int, error) {
	r := c.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, http.ErrBodyReadAfterClose
		case c != r.current:
			return 0, errDetached
		case c.at < len(r.kept):
			n := copy(p, r.kept[c.at:])
			c.at += n
			return n, nil
		case r.err != nil:
			return 0, r.err
		case len(p) == 0:
			return 0, nil
		case !r.busy:
			return c.readLocked(p)
		}
		r.idle.Wait()
	}
}

// readLocked reads from the source. It releases the lock meanwhile.
func (c *cursor) readLocked(p []byte) (int, error) {
	r := c.r
	room, lost := r.limit-len(r.kept), r.committed
	if room > 0 && !lost {
		p = p[:min(len(p), room)]
	} else {
		// What comes now is not kept, so no replay is possible from here on, unless the source turns out to be at its end.
		r.committed = true
	}
	r.busy = true
	n, err := r.unlockedRead(p)
	r.busy = false
	r.err = err
	switch {
	case !r.committed:
		r.kept = append(r.kept, p[:n]...)
		c.at += n
	case n == 0 && err == io.EOF && !lost:
		r.committed = false
	default:
		r.kept, c.at = nil, 0
	}
	r.idle.Broadcast()
	if c != r.current {
		return 0, errDetached
	}
	return n, err
}

func (r *replay) unlockedRead(p []byte) (int, error) {
	r.mu.Unlock()
	defer r.mu.Lock() // even if the source panics
	return r.source.Read(p)
}

func (c *cursor) Close() error {
	r := c.r
	r.mu.Lock()
	c.closed = true
	// The source stays open for the next try if there can be one. But a transport that closes the body during a read wants
	// that read to return, and may wait for it.
	closing := c == r.current && !r.closed && (r.final || r.committed || r.busy)
	r.closed = r.closed || closing
	r.idle.Broadcast()
	r.mu.Unlock()
	if closing {
		return r.source.Close()
	}
	return nil
}
