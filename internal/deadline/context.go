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
	limited  bool          // it has a limit
	announce bool          // Deadline includes the limit
	ofCall   bool          // tries may follow it; see StartTry
	state    atomic.Uint32 // a phase and flags, as below; changed with the mutex held
	of       *Context      // of a try that ends with its call at the latest: the call; see StartTry

	mu     sync.Mutex      // unused in such a try, which has that of its call: see mutex
	apart  bool            // somebody watches the end of the call, so such a try does not
	spent  bool            // the child has ended, or is about to
	orphan bool            // the end of the parent has spent a signal
	child  context.Context // of parent, cancelled through cancel; never changes once live is set
	cancel context.CancelCauseFunc
	timer  *time.Timer   // nil until it is needed
	at     time.Time     // when the limit is exceeded; unused while paused
	left   time.Duration // what remains of the limit while paused or uploading, and at first, after [Call.BeginAt]

	lender *Signals // nil unless c may use a signal
	signal *signal  // whose context is the child; nil if c has a child and a timer of its own

	try *Context // of a call that such a try follows
}

// The phases of a limit.
const (
	running   uint32 = iota
	paused           // the limit is paused
	uploading        // the limit is paused, and the timer is that of SendIdle
	stopped
	expired // by the limit
	stalled // by SendIdle

	phases uint32 = 1<<3 - 1
)

// The flags of a Context, which stay set.
const (
	live     uint32 = 1 << (iota + 3) // child and cancel are set
	canceled                          // Cancel or Finish was called
	released                          // the child is that of a signal that was given back
)

// mutex returns what guards c.
func (c *Context) mutex() *sync.Mutex {
	if c.of != nil {
		return &c.of.mu
	}
	return &c.mu
}

// lock locks the mutex, and returns it. It is not inlined, and the mutex is.
func (c *Context) lock() *sync.Mutex {
	mu := c.mutex()
	mu.Lock()
	return mu
}

// has reports whether a flag is set.
func (c *Context) has(flag uint32) bool { return c.state.Load()&flag != 0 }

// phase returns the phase of the limit.
func (c *Context) phase() uint32 { return c.state.Load() & phases }

// enterLocked changes the phase, and sets flags.
func (c *Context) enterLocked(phase, flags uint32) {
	c.state.Store(c.state.Load()&^phases | phase | flags)
}

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

// begin makes c what Done needs: a child of its parent, and a timer.
func (c *Context) begin() {
	mu := c.mutex()
	mu.Lock()
	defer mu.Unlock()
	c.beginLocked()
}

func (c *Context) beginLocked() {
	if c.has(live) {
		return
	}
	parent := c.parent
	if c.of != nil {
		if c.apart = c.apart || c.of.has(live); !c.apart {
			parent = c.of.parent
		}
	}
	at, ok := c.endLocked()
	if c.lender != nil && !c.has(canceled) && parent.Err() == nil {
		c.signal = c.lender.take(c, parent, at, ok)
		c.child, c.cancel = c.signal.ctx, c.signal.cancel
		c.enterLocked(c.phase(), live)
		return
	}
	c.child, c.cancel = context.WithCancelCause(parent)
	switch {
	case c.has(canceled):
		c.cancel(nil)
	case ok:
		if left := time.Until(at); left <= 0 {
			c.cancel(c.expireLocked())
		} else {
			c.timer = time.AfterFunc(left, c.expire)
		}
	}
	c.enterLocked(c.phase(), live)
}

// endLocked returns when c is to end. It reports false if there is no such time, as during a pause.
func (c *Context) endLocked() (time.Time, bool) {
	switch phase := c.phase(); {
	case c.limited && (phase == running || phase == uploading):
		return c.at, true
	case c.of != nil && !c.apart:
		return c.of.at, true
	}
	return time.Time{}, false
}

// expireLocked says that the end of c has come. It returns the cause.
func (c *Context) expireLocked() *Error {
	switch c.phase() {
	case running:
		c.enterLocked(expired, 0)
		return &c.exceeded
	case uploading:
		c.enterLocked(stalled, 0)
		return stall
	}
	return &c.of.exceeded
}

// expire runs when the timer fires, which may be too early: it was set for an earlier end, or for none any more.
func (c *Context) expire() {
	mu := c.lock()
	at, ok := c.endLocked()
	if !ok || c.has(canceled) {
		mu.Unlock()
		return
	}
	if time.Until(at) > 0 {
		c.armLocked(at)
		mu.Unlock()
		return
	}
	cause := c.expireLocked()
	mu.Unlock()
	c.End(cause)
}

// armLocked sets the timer, if anybody waits for the end of c.
func (c *Context) armLocked(at time.Time) {
	switch {
	case c.signal != nil:
		c.signal.set(at)
	case c.timer != nil:
		c.timer.Reset(time.Until(at))
	case c.has(live):
		c.timer = time.AfterFunc(time.Until(at), c.expire)
	}
}

// End ends c, and the try that follows it.
func (c *Context) End(cause error) {
	if !c.has(live) {
		c.begin()
	}
	mu := c.lock()
	ours, try := c.spendLocked(), c.try
	mu.Unlock()
	if ours {
		c.cancel(cause)
	}
	if try != nil {
		try.End(cause)
	}
}

