package deadline

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Context is a context that a timer may end. Unlike one of context.WithTimeoutCause, its timer can be stopped while the
// context lives on, or stand still for a while, and it is a value to embed in what is allocated per call. It starts no
// goroutine. The zero value is ready for Start; it must not be copied after.
type Context struct {
	context.Context // a child of the caller's, cancelled through cancel

	cancel   context.CancelCauseFunc
	timer    *time.Timer
	state    atomic.Int32 // one of those below, changed with mu held
	announce bool         // Deadline tells the limit
	exceeded Error

	mu      sync.Mutex
	at      time.Time     // when the timer fires; not while paused
	left    time.Duration // what remains of the limit; while paused and uploading
	stalled *Error        // nil unless it was SendIdle that ended the context
}

// The states of a Context with a timer.
const (
	running   int32 = iota
	paused          // the limit stands still
	uploading       // it does, and the timer is that of SendIdle
	stopped
	expired
)

// Within returns limit, or 0 if the deadline of ctx comes first: then it is the caller's timeout, and none of ours.
func Within(ctx context.Context, limit time.Duration) time.Duration {
	if limit > 0 {
		if at, ok := ctx.Deadline(); ok && time.Until(at) <= limit {
			return 0
		}
	}
	return limit
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

// expire runs when the timer fires, which it may have done just before it was stopped or set anew.
func (c *Context) expire() {
	c.mu.Lock()
	state := c.state.Load()
	if state != running && state != uploading || time.Now().Before(c.at) {
		c.mu.Unlock()
		return
	}
	c.state.Store(expired)
	cause := &c.exceeded
	if state == uploading {
		c.stalled = &Error{Kind: SendIdle, Limit: sendIdle}
		cause = c.stalled
	}
	c.mu.Unlock()
	c.cancel(cause)
}

// Stop stops the timer and leaves the context alive. It reports whether it came in time: false means that the limit was
// exceeded and the context is ended, or about to be.
func (c *Context) Stop() bool {
	if c.timer == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state.Load() {
	case expired:
		return false
	case running:
		if !c.timer.Stop() {
			return false
		}
	case uploading:
		c.timer.Stop()
	}
	c.state.Store(stopped)
	return true
}

// Cancel stops the timer and ends the context. It may be called more than once.
func (c *Context) Cancel() {
	c.cancel(nil)
	c.Stop()
}

// Pause makes the limit stand still until Resume. Once it was exceeded or stopped, nothing happens.
func (c *Context) Pause() {
	if c.timer == nil || c.state.Load() == paused {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state.Load() {
	case running:
		if !c.timer.Stop() {
			return
		}
		c.left = max(0, time.Until(c.at))
	case uploading:
		c.timer.Stop()
	default:
		return
	}
	c.state.Store(paused)
}

// Resume ends a Pause. Without one it does nothing.
func (c *Context) Resume() {
	if c.timer == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.state.Load(); s != paused && s != uploading {
		return
	}
	c.setLocked(running, c.left)
}

// sending begins to wait, during a Pause, until the peer has taken what the transport has of the request. It reports false
// where there is no Pause.
func (c *Context) sending() bool {
	if c.timer == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.state.Load(); s != paused && s != uploading {
		return false
	}
	c.setLocked(uploading, sendIdle)
	return true
}

// progress says that the peer does something, whatever it takes of the request.
func (c *Context) progress() {
	if c.state.Load() == uploading {
		c.sending()
	}
}

func (c *Context) setLocked(state int32, after time.Duration) {
	c.state.Store(state)
	c.at = time.Now().Add(after)
	c.timer.Reset(after)
}

// Exceeded returns the *Error if it was the limit that ended the context, and nil otherwise.
func (c *Context) Exceeded() error {
	if c.Context == nil {
		return nil
	}
	cause := context.Cause(c.Context)
	if cause == error(&c.exceeded) {
		return &c.exceeded
	}
	if cause != nil && c.state.Load() == expired {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.stalled != nil && cause == error(c.stalled) {
			return c.stalled
		}
	}
	return nil
}

// Deadline implements context.Context. While the timer stands still, it is the parent's.
func (c *Context) Deadline() (time.Time, bool) {
	if c.announce {
		c.mu.Lock()
		at, state := c.at, c.state.Load()
		counts := state == running || state == expired && c.stalled == nil
		c.mu.Unlock()
		if counts {
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

// Upload is a Clock for who sends the request, and knows when the peer takes it.
type Upload struct {
	Clock
}

// UploadOf returns the limits that end ctx.
func UploadOf(ctx context.Context) Upload {
	return Upload{ClockOf(ctx)}
}

// RequestUploadOf returns the limit of the whole call alone.
func RequestUploadOf(ctx context.Context) Upload {
	u := UploadOf(ctx)
	for u.innermost != nil && u.innermost.exceeded.Kind != Request {
		u = UploadOf(u.innermost.Context)
	}
	return u
}

// Sending says, during a Pause, that the transport has some of the request to send. If it is still at it after five minutes,
// without a further Pause or a Resume, or a Sent, the innermost limit ends the call. The response, if that comes already,
// counts too.
func (u Upload) Sending() {
	for limit := u.innermost; limit != nil && !limit.sending(); limit = ClockOf(limit.Context).innermost {
	}
}

// Sent says that the transport has sent what it had. The Pause goes on.
func (u Upload) Sent() {
	for limit := u.innermost; limit != nil; limit = ClockOf(limit.Context).innermost {
		if limit.state.Load() == uploading {
			limit.Pause()
		}
	}
}
