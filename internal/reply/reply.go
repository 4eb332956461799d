// Package reply makes the responses that do not come from a server: refusals, injected faults, redirects.
package reply

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// New returns a response to req with a status and a text, which may be empty, as its body. The caller may set further headers. New does
// not change req or close its body.
func New(req *http.Request, status int, text []byte) *http.Response {
	resp := &http.Response{
		Status:     strings.TrimSpace(strconv.Itoa(status) + " " + http.StatusText(status)),
		StatusCode: status,
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Header:     make(http.Header),
		Body:       http.NoBody,
		Request:    req,
	}
	if status == http.StatusNoContent || status == http.StatusNotModified {
		return resp // these have no body (RFC 9110, section 6.4.1)
	}
	resp.Header["Content-Length"] = []string{strconv.Itoa(len(text))}
	resp.ContentLength = int64(len(text))
	if len(text) > 0 {
		resp.Header["Content-Type"] = []string{"text/plain"} // as in Envoy
		if req.Method != http.MethodHead {
			resp.Body = io.NopCloser(bytes.NewReader(text))
		}
	}
	return resp
}

// Overflow returns the response to a call that is refused with limit.ErrOverflow: 503 with Envoy's text.
func Overflow(req *http.Request) *http.Response {
	return refuse(req, http.StatusServiceUnavailable, "X-Envoy-Overloaded",
		"upstream connect error or disconnect/reset before headers. reset reason: overflow")
}

// RateLimited returns the response to a call that is refused with limit.ErrRateLimited: 429 with Envoy's text.
func RateLimited(req *http.Request) *http.Response {
	return refuse(req, http.StatusTooManyRequests, "X-Envoy-Ratelimited", "local_rate_limited")
}

func refuse(req *http.Request, status int, reason, text string) *http.Response {
	resp := New(req, status, []byte(text))
	resp.Header[reason] = []string{"true"}
	return resp
}

// Write writes a response that New returned to w.
func Write(w http.ResponseWriter, resp *http.Response) {
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // a client that has gone needs no response
}
