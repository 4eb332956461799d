package tracing

import (
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/response"
	"github.com/nosidecar/mesh/internal/spans"
)

// Handler is an http.Handler that begins a SERVER span for each request, as a child of what the headers tell of. The context of
// the request that Next gets carries from there what calls made for it pass on: the trace, x-request-id, baggage and
// [Config.Forward].
//
// It stands outside of everything else that traces. Where the context has a local span already, as inside otelhttp, it makes
// none. The span has the pattern of http.ServeMux in its name, if Next is one, and ends when Next returns. Calls of gRPC, as for
// grpc.Server.ServeHTTP, have the spans of package tracinggrpc.
//
// A Handler is safe for concurrent use; its fields must not be changed after the first request, and it must not be copied.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler

	// Config says what is made and carried. If it is invalid, every request is answered with 500.
	Config Config

	// Untrusted, if set, reports which requests come from outside: their trace headers, their baggage and their x-request-id are
	// not believed, and removed before Next sees them. nil believes all.
	Untrusted func(*http.Request) bool

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.once.Do(func() { h.tracer, h.err = spans.New(spans.Config(h.Config)) })
	if h.err != nil {
		http.Error(w, h.err.Error(), http.StatusInternalServerError)
		return
	}
	untrusted := h.Untrusted != nil && h.Untrusted(r)
	ctx := h.tracer.StartInbound(r.Context(), &spans.Request{
		Request: r, RPC: isGRPC(r.Header), Restart: untrusted, NewID: untrusted,
	})
	if h.Config.EchoRequestID {
		spans.EchoRequestID(ctx, w.Header())
	}
	arrived := r
	r = r.WithContext(ctx)
	if untrusted {
		r.Header = h.tracer.Strip(arrived.Header)
	}
	var answer response.Recorder
	returned := false
	defer func() {
		end := spans.Response{Status: answer.Status, Route: r.Pattern}
		if returned {
			end.Status = answer.Code()
		}
		if end.RPC = isGRPC(r.Header); end.RPC {
			end.Code = spans.Code(failure.GRPCAnswer(end.Status, w.Header()))
		}
		spans.EndInbound(ctx, &end, r.Method)
	}()
	h.Next.ServeHTTP(answer.Watch(w), r)
	returned = true
}
