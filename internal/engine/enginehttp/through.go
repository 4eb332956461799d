package enginehttp

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/policy/route"
)

// Sender makes one attempt of a call in a protocol that net/http does not speak. Like an http.RoundTripper it does not
// change the request and closes its body; it is told by try where the request goes.
//
// What it returns is judged as an HTTP response is: by its status and, if its Content-Type is application/grpc, by the
// grpc-status of its header or, at its end, of its Trailer. The attempt ends with the response's body. An error of
// connecting is a *net.OpError with Op "dial", so that retries and outlier detection know it.
type Sender func(req *http.Request, try *Try) (*http.Response, error)

// Through returns a RoundTripper that takes requests through e, stage by stage as [Transport] does, and makes each attempt
// with send. The request describes the call: its URL (of scheme http), header and context decide as they do for HTTP. Calls
// are taken to share connections, as those of HTTP/2 do. A host outside the mesh is refused.
//
// Copies for mirrors are sent with send too, with the values of the request's context. A request without a body may have
// GetBody: what it returns, before the first attempt, is the body of a copy.
func Through(e *engine.Engine, send Sender) http.RoundTripper {
	return &through{e, send}
}

type through struct {
	engine *engine.Engine
	send   Sender
}

// RoundTrip implements http.RoundTripper.
func (t *through) RoundTrip(req *http.Request) (*http.Response, error) {
	c := &call{req: req, sender: t.send}
	return c.run(t.engine, engine.Routed, route.Target{})
}

// senderKey finds the Sender of a mirrored copy.
type senderKey struct{}

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

// Try is one attempt of a call on its way through a [Sender]. It is valid until the response's body has ended.
type Try try

// Number counts the attempts of a call from 1.
func (t *Try) Number() int {
	return int(t.call.tries)
}

// Mirror reports whether the attempt sends the copy of a request, whose response nobody waits for.
func (t *Try) Mirror() bool {
	return t.call.out == nil
}

// ReadsHeader reports whether the mesh reads or changes the header of the response.
func (t *Try) ReadsHeader() bool {
	return t.call.setCookie != "" || t.call.ReadsHeader()
}

// Again chooses another endpoint for the same attempt: see [engine.Attempt.Again].
func (t *Try) Again(req *http.Request, failed bool) (*engine.Connections, error) {
	if err := t.Attempt.Again(req.Context(), failed); err != nil {
		return nil, err
	}
	return t.Connections(), nil
}
