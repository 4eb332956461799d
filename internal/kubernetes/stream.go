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

// maxPending is what is read of a watch ahead of whoever takes it, in bytes. Of each object only the last state counts.
const maxPending = 16 << 20

// stream is an open watch. A goroutine reads it, and merges what it reads until that is taken: a state that takes long to be put into
// force does not hold the server up.
type stream struct {
	wake chan struct{} // something is pending
	room chan struct{} // something was taken

	mu      sync.Mutex
	pending batch
	size    int // of the objects in it
}

// batch is what came since the last was taken.
type batch struct {
	changes  map[Key]change
	last     version // where the state stands after it; its zero value: where it stood
	bookmark bool    // that comes from a bookmark: whatever is older has come
	marker   bool    // the initial events have come
	unmarked bool    // a bookmark came before the marker
	some     bool    // anything came
	behind   bool    // a bookmark was behind what had come
	end      error   // nil: it goes on; io.EOF: it ended as it should
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
	default: // it is yet to be seen
	}
}

// add merges an event. at is where the state stands.
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

// stale reports whether a change is older than what is there, or the same.
func stale(have version, deleted bool, c change) bool {
	if c.version.before(have) {
		return true
	}
	return have == c.version && (deleted || !c.deleted)
}

// take returns what is pending.
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

// collection is the objects of a kind, as far as they have come.
type collection[T any] struct {
	objects  map[Key]T
	versions map[Key]version
	gone     map[Key]version // deleted since the last bookmark: what comes late does not bring them back
}

// maxGone is how many objects are remembered that were deleted, if no bookmark comes.
const maxGone = 4096

func newCollection[T any]() collection[T] {
	return collection[T]{make(map[Key]T), make(map[Key]version), make(map[Key]version)}
}

// maxObjects is how many objects one watch takes. A server stores fewer.
const maxObjects = 1 << 18

var errTooMany = fmt.Errorf("%w: more than %d objects", errTooLarge, maxObjects)

// apply makes a change, and reports whether it was one. decode is called for an object that is new.
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
	c.objects[key] = decode(ch.object) // which looks at the version that was
	c.versions[key] = ch.version
	return true
}

// forget forgets those that were deleted first, if there are too many.
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

// settle forgets what was deleted up to a bookmark.
func (c *collection[T]) settle(at version) {
	maps.DeleteFunc(c.gone, func(_ Key, v version) bool { return !at.before(v) })
}

// alive reports whether the stream goes on.
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
