package meshgrpc

import (
	"context"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/orca"
)

// ServerOptions returns the options that put a grpc.Server behind the inbound side of m, which [mesh.Mesh.Handler] describes:
// PeerAuthentication, AuthorizationPolicies (the path is "/package.Service/Method"), the removal of metadata that a peer may not
// assert, limits, and deadlines. The server must serve on a listener of m, which handles the TLS of each connection:
//
//	server := grpc.NewServer(meshgrpc.ServerOptions(m)...)
//	err := server.Serve(m.Listen(listener))
//
// Where gRPC shares a port with HTTP, an http.Server serves on that listener, and passes gRPC calls to [grpc.Server.ServeHTTP] and the
// other requests to a [mesh.Mesh.Handler]. A call that passed through both would count twice. At the end of a program, stop the server
// before m is closed.
//
// Health checks and reflection are treated like any other call, and so are calls of unknown methods. A denied call gets
// PERMISSION_DENIED and "RBAC: access denied". A call that exceeds a limit gets UNAVAILABLE. A plaintext connection is closed if
// its calls must use mTLS. In handlers, [mesh.PeerID] returns the identity of the caller, and package peer has the TLS state
// as credentials.TLSInfo, unless a listener around that of m hides it.
//
// A call can also be denied while its handler runs, because documents or trust bundles have changed or the certificate of the peer
// has expired. Unary or not, it then ends with PERMISSION_DENIED at once: the context of its handler ends, and its stream returns
// that status.
//
// A call is authorized when its headers have arrived, before any of its messages is received. That is done by grpc.InTapHandle,
// which a server can have only once. So interceptors see only calls that are allowed, with one exception. Observers of inbound calls
// must not block, because they run on the goroutine that reads from the connection. gRPC cannot send trailers at that point, so a call
// that exceeds a limit is marked in the details of its status, by a google.rpc.ErrorInfo that the clients of this module read.
// GracefulStop drains as usual.
//
// A call that has to wait for the keys of its token is authorized later, in the interceptors of these options. Interceptors that run before
// them see such a call although it may be denied, and without its metadata. So give interceptors that answer calls themselves, or that need
// metadata, after these options, and with [grpc.ChainUnaryInterceptor] and [grpc.ChainStreamInterceptor]: those of
// [grpc.UnaryInterceptor] and [grpc.StreamInterceptor] always run first. If the keys do not verify the token, and the message of a unary call
// has still not come, the call ends with CANCELLED.
//
// These options include [grpc.NumStreamWorkers]: most calls run on goroutines that have run others, whose stacks need not grow again. These
// goroutines end with Stop or GracefulStop. A call for which none is free gets one of its own. A later grpc.NumStreamWorkers(0) turns that off.
//
// The metadata of a call may take 1 MB, like the header of a request to an [http.Server]. A later [grpc.MaxHeaderListSize] changes that.
func ServerOptions(m *mesh.Mesh) []grpc.ServerOption {
	s := &server{gate: m.Handler(http.NotFoundHandler()).(admission.Gate)}
	return []grpc.ServerOption{
		grpc.Creds(serverCredentials{server: s}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: connectionAge(m)}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter / 2, PermitWithoutStream: true}),
		grpc.NumStreamWorkers(uint32(max(leastWorkers, workers*runtime.GOMAXPROCS(0)))),
		grpc.MaxHeaderListSize(http.DefaultMaxHeaderBytes), // gRPC's own default is 16 MB, which a peer may send before it is known who it is
		grpc.InTapHandle(s.tap),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(unknown), // so that interceptors see such calls too
	}
}

// There are 8 stream workers per processor, and at least 32. Without workers, growing stacks takes a quarter of the instructions of a unary call.
// The numbers are a compromise: a call for which no worker is free does without one, and handlers that wait for something keep theirs. But the
// workers take turns, and each collection halves the stacks of idle ones, so the fewer calls each has had in between, the less it saves.
// With 64 instead of 32, calls cost a few percent more with 8 in flight, and as much less with 64: docs/performance.md has the figures.
const (
	workers      = 8
	leastWorkers = 32
)

