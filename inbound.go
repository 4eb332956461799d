package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/reply"
	"github.com/nosidecar/mesh/internal/response"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
)

// ServerConfig is what no document says about the requests to this process. Its zero value limits nothing, trusts no proxy and
// has the defaults of [tlsid.ListenerConfig].
type ServerConfig struct {
	// MaxRequests is how many requests may be in their handlers at once. Those beyond it are answered with 503 and
	// x-envoy-overloaded, which callers of a mesh do not retry. 0 means no limit.
	MaxRequests int

	// RateLimit bounds the requests per second. Those beyond it are answered with 429. Its zero value is off.
	RateLimit limit.RateConfig

	// TrustedHops is how many proxies before this process append to x-forwarded-for. The address that remoteIpBlocks are
	// compared to is that many entries from its end; see [authz.NewRequest]. 0 means that of the peer.
	TrustedHops int

	// RestartTraces removes the trace headers (W3C and B3) of requests from outside the mesh, so that nobody out there decides
	// what is sampled here. x-request-id is removed in any case.
	RestartTraces bool

	// HandshakeTimeout, MaxPending and MaxPendingPerIP bound what connections may cost before they are served: see
	// [tlsid.ListenerConfig].
	HandshakeTimeout            time.Duration
	MaxPending, MaxPendingPerIP int
}

// server is the state of the inbound side.
type server struct {
	ServerConfig
	observed bool // some observer wants to know of requests
	pool     *limit.Pool
	rate     *limit.Rate
	certs    atomic.Pointer[forwardedCerts]

	handled  atomic.Bool // Handler was called
	warned   atomic.Bool // of a workload that is open to all
	requests sync.Pool   // of *inbound
	running  running

	mu        sync.Mutex                // held while they change
	listeners atomic.Pointer[[]watched] // not closed yet; copied on write
}

func (s *server) init(config ServerConfig, m *Mesh) error {
	s.ServerConfig, s.observed = config, m.observers.watchInbound()
	var errs [2]error
	s.pool, errs[0] = limit.NewPool(limit.PoolConfig{MaxRequests: config.MaxRequests})
	s.rate, errs[1] = limit.NewRate(config.RateLimit)
	if config.TrustedHops < 0 {
		return errors.New("mesh: WithServer: TrustedHops is negative")
	}
	if config.HandshakeTimeout < 0 {
		return errors.New("mesh: WithServer: HandshakeTimeout is negative")
	}
	s.certs.Store(new(forwardedCerts))
	s.running.init(m)
	s.requests.New = func() any {
		in := &inbound{mesh: m}
		in.ends = in
		s.running.place(&in.entry)
		return in
	}
	return errors.Join(errs[:]...)
}

// Handler returns next behind the inbound side of the mesh. Each request passes, in this order: who the peer is, the
// PeerAuthentication of the port, the AuthorizationPolicies, the removal of headers that the peer may not assert, limits,
// and the deadline that the caller tells, which becomes the handler's context's.
//
// A peer is who its certificate says, verified anew for each request, whoever terminated TLS: serve over a listener of
// [Mesh.Listen] to have the port's PeerAuthentication enforced for connections too. Without [WithIdentity] no peer has an
// identity.
//
// What is denied is answered with 403 and "RBAC: access denied", a path that cannot be read with 400; why is for the
// observers. So is, on a port that is STRICT, a request of a peer whose certificate is not, or no longer, good: its connection
// is closed after that. A plaintext request to such a port is cut off without an answer.
//
// A request that is under way is decided about again when documents or bundles change, and when the certificate of its peer
// expires. If it is denied then, it is cut off: its context ends, what its handler reads or writes fails, and the peer sees a
// reset. Connections that handlers take over, as for websockets, are cut off in the same way, also after the handler has
// returned. Answers that are complete stay so. Envoy lets requests that are under way go on.
//
// Handlers see the path as it was sent: behind a router that does not clean paths as http.ServeMux does, set Paths in
// [WithWorkload]. Shutdown of the http.Server drains as ever.
func (m *Mesh) Handler(next http.Handler) http.Handler {
	m.server.handled.Store(true)
	m.warnOpen()
	return &handler{m, next}
}

