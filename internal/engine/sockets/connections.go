package sockets

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/transports"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Connections are the connections to one endpoint that were made with the same certificates. When these rotate, new Connections
// take their place: attempts in flight finish on the old ones, new attempts use the new ones. Connections are safe for concurrent
// use.
type Connections struct {
	// Kept is what an adapter keeps with the connections, to find it without a look-up. Its values are all of one type.
	Kept atomic.Value

	socket   *Socket
	attempts atomic.Int64 // in flight, unless the socket is Plaintext, with the bits below
	expires  atomic.Int64 // shortly before the first certificate expires, in Unix nanoseconds; 0 if there is none

	// The net/http connections are created by the first call: most of ten thousand endpoints may never get one.
	opening sync.Once
	conns   atomic.Pointer[limit.Conns]
	err     error // why there are none

	proven atomic.Pointer[string] // the SPIFFE ID that the endpoint proved last; nil if it has not

	mu      sync.Mutex
	onClose map[*func()]struct{}
	closed  bool
	wires   *wires // nil before the first one
}

const (
	retired = 1 << 61 // they take no new attempts
	ended   = 1 << 62 // nor have any left
)

// Address returns the dialled address, as "host:port".
func (c *Connections) Address() string {
	return c.socket.key.address
}

// TLS returns the configuration for the handshake with the endpoint, and nil without TLS. The configuration checks the
// identity of the endpoint, whatever server name it is used with. It must not be changed.
func (c *Connections) TLS() *tls.Config {
	return c.tls(c.expireBefore)
}

// tls returns a configuration that reports when the certificates of a handshake expire: the peer's, with what it was issued by, and
// ours if it is presented.
func (c *Connections) tls(expires func(notAfter time.Time)) *tls.Config {
	config := c.socket.config
	if config == nil {
		return nil
	}
	config = config.Clone()
	verify, present := config.VerifyConnection, config.GetClientCertificate
	config.VerifyConnection = func(state tls.ConnectionState) error {
		err, notAfter := verify(state), state.PeerCertificates[0].NotAfter
		if err == nil && c.socket.key.security.Kind == Mutual {
			var peer tlsid.Peer
			identity := c.socket.owner.from.Identity
			if peer, err = identity.Peer(&state, time.Now()); err == nil {
				c.remember(state.PeerCertificates)
				_, err = identity.Peer(&state, time.Now()) // the bundles may have changed before that
			}
			if err == nil {
				c.prove(peer.ID)
				notAfter = peer.NotAfter()
			}
		}
		if err != nil {
			// Nothing has been sent yet, and this error type says so.
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
		expires(notAfter)
		return nil
	}
	if present != nil {
		config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			own, err := present(asked)
			if err == nil {
				expires(own.Leaf.NotAfter)
			}
			return own, err
		}
	}
	return config
}

// prove records the identity of the endpoint, which was verified.
func (c *Connections) prove(id spiffeid.ID) {
	if name := id.String(); name != c.ProvenID() {
		c.proven.Store(&name)
	}
}

// ProvenID returns the SPIFFE ID that the endpoint has proved, "" if it has proved none.
func (c *Connections) ProvenID() string {
	if id := c.proven.Load(); id != nil {
		return *id
	}
	return ""
}

// ExpectedID returns the SPIFFE ID that the endpoint has to prove, as far as it is known.
func (c *Connections) ExpectedID() string {
	if id := c.ProvenID(); id != "" {
		return id
	}
	return c.socket.key.security.Only
}

// expireBefore has the connections replaced shortly before a certificate expires, so that the attempts in flight can finish: when
// it expires, the peer cuts them off.
func (c *Connections) expireBefore(notAfter time.Time) {
	at := notAfter.Add(-min(time.Until(notAfter)/4, time.Minute)).UnixNano()
	for {
		old := c.expires.Load()
		if old != 0 && old <= at || c.expires.CompareAndSwap(old, at) {
			return
		}
	}
}

// OnClose calls f when the connections take no new attempts and the last one has ended, so that whatever was built on them can be
// closed. If that is already the case, it calls f at once. forget unregisters f.
func (c *Connections) OnClose(f func()) (forget func()) {
	key := &f
	c.mu.Lock()
	closed := c.closed
	if !closed {
		if c.onClose == nil {
			c.onClose = make(map[*func()]struct{})
		}
		c.onClose[key] = struct{}{}
	}
	c.mu.Unlock()
	if closed {
		f()
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.onClose, key)
	}
}

// enter counts an attempt in. It returns false if no more are taken.
func (c *Connections) enter() bool {
	if c.attempts.Add(1)&retired != 0 {
		c.Leave()
		return false
	}
	return true
}

// Leave counts an attempt out. The last one closes retired connections.
func (c *Connections) Leave() {
	if c.socket.key.security.Kind != Plaintext {
		c.leave()
	}
}

func (c *Connections) leave() {
	if c.attempts.Add(-1) == retired {
		c.close()
	}
}

func (c *Connections) retire() {
	c.closeIdle()
	if c.attempts.Or(retired) == 0 {
		c.close()
	}
}

