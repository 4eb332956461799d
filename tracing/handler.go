package tracing

import (
	"context"
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/incoming"
	"github.com/nosidecar/mesh/internal/response"
	"github.com/nosidecar/mesh/tracing/internal/spans"
)

// Handler is an http.Handler that starts a SERVER span for each request, as a child of the span in its headers. The context of
// the request that Next gets has what must be propagated to calls made on its behalf: the trace, x-request-id, baggage and the
// headers of [Config.Forward].
//
// It must be outside of any other handler that traces. If the context already has a local span, as inside otelhttp, it starts
// none. The span has the pattern of http.ServeMux in its name, if Next is one, and ends when Next returns. gRPC calls, such as those
// to grpc.Server.ServeHTTP, have spans like those of package tracinggrpc.
//
// A Handler is safe for concurrent use; its fields must not be changed after the first request, and it must not be copied.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler

	// Config says which spans are created and what is propagated. If it is invalid, every request is answered with 500.
	Config Config

	// Untrusted, if set, reports whether a request comes from outside. Its trace headers, baggage and x-request-id are then not
	// trusted, and are removed before Next sees the request. nil trusts all requests.
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
		Request: r, RPC: field.CallsGRPC(r), Restart: untrusted, NewID: untrusted,
	})
	if h.Config.EchoRequestID {
		spans.EchoRequestID(ctx, w.Header())
	}
	arrived := r
	r = r.WithContext(ctx)
	defer incoming.Return(arrived, r)
	if untrusted {
		r.Header = h.tracer.Strip(arrived.Header)
	}
	if incoming.MayHaveTrailers(r) {
		incoming.CleanTrailers(arrived, r, nil, nil)
	}
	var answer response.Recorder
	returned := false
	defer func() {
		gone := ctx.Err() == context.Canceled // then a proxy panics, too
		end := spans.Response{Status: answer.Status, Broken: !returned && !gone, Gone: gone, Route: r.Pattern}
		if returned {
			end.Status = answer.Code()
		}
		if field.CallsGRPC(r) {
			end.Answer(failure.GRPCAnswer(end.Status, w.Header()), false)
		}
		spans.EndInbound(ctx, &end)
	}()
	h.Next.ServeHTTP(answer.Watch(w), r)
	returned = true
}
