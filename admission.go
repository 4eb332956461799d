package mesh

import (
	"context"
	"net/http"
	"slices"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/judge"
)

// This file has the inbound side for protocols other than HTTP.

// Admit implements admission.Gate.
func (h *handler) Admit(a admission.Adapter, r *http.Request) (context.Context, admission.Call) {
	m := h.mesh
	in := m.server.arrive(r)
	in.context, in.writer, in.adapter = r.Context(), a, a
	if facts, known := in.context.Value(admission.FactsKey{}).(*admission.Facts); known {
		in.origin, _ = facts.Origin.(*origin)
		in.known = facts.Plain
	}
	if m.server.observed {
		in.Decision.Rule = -1
		h.identify(r, in)
		if in.spare == nil {
			in.spare = make(http.Header)
		}
		in.ResponseHeader = in.spare
		in.context = m.observers.InboundStart(in.context, &in.Inbound)
		in.writer = in.answer.Watch(a)
	}
	if ctx := h.proceed(in); ctx != nil {
		return ctx, in
	}
	return nil, nil
}

// Resume implements admission.Call.
func (in *inbound) Resume(ctx context.Context) context.Context {
	<-in.pending
	in.context, in.pending = ctx, nil
	h := handler{mesh: in.mesh}
	return h.proceed(in)
}

// proceed takes a request of another protocol up to its handler. It returns nil if the request was answered, and is over.
func (h *handler) proceed(in *inbound) context.Context {
	a, r := in.adapter, in.Request
	over := true
	defer func() {
		if over {
			in.Done(in.answer.Status, failure.GRPCAnswer(in.answer.Status, a.Header()))
		}
	}()
	h.identify(r, in)
	if !h.admit(in.writer, r, in) || !h.limit(in.writer, r, in) {
		if over = in.pending == nil; over {
			return nil
		}
		return in.context
	}
	ctx := in.context
	if in.token.Claims != nil {
		ctx = context.WithValue(ctx, admission.UserKey{}, in.token.Claims)
	}
	if in.Peer != "" && !in.known {
		if in.limit = deadline.Told(ctx, r.Header); in.limit != nil {
			ctx = in.limit
		}
	}
	in.edit(a, r.Header)
	over = false
	return ctx
}

// Observed implements admission.Gate.
func (h *handler) Observed() bool { return h.mesh.server.observed }

// edit tells the adapter how the header for the handler differs from the header that arrived.
func (in *inbound) edit(a admission.Adapter, arrived http.Header) {
	header := in.view.Header
	if in.edited {
		for name := range arrived {
			if header[name] == nil {
				a.Edit(name, nil)
			}
		}
		for name, values := range header {
			if !slices.Equal(values, arrived[name]) {
				a.Edit(name, values)
			}
		}
	}
	in.plain = in.known && !in.edited && in.id != ""
	in.sanitize(header, a.Edit)
	if id := in.requestID(in.context, header); id != nil {
		a.Edit(asserted.RequestID, id)
	}
}

// PeerID implements admission.Call.
func (in *inbound) PeerID() string { return in.Peer }

// Held implements admission.Call.
func (in *inbound) Held() bool {
	s := &in.mesh.server
	return s.observed || s.MaxRequests > 0 || in.pending != nil || in.limit != nil // a limit has a timer
}

// Pending implements admission.Call.
func (in *inbound) Pending() bool { return in.pending != nil }

// Enter implements admission.Call.
func (in *inbound) Enter(c *admission.Context) bool {
	if in.token.Claims != nil {
		c.User = in.token.Claims
	}
	in.ctx = c
	return in.begin(in.writer)
}

// Observed implements admission.Call.
func (in *inbound) Observed() bool { return in.mesh.server.observed }

// Message implements admission.Call.
func (in *inbound) Message(sent bool, size int) {
	if sent {
		in.sent.Add(int64(size))
	} else {
		in.received.Add(int64(size))
	}
	in.mesh.observers.InboundMessage(in.context, &in.Inbound, sent)
}

// Header implements admission.Call.
func (in *inbound) Header() http.Header { return in.ResponseHeader }

// Load implements admission.Call.
func (in *inbound) Load() string {
	if report := in.mesh.server.loads.reportTo(in.Peer); report != nil {
		return report.message
	}
	return ""
}

// Answered implements admission.Call.
func (in *inbound) Answered(grpcStatus int) { in.answered.Store(int32(grpcStatus) + 1) }

// ended corrects how a gRPC call has ended. answered is the status with which it was answered before its handler returned, or -1.
func (in *inbound) ended(answered int) {
	switch {
	case !in.Decision.Allowed: // the mesh has ended it
		return
	case answered >= 0: // which ends the context, too
		in.Status, in.GRPCStatus = http.StatusOK, answered
		return
	case in.context.Err() == context.Canceled:
		in.Status, in.GRPCStatus, in.Flags = 0, -1, in.Flags|FlagCallerGone // the caller did not get the status
	case in.GRPCStatus < 0 && in.begun: // a panic
		in.Flags |= FlagRemoteReset
	}
	if in.GRPCStatus < 0 && in.BytesSent > 0 {
		in.Status = http.StatusOK // the answer had begun
	}
}

// Done implements admission.Call.
func (in *inbound) Done(status, grpcStatus int) {
	if in.pending != nil { // it was never resumed
		<-in.pending
		in.Decision = judge.Denied("the call ended before the decision, while it waited for the keys of its token or for its message")
	}
	in.release()
	if in.mesh.server.observed {
		in.Status, in.GRPCStatus = status, grpcStatus
		in.BytesSent, in.BytesReceived = in.sent.Load(), in.received.Load()
		in.ended(int(in.answered.Load()) - 1)
		in.observeEnd(in.context)
	}
	in.count(grpcStatus < 0 || failure.GRPCStatus(uint32(grpcStatus)) >= http.StatusInternalServerError)
	in.recycle()
}
