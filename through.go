package mesh

import (
	"context"
	"net/http"
	"time"

	"github.com/nosidecar/mesh/breaker"
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
// HTTP. Copies for mirrors are sent with send too, with the values of the request's context.
func (m *Mesh) Through(send Sender) http.RoundTripper {
	return &through{m, send}
}

type through struct {
	mesh *Mesh
	send Sender
}

// senderKey finds the Sender of a mirrored copy.
type senderKey struct{}

func (t *through) RoundTrip(req *http.Request) (*http.Response, error) {
	c := &call{mesh: t.mesh, req: req, start: time.Now(), sender: t.send}
	return c.run((*call).serve)
}

// mirrored returns the request with what its mirrored copies need.
func (c *call) mirrored(req *http.Request) *http.Request {
	if c.sender == nil {
		return req
	}
	return req.WithContext(context.WithValue(req.Context(), senderKey{}, c.sender))
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
	return a.link, nil
}