// warnOpen tells the observers, once, that a process with an identity serves whoever comes: who has set up identities may well
// think otherwise.
func (m *Mesh) warnOpen() {
	in := m.engine.Plan().Inbound()
	if m.identity == nil || in.Authorizes() || in.Mode(0) != tlsid.Permissive || !m.server.warned.CompareAndSwap(false, true) {
		return
	}
	m.observers.policyLoaded(PolicyLoad{remark: true, Findings: policy.Findings{{
		Severity: policy.Warning, Message: "no AuthorizationPolicy and no PeerAuthentication is about this workload: requests of " +
			"every peer are served, with and without an identity",
	}}})
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

// inbound is one request. What is decided about it is too large for the small stacks that HTTP/2 serves requests on.
type inbound struct {
	entry
	mesh *Mesh
	passage
}

// passage is what is new with each request.
type passage struct {
	Inbound
	rules  *policy.Inbound // nil until it is known who sent it
	mode   tlsid.Mode
	before uint64 // changes of documents and bundles, before it was decided about
	peer   tlsid.Peer
	secure *tls.ConnectionState // of a connection whose TLS a wrapper hides from net/http

	// Of a request that is not served with a handler of HTTP.
	answer  response.Recorder
	writer  http.ResponseWriter
	context context.Context // of the observers
	ender   admission.Ender

	// What it holds until its handler has returned.
	slot   limit.Slot
	cancel context.CancelFunc // nil unless the caller tells how long it waits

	// By which it is ended while its handler runs.
	ctx   *requestContext     // nil if the request has none of ours
	reply http.ResponseWriter // nil if there is no handler of HTTP
	guard *response.Guard     // of HTTP/1
	taken net.Conn            // taken over by the handler; written before guard has it pass
}

// arrive returns the state of a request that is new.
func (s *server) arrive(r *http.Request) *inbound {
	in := s.requests.Get().(*inbound)
	in.Request, in.Start, in.GRPCStatus = r, time.Now(), -1
	in.before = s.running.changes.Load()
	return in
}

// recycle keeps in for another request.
func (in *inbound) recycle() {
	in.forget()
	in.passage = passage{}
	in.mesh.server.requests.Put(in)
}

// release gives back what the request holds.
func (in *inbound) release() {
	in.leave()
	if in.cancel != nil {
		in.cancel()
	}
	in.slot.Release()
}

// begin puts a request that was admitted into the register. It returns false if it was answered, because it is not allowed any
// more.
func (in *inbound) begin(w http.ResponseWriter) bool {
	now, peerErr := in.mesh.server.running.enter(&in.entry, in.before)
	if now.Allowed {
		return true
	}
	in.leave()
	in.withdraw(now, peerErr)
	now.Refuse(w, in.Request)
	return false
}

// withdraw notes the decision that ended the request.
func (in *inbound) withdraw(now authz.Decision, peerErr error) {
	in.Decision = now
	if peerErr != nil {
		in.PeerErr = peerErr
	}
}

// end ends the request, whose handler runs: its context, and its connection or stream.
func (in *inbound) end(now authz.Decision, peerErr error) {
	in.withdraw(now, peerErr)
	cause := &admission.Withdrawn{Reason: now.Reason}
	if in.ctx != nil {
		in.ctx.end(cause)
	}
	if in.ender != nil {
		in.ender.End()
	}
	if in.reply == nil {
		return
	}
	if in.guard != nil {
		in.guard.Cut(cause)
	}
	// HTTP/2 resets the stream; HTTP/1 wakes who reads or writes.
	past, control := time.Unix(1, 0), http.NewResponseController(in.reply)
	_ = control.SetReadDeadline(past)
	unknown := control.SetWriteDeadline(past) != nil
	if in.guard != nil || in.Request.ProtoMajor < 2 || unknown {
		if conn := in.mesh.server.connOf(in.Request); conn != nil {
			abort(conn)
		}
	}
	if in.taken != nil {
		abort(in.taken)
	}
}

// TakeOver implements response.Owner.
func (in *inbound) TakeOver(conn net.Conn) net.Conn {
	in.taken = conn
	return in.mesh.server.running.takeOver(&in.facts, conn)
}

// Admit implements admission.Gate.
func (h *handler) Admit(w http.ResponseWriter, r *http.Request) (*http.Request, admission.Call) {
	m := h.mesh
	in := m.server.arrive(r)
	in.context = r.Context()
	if m.server.observed {
		in.Decision.Rule = -1
		h.identify(r, in)
		in.context = m.observers.inboundStart(in.context, &in.Inbound)
		w, r = in.answer.Watch(w), r.WithContext(in.context)
	}
	in.writer = w
	var admitted *http.Request
	defer func() {
		if admitted == nil {
			in.Done(in.answer.Status, grpcStatus(w.Header(), in.answer.Status))
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
	in.ctx, in.ender = &requestContext{Context: ctx, id: in.Peer}, end
	return in.ctx, in.begin(in.writer)
}

// Done implements admission.Call.
func (in *inbound) Done(status, grpcStatus int) {
	in.release()
	if in.mesh.server.observed {
		in.Status, in.GRPCStatus = status, grpcStatus
		in.mesh.observers.inboundEnd(in.context, &in.Inbound)
	}
	in.recycle()
}

// grpcStatus returns the status of a gRPC call by what was answered over HTTP, and -1 if there was no answer.
func grpcStatus(h http.Header, status int) int {
	if status == 0 {
		return -1
	}
	for _, name := range [...]string{"Grpc-Status", http.TrailerPrefix + "Grpc-Status"} {
		if code, err := strconv.ParseUint(h.Get(name), 10, 31); err == nil {
			return int(code)
		}
	}
	return int(failure.GRPCCode(status))
}

// observed is serve with observers.
func (h *handler) observed(w http.ResponseWriter, r *http.Request, in *inbound) {
	in.Decision.Rule = -1
	h.identify(r, in)
	var answer response.Recorder
	w, r = answer.Watch(w), r.WithContext(h.mesh.observers.inboundStart(r.Context(), &in.Inbound))
	panicked := true
	defer func() {
		in.Status = answer.Status
		if !panicked && in.Decision.Allowed { // and was not ended before it answered
			in.Status = answer.Code()
		}
		if field.IsGRPC(in.Request.Header.Get("Content-Type")) {
			in.GRPCStatus = grpcStatus(w.Header(), in.Status)
		}
		h.mesh.observers.inboundEnd(r.Context(), &in.Inbound)
	}()
	h.serve(w, r, in)
	panicked = false
}

// serve takes a request to its handler.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, in *inbound) {
	defer in.release()
	if r = h.enter(w, r, in); r == nil {
		return
	}
	if in.ctx != nil {
		defer in.ctx.release()
	}
	in.keepHeader(in.view.Header)
	in.reply = w
	if _, hijacks := w.(http.Hijacker); hijacks {
		w, in.guard = response.NewGuard(w, in)
	}
	if in.begin(w) {
		h.next.ServeHTTP(w, r)
	}
}

// enter is the way of an inbound request up to its handler, stage by stage. It returns nil if the request was answered.
func (h *handler) enter(w http.ResponseWriter, r *http.Request, in *inbound) *http.Request {
	s := &h.mesh.server
	if !h.admit(w, r, in) {
		return nil
	}

	var err error
	if in.slot, err = s.pool.Acquire(r.Context(), true); err != nil {
		in.Flags |= FlagOverflow
		reply.Write(w, reply.Overflow(r))
		return nil
	}
	if !s.rate.Allow() {
		in.Flags |= FlagRateLimited
		reply.Write(w, reply.RateLimited(r))
		return nil
	}

	ctx := r.Context()
	// The context of net/http ends with the connection, unless a body stands in between that is not read.
	if in.Peer != "" || r.ContentLength != 0 {
		in.ctx = &requestContext{Context: ctx, id: in.Peer}
		ctx = in.ctx
	}
	if in.Peer != "" {
		ctx, in.cancel = deadline.Told(ctx, r.Header)
	}
	header := s.sanitised(r.Header, in.peer, h.mesh)
	trailers := mayHaveTrailers(r)
	if ctx != r.Context() || header != nil || trailers || in.secure != nil {
		arrived := r
		r = r.WithContext(ctx)
		if header != nil {
			r.Header = header
		}
		if in.secure != nil {
			r.TLS = in.secure
		}
		if trailers {
			sanitiseTrailers(arrived, r)
		}
		if in.cancel != nil && caller.ToWatch(r) {
			caller.Watch(r, deadline.ClockOf(ctx))
		}
	}
	return r
}

// identify finds out who the peer is, which observers are told before anything is decided.
func (h *handler) identify(r *http.Request, in *inbound) {
	m := h.mesh
	in.rules = m.engine.Plan().Inbound()
	in.view = authz.NewRequest(r, "", m.server.TrustedHops)

	// Certificates expire and bundles change while a connection lives, so this is asked each time.
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
}

// admit finds out whether the peer may do what it asks for. If not, it answers, and returns false.
func (h *handler) admit(w http.ResponseWriter, r *http.Request, in *inbound) bool {
	m := h.mesh
	if in.rules == nil {
		h.identify(r, in)
	}
	if in.mode != tlsid.Disable && (in.PeerErr != nil || m.server.retires(r)) {
		w.Header().Set("Connection", "close") // over a new one it may be somebody
	}
	if in.PeerErr == errUnknownConnection {
		in.Decision = authz.Decision{Match: authz.Match{Rule: -1}, Audit: authz.Match{Rule: -1}, Reason: errUnknownConnection.Error()}
		in.Decision.Refuse(w, r)
		return false
	}
	in.Decision = in.rules.Authorize(&in.view)
	_, refused := errors.AsType[*tlsid.PeerError](in.PeerErr) // only an answer makes it leave a connection of HTTP/2
	switch {
	case in.mode == tlsid.Strict && in.Peer == "" && !refused:
		panic(http.ErrAbortHandler) // as a connection that is refused: no answer
	case !in.Decision.Allowed:
		in.Decision.Refuse(w, r)
		return false
	}
	return true
}

// errUnknownConnection is about a request to a port of ours over a connection that Listen did not return as it is.
var errUnknownConnection = errors.New("mesh: the connection of the request cannot be told: wrap the listener inside Listen, not its result")

// peer returns who sent r: nobody, without an error, where no certificate was presented.
func (m *Mesh) peer(r *http.Request, in *inbound) (tlsid.Peer, error) {
	state := r.TLS
	if state == nil {
		var err error
		if state, err = m.server.hiddenTLS(r); state == nil || err != nil {
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

// principal returns a peer's ID as documents write it.
func principal(peer tlsid.Peer) string {
	return strings.TrimPrefix(peer.ID.String(), "spiffe://")
}
