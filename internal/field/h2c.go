package field

import (
	"maps"
	"net/http"
	"strings"
)

// An HTTP/1 client can go on with HTTP/2 on the same connection, if a handler or a server behind it plays along: with an upgrade to h2c (RFC
// 7540, section 3.2), or by beginning with HTTP/2 itself (RFC 9113, section 3.4). Nobody in front sees the requests that follow.

// BeginsHTTP2 reports whether r is not a request, but the beginning of HTTP/2 on a connection that is served as HTTP/1.
func BeginsHTTP2(r *http.Request) bool {
	return r.Method == "PRI" && r.RequestURI == "*" && r.ProtoMajor == 2
}

// AsksForHTTP2 reports whether the header of a request asks for an upgrade to HTTP/2.
func AsksForHTTP2(h http.Header) bool {
	for _, value := range h["Upgrade"] {
		for protocol := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.Trim(protocol, " \t"), "h2c") {
				return true
			}
		}
	}
	return false
}

// WithoutUpgrade returns a copy of a header that does not ask for an upgrade, to any protocol.
func WithoutUpgrade(h http.Header) http.Header {
	copied := maps.Clone(h)
	delete(copied, "Upgrade")
	delete(copied, "Http2-Settings")
	options, changed := ConnectionOptions(h["Connection"], func(name string) bool { return name == "Upgrade" || name == "Http2-Settings" })
	switch {
	case !changed:
	case len(options) == 0:
		delete(copied, "Connection")
	default:
		copied["Connection"] = options
	}
	return copied
}