// close closes retired connections without attempts, once.
func (c *Connections) close() {
	if !c.attempts.CompareAndSwap(retired, retired|ended) {
		return
	}
	c.mu.Lock()
	c.closed = true
	told := c.onClose
	c.onClose = nil
	c.mu.Unlock()
	c.socket.owner.from.mutual.remove(c)
	if conns := c.conns.Load(); conns != nil {
		conns.Close()
	}
	for f := range told {
		(*f)()
	}
}

func (c *Connections) closeIdle() {
	if conns := c.conns.Load(); conns != nil {
		conns.CloseIdleConnections()
	}
}

// open returns the net/http connections, which the first call creates.
func (c *Connections) open() (*limit.Conns, error) {
	c.opening.Do(func() {
		t := c.dialling()
		if config := c.TLS(); config != nil {
			config.NextProtos = markers(config.NextProtos) // net/http offers what the template speaks: maybe only HTTP/1.1
			t.TLSClientConfig = config
		}
		conns, err := c.socket.owner.Pool.Conns(t)
		if c.err = err; err == nil {
			c.conns.Store(conns)
			c.register()
		}
	})
	return c.conns.Load(), c.err
}

// RoundTrip sends a request with net/http. If own is set, it may change the request, but not what that points to.
func (c *Connections) RoundTrip(req *http.Request, own bool) (*http.Response, error) {
	conns := c.conns.Load()
	if conns == nil {
		if replaced := c.socket.owner.from.replaced; replaced != nil {
			return replaced.RoundTrip(req)
		}
		var err error
		if conns, err = c.open(); err != nil {
			body.CloseRequest(req)
			return nil, err
		}
	}
	if c.socket.config != nil && req.URL.Scheme == "http" {
		req = overTLS(req, own)
	}
	return conns.RoundTrip(req)
}

// Dial makes a connection without TLS, under the limits of the destination: connectTimeout, tcpKeepalive, maxConnections. The error
// of a failed connection is a *net.OpError with Op "dial"; [limit.ErrOverflow] says that there was no room. With first there is
// always room: it is for the first connection of a caller that cannot share those of others.
func (c *Connections) Dial(ctx context.Context, first bool) (net.Conn, error) {
	conns, err := c.open()
	if err != nil {
		return nil, err
	}
	if first {
		return conns.DialFirst(ctx)
	}
	return conns.Dial(ctx)
}

// Connect makes a connection for protocols other than HTTP. It returns when the first of its certificates expires: zero
// without certificates.
func (c *Connections) Connect(ctx context.Context) (_ net.Conn, expires time.Time, _ error) {
	conns, err := c.open()
	if err != nil {
		return nil, time.Time{}, err
	}
	conn, err := conns.Dial(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	config := c.tls(func(notAfter time.Time) {
		if expires.IsZero() || notAfter.Before(expires) {
			expires = notAfter
		}
	})
	if config == nil {
		return conn, time.Time{}, nil
	}
	config.NextProtos = markers(config.NextProtos) // without the protocols of HTTP
	secure := tls.Client(conn, config)
	ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout())
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, time.Time{}, fmt.Errorf("TLS handshake with %s: %w", c.Address(), err)
	}
	return secure, expires, nil
}

// Signals returns those of the destination, for the contexts of calls.
func (c *Connections) Signals() *deadline.Signals { return &c.socket.owner.Signals }

// Secured reports whether this process adds TLS.
func (c *Connections) Secured() bool { return c.socket.config != nil }

// ConnectTimeout returns how long a connection may take.
func (c *Connections) ConnectTimeout() time.Duration { return c.socket.owner.ConnectTimeout() }

// Limits returns the limits of the destination's connections.
func (c *Connections) Limits() limit.PoolConfig {
	return c.socket.owner.Limits
}

// overTLS returns a request that net/http sends over TLS: a copy, unless req may be changed.
func overTLS(req *http.Request, own bool) *http.Request {
	if own {
		over := *req.URL
		over.Scheme = "https"
		req.URL = &over
		return req
	}
	copied := &struct { // in one allocation, since it is made for each try
		req http.Request
		url url.URL
	}{*req, *req.URL}
	copied.url.Scheme = "https"
	copied.req.URL = &copied.url
	return &copied.req
}

// dialling returns a copy of the template that dials the endpoint, whatever the URL says. So the Host header and the TLS server name remain
// those of the service.
func (c *Connections) dialling() *http.Transport {
	t := transports.Clone(c.socket.owner.template)
	dial := transports.Dial(t)
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := dial(ctx, network, c.Address())
		if err != nil || !c.Secured() {
			return conn, err
		}
		return c.wired(conn), nil
	}
	return t
}

// register adds c to those whose connections are checked again when the bundles change.
func (c *Connections) register() {
	c.mu.Lock() // close takes it before it removes c
	defer c.mu.Unlock()
	if c.socket.key.security.Kind == Mutual && !c.closed {
		c.socket.owner.from.mutual.add(c)
	}
}

// markers returns the protocols that only mark a client, like Istio's: those that are not versions of HTTP.
func markers(protocols []string) []string {
	return slices.DeleteFunc(slices.Clone(protocols), func(p string) bool { return p == "h2" || p == "http/1.1" })
}
