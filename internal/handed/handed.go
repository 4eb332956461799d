// Package handed gives back to net/http what a handler did to its copy of a request.
package handed

import "net/http"

// Return is called when the handler of seen, a copy of the request that arrived, has returned. net/http knows only the latter: it removes
// the temporary files of a form that was parsed only if it finds them there.
func Return(arrived, seen *http.Request) {
	if seen.MultipartForm != nil {
		arrived.MultipartForm = seen.MultipartForm
	}
}
