package meshgrpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/policy/limit"
)

// ServerOptions returns the options that put a grpc.Server behind the inbound side of m, which [mesh.Mesh.Handler] tells of:
// PeerAuthentication, AuthorizationPolicies (the path is "/package.Service/Method"), the metadata that a peer may not
// assert, limits, deadlines. It serves on a listener of m, which gives each connection the TLS that its port demands:
//
//	server := grpc.NewServer(meshgrpc.ServerOptions(m)...)
//	err := server.Serve(m.Listen(listener))
//
// Health checks and reflection are calls like others, and so are calls of methods that do not exist. What is denied gets
// PERMISSION_DENIED and "RBAC: access denied"; what is beyond a limit gets UNAVAILABLE. A plaintext connection whose calls
// must come over mTLS is closed. In handlers, [mesh.PeerID] tells who calls, and package peer has the TLS state.
//
// Interceptors that are given after these options see only what was let through. GracefulStop drains as ever.
func ServerOptions(m *mesh.Mesh) []grpc.ServerOption {
	s := &server{handler: m.Handler(http.HandlerFunc(serveInner))}
	return []grpc.ServerOption{
		grpc.Creds(serverCredentials{s}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: connectionAge(m)}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter / 2, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(unknown), // so that interceptors see such calls, too
	}
}

