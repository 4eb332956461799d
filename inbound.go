package mesh

import (
	"errors"
	"net/http"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/incoming"
	"github.com/nosidecar/mesh/internal/judge"
	"github.com/nosidecar/mesh/internal/reply"
	"github.com/nosidecar/mesh/internal/response"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/tlsid"
)

// Handler returns next behind the inbound side of the mesh. Each request passes these stages, in this order: identification
// of the peer, the PeerAuthentication of the port, the RequestAuthentications, what authorizes requests ([policy.Inbound.Authorize]), the
// CORS policies of VirtualServices and HTTPRoutes, the limits, the deadline that the caller announces, which becomes the deadline of the
// handler's context, and the removal of headers that the peer may not assert.
//
// The peer is identified by its certificate, which is verified again for each request, whichever listener terminated TLS.
// While the process has no valid identity, a peer that presents a certificate is answered with 403 if requests need authorization.
// Serve over a listener of [Mesh.Listen] to have the port's PeerAuthentication enforced for connections too. Without
// [WithIdentity] no peer has an identity.
//
// A denied request is answered with 403 and "RBAC: access denied", one that belongs to no route of a Server of Linkerd with 404, a path that
// cannot be read with 400; only observers are told why. On a STRICT port, a request from a peer whose certificate is not valid, or no longer, gets the 403 too, and its
// connection is closed after that. A plaintext request to such a port is cut off without an answer.
//
// A request in flight is authorized again when documents or bundles change, and when the certificate of its peer expires. If
// it is denied then, it is cut off: its context ends, its handler's reads and writes fail, and the peer sees a reset.
// Connections that handlers take over, as for websockets, are cut off in the same way, even after the handler has returned.
// A complete answer is not affected. (Envoy lets requests in flight go on.) Tokens are verified when the request arrives and
// not again: later decisions use the claims that were verified then.
//
// Handlers see the path as it was sent: behind a router that does not clean paths as http.ServeMux does, set Paths in
// [WithWorkload]. Shutdown of the http.Server drains as usual.
//
// Handlers do not see that a client asks for an upgrade to h2c, and what begins HTTP/2 on a connection of HTTP/1 is refused: nobody
// would decide about the requests that follow. Serve HTTP/2 without TLS with UnencryptedHTTP2 of [http.Protocols].
//
// An [http.MaxBytesHandler] belongs around this handler. Behind it, or as an [http.MaxBytesReader], it refuses the same bodies, but
// net/http closes the connection only if more than 256 KiB are left to read: it knows its own ResponseWriter alone.
//
// A request must pass one Handler only: put it around the whole server. Of a handler that Handler has returned, it returns the same
// one; but further inside, as around one route of a mux, a second one would count the request twice for the limits, and would not
// find the token that the first one has hidden.
func (m *Mesh) Handler(next http.Handler) http.Handler {
	if next == nil {
		panic("mesh: Handler: the handler is nil")
	}
	if h, ok := next.(*handler); ok && h.mesh == m {
		return h
	}
	m.server.handled.Store(true)
	m.warnOpen()
	return &handler{m, next}
}

type handler struct {
	mesh *Mesh
	next http.Handler
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in := h.mesh.server.arrive(r)
	if h.mesh.server.observed {
		h.observed(w, r, in)
	} else {
		h.serve(w, r, in)
	}
	in.recycle() // not after a panic
}

// observed is serve with observers.
func (h *handler) observed(w http.ResponseWriter, r *http.Request, in *inbound) {
	in.Decision.Rule = -1
	h.identify(r, in)
	answer := new(response.Recorder)
	w, in.recorder = answer.Watch(w), answer
	in.ResponseHeader = w.Header()
	r = r.WithContext(h.mesh.observers.InboundStart(r.Context(), &in.Inbound))
	var counted *body.Counter
	if r.ContentLength < 0 && r.Body != nil {
		counted = &body.Counter{ReadCloser: r.Body}
		r.Body = counted
	}
	panicked := true
	defer func() {
		in.Status = answer.Status
		if !panicked && in.Decision.Allowed { // and it was not ended before it answered
			in.Status = answer.Code()
		}
		in.interrupted(r.Context(), answer.Status, panicked)
		if field.IsGRPC(in.Request.Header) {
			in.GRPCStatus = failure.GRPCAnswer(in.Status, w.Header())
		}
		if in.Request.Method != http.MethodHead { // the body of its answer is not sent
			in.BytesSent = answer.Bytes
		}
		if counted != nil {
			in.BytesReceived = counted.Bytes()
		}
		if in.handed != nil {
			in.Pattern = in.handed.Pattern
		}
		in.observeEnd(r.Context())
	}()
	h.serve(w, r, in)
	panicked = false
}

