package meshgrpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/internal/admission"
)

// serverCredentials accepts the connections of the listener of the mesh, which are plaintext or have completed the TLS handshake.
type serverCredentials struct {
	side
	server *server
}

func (s serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, ok := raw.(*tls.Conn)
	if !ok {
		return raw, unsecured{
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity},
			conn:           raw, origin: s.server.originAt(raw, nil),
		}, nil
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
	c := &secureConn{Conn: secure, server: s.server, key: key, origin: s.server.originAt(secure, &state)}
	s.server.conns.Store(key, c)
	return c, tlsInfo(state), nil
}

func textOf(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	return addr.String()
}

var errClientALPN = errors.New(`the client does not speak HTTP/2: it did not offer "h2"`)

func (c serverCredentials) Clone() credentials.TransportCredentials { return c }

// unsecured is the AuthInfo of a plaintext connection.
type unsecured struct {
	credentials.CommonAuthInfo
	origin
	conn net.Conn
}

func (unsecured) AuthType() string { return "plaintext" }

func connKeyOf(state *tls.ConnectionState) **x509.Certificate {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	return &state.PeerCertificates[0]
}

// connOf returns the connection with a TLS state, nil if it is not known.
func (s *server) connOf(state *tls.ConnectionState) *secureConn {
	if key := connKeyOf(state); key != nil {
		if c, ok := s.conns.Load(key); ok {
			return c.(*secureConn)
		}
	}
	return nil
}

// origin is where calls come from.
type origin struct {
	address string               // of the peer
	state   *tls.ConnectionState // nil for plaintext
	kept    admission.Origin     // nil if nothing is known of the connection
}

// originAt returns the origin of the calls over conn.
func (s *server) originAt(conn net.Conn, state *tls.ConnectionState) origin {
	ctx := context.WithValue(context.Background(), http.LocalAddrContextKey, conn.LocalAddr())
	r := (&http.Request{RemoteAddr: textOf(conn.RemoteAddr()), TLS: state}).WithContext(ctx)
	return origin{r.RemoteAddr, state, s.gate.Origin(r)}
}

// originOf returns the origin of a call, which the connection knows.
func (s *server) originOf(from *peer.Peer) origin {
	var o origin
	switch info := from.AuthInfo.(type) {
	case unsecured:
		return info.origin
	case credentials.TLSInfo:
		if c := s.connOf(&info.State); c != nil {
			return c.origin
		}
		state := info.State // a copy of info itself would be made for each call
		o.state = &state
	}
	o.address = textOf(from.Addr)
	return o
}

// secureConn is a TLS connection of the server, which hangUp can find by its key.
type secureConn struct {
	*tls.Conn
	origin
	server *server
	key    **x509.Certificate
}

// Write implements net.Conn. If gRPC cannot write its first frame, it closes only the connection below this one, so Close is not called.
// A TLS connection cannot be written to after an error.
func (c *secureConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.server.conns.Delete(c.key)
	}
	return n, err
}

func (c *secureConn) Close() error {
	c.server.conns.Delete(c.key)
	return c.Conn.Close()
}