// connectionAge is how old connections get before clients are sent to new ones. The listener of the mesh closes a connection
// when a certificate that it was made with expires; by then nothing should be left on it. A certificate is replaced when half
// its life is over, so one in use has that much time left, and calls have as much time to end as the connection had.
func connectionAge(m *mesh.Mesh) time.Duration {
	const (
		unknown = 10 * time.Minute // for an identity that is still to come, or none
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

// server is the interceptors, and the connections with TLS.
type server struct {
	handler http.Handler
	conns   sync.Map // **x509.Certificate, by which the TLS state of a connection is told from others, to net.Conn
}

// inbound is a call on its way through the inbound side: the context and the writer of a request. A refusal is
// written; a call that is let through is served by serve, which then knows how that went.
type inbound struct {
	context.Context
	local   net.Addr
	request *http.Request
	arrived metadata.MD
	serve   func(ctx context.Context) error

	header http.Header // written
	status int         // written; 0 while nothing is
	served bool
	err    error // of serve
}

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

// serveInner is the innermost handler: the call was let through.
func serveInner(_ http.ResponseWriter, r *http.Request) {
	in := r.Context().Value(inboundKey{}).(*inbound)
	ctx := r.Context()
	if !unchanged(r.Header, in.request.Header) {
		ctx = metadata.NewIncomingContext(ctx, incoming(in.arrived, in.request.Header, r.Header))
	}
	in.served = true
	in.err = in.serve(ctx)
}

// unary is the grpc.UnaryServerInterceptor.
func (s *server) unary(ctx context.Context, message any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	var reply any
	err := s.run(ctx, info.FullMethod, func(ctx context.Context) (err error) {
		reply, err = handler(ctx, message)
		return err
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// stream is the grpc.StreamServerInterceptor.
func (s *server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.run(stream.Context(), info.FullMethod, func(ctx context.Context) error {
		return handler(srv, &serverStream{stream, ctx})
	})
}

// serverStream is a stream with the context of a call that was let through.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *serverStream) Context() context.Context { return s.ctx }

// run takes a call through the inbound side.
func (s *server) run(ctx context.Context, method string, serve func(context.Context) error) error {
	in := &inbound{Context: ctx, serve: serve}
	in.arrived, _ = metadata.FromIncomingContext(ctx)
	from, _ := peer.FromContext(ctx)
	if from == nil {
		from = new(peer.Peer)
	}
	in.local = from.LocalAddr
	req := http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: method}, RequestURI: method,
		Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: make(http.Header, len(in.arrived)), Body: http.NoBody,
	}
	for key, values := range in.arrived {
		if key == ":authority" && len(values) > 0 {
			req.Host = values[0]
		}
		if !strings.HasPrefix(key, ":") {
			req.Header[http.CanonicalHeaderKey(key)] = values
		}
	}
	if req.Header["Content-Type"] == nil {
		req.Header["Content-Type"] = []string{contentType}
	}
	if from.Addr != nil {
		req.RemoteAddr = from.Addr.String()
	}
	if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
		req.TLS = &info.State
	}
	in.request = req.WithContext(in)
	if aborted := in.pass(s.handler); aborted {
		s.hangUp(from.AuthInfo)
		return status.Error(codes.Unavailable, "connection refused")
	}
	if in.served {
		return in.err
	}
	return in.refused()
}

// hangUp closes a connection, as a listener that refuses it.
func (s *server) hangUp(info credentials.AuthInfo) {
	switch info := info.(type) {
	case unsecured:
		info.conn.Close()
	case credentials.TLSInfo:
		if key := connKeyOf(&info.State); key != nil {
			if c, ok := s.conns.Load(key); ok {
				c.(net.Conn).Close()
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

// secureConn is a connection with TLS that the server knows.
type secureConn struct {
	net.Conn
	server *server
	key    **x509.Certificate
}

func (c *secureConn) Close() error {
	c.server.conns.Delete(c.key)
	return c.Conn.Close()
}

// pass has the inbound side look at the call. It reports whether it was cut off.
func (in *inbound) pass(handler http.Handler) (aborted bool) {
	defer func() {
		if in.served {
			return // a panic is the handler's own
		}
		if p := recover(); p == http.ErrAbortHandler {
			aborted = true
		} else if p != nil {
			panic(p)
		}
	}()
	handler.ServeHTTP(in, in.request)
	return false
}

// refused returns the error of a call that was answered in the place of its handler.
func (in *inbound) refused() error {
	trailer := make(metadata.MD)
	for name, values := range in.header {
		if strings.HasPrefix(name, "X-Envoy-") {
			trailer[strings.ToLower(name)] = values
		}
	}
	if len(trailer) > 0 {
		_ = grpc.SetTrailer(in.Context, trailer) // if that fails, the status still says it
	}
	if in.header.Get("Grpc-Status") != "" {
		return answered(&http.Response{Header: in.header, Body: http.NoBody})
	}
	code := grpcstatus.FromHTTP(in.status)
	switch {
	case in.header["X-Envoy-Overloaded"] != nil:
		return grpcstatus.Wrap(code, limit.ErrOverflow)
	case in.header["X-Envoy-Ratelimited"] != nil:
		return grpcstatus.Wrap(code, limit.ErrRateLimited)
	}
	return status.Error(code, http.StatusText(in.status))
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

// Write implements http.ResponseWriter. The text of a refusal is in its status.
func (in *inbound) Write(p []byte) (int, error) {
	in.WriteHeader(http.StatusOK)
	return len(p), nil
}

// serverCredentials take connections as the listener of the mesh has made them: with TLS whose handshake is done, or
// plaintext.
type serverCredentials struct{ server *server }

func (s serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, ok := raw.(*tls.Conn)
	if !ok {
		return raw, unsecured{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, raw}, nil
	}
	if err := secure.Handshake(); err != nil { // with another listener than the mesh's it may not be done
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
	c := &secureConn{Conn: secure, server: s.server, key: key}
	s.server.conns.Store(key, c)
	return c, tlsInfo(state), nil
}

var errClientALPN = errors.New(`the client does not speak HTTP/2: it has not offered "h2"`)

func (serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("meshgrpc: these are the credentials of a server")
}

func (serverCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "mesh"}
}

func (c serverCredentials) Clone() credentials.TransportCredentials { return c }

func (serverCredentials) OverrideServerName(string) error { return nil }

// unsecured is the absence of security, with the connection that has none.
type unsecured struct {
	credentials.CommonAuthInfo
	conn net.Conn
}

func (unsecured) AuthType() string { return "plaintext" }