// serve takes a request to its handler, and counts it when the handler has returned.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, in *inbound) {
	loads, gRPC, returned := &h.mesh.server.loads, false, false
	defer func() {
		in.release()
		if in.handed != nil {
			incoming.Return(in.Request, in.handed)
		}
		if loads.on {
			in.count(!returned || in.failed(w.Header(), gRPC))
		}
	}()
	// HTTP/2 has a new goroutine for each request. If the stages called each other, its stack would have to grow, which takes longer than all
	// of them.
	h.identify(r, in)
	if !h.admit(w, r, in) {
		return
	}
	if in.rules.CORS != nil && r.Header["Origin"] != nil {
		var over bool
		if w, over = h.cors(w, r, in); over {
			return
		}
	}
	if !h.limit(w, r, in) {
		return
	}
	r = h.altered(r, in)
	if in.ctx != nil {
		defer in.ctx.Release()
	}
	if loads.on {
		gRPC = r.ProtoMajor > 1 && field.IsGRPC(r.Header)
		if in.recorder == nil {
			in.recorder = new(response.Recorder)
			w = in.recorder.Watch(w)
		}
	}
	in.reply = w
	w = in.guarded(w)
	if !in.begin(w) {
		return
	}
	in.BytesReceived = max(0, r.ContentLength)
	in.handed = r
	if !gRPC {
		loads.tell(w.Header(), in.Peer)
	}
	h.next.ServeHTTP(w, r)
	returned = true
	if in.recorder != nil {
		in.recorder.End()
	}
	if gRPC {
		loads.tellAtEnd(w.Header(), in.Peer)
	}
}

// altered returns the request that the handler gets. It is r itself if there is nothing to add and nothing to hide.
func (h *handler) altered(r *http.Request, in *inbound) *http.Request {
	a, ctx := in.distinguish(r)
	var room *[1]string
	if a != nil {
		room = &a.cert
	}
	arrived := in.view.Header
	in.plain = in.keepHeader(arrived) // for later decisions, before anything is removed
	if !in.plain && field.AsksForHTTP2(arrived) {
		arrived, in.edited = field.WithoutUpgrade(arrived), true
	}
	header := in.sanitized(arrived, room)
	header = in.identified(r.Context(), arrived, header)
	trailers := incoming.MayHaveTrailers(r)
	if ctx != r.Context() || header != nil || trailers || in.secure != nil {
		if a != nil {
			a.request = *r.WithContext(ctx)
			r = &a.request
		} else {
			r = r.WithContext(ctx)
		}
		if header != nil {
			r.Header = header
		}
		in.token.HideToken(r)
		if in.secure != nil {
			r.TLS = in.secure
		}
		if trailers {
			incoming.CleanTrailers(in.Request, r, asserted.Header, in.rules.Tokens())
		}
		if in.limit != nil && caller.ToWatch(r) {
			caller.Watch(r, deadline.ClockOf(ctx))
		}
	}
	return r
}

// limit reports whether the limits let a request pass. If not, it answers.
func (h *handler) limit(w http.ResponseWriter, r *http.Request, in *inbound) bool {
	s := &h.mesh.server
	var err error
	if in.slot, err = s.pool.Acquire(r.Context(), true); err != nil {
		in.Flags |= FlagOverflow
		reply.Write(w, reply.Overflow(r))
		return false
	}
	if !s.rate.Allow() {
		in.Flags |= FlagRateLimited
		reply.Write(w, reply.RateLimited(r))
		return false
	}
	return true
}

