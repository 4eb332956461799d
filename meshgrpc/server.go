package meshgrpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
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
	"github.com/nosidecar/mesh/policy/limit"
)

// ServerOptions returns the options that put a grpc.Server behind the inbound side of m, which [mesh.Mesh.Handler] describes:
// PeerAuthentication, AuthorizationPolicies (the path is "/package.Service/Method"), the removal of metadata that a peer may not
// assert, limits, and deadlines. The server must serve on a listener of m, which handles the TLS of each connection:
//
//	server := grpc.NewServer(meshgrpc.ServerOptions(m)...)
//	err := server.Serve(m.Listen(listener))
//
// Health checks and reflection are treated like any other call, and so are calls of unknown methods. A denied call gets
// PERMISSION_DENIED and "RBAC: access denied". A call that exceeds a limit gets UNAVAILABLE. A plaintext connection is closed if
// its calls must use mTLS. In handlers, [mesh.PeerID] returns the identity of the caller, and package peer has the TLS state.
//
// A call can also be denied while its handler runs, because documents or trust bundles have changed or the certificate of the peer
// has expired. Unary or not, it then ends with PERMISSION_DENIED at once: the context of its handler ends, and its stream returns
// that status.
//
// A call is authorized when its headers have arrived, before any of its messages is received. That is done by grpc.InTapHandle,
// which a server can have only once. So interceptors see only calls that are allowed. Observers of inbound calls must not block,
// because they run on the goroutine that reads from the connection. gRPC cannot send trailers at that point, so a call that exceeds
// a limit is marked in the details of its status, by a google.rpc.ErrorInfo that the clients of this module read. GracefulStop
// drains as usual.
func ServerOptions(m *mesh.Mesh) []grpc.ServerOption {
	s := &server{gate: m.Handler(http.NotFoundHandler()).(admission.Gate)}
	return []grpc.ServerOption{
		grpc.Creds(serverCredentials{s}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: connectionAge(m)}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter / 2, PermitWithoutStream: true}),
		grpc.InTapHandle(s.tap),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(unknown), // so that interceptors see such calls too
	}
}

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
	method, _ := grpc.MethodFromServerStream(stream)
	return status.Error(codes.Unimplemented, "unknown method "+method)
}

// server has the interceptors and the TLS connections of a grpc.Server.
type server struct {
	gate  admission.Gate
	conns sync.Map // **x509.Certificate, which identifies the TLS state of a connection, to *secureConn
}

// inbound is a call on its way through the inbound side. It is the context of its HTTP request, and the http.ResponseWriter that a
// refusal is written to.
type inbound struct {
	context.Context
	local   net.Addr
	request *http.Request
	arrived metadata.MD

	header http.Header // written
	status int         // written; 0 if none was written yet

	// For a call that was allowed.
	call  admission.Call
	taken atomic.Bool // a handler has taken the call, or it was abandoned
	stop  func() bool // stops waiting for the call to be abandoned; nil if there is no need to wait

	// For a call whose handler runs.
	stream endable // nil if the stream cannot be ended from outside
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
	}
	if key == http.LocalAddrContextKey {
		return in.local
	}
	return in.Context.Value(key)
}

// tap is the tap.ServerInHandle. It admits or refuses a call when its headers have arrived, before any message is received. It runs
// on the goroutine that reads from the connection.
func (s *server) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	passed, in, err := s.admit(ctx, info.FullMethodName)
	if err != nil {
		return ctx, err
	}
	if in.call.Held() {
		in.stop = context.AfterFunc(ctx, in.abandon)
	}
	return passed, nil
}

// abandon ends an allowed call that no handler has taken, because its message never came or was malformed.
func (in *inbound) abandon() {
	if in.taken.CompareAndSwap(false, true) {
		in.call.Done(0, -1)
	}
}

