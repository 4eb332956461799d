// Package base holds what every http.RoundTripper of this module does with the one beneath it.
package base

import "net/http"

// Or returns rt, and http.DefaultTransport if rt is nil.
func Or(rt http.RoundTripper) http.RoundTripper {
	if rt == nil {
		return http.DefaultTransport
	}
	return rt
}

// CloseIdle closes the idle connections of Or(rt), if it can.
func CloseIdle(rt http.RoundTripper) {
	if closer, ok := Or(rt).(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}
