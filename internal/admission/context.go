package admission

import (
	"context"
	"errors"
	"sync/atomic"
)

// Context is the context of a request. It knows the peer and can be ended. Until something waits for its end, it costs no more than
// context.WithValue.
type Context struct {
	context.Context // of the request as it arrived
	Peer            string
	User            any                     // what the token of the request says, nil without one
	endable         atomic.Pointer[endable] // nil until it is needed
}

// endable is a cancelable child of the context of a request.
type endable struct {
	context.Context
	cancel context.CancelCauseFunc
}

// PeerKey is the key of the *Context in the context of a request.
type PeerKey struct{}

// UserKey is the key of its User.
type UserKey struct{}

// child returns the cancelable child, which it creates if needed.
func (c *Context) child() *endable {
	if e := c.endable.Load(); e != nil {
		return e
	}
	e := new(endable)
	e.Context, e.cancel = context.WithCancelCause(c.Context)
	if !c.endable.CompareAndSwap(nil, e) {
		e.cancel(nil)
		return c.endable.Load()
	}
	return e
}

// Withdrawn reports whether the context was ended by a *Withdrawn.
func (c *Context) Withdrawn() bool {
	e := c.endable.Load()
	return e != nil && e.withdrawn()
}

func (e *endable) withdrawn() bool {
	if e.Err() == nil {
		return false
	}
	_, ended := errors.AsType[*Withdrawn](context.Cause(e))
	return ended
}

// End ends the context.
func (c *Context) End(cause error) { c.child().cancel(cause) }

// Release frees what waits for the end of the context.
func (c *Context) Release() {
	if e := c.endable.Load(); e != nil {
		e.cancel(nil)
	}
}

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} { return c.child().Done() }

// Err implements context.Context.
func (c *Context) Err() error {
	if e := c.endable.Load(); e != nil {
		return e.Err()
	}
	return c.Context.Err()
}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	switch key {
	case PeerKey{}:
		return c
	case RequestKey{}:
		return true
	case UserKey{}:
		if c.User != nil {
			return c.User
		}
	}
	if e := c.endable.Load(); e != nil {
		return e.Value(key) // package context asks it for the cause
	}
	return c.Context.Value(key)
}