// take returns the allowed call of ctx and the context for its handler. Calls that did not pass tap, such as those of
// grpc.Server.ServeHTTP, are admitted or refused here.
func (s *server) take(ctx context.Context, method string) (context.Context, *inbound, error) {
	in, tapped := ctx.Value(inboundKey{}).(*inbound)
	if !tapped {
		var err error
		if ctx, in, err = s.admit(ctx, method); err != nil {
			return nil, nil, err
		}
	}
	if !in.taken.CompareAndSwap(false, true) {
		if err := in.Context.Err(); err != nil {
			return nil, nil, status.FromContextError(err).Err()
		}
		return nil, nil, errAgain
	}
	if in.stop != nil {
		in.stop()
	}
	if tapped { // ending a stream of ServeHTTP would have to wait for a send that is in progress
		in.stream, _ = grpc.ServerTransportStreamFromContext(ctx).(endable)
	}
	ctx, allowed := in.call.Enter(ctx, in)
	if !allowed {
		err := in.refused()
		in.call.Done(in.status, int(status.Code(err)))
		return nil, nil, err
	}
	if h := in.call.Header(); len(h) > 0 {
		_ = grpc.SetHeader(ctx, fromReply(h))
	}
	return ctx, in, nil
}

// moved reports a message that the handler has received or sent.
func (in *inbound) moved(sent bool, m any) {
	size, _ := grpcwire.MessageSize(m)
	in.call.Message(sent, size)
}

// End implements admission.Ender.
func (in *inbound) End() {
	if in.stream != nil {
		_ = in.stream.WriteStatus(status.Convert(errDenied))
	}
}

// withdrawn returns an error if the call was ended because it is no longer allowed, and nil otherwise.
func withdrawn(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	if _, ended := errors.AsType[*admission.Withdrawn](context.Cause(ctx)); ended {
		return errDenied
	}
	return nil
}

var errAgain = status.Error(codes.Internal, "an interceptor of the server has run the handler of the call twice")

var errDenied = status.Error(codes.PermissionDenied, "RBAC: access denied")

// leave ends a call whose handler has returned err, or has panicked.
func (in *inbound) leave(err error, panicked bool) {
	if panicked {
		in.call.Done(0, -1)
		return
	}
	in.call.Done(http.StatusOK, int(grpcstatus.Code(err)))
}

// unary is the grpc.UnaryServerInterceptor.
func (s *server) unary(ctx context.Context, message any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, in, err := s.take(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	panicked, observed := true, in.call.Observed()
	defer func() { in.leave(err, panicked) }()
	if observed {
		in.moved(false, message)
	}
	reply, err := handler(ctx, message)
	if denied := withdrawn(ctx); denied != nil {
		reply, err = nil, denied
	}
	if observed && err == nil {
		in.moved(true, reply)
	}
	panicked = false
	return reply, err
}

// stream is the grpc.StreamServerInterceptor.
func (s *server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, in, err := s.take(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	passed := &serverStream{ServerStream: stream, ctx: ctx, apart: in.stream == nil, in: in, observed: in.call.Observed()}
	passed.users.Store(1)
	panicked := true
	defer func() {
		passed.err, passed.panicked = err, panicked
		passed.release()
	}()
	err = handler(srv, passed)
	if denied := withdrawn(ctx); denied != nil {
		err = denied
	}
	panicked = false
	return err
}

// admit takes a call through the inbound side. It returns the context for the handler, or an error if the call is refused.
func (s *server) admit(ctx context.Context, method string) (context.Context, *inbound, error) {
	in := &inbound{Context: ctx}
	in.arrived, _ = metadata.FromIncomingContext(ctx)
	from, _ := peer.FromContext(ctx)
	if from == nil {
		from = new(peer.Peer)
	}
	in.local = from.LocalAddr
	req := http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: method}, RequestURI: method,
		Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: received(in.arrived), Body: http.NoBody,
	}
	if hosts := in.arrived[":authority"]; len(hosts) > 0 {
		req.Host = hosts[0]
	}
	if from.Addr != nil {
		req.RemoteAddr = from.Addr.String()
	}
	if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
		req.TLS = &info.State
	}
	in.request = req.WithContext(in)
	r, aborted := in.pass(s.gate)
	switch {
	case aborted:
		s.hangUp(from.AuthInfo)
		return nil, nil, status.Error(codes.Unavailable, "connection refused")
	case r == nil:
		return nil, nil, in.refused()
	}
	passed := r.Context()
	if !unchanged(r.Header, in.request.Header) {
		passed = metadata.NewIncomingContext(passed, incoming(in.arrived, in.request.Header, r.Header))
	}
	return passed, in, nil
}

