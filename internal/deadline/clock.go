package deadline

import "context"

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
	for limit := c.innermost; limit != nil; limit = ClockOf(limit.parent).innermost {
		limit.Pause()
	}
}

// Resume ends a Pause.
func (c Clock) Resume() {
	for limit := c.innermost; limit != nil; limit = ClockOf(limit.parent).innermost {
		limit.Resume()
	}
}

// Upload is a Clock for the sender of a request, which knows when the peer takes parts of it.
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
		u = UploadOf(u.innermost.parent)
	}
	return u
}

// Sending says, during a Pause, that the transport has a part of the request to send. If there is no Sent, Pause or Resume within five
// minutes, and no part of the response arrives either, the innermost limit ends the call.
func (u Upload) Sending() {
	for limit := u.innermost; limit != nil && !limit.sending(); limit = ClockOf(limit.parent).innermost {
	}
}

// Sent says that the transport has sent that part. The Pause continues.
func (u Upload) Sent() {
	for limit := u.innermost; limit != nil; limit = ClockOf(limit.parent).innermost {
		if limit.phase() == uploading {
			limit.Pause()
		}
	}
}
