// Package reply makes the responses that no server sent: refusals, injected faults, redirects.
package reply

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// New returns a response to req with the given status, and a text as its body unless that is empty. The caller may go on
// to set headers. It leaves req and its body alone.
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
		return resp // which have no body (RFC 9110, section 6.4.1)
	}
	resp.Header["Content-Length"] = []string{strconv.Itoa(len(text))}
	resp.ContentLength = int64(len(text))
	if len(text) > 0 {
		resp.Header["Content-Type"] = []string{"text/plain"} // as Envoy answers
		if req.Method != http.MethodHead {
			resp.Body = io.NopCloser(bytes.NewReader(text))
		}
	}
	return resp
}

// Overflow returns the answer to a call that limit.ErrOverflow refuses: 503, as Envoy words it.
func Overflow(req *http.Request) *http.Response {
	return refuse(req, http.StatusServiceUnavailable, "X-Envoy-Overloaded",
		"upstream connect error or disconnect/reset before headers. reset reason: overflow")
}

// RateLimited returns the answer to a call that limit.ErrRateLimited refuses: 429, as Envoy words it.
func RateLimited(req *http.Request) *http.Response {
	return refuse(req, http.StatusTooManyRequests, "X-Envoy-Ratelimited", "local_rate_limited")
}

func refuse(req *http.Request, status int, reason, text string) *http.Response {
	resp := New(req, status, []byte(text))
	resp.Header[reason] = []string{"true"}
	return resp
}

// Write sends a response of New to the client of a server.
func Write(w http.ResponseWriter, resp *http.Response) {
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // an error is the client's loss
}
