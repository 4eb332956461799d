// Package attempt carries the number of a try in contexts: to the server, so that a retry is not itself retried, and back to the caller,
// through all wrappers. In the same way it carries where a try was sent, so that the next one is sent elsewhere.
package attempt

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
)

// Header tells a server which try of a call a request is, counted from 1.
const Header = "X-Envoy-Attempt-Count"

type (
	currentKey struct{}
	totalKey   struct{}
)

// Mark returns a context for the n-th try of a call.
func Mark(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, currentKey{}, n)
}

// IsRetry reports whether req is already a retry: its header says so, or it is made within one.
func IsRetry(req *http.Request) bool {
	if v := req.Header[Header]; len(v) > 0 {
		if n, err := strconv.Atoi(v[0]); err == nil && n > 1 {
			return true
		}
	}
	return Within(req.Context())
}

// Within reports whether a call made with ctx is made within a retry.
func Within(ctx context.Context) bool {
	return ctx.Value(currentKey{}) != nil
}

// outcome is what a response says about the call that led to it. The response's request is of: the caller may use the context of that for
// another request.
type outcome struct {
	n        int    // tries; 0 if none of the layers counts them
	endpoint string // see SentTo
	of       *http.Request
}

// outcomeOf returns the outcome that resp says, or nil.
func outcomeOf(resp *http.Response) *outcome {
	if resp == nil || resp.Request == nil {
		return nil
	}
	if o, ok := resp.Request.Context().Value(totalKey{}).(*outcome); ok && o.of == resp.Request {
		return o
	}
	return nil
}

// Total returns the number of tries that led to resp.
func Total(resp *http.Response) int {
	if o := outcomeOf(resp); o != nil && o.n > 1 {
		return o.n
	}
	return 1
}

// Restore sets resp.Request to req, the caller's request, after a try with a copy of it. It keeps the number of tries: n, or if n is 1 the
// number that the layers below have counted.
func Restore(resp *http.Response, req *http.Request, n int) {
	if n > 1 || resp.Request != req {
		restore(resp, req, outcome{n: n})
	}
}

// restore sets resp.Request to req, and says what o and the layers below say.
func restore(resp *http.Response, req *http.Request, o outcome) {
	if below := outcomeOf(resp); below != nil {
		if o.n <= 1 {
			o.n = below.n
		}
		o.endpoint = cmp.Or(o.endpoint, below.endpoint)
	}
	if o.n > 1 || o.endpoint != "" {
		next := new(outcome) // o itself would be on the heap in any case
		*next = o
		req = req.WithContext(context.WithValue(req.Context(), totalKey{}, next))
		next.of = req
	}
	resp.Request = req
}
