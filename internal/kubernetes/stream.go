package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
)

// maxPending bounds, in bytes, what is read of a watch before it is taken. Only the last state of each object counts.
const maxPending = 16 << 20

// stream is an open watch. A goroutine reads it and merges the changes until they are taken, so that a slow consumer does not block the
// server.
type stream struct {
	wake chan struct{} // something is pending
	room chan struct{} // something was taken

	mu      sync.Mutex
	pending batch
	size    int // of the objects in it
}

// batch holds the changes since the last one was taken.
type batch struct {
	changes  map[Key]change
	last     version // the version of the state after the batch; its zero value means that it is unchanged
	bookmark bool    // last is that of a bookmark: everything older has arrived
	marker   bool    // the initial events are complete
	unmarked bool    // a bookmark arrived before the marker
	some     bool    // something arrived
	behind   bool    // a bookmark was older than an event before it
	end      error   // nil while the stream is open; io.EOF after a regular end
}

func newStream() *stream {
	return &stream{wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// read reads events until the end. It returns when the body ends, or is closed.
func (s *stream) read(ctx context.Context, body io.Reader, what string, r Resource, namespace string, at version) {
	lines := newLines(body)
	for {
		line, err := lines.next()
		switch {
		case err == io.EOF || errors.Is(err, errTooLarge):
			s.finish(err)
			return
		case err != nil:
			s.finish(fmt.Errorf("%w: %w", errCut, err))
			return
		}
		e, err := decodeEvent(line, what, r, namespace)
		if err != nil {
			s.finish(err)
			return
		}
		s.add(e, &at)
		for s.full() {
			select {
			case <-s.room:
			case <-ctx.Done():
				s.finish(context.Cause(ctx))
				return
			}
		}
	}
}

func (s *stream) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size > maxPending
}

func (s *stream) finish(err error) {
	s.mu.Lock()
	s.pending.end = err
	s.mu.Unlock()
	s.signal()
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // the last signal has not been received yet
	}
}

// add merges an event. at is the version of the state.
func (s *stream) add(e event, at *version) {
	s.mu.Lock()
	p := &s.pending
	p.some = true
	if e.bookmark != "" {
		v := newVersion("", e.bookmark)
		switch {
		case v.before(*at):
			p.behind = true
		default:
			*at, p.last, p.bookmark = v, v, true
		}
		p.unmarked = p.unmarked || !e.marker && !p.marker
		p.marker = p.marker || e.marker
	} else {
		if p.changes == nil {
			p.changes = make(map[Key]change)
		}
		have, ok := p.changes[e.object.Key]
		if !ok || !stale(have.version, have.deleted, e.change) {
			s.size += len(e.object.Raw) - len(have.object.Raw)
			e.object.Raw = append(have.object.Raw[:0], e.object.Raw...) // of a buffer that is used again
			p.changes[e.object.Key] = e.change
		}
		if v := newVersion("", e.object.ResourceVersion); !v.before(*at) {
			*at, p.last = v, v
		}
	}
	s.mu.Unlock()
	s.signal()
}

// stale reports whether a change is not newer than the state that is there.
func stale(have version, deleted bool, c change) bool {
	if c.version.before(have) {
		return true
	}
	return have == c.version && (deleted || !c.deleted)
}

// take returns the pending batch.
func (s *stream) take() batch {
	s.mu.Lock()
	taken := s.pending
	s.pending, s.size = batch{end: taken.end}, 0
	s.mu.Unlock()
	select {
	case s.room <- struct{}{}:
	default:
	}
	return taken
}

// collection has the objects of a kind that have arrived so far.
type collection[T any] struct {
	objects  map[Key]T
	versions map[Key]version
	gone     map[Key]version // objects deleted since the last bookmark; a late event must not bring them back
}

// maxGone bounds the deleted objects that are remembered if no bookmark arrives.
const maxGone = 4096

func newCollection[T any]() collection[T] {
	return collection[T]{make(map[Key]T), make(map[Key]version), make(map[Key]version)}
}

// maxObjects bounds the objects of one watch. A server stores fewer.
const maxObjects = 1 << 18

var errTooMany = fmt.Errorf("%w: more than %d objects", errTooLarge, maxObjects)

// apply applies a change and reports whether it changed anything. It calls decode for a new state of an object.
func (c *collection[T]) apply(ch change, decode func(Object) T) bool {
	key := ch.object.Key
	have, ok := c.versions[key]
	if ok && stale(have, false, ch) {
		return false
	}
	if gone, ok := c.gone[key]; ok && stale(gone, true, ch) {
		return false
	}
	if ch.deleted {
		c.gone[key] = ch.version
		c.forget()
		delete(c.versions, key)
		delete(c.objects, key)
		return ok
	}
	delete(c.gone, key)
	c.objects[key] = decode(ch.object) // before the version is set, since decode compares with the old one
	c.versions[key] = ch.version
	return true
}

// forget forgets the oldest deletions if there are too many.
func (c *collection[T]) forget() {
	if len(c.gone) <= maxGone {
		return
	}
	numbers := make([]uint64, 0, len(c.gone))
	for _, v := range c.gone {
		numbers = append(numbers, v.number)
	}
	slices.Sort(numbers)
	maps.DeleteFunc(c.gone, func(_ Key, v version) bool { return v.number <= numbers[len(numbers)/2] })
}

// settle forgets the deletions up to a bookmark.
func (c *collection[T]) settle(at version) {
	maps.DeleteFunc(c.gone, func(_ Key, v version) bool { return !at.before(v) })
}

// alive reports whether the stream is still open.
func (s *stream) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending.end == nil
}

// idle reports whether nothing is pending.
func (s *stream) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.pending.some && s.pending.end == nil
}
