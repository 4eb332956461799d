package breaker

import (
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/response"
)

// Handler is an http.Handler that refuses requests for a while when they keep failing: a server whose database is down should
// refuse at once rather than keep all callers waiting. Refused requests get 503 and x-envoy-overloaded, which clients of this
// library do not retry.
//
// A request counts as failed if its status is 500 or above, or if the handler panics. A request whose client has gone away does
// not count. A Handler must not be copied or changed after its first use.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler

	// Config is the configuration of the circuit. If it is invalid, every request is answered with 500.
	Config Config

	// OnChange, if not nil, is called for every change of state, as described at [New].
	OnChange func(Change)

	once    sync.Once
	circuit *Circuit
	fault   error // what is wrong with Config
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.once.Do(h.start)
	if h.fault != nil {
		http.Error(w, h.fault.Error(), http.StatusInternalServerError)
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
	h.once.Do(h.start)
	if h.fault != nil {
		return Closed
	}
	return h.circuit.State()
}

func (h *Handler) start() {
	h.circuit, h.fault = New(h.Config, h.OnChange)
}
