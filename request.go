package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/netconn"
	"github.com/nosidecar/mesh/internal/response"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
)

// inbound is one request. It lives in a pool, since it is too large for the small stacks on which HTTP/2 serves requests.
type inbound struct {
	entry
	mesh  *Mesh
	spare http.Header // for what observers set in the answer of a gRPC call; reused
	passage
}

// passage is the part of the state that is reset for each request.
type passage struct {
	Inbound
	rules  *policy.Inbound // nil until the sender is known
	mode   tlsid.Mode
	before uint64 // changes of documents and bundles before the decision
	peer   tlsid.Peer
	token  jwt.Result           // what the tokens of the request say
	edited bool                 // view.Header is not that of the request as it arrived
	plain  bool                 // all names of view.Header are plain; false if that is not known
	sender sentFrom             // while the tokens are verified
	secure *tls.ConnectionState // of a connection whose TLS a wrapper hides from net/http

	recorder *response.Recorder // of the answer of an HTTP handler; nil unless the request is observed or counted
	begun    bool               // the handler has begun

	// For a request that is not served by an HTTP handler.
	answer         response.Recorder
	writer         http.ResponseWriter
	context        context.Context // of the observers
	adapter        admission.Adapter
	origin         *origin       // of its connection; nil if nothing is kept with that
	known          bool          // as Plain of admission.Facts
	sent, received atomic.Int64  // sizes of messages
	answered       atomic.Int32  // the status of gRPC, plus 1, if it was sent before the handler returned
	pending        chan struct{} // not nil while the decision waits for the keys of a token; closed when that wait is over

	// Held until the handler has returned.
	slot  limit.Slot
	limit *deadline.Context // nil unless the caller announces how long it waits

	// Used to end the request while its handler runs.
	ctx    *admission.Context  // nil if the handler gets the context as it arrived
	reply  http.ResponseWriter // nil if there is no HTTP handler
	handed *http.Request       // the request that the handler gets
	guard  *response.Guard     // of HTTP/1
	room   *response.Guard     // memory for guard; may be nil
	taken  net.Conn            // taken over by the handler; written before guard lets it pass
}

// admitted is what a handler gets that differs from the request as it arrived, in one allocation. The guard of HTTP/1 is in it, too.
type admitted struct {
	ctx     admission.Context
	request http.Request
	cert    [1]string // the value of x-forwarded-client-cert
}

// distinguish returns what differs for the handler of a request, and the context that the handler gets. If the caller
// announces how long it waits, that limit starts, and the context has it. Without a difference, the first result is nil.
func (in *inbound) distinguish(r *http.Request) (a *admitted, ctx context.Context) {
	ctx = r.Context()
	// Without a body, the context of net/http ends with the connection, so none of ours is needed to end the request.
	if in.Peer == "" && r.ContentLength == 0 && in.token.Claims == nil {
		return nil, ctx
	}
	var left time.Duration
	if in.Peer != "" {
		left = deadline.FromHeader(r.Header)
	}
	switch {
	case left > 0:
		limited := new(struct {
			admitted
			guard response.Guard
			limit deadline.Context
		})
		a, in.room, in.limit = &limited.admitted, &limited.guard, &limited.limit
	case r.ProtoMajor < 2:
		guarded := new(struct {
			admitted
			guard response.Guard
		})
		a, in.room = &guarded.admitted, &guarded.guard
	default:
		a = new(admitted)
	}
	in.ctx = &a.ctx
	a.ctx.Context, a.ctx.Peer = ctx, in.Peer
	if in.token.Claims != nil {
		a.ctx.User = in.token.Claims
	}
	if in.limit == nil {
		return a, in.ctx
	}
	in.limit.Start(in.ctx, deadline.Request, deadline.Within(ctx, left), true)
	return a, in.limit
}

// guarded returns the writer that the handler gets in place of w. Over HTTP/1, a guard watches it; HTTP/2 can reset the stream.
func (in *inbound) guarded(w http.ResponseWriter) http.ResponseWriter {
	if _, hijacks := w.(http.Hijacker); !hijacks {
		return w
	}
	if in.guard = in.room; in.guard == nil {
		in.guard = new(response.Guard)
	}
	return in.guard.Watch(w, in)
}

