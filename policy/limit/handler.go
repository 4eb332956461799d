package limit

import (
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/reply"
)

// Handler is an http.Handler that bounds the load of a server: the number of requests in flight, and the rate at which requests
// begin. Requests beyond the first limit get a 503 response with x-envoy-overloaded, which clients of this library do not retry.
// Requests beyond the second limit get a 429 response. It must not be copied or changed after its first use.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler

	// MaxRequests is the maximum number of requests in flight. 0 means no limit.
	MaxRequests int

	// Rate bounds the rate at which requests begin. The zero value means no limit.
	Rate RateConfig

	once  sync.Once
	pool  *Pool
	rate  *Rate
	fault error // what is wrong with the settings
}

// ServeHTTP implements http.Handler. If the settings are invalid, every request gets a 500 response.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.once.Do(h.start)
	if h.fault != nil {
		http.Error(w, h.fault.Error(), http.StatusInternalServerError)
		return
	}
	slot, err := h.pool.Acquire(r.Context(), true)
	if err != nil {
		reply.Write(w, reply.Overflow(r))
		return
	}
	defer slot.Release()
	if !h.rate.Allow() {
		reply.Write(w, reply.RateLimited(r))
		return
	}
	h.Next.ServeHTTP(w, r)
}

func (h *Handler) start() {
	if h.pool, h.fault = NewPool(PoolConfig{MaxRequests: h.MaxRequests}); h.fault == nil {
		h.rate, h.fault = NewRate(h.Rate)
	}
}
