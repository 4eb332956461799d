package deadline

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Context is a context that a timer may end. Unlike that of context.WithTimeoutCause, the timer can be stopped without ending the context,
// and can be paused. Until somebody waits for its end it has neither a timer nor a child of its parent, and looks at the clock instead. A
// Context is meant to be embedded in a value that is allocated per call, and starts no goroutine. The zero value is ready for Start. It
// must not be copied after that.
type Context struct {
	parent   context.Context
	exceeded Error
	limited  bool         // it has a limit
	announce bool         // Deadline includes the limit
	ofCall   bool         // tries may follow it; see StartTry
	follows  bool         // it is a try that ends with its call at the latest
	spent    bool         // guarded by mu: the child has ended, or is about to
	orphan   bool         // guarded by mu: the end of the parent has spent a signal
	live     atomic.Bool  // child and cancel are set
	released atomic.Bool  // the child is that of a signal that was given back
	canceled atomic.Bool  // changed with mu held
	state    atomic.Int32 // one of the states below, changed with mu held

	mu      sync.Mutex      // if that of a call and that of its try are held, the latter was locked first
	child   context.Context // of parent, cancelled through cancel; never changes once live is set
	cancel  context.CancelCauseFunc
	timer   *time.Timer   // nil until it is needed
	at      time.Time     // when the limit is exceeded; unused while paused
	left    time.Duration // what remains of the limit while paused or uploading, and at first, after [Call.BeginAt]
	stalled *Error        // set if SendIdle ended the context

	lender *Signals // nil unless c may use a signal
	signal *signal  // whose context is the child; nil if c has a child and a timer of its own

	whole *Context                // of a try that ends with its call: the call; see StartTry
	try   atomic.Pointer[Context] // of a call that such a try follows
}

// The states of a Context with a limit.
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
	var at time.Time
	if limit > 0 {
		at = time.Now().Add(limit)
	}
	c.start(parent, kind, limit, announce, at)
}

// start is Start for a limit that is exceeded at a known time.
func (c *Context) start(parent context.Context, kind Kind, limit time.Duration, announce bool, at time.Time) {
	c.parent = parent
	c.exceeded = Error{Kind: kind, Limit: limit}
	if limit > 0 {
		c.limited, c.announce = true, announce
		c.at = at
	}
}

// StartTry is Start for a try of a call, whose context is call, that is not announced. The limit is 0 if the deadline of the call comes
// first. Mostly such a try is all that waits for the end of its call, so that one timer and one child of the call's parent will do for
// both. Nobody may pause the limit of the try alone. With atOnce, the call has just begun, with [Call.BeginAt].
func (c *Context) StartTry(call context.Context, limit time.Duration, atOnce bool) {
	w, ok := call.(*Context)
	if !ok || limit <= 0 || !w.ofCall || !w.limited || w.live.Load() || w.state.Load() != running {
		c.Start(call, PerTry, Within(call, limit), false)
		return
	}
	var at time.Time
	var left time.Duration
	if atOnce { // nobody else has w yet, and the clock is not read, which costs as much as the rest
		at, left = w.at, w.left
	} else {
		w.mu.Lock()
		at = w.at
		w.mu.Unlock()
		left = time.Until(at)
	}
	if limit >= left {
		c.Start(call, PerTry, 0, false)
		return
	}
	c.start(call, PerTry, limit, false, at.Add(limit-left))
	c.whole = w
	if c.follows = w.try.CompareAndSwap(nil, c); !c.follows {
		c.whole = nil
	}
}

// Follows reports whether c is the context of a try that its call will cancel, so that nobody else has to.
func (c *Context) Follows() bool { return c.follows }

// part is called before the limit of a call changes. From then on the call watches its own end.
func (c *Context) part() {
	try := c.try.Load()
	if try == nil {
		return
	}
	c.begin()
	try.mu.Lock()
	defer try.mu.Unlock()
	if try.whole = nil; try.state.Load() == stopped {
		try.haltLocked()
	}
}

// begin makes c what Done needs: a child of its parent, and a timer.
func (c *Context) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live.Load() {
		return
	}
	parent := c.parent
	if c.whole != nil && c.whole.live.Load() {
		c.whole = nil // its end is not for c to watch
	} else if c.whole != nil {
		parent = c.whole.parent
	}
	defer c.live.Store(true)
	if c.borrowLocked(parent) {
		return
	}
	c.child, c.cancel = context.WithCancelCause(parent)
	if at, ok := c.endLocked(); c.canceled.Load() {
		c.cancel(nil)
	} else if left := time.Until(at); ok && left <= 0 {
		c.cancel(c.expireLocked())
	} else if ok {
		c.timer = time.AfterFunc(left, c.expire)
	}
}

// endLocked returns when c is to end. It reports false if there is no such time, as during a pause.
func (c *Context) endLocked() (time.Time, bool) {
	if state := c.state.Load(); c.limited && (state == running || state == uploading) {
		return c.at, true
	}
	if c.whole != nil {
		c.whole.mu.Lock()
		defer c.whole.mu.Unlock()
		return c.whole.at, true
	}
	return time.Time{}, false
}

// expireLocked says that the end of c has come. It returns the cause.
func (c *Context) expireLocked() *Error {
	switch c.state.Load() {
	case running:
		c.state.Store(expired)
		return &c.exceeded
	case uploading:
		c.state.Store(expired)
		c.stalled = &Error{Kind: SendIdle, Limit: sendIdle}
		return c.stalled
	}
	return &c.whole.exceeded
}

