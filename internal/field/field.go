// Package field says what stands in an HTTP field: what may, in its name and its value, and what a Content-Type means.
package field

import (
	"net/http"
	"strings"
)

// IsToken reports whether s is a token, which names headers, methods and cookies (RFC 9110, section 5.6.2).
func IsToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// IsValue reports whether s can be sent as the value of a header: it has no control characters but tabs.
func IsValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// IsPrintable reports whether s is printable ASCII, as all metadata of gRPC has to be: a call with other values fails.
func IsPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// IsGRPC reports whether the Content-Type in a header is that of gRPC, as gRPC's own libraries see it: "application/grpc", alone or with
// a suffix such as "+proto" or with parameters. That of gRPC-Web is another.
func IsGRPC(header http.Header) bool {
	values := header["Content-Type"] // Get would make the name canonical first
	if len(values) == 0 {
		return false
	}
	rest, ok := strings.CutPrefix(values[0], "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// CallsGRPC reports whether a request is a call of gRPC, which is always a POST.
func CallsGRPC(r *http.Request) bool { return r.Method == http.MethodPost && IsGRPC(r.Header) }

// First returns the first value of a header, by its key in an http.Header. It returns "" if there is none.
func First(header http.Header, key string) string {
	if values := header[key]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// Key returns a name as a key of an http.Header, as http.CanonicalHeaderKey does. Those that telemetry sets with every call are known.
func Key(name string) string {
	switch name {
	case "Traceparent", "X-Request-Id", "X-B3-Traceid", "X-B3-Spanid", "X-B3-Sampled", "X-Envoy-Peer-Metadata", "X-Envoy-Peer-Metadata-Id":
		return name
	}
	return http.CanonicalHeaderKey(name)
}

// CarriesTrace reports whether name, a key of an http.Header, is a header that carries a trace, or the id of a request.
func CarriesTrace(name string) bool {
	switch name {
	case "Traceparent", "Tracestate", "Baggage", "B3", "X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Flags", "X-Request-Id":
		return true
	}
	return false
}