// connectionAge returns the age at which a connection is drained. The listener of the mesh closes a connection when one of its
// certificates expires; no call should be left on it by then. A certificate is replaced after half of its lifetime, so a certificate
// in use is valid for at least that long. The age is at most a quarter of the lifetime, so calls have at least as long to end.
func connectionAge(m *mesh.Mesh) time.Duration {
	const (
		unknown = 10 * time.Minute // without an identity, or until there is one
		least   = time.Second
	)
	own, err := m.Identity()
	if err != nil {
		return unknown
	}
	return max(least, time.Until(own.NotAfter())/4)
}

func unknown(_ any, stream grpc.ServerStream) error {
	name, _ := grpc.MethodFromServerStream(stream)
	slash := strings.LastIndexByte(name, '/')
	return status.Errorf(codes.Unimplemented, "unknown method %s for service %s", name[slash+1:], strings.Trim(name[:slash+1], "/")) // as gRPC says it
}

// server has the interceptors and the TLS connections of a grpc.Server.
type server struct {
	gate   admission.Gate
	conns  sync.Map // **x509.Certificate, which identifies the TLS state of a connection, to *secureConn
	shared sync.Once
	shares bool // whether handlers see changes of the metadata that a tap gets; set by shared
}

// inbound is a call on its way through the inbound side. It is the context of its HTTP request, and the http.ResponseWriter that a
// refusal is written to.
type inbound struct {
	context.Context
	from    *peer.Peer
	arrived metadata.MD       // as it arrived, until it is edited
	passage *passage          // nil when the call is over
	entered admission.Context // that of the handler

	header http.Header // written
	status int         // written; 0 if none was written yet

	// For a call that was allowed.
	call  admission.Call
	stop  func() bool // stops waiting for the call to be abandoned; nil if there is no need to wait
	taken atomic.Bool // a handler has taken the call, or it was abandoned

	edited bool // arrived differs from what the context has
	tap    bool // tap is running, so nothing may wait
	later  bool // tap would have had to wait

	panicked bool // the handler of a stream has

	// For a call whose handler runs.
	stream endable      // nil if the stream cannot be ended from outside
	passed serverStream // what a handler of a stream gets; here, since it needs no allocation of its own
}

// endable is the stream of a call in gRPC's own transport. Its status can be written while the handler runs, which wakes goroutines
// that send or receive. The public API of gRPC has no equivalent.
type endable interface{ WriteStatus(*status.Status) error }

type inboundKey struct{}

// Value implements context.Context.
func (in *inbound) Value(key any) any {
	switch key.(type) {
	case inboundKey:
		return in
	case admission.FactsKey:
		if in.tap {
			return &in.passage.facts
		}
		return nil
	case admission.PeerKey:
		return &in.entered
	case admission.LaterKey:
		if in.tap {
			return &in.later
		}
		return nil
	case admission.RequestKey:
		return true
	}
	if key == http.LocalAddrContextKey {
		return in.from.LocalAddr
	}
	return in.Context.Value(key)
}

// tap is the tap.ServerInHandle. It admits or refuses a call when its headers have arrived, before any message is received. It runs
// on the goroutine that reads from the connection.
func (s *server) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	passed, in, err := s.admit(ctx, info.FullMethodName, info.Header)
	if err != nil {
		return ctx, err
	}
	if in.call.Pending() {
		passed = in.await(passed)
	}
	if in.call.Held() {
		in.stop = context.AfterFunc(passed, in.abandon)
	}
	return passed, nil
}

// await lets a call wait for what a decision needs, which its message may not keep from being made. It returns a context for the call that
// ends if the call is refused before its message has come, so that its sender cannot keep the stream. gRPC has no other way to end it then:
// the peer gets CANCELLED. A call whose message has come gets the refusal.
func (in *inbound) await(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		if !in.call.Await(ctx) {
			cancel()
		}
	}()
	return ctx
}

// abandon ends an allowed call that no handler has taken, because its message never came or was malformed.
func (in *inbound) abandon() {
	if in.taken.CompareAndSwap(false, true) {
		in.done(0, -1)
	}
}

// done ends an allowed call.
func (in *inbound) done(status, grpcStatus int) {
	in.call.Done(status, grpcStatus)
	if p := in.passage; p.again {
		in.passage = nil
		p.recycle()
	}
}

