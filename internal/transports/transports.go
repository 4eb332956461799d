// Package transports has what the layers do with RoundTrippers and Transports of net/http: the default one, clones, and how they dial.
package transports

import "net/http"

// Or returns rt, or http.DefaultTransport if rt is nil.
func Or(rt http.RoundTripper) http.RoundTripper {
	if rt == nil {
		return http.DefaultTransport
	}
	return rt
}

// CloseIdle closes the idle connections of Or(rt), if it has a method for that.
func CloseIdle(rt http.RoundTripper) {
	if closer, ok := Or(rt).(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}
