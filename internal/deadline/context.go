package deadline

import (
	"context"
	"sync"
	"time"
)

// Context is a context that a timer may end. Unlike one of context.WithTimeoutCause, its timer can be stopped while the
// context lives on, or stand still for a while, and it is a value to embed in what is allocated per call. It starts no
// goroutine. The zero value is ready for Start; it must not be copied after.
type Context struct {
	context.Context // a child of the caller's, cancelled through cancel

	cancel   context.CancelCauseFunc
	timer    *time.Timer
	announce bool // Deadline tells the limit
	exceeded Error

	mu     sync.Mutex
	at     time.Time     // when the timer fires; zero: it does not run
	paused bool          // left is what remains of the limit
	left   time.Duration // while paused
}

// Start begins the wait: unless Stop or Cancel comes first, c ends after limit, with an *Error as its cause. A limit of 0
// or less only makes c cancellable. With announce, Deadline tells the limit to those below; without, they see only the
// parent's deadline, for a limit that ends with the response headers.
func (c *Context) Start(parent context.Context, kind Kind, limit time.Duration, announce bool) {
	c.Context, c.cancel = context.WithCancelCause(parent)
	c.exceeded = Error{Kind: kind, Limit: limit}
	if limit <= 0 {
		return
	}
	c.announce = announce
	c.at = time.Now().Add(limit)
	c.timer = time.AfterFunc(limit, c.expire)
}

func (c *Context) expire() {
	c.cancel(&c.exceeded)
}

// Stop stops the timer and leaves the context alive. It reports whether it came in time: false means that the limit was
// exceeded and the context is ended, or about to be.
func (c *Context) Stop() bool {
	if c.timer == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
	if c.paused {
		c.paused = false
		return true
	}
	return c.timer.Stop()
}

// Cancel stops the timer and ends the context. It may be called more than once.
func (c *Context) Cancel() {
	c.cancel(nil)
	c.Stop()
}

// Pause makes the timer stand still until Resume. Once it has fired or was stopped, nothing happens.
func (c *Context) Pause() {
	if c.timer == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused || c.at.IsZero() || !c.timer.Stop() {
		return
	}
	c.left = max(0, time.Until(c.at))
	c.paused = true
}

// Resume ends a Pause. Without one it does nothing.
func (c *Context) Resume() {
	if c.timer == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused {
		return
	}
	c.paused = false
	c.at = time.Now().Add(c.left)
	c.timer.Reset(c.left)
}

// Exceeded returns the *Error if it was the limit that ended the context, and nil otherwise.
func (c *Context) Exceeded() error {
	if c.Context != nil && context.Cause(c.Context) == error(&c.exceeded) {
		return &c.exceeded
	}
	return nil
}

// Deadline implements context.Context. While the timer stands still, it is the parent's.
func (c *Context) Deadline() (time.Time, bool) {
	if c.announce {
		c.mu.Lock()
		at, paused := c.at, c.paused
		c.mu.Unlock()
		if !paused && !at.IsZero() {
			return at, true
		}
	}
	return c.Context.Deadline()
}

// Err implements context.Context. Who looks at a context to tell a timeout from a cancel sees a timeout.
func (c *Context) Err() error {
	err := c.Context.Err()
	if err != nil && c.Exceeded() != nil {
		return context.DeadlineExceeded
	}
	return err
}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	if key == (clockKey{}) {
		return c
	}
	return c.Context.Value(key)
}

type clockKey struct{}

// Clock is the limits of a call, as far as they are contexts of this package: that of a try, that of the whole call. They
// stand still together while the request is sent. The zero value is no limit.
type Clock struct {
	innermost *Context
}

// ClockOf returns the limits that end ctx.
func ClockOf(ctx context.Context) Clock {
	innermost, _ := ctx.Value(clockKey{}).(*Context)
	return Clock{innermost}
}

// RequestClockOf returns the limit of the whole call alone.
func RequestClockOf(ctx context.Context) Clock {
	c := ClockOf(ctx)
	for c.innermost != nil && c.innermost.exceeded.Kind != Request {
		c = ClockOf(c.innermost.Context)
	}
	return c
}

// Pause makes the limits stand still until Resume. Pauses do not add up. A limit that begins later is not paused.
func (c Clock) Pause() {
	for limit := c.innermost; limit != nil; limit = ClockOf(limit.Context).innermost {
		limit.Pause()
	}
}

// Resume ends a Pause.
func (c Clock) Resume() {
	for limit := c.innermost; limit != nil; limit = ClockOf(limit.Context).innermost {
		limit.Resume()
	}
}