// identify finds out who the peer is, unless it is known. Observers are told before anything is decided.
func (h *handler) identify(r *http.Request, in *inbound) {
	if in.rules != nil {
		return
	}
	m := h.mesh
	plan := m.engine.Plan()
	in.rules, in.Telemetry = plan.Inbound(), plan.Telemetry()
	if in.origin != nil && r.RequestURI != "" {
		in.origin.see(r, &in.view)
	} else {
		in.view = authz.NewRequest(r, "", m.server.TrustedHops)
	}

	// Certificates expire and bundles change while a connection lives, so this is checked each time.
	in.mode = in.rules.Mode(int(in.view.Destination.Port()))
	in.state = r.TLS
	if in.mode != tlsid.Disable {
		in.peer, in.PeerErr = m.peer(r, in)
	}
	if !in.peer.ID.IsZero() {
		in.Peer = in.peer.ID.String()
		in.id, in.until = in.Peer, in.peer.NotAfter()
		in.view.Principal = principal(in.peer)
	}
	in.RestartTraces = in.Peer == "" && m.server.RestartTraces
	if m.server.unseen.Load() > 0 {
		m.server.see(r)
	}
}

// admit decides whether the peer may do what it asks for. If not, it answers, and returns false.
func (h *handler) admit(w http.ResponseWriter, r *http.Request, in *inbound) bool {
	m := h.mesh
	if in.mode != tlsid.Disable && (in.PeerErr != nil || m.server.retires(r)) {
		w.Header().Set("Connection", "close") // the peer may have a valid certificate on a new connection
	}
	if why := in.unknown(); why != nil {
		return in.refuse(w, r, why)
	}
	if !in.authenticate(w, r) {
		return false
	}
	// Here, since another function would have a Decision in its frame: the stack of an HTTP/2 request would grow.
	if o := in.origin; o == nil || in.Peer == "" || in.rules.Tokens() != nil {
		in.Decision = in.rules.Authorize(&in.view)
	} else {
		in.Decision = o.authorize(in.rules, &in.view)
	}
	switch {
	case in.mode == tlsid.Strict && in.Peer == "" && !in.distrusted():
		m.cutOff(r, in)
	case !in.Decision.Allowed:
		in.Decision.Refuse(w, r)
		return false
	case field.BeginsHTTP2(r):
		return in.refuse(w, r, errHTTP2)
	}
	return true
}

// distrusted reports whether the certificate of the peer was refused. Such a peer gets an answer: without one it would keep an HTTP/2
// connection.
func (in *inbound) distrusted() bool {
	_, refused := errors.AsType[*tlsid.PeerError](in.PeerErr)
	return refused
}

// refuse answers a request that is denied without asking the policies, or although they allow it. It returns false.
func (in *inbound) refuse(w http.ResponseWriter, r *http.Request, why error) bool {
	in.Decision = judge.Denied(why.Error())
	in.Decision.BadRequest = why == errHTTP2
	in.Decision.Refuse(w, r)
	return false
}

// errHTTP2 is for what begins HTTP/2 where net/http does not speak it, so that a handler would serve requests that nobody decides about.
var errHTTP2 = errors.New("mesh: HTTP/2 on a connection of HTTP/1: set UnencryptedHTTP2 in the Protocols of the http.Server, " +
	"or put what serves HTTP/2 around Mesh.Handler, not behind it")

// peer returns the peer that sent r. It is zero, without an error, if no certificate was presented.
func (m *Mesh) peer(r *http.Request, in *inbound) (tlsid.Peer, error) {
	state := r.TLS
	if state == nil {
		var elsewhere bool
		var err error
		if state, elsewhere, err = m.server.hiddenTLS(r); elsewhere {
			m.warnElsewhere(in)
		}
		if state == nil || err != nil {
			return tlsid.Peer{}, err
		}
		in.secure, in.view.SNI = state, state.ServerName
	}
	in.state = state
	if m.identity == nil {
		return tlsid.Peer{}, nil
	}
	peer, err := m.identity.Peer(state, in.Start)
	if errors.Is(err, tlsid.ErrNoPeer) {
		err = nil
	}
	return peer, err
}
