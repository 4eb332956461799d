package timeout

import (
	"net/http"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/incoming"
)

// Handler is an http.Handler that gives the request's context the deadline that the caller sends in [Header], so that no
// work is done for an answer that nobody waits for. As with the caller, the time between reading the first and the last byte
// of the request body does not count. A request without the header, or with one that is not a positive number, passes
// unchanged.
//
// A caller can only shorten its own call. Still, the header should be removed from requests that come from outside: a proxy in
// between may serve callers that did not send it.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler
}

// ServeHTTP implements http.Handler. When the time is up, the cause of the context is an error for which [Exceeded] returns
// [Request].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if ctx := deadline.Told(r.Context(), r.Header); ctx != nil {
		defer ctx.Cancel()
		arrived := r
		r = r.WithContext(ctx)
		defer incoming.Return(arrived, r)
		if incoming.MayHaveTrailers(r) {
			incoming.CleanTrailers(arrived, r, nil, nil)
		}
		if caller.ToWatch(r) {
			caller.Watch(r, deadline.ClockOf(ctx))
		}
	}
	h.Next.ServeHTTP(w, r)
}
