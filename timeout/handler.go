package timeout

import (
	"net/http"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
)

// Handler is an http.Handler that gives a handler's context the deadline its caller tells with [Header], so that nothing is
// done for an answer that is not waited for. As with the caller, the time from the first byte of the request body that is read
// to the last does not count. A request without the header, or with one that is not a positive number, passes as it is.
//
// A caller can only shorten its own call. Still, a server that is reached from outside should remove the header there:
// the callers of a proxy in between may not know of it.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler
}

// ServeHTTP implements http.Handler. When the time is up, the cause of the context is an error that [Exceeded] knows, of
// [Request].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if ctx, cancel := deadline.Told(r.Context(), r.Header); cancel != nil {
		defer cancel()
		r = r.WithContext(ctx)
		if caller.ToWatch(r) {
			caller.Watch(r, deadline.ClockOf(ctx))
		}
	}
	h.Next.ServeHTTP(w, r)
}