// hangUp closes a connection as if the listener had refused it.
func (s *server) hangUp(info credentials.AuthInfo) {
	switch info := info.(type) {
	case unsecured:
		info.conn.Close()
	case credentials.TLSInfo:
		if key := connKeyOf(&info.State); key != nil {
			if c, ok := s.conns.Load(key); ok {
				c.(*secureConn).tls.NetConn().Close() // without a close_notify alert, which could block
			}
		}
	}
}

func connKeyOf(state *tls.ConnectionState) **x509.Certificate {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	return &state.PeerCertificates[0]
}

// secureConn is a TLS connection of the server, which hangUp can find by its key.
type secureConn struct {
	net.Conn
	tls    *tls.Conn
	server *server
	key    **x509.Certificate
}

func (c *secureConn) Close() error {
	c.server.conns.Delete(c.key)
	return c.Conn.Close()
}

// pass takes the call through the stages of the inbound side. It reports whether the connection must be closed.
func (in *inbound) pass(g admission.Gate) (r *http.Request, aborted bool) {
	defer func() {
		if p := recover(); p == http.ErrAbortHandler {
			aborted = true
		} else if p != nil {
			panic(p)
		}
	}()
	r, in.call = g.Admit(in, in.request)
	return r, false
}

// refused returns the error of a call that the inbound side has answered instead of its handler.
func (in *inbound) refused() error {
	if in.header.Get("Grpc-Status") != "" {
		return answered(&http.Response{Header: in.header, Body: http.NoBody})
	}
	code := grpcstatus.FromHTTP(in.status)
	switch {
	case in.header["X-Envoy-Overloaded"] != nil:
		return in.limited(code, limit.ErrOverflow, grpcwire.Overloaded)
	case in.header["X-Envoy-Ratelimited"] != nil:
		return in.limited(code, limit.ErrRateLimited, grpcwire.RateLimited)
	}
	return status.Error(code, http.StatusText(in.status))
}

// limited returns the error of a call that exceeds a limit. If gRPC refuses a call at its headers, it sends no trailer, so the
// status must say so too.
func (in *inbound) limited(code codes.Code, err error, key string) error {
	_ = grpc.SetTrailer(in.Context, metadata.Pairs(key, "true"))
	return grpcwire.Limited(code, err.Error(), key)
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

// serverCredentials accepts the connections of the listener of the mesh, which are plaintext or have completed the TLS handshake.
type serverCredentials struct{ server *server }

func (s serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, ok := raw.(*tls.Conn)
	if !ok {
		return raw, unsecured{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, raw}, nil
	}
	if err := secure.Handshake(); err != nil { // does nothing, except with a listener other than the mesh's
		return nil, nil, err
	}
	state := secure.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		return nil, nil, errClientALPN
	}
	key := connKeyOf(&state)
	if key == nil {
		return secure, tlsInfo(state), nil
	}
	c := &secureConn{Conn: secure, tls: secure, server: s.server, key: key}
	s.server.conns.Store(key, c)
	return c, tlsInfo(state), nil
}

var errClientALPN = errors.New(`the client does not speak HTTP/2: it did not offer "h2"`)

func (serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("meshgrpc: these are the credentials of a server")
}

func (serverCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "mesh"}
}

func (c serverCredentials) Clone() credentials.TransportCredentials { return c }

func (serverCredentials) OverrideServerName(string) error { return nil }

// unsecured is the AuthInfo of a plaintext connection.
type unsecured struct {
	credentials.CommonAuthInfo
	conn net.Conn
}

func (unsecured) AuthType() string { return "plaintext" }
