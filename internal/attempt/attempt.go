// Package attempt carries the number of a try in contexts: to the server, so that a retry is not itself retried, and back to the caller,
// through all wrappers.
package attempt

import (
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

// total is the number of tries that led to a response, whose request is of. The caller may use the context of that for another request.
type total struct {
	n  int
	of *http.Request
}

// Total returns the number of tries that led to resp.
func Total(resp *http.Response) int {
	if resp.Request == nil {
		return 1
	}
	if t, ok := resp.Request.Context().Value(totalKey{}).(*total); ok && t.of == resp.Request {
		return t.n
	}
	return 1
}

// Restore sets resp.Request to req, the caller's request, after a try with a copy of it. It keeps the number of tries: n, or if n is 1 the
// number that the layers below have counted.
func Restore(resp *http.Response, req *http.Request, n int) {
	if n > 1 || resp.Request != req {
		restore(resp, req, n)
	}
}

func restore(resp *http.Response, req *http.Request, n int) {
	if n <= 1 {
		n = Total(resp)
	}
	if n > 1 {
		t := &total{n: n}
		req = req.WithContext(context.WithValue(req.Context(), totalKey{}, t))
		t.of = req
	}
	resp.Request = req
}
