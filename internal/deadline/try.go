package deadline

import (
	"context"
	"time"
)

// StartTry is Start for a try of a call, whose context is call, that is not announced. The limit is 0 if the deadline of the call comes
// first. Mostly such a try is all that waits for the end of its call, so that one timer and one child of the call's parent will do for
// both. Nobody may pause the limit of the try alone. With atOnce, the call has just begun, with [Call.BeginAt].
func (c *Context) StartTry(call context.Context, limit time.Duration, atOnce bool) {
	w, ok := call.(*Context)
	if !ok || limit <= 0 || !w.ofCall || !w.limited || !c.follow(w, limit, atOnce) {
		c.Start(call, PerTry, Within(call, limit), false)
	}
}

// follow makes c the try that follows the call w. It reports false if there is one, if somebody waits for the end of w already, or if that
// comes first.
func (c *Context) follow(w *Context, limit time.Duration, atOnce bool) bool {
	left := w.left
	if !atOnce { // otherwise nobody else has w yet, and the clock is not read, which costs as much as the rest
		w.mu.Lock()
		defer w.mu.Unlock()
		left = time.Until(w.at)
	}
	if w.state.Load() != running || w.try != nil || limit >= left {
		return false
	}
	c.start(w, PerTry, limit, false, w.at.Add(limit-left))
	c.of, w.try = w, c
	return true
}

// Follows reports whether c is the context of a try that its call will cancel, so that nobody else has to.
func (c *Context) Follows() bool { return c.of != nil }

// partLocked is called before the limit of a call changes. From then on the call watches its own end.
func (c *Context) partLocked() {
	if c.try != nil {
		c.beginLocked()
		c.try.apart = true
	}
}
