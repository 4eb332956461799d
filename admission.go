package mesh

import (
	"context"
	"net/http"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/policy/jwt"
)

// What follows is the inbound side for protocols other than HTTP.

// Admit implements admission.Gate.
func (h *handler) Admit(w http.ResponseWriter, r *http.Request) (*http.Request, admission.Call) {
	m := h.mesh
	in := m.server.arrive(r)
	in.context = r.Context()
	if m.server.observed {
		in.Decision.Rule = -1
		h.identify(r, in)
		if in.spare == nil {
			in.spare = make(http.Header)
		}
		in.ResponseHeader = in.spare
		in.context = m.observers.inboundStart(in.context, &in.Inbound)
		w, r = in.answer.Watch(w), r.WithContext(in.context)
	}
	in.writer = w
	var admitted *http.Request
	defer func() {
		if admitted == nil {
			in.Done(in.answer.Status, failure.GRPCAnswer(in.answer.Status, w.Header()))
		}
	}()
	if admitted = h.enter(w, r, in); admitted == nil {
		return nil, nil
	}
	return admitted, in
}

// Held implements admission.Call.
func (in *inbound) Held() bool {
	s := &in.mesh.server
	return s.observed || s.MaxRequests > 0
}

// Enter implements admission.Call.
func (in *inbound) Enter(ctx context.Context, end admission.Ender) (context.Context, bool) {
	if in.token.Claims != nil {
		ctx = jwt.WithClaims(ctx, in.token.Claims)
	}
	in.ctx, in.ender = &requestContext{Context: ctx, id: in.Peer}, end
	return in.ctx, in.begin(in.writer)
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
	in.mesh.observers.inboundMessage(in.context, &in.Inbound, sent)
}

// Header implements admission.Call.
func (in *inbound) Header() http.Header { return in.ResponseHeader }

// Done implements admission.Call.
func (in *inbound) Done(status, grpcStatus int) {
	in.release()
	if in.mesh.server.observed {
		in.Status, in.GRPCStatus = status, grpcStatus
		if in.Decision.Allowed && in.context.Err() == context.Canceled {
			in.Status, in.GRPCStatus, in.Flags = 0, -1, in.Flags|FlagCallerGone // the caller does not get it
		}
		in.BytesSent, in.BytesReceived = in.sent.Load(), in.received.Load()
		in.mesh.observers.inboundEnd(in.context, &in.Inbound)
	}
	in.recycle()
}
