package caller

//lint:file-ignore SA1019 Request.Cancel is deprecated, but net/http still honours it

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// ErrCanceled has the text of net/http's error for a request whose Cancel channel is closed.
var ErrCanceled = errors.New("net/http: request canceled")

// Canceled reports whether the Cancel channel of req is closed. The field is deprecated, but net/http still honours it.
func Canceled(req *http.Request) bool {
	select {
	case <-req.Cancel:
		return true
	default:
		return false
	}
}

// Wait returns a context for waits during the call of req. It ends when ctx does or when the Cancel channel of req, if any, is closed.
// When the waits are over, both are given to Stop.
func Wait(ctx context.Context, req *http.Request) context.Context {
	if req.Cancel == nil {
		return ctx
	}
	return &legacy{Context: ctx, req: req}
}

// Stop ends a context that Wait has made for req and releases its resources. It does nothing to the caller's own.
func Stop(wait context.Context, req *http.Request) {
	if c, ok := wait.(*legacy); ok && c.req == req {
		c.stop()
	}
}

// legacy is a context that ends when a Cancel channel is closed. It has no goroutine until Done is called.
type legacy struct {
	context.Context // the parent
	req             *http.Request

	mu     sync.Mutex
	ctx    context.Context // the context whose Done is returned; nil before the first call of Done
	cancel context.CancelCauseFunc
}

// Done implements context.Context.
func (c *legacy) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		ctx, cancel := context.WithCancelCause(c.Context)
		c.ctx, c.cancel = ctx, cancel
		go func() {
			select {
			case <-c.req.Cancel:
				cancel(ErrCanceled)
			case <-ctx.Done():
			}
		}()
	}
	return c.ctx.Done()
}

// Err implements context.Context.
func (c *legacy) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	ended := c.ctx != nil && c.ctx.Err() != nil
	c.mu.Unlock()
	if !ended && !Canceled(c.req) {
		return nil
	}
	// http.Client.Timeout closes the channel when the time is up.
	if at, ok := c.Deadline(); ok && !time.Now().Before(at) {
		return context.DeadlineExceeded
	}
	return context.Canceled
}

func (c *legacy) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancelCause(c.Context)
	}
	c.cancel(nil)
}
