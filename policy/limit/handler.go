package limit

import (
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/reply"
)

// Handler is an http.Handler that bounds the load of a server: how many requests it handles at once, and how many begin each
// second. It answers requests beyond the first limit with 503 and x-envoy-overloaded, which clients of this library do not
// retry, and beyond the second with 429. It must not be copied or changed after its first use.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler

	// MaxRequests is how many requests may be in Next at once. 0 means no limit.
	MaxRequests int

	// Rate bounds the requests that begin. The zero value does not.
	Rate RateConfig

	once  sync.Once
	pool  *Pool
	rate  *Rate
	fault error // what is wrong with the settings
}

// ServeHTTP implements http.Handler. With settings that are out of range every request is answered with 500.
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
