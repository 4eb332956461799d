package engine

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/policy/limit"
)

// Sender makes one try of a call in a protocol that net/http does not speak. Like an http.RoundTripper it does not change
// the request and closes its body; it is told by try where the request goes.
//
// What it returns is judged as an HTTP response is: by its status and, if its Content-Type is application/grpc, by the
// grpc-status of its header or, at its end, of its Trailer. The try ends with the response's body. An error of connecting
// is a *net.OpError with Op "dial", so that retries and outlier detection know it.
type Sender func(req *http.Request, try *Try) (*http.Response, error)

// Through returns a RoundTripper that takes requests through the mesh, stage by stage as [Mesh.Transport] does, and makes
// each try with send. It is how other protocols than HTTP (meshgrpc) share the routes, retries, circuits, endpoints and
// limits of the mesh. The request describes the call: its URL (of scheme http), header and context decide as they do for
// HTTP. Calls are taken to share connections, as those of HTTP/2 do. A host outside the mesh is refused with [ErrNotInMesh].
//
// Copies for mirrors are sent with send too, with the values of the request's context. A request without a body may have
// GetBody: what it returns, before the first try, is the body of a copy.
func (e *Engine) Through(send Sender) http.RoundTripper {
	return &through{e, send}
}

type through struct {
	engine *Engine
	send   Sender
}

// senderKey finds the Sender of a mirrored copy.
type senderKey struct{}

func (t *through) RoundTrip(req *http.Request) (*http.Response, error) {
	c := &call{engine: t.engine, req: req, start: time.Now(), sender: t.send}
	return c.run((*call).serveThrough)
}

// serveThrough is serve for a request that a Sender sends.
func (c *call) serveThrough(ctx context.Context) (*http.Response, error) {
	resp, err := c.route()
	if resp == nil && err == nil && c.cluster == nil {
		err = c.refuse(LayerRoute, FlagNoRoute, ErrNotInMesh)
	}
	if resp != nil || err != nil {
		body.CloseRequest(c.req)
		return resp, err
	}
	if shared := &c.cluster.conns.multiplexed; !shared.Load() {
		shared.Store(true)
	}
	return c.send(ctx)
}

// mirrored returns the request with what its mirrored copies need.
func (c *call) mirrored(req *http.Request) *http.Request {
	if c.sender == nil {
		return req
	}
	req = req.WithContext(context.WithValue(req.Context(), senderKey{}, c.sender))
	if req.Body == nil && req.GetBody != nil {
		req.Body = io.NopCloser(strings.NewReader("")) // not http.NoBody, for which nobody would ask GetBody
	}
	return req
}

// Try is one try of a call on its way through a [Sender]. It is valid until the response's body has ended.
type Try attempted

// Number counts the tries of a call from 1.
func (t *Try) Number() int {
	return t.call.tries
}

// Link returns the connections the try is to use.
func (t *Try) Link() *Link {
	return t.link
}

// Mirror reports whether the try sends the copy of a request, whose response nobody waits for.
func (t *Try) Mirror() bool {
	return t.call.copied
}

// ReadsHeader reports whether the mesh reads or changes the header of the response.
func (t *Try) ReadsHeader() bool {
	c := t.call
	return c.setCookie != "" || c.backend != nil && c.backend.Response != nil ||
		c.entry != nil && len(c.host.policy(c.entry).Config().RetriableHeaders) > 0
}

// Again chooses another endpoint for the same try, if there is another, and returns its link. It is for a protocol library
// that begins anew on its own where it knows that nothing was sent. failed says that the endpoint could not be connected to.
func (t *Try) Again(req *http.Request, failed bool) (*Link, error) {
	a := (*attempted)(t)
	result := breaker.NoResult
	if failed {
		result = breaker.ConnectFailure
	}
	a.leave(result, failed)
	a.host, a.link = nil, nil
	if err := a.pick(req); err != nil {
		return nil, err
	}
	if a.observer != nil {
		a.observer.Moved(a.host.ID())
	}
	return a.link, nil
}

// Dial makes a connection, under the limits of the destination: connectTimeout, tcpKeepalive, maxConnections. It has no TLS.
// The error of a connection that failed is a *net.OpError with Op "dial"; [limit.ErrOverflow] says that there was no room.
func (l *Link) Dial(ctx context.Context) (net.Conn, error) {
	conns, err := l.open()
	if err != nil {
		return nil, err
	}
	return conns.Dial(ctx)
}

// Limits returns the limits of the destination's connections.
func (l *Link) Limits() limit.PoolConfig {
	return l.lane.owner.pool.Config()
}