// take returns the allowed call of ctx and the context for its handler. Calls that did not pass tap, such as those of
// grpc.Server.ServeHTTP, are admitted or refused here.
func (s *server) take(ctx context.Context, method string) (context.Context, *inbound, error) {
	in, tapped := ctx.Value(inboundKey{}).(*inbound)
	if !tapped {
		var err error
		if ctx, in, err = s.admit(ctx, method, nil); err != nil {
			return nil, nil, err
		}
	}
	if !in.taken.CompareAndSwap(false, true) {
		if err := ctx.Err(); err != nil {
			return nil, nil, status.FromContextError(err).Err()
		}
		return nil, nil, errAgain
	}
	if in.stop != nil {
		in.stop()
	}
	if in.call.Pending() {
		var err error
		if ctx, err = s.resume(ctx, in); err != nil {
			return nil, nil, err
		}
	}
	if tapped { // ending a stream of ServeHTTP would have to wait for a send that is in progress
		in.stream, _ = grpc.ServerTransportStreamFromContext(ctx).(endable)
	}
	in.entered.Context = ctx
	if !in.call.Enter(&in.entered) {
		err := in.refused()
		in.done(in.status, int(status.Code(err)))
		return nil, nil, err
	}
	if load := in.call.Load(); load != "" {
		_ = grpc.SetTrailer(ctx, metadata.MD{orca.MetadataKey: {load}})
	}
	return &in.entered, in, nil
}

// moved reports a message that the handler has received or sent.
func (in *inbound) moved(sent bool, m any) {
	size, _ := grpcwire.MessageSize(m)
	in.call.Message(sent, size)
}

// End implements admission.Adapter.
func (in *inbound) End() {
	if in.stream != nil {
		_ = in.stream.WriteStatus(status.Convert(errDenied))
	}
}

// allowed returns err, or errDenied if the call was ended because it is no longer allowed.
func (in *inbound) allowed(err error) error {
	if in.entered.Withdrawn() {
		return errDenied
	}
	return err
}

var errAgain = status.Error(codes.Internal, "an interceptor of the server has run the handler of the call twice")

var errDenied = status.Error(codes.PermissionDenied, "RBAC: access denied")

// leave ends a call whose handler has returned code, or has panicked.
func (in *inbound) leave(code codes.Code, panicked bool) {
	if panicked {
		in.done(0, -1)
		return
	}
	in.done(http.StatusOK, int(code))
}

