package deadline

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Context is a context that a timer may end. Unlike that of context.WithTimeoutCause, the timer can be stopped without ending the context,
// and can be paused. A Context is meant to be embedded in a value that is allocated per call, and starts no goroutine. The zero value is
// ready for Start. It must not be copied after that.
type Context struct {
	context.Context // a child of the caller's, cancelled through cancel

	cancel   context.CancelCauseFunc
	timer    *time.Timer
	state    atomic.Int32 // one of the states below, changed with mu held
	announce bool         // Deadline includes the limit
	exceeded Error

	mu      sync.Mutex
	at      time.Time     // when the timer fires; unused while paused
	left    time.Duration // what remains of the limit while paused or uploading
	stalled *Error        // set if SendIdle ended the context
}

// The states of a Context with a timer.
const (
	running   int32 = iota
	paused          // the limit is paused
	uploading       // the limit is paused, and the timer is that of SendIdle
	stopped
	expired
)

// Within returns limit, or 0 if the deadline of ctx comes first: then the timeout is the caller's, not ours.
func Within(ctx context.Context, limit time.Duration) time.Duration {
	if limit > 0 {
		if at, ok := ctx.Deadline(); ok && time.Until(at) <= limit {
			return 0
		}
	}
	return limit
}

// Start makes c a child of parent that ends after limit, with an *Error as its cause, unless Stop or Cancel comes first. A limit of 0 or
// less only makes c cancellable. If announce is set, Deadline includes the limit. Otherwise it returns only the deadline of the parent, for
// a limit that ends with the response headers.
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

// expire runs when the timer fires. That may have happened just before the timer was stopped or reset.
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

// Stop stops the timer without ending the context. It reports false if it came too late: the limit was exceeded, and the context has ended
// or is about to end.
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

// Pause pauses the limit until Resume. It does nothing if the limit was exceeded or stopped.
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

// Resume ends a Pause. Otherwise it does nothing.
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

// sending begins, during a Pause, the wait for the peer to take the part of the request that the transport has. It reports false if the
// limit is not paused.
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

// progress records a sign of life from the peer, which restarts the wait for it to take more of the request.
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

// Exceeded returns an *Error if the limit has ended the context, and nil otherwise.
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

// Deadline implements context.Context. While the limit is paused, it returns the deadline of the parent.
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

// Err implements context.Context. It returns context.DeadlineExceeded if the limit has ended the context.
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

// Clock has the limits of a call that are contexts of this package: that of the try, and that of the whole call. They are paused together
// while the request is sent. The zero value has no limits.
type Clock struct {
	innermost *Context
}

// ClockOf returns the limits that end ctx.
func ClockOf(ctx context.Context) Clock {
	innermost, _ := ctx.Value(clockKey{}).(*Context)
	return Clock{innermost}
}

// Pause pauses the limits until Resume. Pauses do not nest. A limit that begins later is not paused.
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

// Upload is a Clock for the sender of a request, who knows when the peer takes parts of it.
type Upload struct {
	Clock
}

// UploadOf returns the limits that end ctx.
func UploadOf(ctx context.Context) Upload {
	return Upload{ClockOf(ctx)}
}

// RequestUploadOf returns only the limit of the whole call.
func RequestUploadOf(ctx context.Context) Upload {
	u := UploadOf(ctx)
	for u.innermost != nil && u.innermost.exceeded.Kind != Request {
		u = UploadOf(u.innermost.Context)
	}
	return u
}

// Sending says, during a Pause, that the transport has a part of the request to send. If there is no Sent, Pause or Resume within five
// minutes, and no part of the response arrives either, the innermost limit ends the call.
func (u Upload) Sending() {
	for limit := u.innermost; limit != nil && !limit.sending(); limit = ClockOf(limit.Context).innermost {
	}
}

// Sent says that the transport has sent that part. The Pause continues.
func (u Upload) Sent() {
	for limit := u.innermost; limit != nil; limit = ClockOf(limit.Context).innermost {
		if limit.state.Load() == uploading {
			limit.Pause()
		}
	}
}
