// Package incoming is for handlers that pass a copy of a request on: net/http knows only the request that arrived, and the handler behind
// sees only the copy.
package incoming

import "net/http"

// Return is called when the handler of seen, a copy of the request that arrived, has returned. net/http removes the temporary files of a form
// that was parsed only if it finds them in the latter. Middleware looks there for the pattern that http.ServeMux has found.
func Return(arrived, seen *http.Request) {
	if seen.MultipartForm != nil {
		arrived.MultipartForm = seen.MultipartForm
	}
	if seen.Pattern != "" {
		arrived.Pattern = seen.Pattern
	}
}
