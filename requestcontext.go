package mesh

import (
	"context"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/admission"
)

// PeerID returns the SPIFFE ID of the peer of a request that [Mesh.Handler] let through, such as
// "spiffe://cluster.local/ns/default/sa/web", and "" for a peer without an identity.
func PeerID(ctx context.Context) string {
	if peer, ok := ctx.Value(peerKey{}).(*requestContext); ok {
		return peer.id
	}
	return ""
}

// requestContext is the context of a request. It knows the peer and can be ended. Until something waits for its end, it
// costs no more than context.WithValue.
type requestContext struct {
	context.Context // of the request as it arrived
	id              string
	endable         atomic.Pointer[endable] // nil until it is needed
}

// endable is a cancelable child of the context of a request.
type endable struct {
	context.Context
	cancel context.CancelCauseFunc
}

type peerKey struct{}

// child returns the cancelable child, which it creates if needed.
func (c *requestContext) child() *endable {
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

func (c *requestContext) end(cause error) { c.child().cancel(cause) }

// release frees what waits for the end of the request.
func (c *requestContext) release() {
	if e := c.endable.Load(); e != nil {
		e.cancel(nil)
	}
}

// Done implements context.Context.
func (c *requestContext) Done() <-chan struct{} { return c.child().Done() }

// Err implements context.Context.
func (c *requestContext) Err() error {
	if e := c.endable.Load(); e != nil {
		return e.Err()
	}
	return c.Context.Err()
}

// Value implements context.Context.
func (c *requestContext) Value(key any) any {
	switch key {
	case peerKey{}:
		return c
	case admission.RequestKey{}:
		return true
	}
	if e := c.endable.Load(); e != nil {
		return e.Value(key) // package context asks it for the cause
	}
	return c.Context.Value(key)
}