// spendLocked reports whether there is a child to end, which is not another context's by now.
func (c *Context) spendLocked() bool {
	ours := c.state.Load()&(live|released) == live
	c.spent = c.spent || ours
	return ours
}

// Stop stops the timer without ending the context. It reports false if it came too late: the limit was exceeded, and the context has ended
// or is about to end.
func (c *Context) Stop() bool {
	if !c.limited {
		return true
	}
	mu := c.mutex()
	mu.Lock()
	defer mu.Unlock()
	c.partLocked()
	switch c.phase() {
	case expired, stalled:
		return false
	case running:
		if c.lateLocked() {
			return false
		}
	}
	c.enterLocked(stopped, 0)
	return true
}

// lateLocked reports whether a limit that is running was exceeded, which nobody has waited for. Otherwise expire would know.
func (c *Context) lateLocked() bool { return !c.has(live) && time.Until(c.at) <= 0 }

// Cancel ends the context, and the try that follows it. It may be called more than once.
func (c *Context) Cancel() {
	if c.has(canceled) { // and so is the try
		return
	}
	mu := c.lock()
	try, ours, theirs := c.try, c.cancelLocked(), false
	if try != nil {
		theirs = try.cancelLocked()
	}
	mu.Unlock()
	if theirs {
		try.cancel(nil)
	}
	if ours {
		c.cancel(nil)
	}
}

// cancelLocked does of Cancel what needs the lock. It reports whether there is a child to end.
func (c *Context) cancelLocked() bool {
	c.enterLocked(max(c.phase(), stopped), canceled)
	ours := c.spendLocked()
	switch {
	case !ours: // or another context has the timer
	case c.signal != nil:
		c.signal.close()
	case c.timer != nil:
		c.timer.Stop()
	}
	return ours
}

// Pause pauses the limit until Resume. It does nothing if the limit was exceeded or stopped.
func (c *Context) Pause() {
	if !c.limited || c.phase() == paused {
		return
	}
	defer c.lock().Unlock()
	c.partLocked()
	switch c.phase() {
	case running:
		if c.lateLocked() {
			return
		}
		c.left = max(0, time.Until(c.at))
	case uploading:
	default:
		return
	}
	c.enterLocked(paused, 0)
}

// Resume ends a Pause. Otherwise it does nothing.
func (c *Context) Resume() {
	if !c.limited {
		return
	}
	defer c.lock().Unlock()
	if p := c.phase(); p == paused || p == uploading {
		c.continueLocked(running, c.left)
	}
}

// sending begins, during a Pause, the wait for the peer to take the part of the request that the transport has. It reports false if the
// limit is not paused.
func (c *Context) sending() bool {
	if !c.limited {
		return false
	}
	defer c.lock().Unlock()
	p := c.phase()
	if p != paused && p != uploading {
		return false
	}
	c.continueLocked(uploading, sendIdle)
	return true
}

// progress records a sign of life from the peer, which restarts the wait for it to take more of the request.
func (c *Context) progress() {
	if c.phase() == uploading {
		c.sending()
	}
}

func (c *Context) continueLocked(phase uint32, after time.Duration) {
	c.enterLocked(phase, 0)
	c.at = time.Now().Add(after)
	c.armLocked(c.at)
}

// Limited reports whether c has a limit.
func (c *Context) Limited() bool { return c.limited }

// Limit returns the error of the limit, exceeded or not.
func (c *Context) Limit() error { return &c.exceeded }

// Exceeded returns an *Error if the limit has ended the context, and nil otherwise.
func (c *Context) Exceeded() error {
	if c.parent == nil || !c.has(live) && !c.over() {
		return nil
	}
	switch cause := context.Cause(c.waited()); {
	case cause == error(&c.exceeded):
		return cause
	case cause == error(stall) && c.phase() == stalled:
		return cause
	}
	return nil
}

// waited returns the child.
func (c *Context) waited() context.Context {
	if !c.has(live) {
		c.begin()
	}
	return c.child
}

// over reports whether a context that nobody waited for has ended.
func (c *Context) over() bool {
	if c.parent.Err() != nil {
		return true
	}
	defer c.lock().Unlock()
	at, ok := c.endLocked()
	return c.has(canceled) || ok && time.Until(at) <= 0
}

// Deadline implements context.Context. While the limit is paused, it returns the deadline of the parent.
func (c *Context) Deadline() (time.Time, bool) {
	if c.announce {
		mu := c.mutex()
		mu.Lock()
		at, phase := c.at, c.phase()
		counts := phase == running || phase == expired
		mu.Unlock()
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
	if !c.has(live) && !c.over() {
		return nil
	}
	err := c.waited().Err()
	if c.has(released) {
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
	case key == childKey && c.has(live):
		return c.child.Value(key)
	case c.of != nil:
		return c.of.parent.Value(key)
	}
	return c.parent.Value(key)
}

// childKey is the key by which package context finds the context that it ends, and knows the cause of. Here that is the child, whose other
// values are those of the parent.
var childKey = func() any {
	asked := new(questions)
	_ = context.Cause(asked)
	return asked.key
}()

// questions is a context that remembers which key it was asked for.
type questions struct {
	context.Context
	key any
}

func (*questions) Err() error { return context.Canceled }

func (q *questions) Value(key any) any {
	q.key = key
	return nil
}
