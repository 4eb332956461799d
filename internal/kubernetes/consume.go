package kubernetes

import (
	"cmp"
	"errors"
	"io"
	"math/rand/v2"
	"time"
)

// consume applies the changes of a stream until it ends, and returns why it ended.
func (r *run[T]) consume(s *stream, initial bool) error {
	c := newConsumer(r, s, initial)
	defer c.stop()
	for {
		take, err := c.wait()
		if err == nil && take {
			err = c.take()
		}
		if err != nil {
			return err
		}
	}
}

// consumer applies the changes of one stream.
type consumer[T any] struct {
	*run[T]
	stream *stream

	initial bool          // the initial events have not ended
	fresh   collection[T] // the objects of the initial events; they replace the state when the events end
	some    bool          // an event has arrived

	silence    *time.Timer // fires if the initial events do not go on
	confirm    *time.Timer // fires when an error that was yielded counts as over
	collect    *time.Timer // fires when changes have been collected for long enough
	collecting bool
}

func newConsumer[T any](r *run[T], s *stream, initial bool) *consumer[T] {
	c := &consumer[T]{run: r, stream: s, initial: initial, silence: newTimer(), confirm: newTimer(), collect: newTimer()}
	if initial {
		c.fresh = newCollection[T]()
		c.silence.Reset(quiet)
	}
	if r.told != "" {
		c.confirm.Reset(trusted)
	}
	return c
}

// newTimer returns a timer that does not run.
func newTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (c *consumer[T]) stop() {
	c.silence.Stop()
	c.confirm.Stop()
	c.collect.Stop()
}

// wait waits for something to do. It reports whether the pending changes should be taken now.
func (c *consumer[T]) wait() (take bool, err error) {
	select {
	case <-c.ctx.Done():
		return false, errStopped
	case <-c.silence.C:
		if c.stream.idle() {
			c.list, c.ignored = true, c.some
			return false, errUnmarked
		}
		return true, nil
	case <-c.confirm.C:
		if c.initial {
			return false, nil
		}
		return false, c.publish()
	case <-c.collect.C:
		c.collecting = false
		return true, nil
	case <-c.stream.wake:
		if c.initial || !c.stream.alive() {
			return true, nil
		}
		if !c.collecting {
			c.collect.Reset(cmp.Or(c.Coalesce, 50*time.Millisecond+rand.N(50*time.Millisecond)))
			c.collecting = true
		}
		return false, nil
	}
}

// take takes the pending changes and applies them. It returns the end of the stream as an error.
func (c *consumer[T]) take() error {
	b := c.stream.take()
	c.some = c.some || b.some
	if err := c.apply(b); err != nil {
		return err
	}
	if b.behind {
		return ErrExpired
	}
	handle := c.followed
	if c.initial {
		handle = c.begun
	}
	if err := handle(b); err != nil {
		return err
	}
	return b.end
}

// apply applies the changes of a batch: to the state, or to the objects of the initial events.
func (c *consumer[T]) apply(b batch) error {
	into := &c.collection
	if c.initial {
		into = &c.fresh
	}
	for _, ch := range b.changes {
		if len(into.objects) >= maxObjects {
			return &Error{What: c.what, Err: errTooMany}
		}
		if into.apply(ch, c.decode) && !c.initial {
			c.changed[ch.object.Key] = struct{}{}
		}
	}
	return nil
}

// begun handles a batch of the initial events. If they end with it, what they had replaces the state.
func (c *consumer[T]) begun(b batch) error {
	switch {
	case b.marker:
		c.initial = false
		c.silence.Stop()
		return c.replace(c.fresh, b.last)
	case b.unmarked:
		c.Client.lists.Store(true)
		return errUnmarked
	case b.end != nil: // if the connection is not the reason, the server may not be able to stream lists
		c.list = c.list || b.end != io.EOF && !errors.Is(b.end, errCut)
	default:
		c.silence.Reset(quiet)
	}
	return nil
}

// followed handles a batch of later changes.
func (c *consumer[T]) followed(b batch) error {
	if b.last != (version{}) {
		c.at = b.last
	}
	if b.bookmark {
		c.settle(b.last)
	}
	if !b.some {
		return nil
	}
	c.silent, c.heard = 0, time.Now()
	return c.publish()
}
