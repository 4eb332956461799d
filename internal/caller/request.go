package caller

import (
	"errors"
	"net/http"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
)

// Check returns the reason why net/http refuses to send req over any protocol to any server, or nil if it can be sent. It sends a URL with
// control characters over HTTP/2, where servers must take the request for malformed (RFC 9113, section 8.2.1). Over HTTP/1 it closes the
// connection, and may return only the error of that.
func Check(req *http.Request) error {
	switch {
	case req.URL == nil:
		return errors.New("request without URL")
	case req.Header == nil:
		return errors.New("request without Header")
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return errors.New("unsupported protocol scheme")
	case req.Method != "" && !field.IsToken(req.Method):
		return errors.New("invalid method")
	case req.URL.Host == "":
		return errors.New("no host in URL")
	case req.ContentLength != 0 && req.Body == nil:
		return errors.New("ContentLength without Body")
	case strings.ContainsFunc(req.URL.RequestURI(), isControl):
		return errors.New("control character in URL")
	}
	for _, fields := range []http.Header{req.Header, req.Trailer} {
		for name, values := range fields {
			if !field.IsToken(name) {
				return errors.New("invalid name of a field")
			}
			for _, v := range values {
				if !field.IsValue(v) {
					return errors.New("invalid value of a field")
				}
			}
		}
	}
	for name := range req.Trailer {
		switch http.CanonicalHeaderKey(name) {
		case "Transfer-Encoding", "Trailer", "Content-Length":
			return errors.New("invalid trailer")
		}
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// refusals are the prefixes of the errors with which net/http refuses to send a request. Only their text distinguishes them from other
// errors. Check cannot predict all of them, since some depend on the protocol, on a proxy or on the server's settings.
var refusals = []string{
	"http2: invalid ", // header, trailer, host or path; Upgrade and other headers of connections among them
	"http2: request header list larger than peer's advertised limit",
	"http2: request body larger than specified content length",
	"http: ContentLength=",
	"http: invalid Host header",
	"net/http: can't write control character in Request.URL",
	"net/http: invalid ", // header, trailer or method, where a layer below has copied the request
	"invalid Trailer key ",
	"http: no Host in request URL",
	"http: nil Request.",
	"unsupported protocol scheme ",
}

// Refused reports whether net/http returned err because it refuses to send the request as it is.
func Refused(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		text := err.Error()
		for _, refusal := range refusals {
			if strings.HasPrefix(text, refusal) {
				return true
			}
		}
	}
	return false
}