// unary is the grpc.UnaryServerInterceptor.
func (s *server) unary(ctx context.Context, message any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, in, err := s.take(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	panicked, observed := true, in.call.Observed()
	defer func() { in.leave(grpcstatus.Code(err), panicked) }()
	if observed {
		in.moved(false, message)
	}
	header := in.replyHeader()
	reply, err := handler(ctx, message)
	err = in.allowed(err)
	header.End(ctx, err)
	if observed && err == nil && ctx.Err() == nil { // otherwise it is not sent
		in.moved(true, reply)
	}
	panicked = false
	return reply, err
}

// stream is the grpc.StreamServerInterceptor.
func (s *server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	_, in, err := s.take(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	passed, header := in.passes(stream), in.replyHeader()
	panicked := true
	defer func() {
		in.passed.code, in.panicked = grpcstatus.Code(err), panicked
		in.passed.release()
	}()
	err = in.allowed(handler(srv, header.Stream(passed)))
	header.End(&in.entered, err)
	panicked = false
	return err
}

// admit takes a call through the inbound side. It returns the context for the handler, or an error if the call is refused. header is the
// metadata of ctx, and not a copy of it, if the call has not begun yet.
func (s *server) admit(ctx context.Context, method string, header metadata.MD) (context.Context, *inbound, error) {
	in := s.begin()
	in.Context, in.arrived = ctx, header
	if header == nil {
		in.arrived, _ = metadata.FromIncomingContext(ctx)
	}
	from, _ := peer.FromContext(ctx)
	if from == nil {
		from = new(peer.Peer)
	}
	in.from = from
	in.tap = header != nil
	passed, aborted := in.pass(s.gate, in.passage.describe(in, method, s.originOf(from)))
	in.tap = false
	switch {
	case aborted:
		s.hangUp(from.AuthInfo)
		return nil, nil, status.Error(codes.Unavailable, "connection refused")
	case in.call == nil:
		return nil, nil, in.refused()
	}
	in.entered.Peer = in.call.PeerID()
	if in.call.Pending() { // interceptors that run first must not trust what may be refused
		return metadata.NewIncomingContext(passed, metadata.MD{}), in, nil
	}
	if in.edited && (header == nil || !s.sees(ctx, header)) {
		passed = metadata.NewIncomingContext(passed, in.arrived)
	}
	return passed, in, nil
}

// resume admits a call that tap could not decide about, and shows its metadata. ctx is the context for the handler so far.
func (s *server) resume(ctx context.Context, in *inbound) (context.Context, error) {
	added, _ := metadata.FromIncomingContext(ctx) // by the interceptors before
	passed := in.call.Resume(ctx)
	if passed == nil {
		return nil, in.refused()
	}
	maps.Copy(in.arrived, added)
	return metadata.NewIncomingContext(passed, in.arrived), nil
}

// begin returns a call with a passage, which observers may keep.
func (s *server) begin() *inbound {
	if s.gate.Observed() {
		all := new(struct { // at once
			inbound
			passage
		})
		all.fields = make(http.Header)
		all.inbound.passage = &all.passage
		return &all.inbound
	}
	return &inbound{passage: passages.Get().(*passage)}
}

// sees reports whether the metadata of ctx is header, which a tap has got and changed, and not a copy. The documentation of gRPC does not
// say so, but it is always the same. A copy takes four allocations.
func (s *server) sees(ctx context.Context, header metadata.MD) bool {
	s.shared.Do(func() {
		md, _ := metadata.FromIncomingContext(ctx)
		s.shares = maps.EqualFunc(md, header, slices.Equal)
	})
	return s.shares
}

// Edit implements admission.Adapter.
func (in *inbound) Edit(name string, values []string) {
	if name == "Te" {
		return // gRPC does not pass it on
	}
	in.edited = true
	key := metadataKey(name)
	if len(values) == 0 {
		delete(in.arrived, key)
	} else {
		in.arrived[key] = metadataOf(key, values)
	}
}

// hangUp closes a connection as if the listener had refused it.
func (s *server) hangUp(info credentials.AuthInfo) {
	switch info := info.(type) {
	case unsecured:
		info.conn.Close()
	case credentials.TLSInfo:
		if c := s.connOf(&info.State); c != nil {
			c.NetConn().Close() // without a close_notify alert, which could block
		}
	}
}

// pass takes the call through the stages of the inbound side. It returns the context for what comes before the handler, and reports whether
// the connection must be closed.
func (in *inbound) pass(g admission.Gate, r *http.Request) (ctx context.Context, aborted bool) {
	defer func() {
		if p := recover(); p == http.ErrAbortHandler {
			aborted = true
		} else if p != nil {
			panic(p)
		}
	}()
	ctx, in.call = g.Admit(in, r)
	return ctx, false
}

// refused returns the error of a call that the inbound side has answered instead of its handler.
func (in *inbound) refused() error {
	if in.header.Get("Grpc-Status") != "" {
		return answered(&http.Response{Header: in.header, Body: http.NoBody})
	}
	code := grpcstatus.FromHTTP(in.status)
	switch {
	case in.header["X-Envoy-Overloaded"] != nil:
		return in.limited(code, "overloaded", grpcwire.Overloaded)
	case in.header["X-Envoy-Ratelimited"] != nil:
		return in.limited(code, "too many calls", grpcwire.RateLimited)
	}
	return status.Error(code, http.StatusText(in.status))
}

// limited returns the error of a call that exceeds a limit. If gRPC refuses a call at its headers, it sends no trailer, so the
// status must say so too.
func (in *inbound) limited(code codes.Code, message, key string) error {
	_ = grpc.SetTrailer(in.Context, metadata.Pairs(key, "true"))
	return grpcwire.Limited(code, message, key)
}

// Header implements http.ResponseWriter.
func (in *inbound) Header() http.Header {
	if in.header == nil {
		in.header = make(http.Header)
	}
	return in.header
}

// WriteHeader implements http.ResponseWriter.
func (in *inbound) WriteHeader(status int) {
	if in.status == 0 {
		in.status = status
	}
}

// Write implements http.ResponseWriter. It drops the body: the status of the call has the text.
func (in *inbound) Write(p []byte) (int, error) {
	in.WriteHeader(http.StatusOK)
	return len(p), nil
}
