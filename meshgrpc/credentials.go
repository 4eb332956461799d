package meshgrpc

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
)

type connKey struct{}

// connOf returns the connection that gRPC is making with ctx.
func connOf(ctx context.Context) *conn {
	c, _ := credentials.ClientHandshakeInfoFromContext(ctx).Attributes.Value(connKey{}).(*conn)
	return c
}

// dial is the dialer for gRPC. It dials an endpoint as the mesh does.
func dial(ctx context.Context, address string) (net.Conn, error) {
	c := connOf(ctx)
	if c == nil {
		return nil, errBalancer // only another load balancer makes connections without a conn
	}
	c.dialled = true
	by := time.Now().Add(c.group.link.ConnectTimeout())
	nc, err := c.group.link.Dial(ctx, c.only) // gRPC cannot share connections between ClientConns
	if err != nil {
		c.fail(err)
		return nil, err
	}
	_ = nc.SetDeadline(by) // until settingsReader has seen the first frame
	limitUnacknowledged(nc, pingTimeout)
	return nc, nil
}

// side has what the credentials of clients and of servers share. Each can do the handshake of its own side only.
type side struct{}

var errOtherSide = errors.New("meshgrpc: these are the credentials of the other side")

func (side) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errOtherSide
}

func (side) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errOtherSide
}

func (side) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "mesh"}
}

func (side) OverrideServerName(string) error {
	return errors.New("meshgrpc: the server name is the mesh's")
}

// clientCredentials secures each connection as the mesh specifies: with mTLS, with TLS, or not at all.
type clientCredentials struct{ side }

var errALPN = errors.New(`the server does not speak HTTP/2: it did not choose "h2"`)

func (clientCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (
	net.Conn, credentials.AuthInfo, error) {
	c := connOf(ctx)
	if c == nil {
		return nil, nil, errBalancer
	}
	if !c.dialled {
		return nil, nil, errDialer
	}
	config := c.group.link.TLS()
	if config == nil {
		c.secured.Store(true)
		return &settingsReader{Conn: raw, conn: c}, plaintext{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
	}
	config = config.Clone()
	config.NextProtos = slices.DeleteFunc(slices.Clone(config.NextProtos), func(p string) bool { return p == "http/1.1" })
	if config.ServerName == "" {
		config.ServerName = hostOf(authority)
	}
	secure := tls.Client(raw, config)
	err := secure.HandshakeContext(ctx)
	if err == nil && secure.ConnectionState().NegotiatedProtocol != "h2" {
		err = errALPN
	}
	if err != nil {
		err = &net.OpError{Op: "dial", Net: "tcp", Addr: raw.RemoteAddr(), Err: fmt.Errorf("TLS handshake: %w", err)}
		c.fail(err)
		return nil, nil, err
	}
	c.secured.Store(true)
	return &settingsReader{Conn: secure, conn: c}, verified{tlsInfo(secure.ConnectionState())}, nil
}

func hostOf(authority string) string {
	if host, _, err := net.SplitHostPort(authority); err == nil {
		return host
	}
	return authority
}

func (c clientCredentials) Clone() credentials.TransportCredentials { return c }

// verified is the security of a TLS connection of a client. The mesh has verified the identity of the peer, so the authority of a
// call, which documents may rewrite, need not match it.
type verified struct{ credentials.TLSInfo }

func (verified) ValidateAuthority(string) error { return nil }

// plaintext is the AuthInfo of a plaintext connection.
type plaintext struct{ credentials.CommonAuthInfo }

func (plaintext) AuthType() string               { return "plaintext" }
func (plaintext) ValidateAuthority(string) error { return nil }

// tlsInfo returns gRPC's description of a TLS connection.
func tlsInfo(state tls.ConnectionState) credentials.TLSInfo {
	info := credentials.TLSInfo{
		State:          state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	if len(state.PeerCertificates) > 0 {
		for _, uri := range state.PeerCertificates[0].URIs {
			if uri.Scheme == "spiffe" {
				info.SPIFFEID = uri
			}
		}
	}
	return info
}

// settingsReader learns from the first frame of a server how many concurrent streams it allows, which gRPC does not expose. The
// first frame is a SETTINGS frame (RFC 9113, section 3.4): gRPC closes the connection after any other. It considers the connection ready once it
// has read that frame, so from then on the connection has no deadline.
type settingsReader struct {
	net.Conn
	conn *conn
	seen []byte
	done bool
}

func (r *settingsReader) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	if r.done {
		return n, err
	}
	if r.look(p[:n]); r.done {
		_ = r.Conn.SetDeadline(time.Time{})
	} else if err != nil && !errors.Is(err, net.ErrClosed) { // gRPC has closed it, and knows why
		r.conn.fail(&net.OpError{Op: "dial", Net: "tcp", Addr: r.RemoteAddr(), Err: fmt.Errorf("no HTTP/2 preface: %w", err)})
	}
	return n, err
}

func (r *settingsReader) look(p []byte) {
	const (
		header  = 9
		setting = 6
		streams = 0x3 // SETTINGS_MAX_CONCURRENT_STREAMS
		enough  = header + 64*setting
	)
	r.seen = append(r.seen, p[:min(len(p), enough-len(r.seen))]...)
	if len(r.seen) < header {
		return
	}
	size := int(r.seen[0])<<16 | int(r.seen[1])<<8 | int(r.seen[2])
	if len(r.seen) < header+size && len(r.seen) < enough {
		return
	}
	for s := r.seen[header:min(header+size, len(r.seen))]; len(s) >= setting; s = s[setting:] {
		if binary.BigEndian.Uint16(s) == streams {
			r.conn.streams.Store(int64(max(1, binary.BigEndian.Uint32(s[2:]))))
		}
	}
	r.done, r.seen = true, nil
}