// arrive returns the state of a new request.
func (s *server) arrive(r *http.Request) *inbound {
	in := s.requests.Get().(*inbound)
	in.Request, in.Start, in.GRPCStatus = r, time.Now(), -1
	in.before = s.running.changes.Load()
	return in
}

// recycle returns in to the pool for another request.
func (in *inbound) recycle() {
	if in.guard != nil {
		in.guard.End()
	}
	in.forget()
	clear(in.spare)
	in.passage = passage{}
	in.mesh.server.requests.Put(in)
}

// interrupted notes that the answer of a request has not ended as it should: its caller was gone before the handler returned, or the handler has
// panicked, and net/http cuts the answer off. status is what was sent of it.
func (in *inbound) interrupted(ctx context.Context, status int, panicked bool) {
	switch {
	case !in.Decision.Allowed: // the mesh has ended it
	case ctx.Err() == context.Canceled:
		in.Status, in.Flags = status, in.Flags|FlagCallerGone // the caller does not get what net/http would answer
	case !panicked:
	case in.Request.ProtoMajor < 2: // in the words of the caller's side
		in.Flags |= FlagConnectionTerminated
	default:
		in.Flags |= FlagRemoteReset
	}
}

// release gives back what the request holds.
func (in *inbound) release() {
	in.leave()
	if in.limit != nil {
		in.limit.Cancel()
	}
	in.slot.Release()
}

// unknown returns why nobody can tell who the peer is, if that matters: no policy that denies the peer would match. The cause is this
// process: a wrapper hides the connection, or there is no valid identity, and so are no bundles, to verify what the peer has presented.
func (in *inbound) unknown() error {
	if in.PeerErr == nil || in.PeerErr == errUnknownConnection {
		return in.PeerErr
	}
	_, peers := errors.AsType[*tlsid.PeerError](in.PeerErr)
	if peers || in.mode == tlsid.Strict || !in.rules.Authorizes() {
		return nil
	}
	return in.PeerErr
}

// begin puts an admitted request into the register. It returns false if the request was answered because it is no longer
// allowed.
func (in *inbound) begin(w http.ResponseWriter) bool {
	now, peerErr := in.mesh.server.running.enter(&in.entry, in.before)
	if now.Allowed {
		in.begun = true
		return true
	}
	in.leave()
	in.withdraw(now, peerErr)
	now.Refuse(w, in.Request)
	return false
}

// withdraw records the decision that ended the request.
func (in *inbound) withdraw(now authz.Decision, peerErr error) {
	in.Decision = now
	if peerErr != nil {
		in.PeerErr = peerErr
	}
}

// end ends a request whose handler is running: its context, and its connection or stream.
func (in *inbound) end(now authz.Decision, peerErr error) {
	in.withdraw(now, peerErr)
	cause := &admission.Withdrawn{Reason: now.Reason}
	if in.ctx != nil {
		in.ctx.End(cause)
	}
	if in.adapter != nil {
		in.adapter.End()
	}
	if in.reply == nil {
		return
	}
	if in.guard != nil {
		in.guard.Cut(cause)
	}
	// HTTP/2 resets the stream; HTTP/1 wakes the goroutines that read or write.
	past, control := time.Unix(1, 0), http.NewResponseController(in.reply)
	_ = control.SetReadDeadline(past)
	unknown := control.SetWriteDeadline(past) != nil
	if in.guard != nil || in.Request.ProtoMajor < 2 || unknown {
		if conn := in.mesh.server.connOf(in.Request); conn != nil {
			_ = netconn.Reset(conn)
		}
	}
	if in.taken != nil {
		_ = netconn.Reset(in.taken)
	}
}

// TakeOver implements response.Owner.
func (in *inbound) TakeOver(conn net.Conn) net.Conn {
	in.taken = conn
	return in.mesh.server.running.takeOver(&in.facts, in.before, conn)
}

// PeerID returns the SPIFFE ID of the peer of a request that [Mesh.Handler] let through, such as
// "spiffe://cluster.local/ns/default/sa/web", and "" for a peer without an identity.
func PeerID(ctx context.Context) string {
	if r, ok := ctx.Value(admission.PeerKey{}).(*admission.Context); ok {
		return r.Peer
	}
	return ""
}
