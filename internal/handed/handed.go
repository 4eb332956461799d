// Package handed gives back to net/http, and to middleware around a handler, what the handler did to its copy of a request.
package handed

import "net/http"

// Return is called when the handler of seen, a copy of the request that arrived, has returned. net/http knows only the latter: it removes
// the temporary files of a form that was parsed only if it finds them there. Middleware looks there for the pattern that http.ServeMux
// has found.
func Return(arrived, seen *http.Request) {
	if seen.MultipartForm != nil {
		arrived.MultipartForm = seen.MultipartForm
	}
	if seen.Pattern != "" {
		arrived.Pattern = seen.Pattern
	}
}
