package limit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/failure"
)

// mostRepeats is how often a call is sent again because of its connection, as in net/http.
const mostRepeats = 6

// roundTrip sends a call.
func (h *clientConns) roundTrip(req *http.Request) (*http.Response, error) {
	for repeats := 0; ; repeats++ {
		if ctx := req.Context(); ctx.Err() != nil {
			body.CloseRequest(req)
			return nil, context.Cause(ctx)
		}
		g, err := h.get(req)
		if err != nil {
			body.CloseRequest(req)
			return nil, err
		}
		out, b := req, (*held)(nil)
		if !g.sendsFile(req) {
			out, b = hold(req)
		}
		if g.last && g.protocol == overHTTP1 {
			out = lastCall(out)
		}
		resp, err := g.RoundTrip(out)
		if err == nil {
			b.release(nil)
			if g.protocol == overHTTP2 && !g.told.Load() {
				g.tell() // the settings come before any response
			}
			if g.state != nil {
				resp.TLS = g.state
			}
			g.lend(resp)
			return resp, nil
		}
		again := g.repeatable(req, err, repeats)
		g.back()
		if !again {
			b.release(err)
			body.CloseRequest(out)
			return nil, unwrapped(err)
		}
		next, lost := b.again(req)
		if lost == errNotAgain {
			return nil, err
		}
		if lost != nil {
			return nil, lost
		}
		req = next
	}
}

// sendsFile reports whether the socket may send the body, if net/http can see that it is a file. Without GetBody, a call over HTTP/1 is not sent again.
func (g grant) sendsFile(req *http.Request) bool {
	_, file := req.Body.(*os.File)
	return file && g.protocol == overHTTP1 && req.GetBody == nil
}

// lastCall returns the request to send if its HTTP/1 connection shall be closed after it.
func lastCall(req *http.Request) *http.Request {
	if req.Close || len(req.Header["Upgrade"]) > 0 {
		// If the peer accepts the upgrade, the connection serves no other call anyway. If not, we close it, or the next call is the last one
		// because of its age.
		return req
	}
	last := *req
	last.Close = true
	return &last
}

// repeatable reports whether a call can be sent again that failed with err. Over HTTP/2 it may wait before.
func (g grant) repeatable(req *http.Request, err error, repeats int) bool {
	switch {
	case g.protocol == overHTTP1:
		return g.reused && unanswered(req, err)
	case repeats == mostRepeats:
		return false
	case err.Error() == failure.NotUsable:
		return true
	}
	return unprocessed(err) && pause(req, repeats)
}

// unprocessed reports whether an HTTP/2 peer says that it has not processed a call.
func unprocessed(err error) bool {
	if err.Error() == failure.GotGoAway {
		return true
	}
	// PROTOCOL_ERROR is what some peers say to a stream that exceeds a limit of which they have not told yet (golang/go#47635).
	const protocolError, fromPeer = 0x1, "received from peer"
	var stream failure.StreamError
	return errors.As(err, &stream) &&
		(stream.Code == failure.CodeRefused || stream.Code == protocolError && stream.Cause != nil && stream.Cause.Error() == fromPeer)
}

// pause waits before a call is sent to a peer again that refuses it, except for the first time. It reports false if the call has ended.
func pause(req *http.Request, repeats int) bool {
	if repeats == 0 {
		return true
	}
	ctx := caller.Wait(req.Context(), req)
	defer caller.Stop(ctx, req)
	d := time.Second << (repeats - 1)
	timer := time.NewTimer(d + rand.N(d/10))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// The types and the text of those errors of HTTP/1 in net/http, which it does not export, that say how far a call has got.
const (
	nothingWritten = "http.nothingWrittenError"
	notRead        = "http.transportReadFromServerError"
	closedIdle     = "http: server closed idle connection"
)

// unanswered reports whether a call can be sent again that failed with err over an HTTP/1 connection that had served others: the peer may have
// closed it just then (RFC 9110, section 9.2.2). It is what net/http does.
func unanswered(req *http.Request, err error) bool {
	again := req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	switch kind := fmt.Sprintf("%T", err); {
	case !again:
		return false
	case kind == nothingWritten:
		return true
	case kind != notRead && err.Error() != closedIdle:
		return false
	}
	switch cmp.Or(req.Method, http.MethodGet) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil
}

// unwrapped returns an error as http.Transport does.
func unwrapped(err error) error {
	for _, wrapper := range []string{nothingWritten, notRead} {
		if fmt.Sprintf("%T", err) == wrapper {
			err = errors.Unwrap(err)
		}
	}
	if strings.HasPrefix(err.Error(), "http: invalid ") { // field or method
		err = fmt.Errorf("net/%w", err)
	}
	return err
}
