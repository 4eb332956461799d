package deadline

import (
	"context"
	"time"
)

// Context is a context that a timer may end. Unlike one of context.WithTimeoutCause, its timer can be stopped while the
// context lives on, and it is a value to embed in what is allocated per call. It starts no goroutine. The zero value is
// ready for Start; it must not be copied after.
type Context struct {
	context.Context // a child of the caller's, cancelled through cancel

	cancel   context.CancelCauseFunc
	timer    *time.Timer
	deadline time.Time // what Deadline tells; zero: the parent's
	exceeded Error
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
	if announce {
		c.deadline = time.Now().Add(limit)
	}
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
	return c.timer.Stop()
}

// Cancel stops the timer and ends the context. It may be called more than once.
func (c *Context) Cancel() {
	c.cancel(nil)
	if c.timer != nil {
		c.timer.Stop()
	}
}

// Exceeded returns the *Error if it was the limit that ended the context, and nil otherwise.
func (c *Context) Exceeded() error {
	if c.Context != nil && context.Cause(c.Context) == error(&c.exceeded) {
		return &c.exceeded
	}
	return nil
}

// Deadline implements context.Context.
func (c *Context) Deadline() (time.Time, bool) {
	if c.deadline.IsZero() {
		return c.Context.Deadline()
	}
	return c.deadline, true
}

// Err implements context.Context. Who looks at a context to tell a timeout from a cancel sees a timeout.
func (c *Context) Err() error {
	err := c.Context.Err()
	if err != nil && c.Exceeded() != nil {
		return context.DeadlineExceeded
	}
	return err
}