// expire runs when the timer fires. That may have happened just before the timer was stopped or reset.
func (c *Context) expire() {
	c.mu.Lock()
	at, ok := c.endLocked()
	if !ok || c.canceled.Load() {
		c.mu.Unlock()
		return
	}
	if left := time.Until(at); left > 0 {
		c.resetLocked(left) // for the end of the call, if this was that of its try
		c.mu.Unlock()
		return
	}
	cause := c.expireLocked()
	c.mu.Unlock()
	c.End(cause)
}

// resetLocked sets the timer, which c must have.
func (c *Context) resetLocked(after time.Duration) {
	if c.signal != nil {
		c.signal.set(time.Now().Add(after))
		return
	}
	c.timer.Reset(after)
}

// End ends c, and the try that follows it.
func (c *Context) End(cause error) {
	if !c.live.Load() {
		c.begin()
	}
	c.endChild(cause)
	if try := c.try.Load(); try != nil {
		try.End(cause)
	}
}

// endChild ends the child, unless another context has it by now.
func (c *Context) endChild(cause error) {
	c.mu.Lock()
	ours := !c.released.Load()
	c.spent = c.spent || ours
	c.mu.Unlock()
	if ours {
		c.cancel(cause)
	}
}

// Stop stops the timer without ending the context. It reports false if it came too late: the limit was exceeded, and the context has ended
// or is about to end.
func (c *Context) Stop() bool {
	if !c.limited {
		return true
	}
	c.part()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state.Load() {
	case expired:
		return false
	case running:
		if c.whole != nil && c.live.Load() {
			break // it runs on for the end of the call
		}
		if !c.haltLocked() {
			return false
		}
	case uploading:
		c.haltLocked()
	}
	c.state.Store(stopped)
	return true
}

// haltLocked stops the timer. It reports false if the time is up.
func (c *Context) haltLocked() bool {
	switch {
	case c.released.Load():
		return false
	case c.signal != nil:
		return c.signal.halt()
	case c.timer != nil:
		return c.timer.Stop()
	}
	return time.Until(c.at) > 0
}

// Cancel stops the timer and ends the context. It may be called more than once.
func (c *Context) Cancel() {
	if c.canceled.Load() { // and so was the try
		return
	}
	if try := c.try.Load(); try != nil {
		try.Cancel()
	}
	c.mu.Lock()
	c.canceled.Store(true)
	if c.state.Load() != expired {
		c.state.Store(stopped)
	}
	switch {
	case c.released.Load(): // another context has the timer
	case c.signal != nil:
		c.signal.close()
	case c.timer != nil:
		c.timer.Stop()
	}
	c.mu.Unlock()
	if c.live.Load() {
		c.endChild(nil)
	}
}

// Pause pauses the limit until Resume. It does nothing if the limit was exceeded or stopped.
func (c *Context) Pause() {
	if !c.limited || c.state.Load() == paused {
		return
	}
	c.part()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state.Load() {
	case running:
		if !c.haltLocked() {
			return
		}
		c.left = max(0, time.Until(c.at))
	case uploading:
		c.haltLocked()
	default:
		return
	}
	c.state.Store(paused)
}

// Resume ends a Pause. Otherwise it does nothing.
func (c *Context) Resume() {
	if !c.limited {
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
	if !c.limited {
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
	switch {
	case c.timer != nil || c.signal != nil:
		c.resetLocked(after)
	case c.live.Load():
		c.timer = time.AfterFunc(after, c.expire)
	}
}

// Limited reports whether c has a limit.
func (c *Context) Limited() bool { return c.limited }

// Limit returns the error of the limit, exceeded or not.
func (c *Context) Limit() error { return &c.exceeded }

// Exceeded returns an *Error if the limit has ended the context, and nil otherwise.
func (c *Context) Exceeded() error {
	if c.parent == nil || !c.live.Load() && !c.over() {
		return nil
	}
	cause := context.Cause(c.waited())
	if c.released.Load() {
		return nil
	}
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

// waited returns the child.
func (c *Context) waited() context.Context {
	if !c.live.Load() {
		c.begin()
	}
	return c.child
}

// over reports whether a context that nobody waited for has ended.
func (c *Context) over() bool {
	if c.parent.Err() != nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.endLocked()
	return c.canceled.Load() || ok && time.Until(at) <= 0
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
	return c.parent.Deadline()
}

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} { return c.waited().Done() }

// Err implements context.Context. It returns context.DeadlineExceeded if a limit has ended the context, its own or that of the call.
func (c *Context) Err() error {
	if !c.live.Load() && !c.over() {
		return nil
	}
	err := c.waited().Err()
	if c.released.Load() {
		return context.Canceled
	}
	if err == nil {
		return nil
	}
	if _, limit := context.Cause(c.child).(*Error); limit {
		return context.DeadlineExceeded
	}
	if c.signal != nil {
		return cmp.Or(c.parentErr(), err)
	}
	return err
}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	switch {
	case key == (clockKey{}):
		return c
	case c.live.Load():
		// Package context asks it for the cause, and a signal knows nothing else.
		if v := c.child.Value(key); v != nil || c.signal == nil {
			return v
		}
	}
	return c.parent.Value(key)
}
