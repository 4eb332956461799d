package breaker

import (
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/response"
)

// Handler is an http.Handler that stops serving for a while when its requests keep failing: a server whose database is gone
// does better to refuse at once than to keep all callers waiting. Refused requests get 503 and x-envoy-overloaded, which
// clients of this library do not retry.
//
// A call counts as failed when its status is 500 or above or when the handler panics; a call whose client went away
// counts neither way. It must not be copied or changed after its first use.
type Handler struct {
	// Next serves the calls. It must be set.
	Next http.Handler

	// Config is the circuit. If it is invalid, every call is answered with 500.
	Config Config

	// OnChange is called for every change of state; see [New]. nil: changes are not reported.
	OnChange func(Change)

	once    sync.Once
	circuit *Circuit
	invalid error
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.once.Do(func() { h.circuit, h.invalid = New(h.Config, h.OnChange) })
	if h.invalid != nil {
		http.Error(w, h.invalid.Error(), http.StatusInternalServerError)
		return
	}
	lease, err := h.circuit.Allow()
	if err != nil {
		w.Header().Set("X-Envoy-Overloaded", "true")
		http.Error(w, "circuit open", http.StatusServiceUnavailable)
		return
	}
	var answer response.Recorder
	outcome := Failure // if the handler panics or exits
	defer func() { lease.Done(outcome) }()
	h.Next.ServeHTTP(answer.Watch(w), r)
	switch {
	case answer.Code() >= http.StatusInternalServerError:
	case r.Context().Err() != nil:
		outcome = Ignored
	default:
		outcome = Success
	}
}

// State returns the state of the circuit.
func (h *Handler) State() State {
	h.once.Do(func() { h.circuit, h.invalid = New(h.Config, h.OnChange) })
	if h.invalid != nil {
		return Closed
	}
	return h.circuit.State()
}
