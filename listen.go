package mesh

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/netconn"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/tlsid"
)

// Listen returns a listener over inner whose connections have the TLS that PeerAuthentication demands for the port that
// inner listens on: STRICT takes mTLS only and resets plaintext, PERMISSIVE takes both on one port, DISABLE takes plaintext
// only; without a document it is PERMISSIVE. A change of the documents takes effect with the next connection, and closes
// connections that it forbids.
//
// The listener is for http.Server.Serve, with [Mesh.Handler] as the handler: the listener decides who may connect at all,
// the handler who may do what. Closing the listener closes inner, and leaves connections that were accepted open. Serve probes
// and metrics that must be reachable without a certificate on a listener of their own.
//
// HTTP/2 is spoken over TLS, so the http.Server must speak it: leave its TLSConfig, which has no effect here, and its
// TLSNextProto unset, and HTTP/2 on in its Protocols. A server without HTTP/2 closes connections over TLS at once, and callers see
// an unexpected EOF: set HTTP1Only in [WithServer].
//
// Apply wrappers such as netutil.LimitListener to inner, not to the listener that Listen returns: net/http would see no TLS,
// and would not speak HTTP/2.
//
// In a process without [Mesh.Handler], the listener returns no connections while requests to the workload need authorization
// ([policy.Inbound.Authorizes]), and those that it has returned are closed then. A listener cannot see which handler its server has. If
// there is a Handler, but what was answered over this listener came to none, nothing has authorized it: observers get a warning (in
// PolicyLoad), once. The first request that does come to a Handler proves that the server has one. Until then, connections of peers that
// the bundles no longer vouch for are closed; after that, Handler refuses their requests.
//
// Without [WithIdentity] every TLS connection is refused, and under STRICT every connection is. Refused connections are
// reported to the observers' ConnectionRefused.
func (m *Mesh) Listen(inner net.Listener) net.Listener {
	if inner == nil {
		panic("mesh: Listen: the listener is nil")
	}
	l := &listener{place: placeOf(inner.Addr()), mesh: m}
	m.server.unseen.Add(1)
	config := m.listenerConfig(inner, l)
	config.Withdrawn = l.withdrawn
	l.Listener = tlsid.NewListener(inner, config)
	m.server.watch(l)
	return l
}

// errNoHandler refuses connections to a server whose requests nothing would authorize.
var errNoHandler = errors.New("mesh: there are policies about who may call this workload, but nothing evaluates them: serve with Mesh.Handler, " +
	"meshgrpc.ServerOptions or, for other protocols, Mesh.ListenTCP")

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		why := l.withdrawn(c)
		if why == nil {
			if !l.seen.Load() {
				l.watchAnswers(c)
			}
			return c, nil
		}
		c.Close()
		l.mesh.observers.ConnectionRefused(l.Addr(), tlsid.Refusal{
			RemoteAddr: c.RemoteAddr(), Mode: l.mesh.engine.Plan().Inbound().Mode(portOf(l.Addr())), Err: why,
		})
	}
}

// withdrawn returns why a connection must not go on, and nil if it may. If the server has a Handler, that decides, about each request.
func (l *listener) withdrawn(c net.Conn) error {
	if l.seen.Load() {
		return nil
	}
	if !l.mesh.server.handled.Load() && l.mesh.engine.Plan().Inbound().Authorizes() {
		return errNoHandler
	}
	secure, ok := c.(*tls.Conn)
	if !ok || l.mesh.identity == nil {
		return nil
	}
	state := secure.ConnectionState()
	_, err := l.mesh.identity.Peer(&state, time.Now())
	return err
}

// listenerConfig is the configuration of l, a listener over inner. The mesh watches l until its last connection ends, since requests can come
// over it until then.
func (m *Mesh) listenerConfig(inner net.Listener, l watched) tlsid.ListenerConfig {
	port := portOf(inner.Addr())
	config := tlsid.ListenerConfig{
		Mode:             func() tlsid.Mode { return m.engine.Plan().Inbound().Mode(port) },
		HandshakeTimeout: m.server.HandshakeTimeout,
		MaxPending:       m.server.MaxPending,
		MaxPendingPerIP:  m.server.MaxPendingPerIP,
		Refused: func(r tlsid.Refusal) {
			if m.identity == nil && (errors.Is(r.Err, tlsid.ErrPlaintext) || errors.Is(r.Err, tlsid.ErrNoIdentity)) {
				r.Err = fmt.Errorf("%w: this process accepts no TLS without mesh.WithIdentity", r.Err)
			}
			m.observers.ConnectionRefused(inner.Addr(), r)
		},
		Drained: func() { m.server.forget(l) },
	}
	if m.identity != nil {
		config.TLS, config.Peer = m.identity.Server(), m.identity.Peer
		if m.server.HTTP1Only {
			config.TLS.NextProtos = slices.DeleteFunc(config.TLS.NextProtos, func(protocol string) bool { return protocol == "h2" })
		}
	}
	return config
}

// listener is what Listen returns.
type listener struct {
	*tlsid.Listener
	place
	mesh *Mesh
	seen atomic.Bool // a Handler has got a request that came over it
	told atomic.Bool // observers know that it has answers that no Handler has seen
}

// portOf returns the port of an address, whatever its type, and 0 if it has none.
func portOf(addr net.Addr) int {
	_, text, _ := net.SplitHostPort(addr.String())
	port, _ := strconv.Atoi(text)
	return port
}

// ListenTCP is [Mesh.Listen] for protocols other than HTTP: it also authorizes each connection ([policy.Inbound.Authorize]), and closes
// those that are denied. Rules that need HTTP (methods, paths, hosts, headers) allow no connection; in a DENY policy of Istio they match
// without these conditions. A change of the documents closes the connections that it denies.
//
// A server that speaks first, like MySQL's, needs STRICT or DISABLE: PERMISSIVE waits for the first byte.
func (m *Mesh) ListenTCP(inner net.Listener) net.Listener {
	if inner == nil {
		panic("mesh: ListenTCP: the listener is nil")
	}
	l := &tcpListener{place: placeOf(inner.Addr()), mesh: m, open: make(map[*netconn.Conn]authz.Request)}
	config := m.listenerConfig(inner, l)
	if config.TLS != nil {
		config.TLS.NextProtos = nil // they are for HTTP, and clients that offer others would be refused
	}
	l.Listener = tlsid.NewListener(inner, config)
	m.server.watch(l)
	return l
}

// tcpListener is what ListenTCP returns.
type tcpListener struct {
	*tlsid.Listener
	place
	mesh *Mesh

	mu   sync.Mutex
	open map[*netconn.Conn]authz.Request // with what each was admitted by
}

// Accept implements net.Listener.
func (l *tcpListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		start := time.Now()
		c := &netconn.Conn{Conn: nc}
		l.mu.Lock()
		l.open[c] = authz.Request{} // first, so that Recheck sees it from now on
		l.mu.Unlock()
		before := l.mesh.server.running.changes.Load()
		c.OnClose(func(error) { l.forget(c) })
		request := l.request(nc)
		l.mu.Lock()
		if _, still := l.open[c]; still {
			l.open[c] = request
		}
		l.mu.Unlock()
		err = l.judge(&request)
		if err == nil && l.mesh.server.running.changes.Load() != before {
			err = l.again(nc, &request) // Recheck may not have known yet who the peer was
		}
		if err != nil {
			c.Close()
			l.mesh.observers.ConnectionRefused(nc.LocalAddr(), tlsid.Refusal{
				RemoteAddr: nc.RemoteAddr(), Mode: l.mesh.engine.Plan().Inbound().Mode(portOf(nc.LocalAddr())), Err: err,
			})
			continue
		}
		if l.mesh.connsObserved {
			return l.mesh.observeAccepted(c, start, request.Principal), nil
		}
		return c, nil
	}
}

// request returns what policies see of a connection.
func (l *tcpListener) request(nc net.Conn) authz.Request {
	r := authz.Request{L4: true}
	if secure, ok := nc.(*tls.Conn); ok && l.mesh.identity != nil {
		state := secure.ConnectionState()
		r.SNI = state.ServerName
		if peer, err := l.mesh.identity.Peer(&state, time.Now()); err == nil {
			r.Principal = principal(peer)
		}
	}
	if remote, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		r.Source = remote.Addr().Unmap()
		r.Remote = r.Source
	}
	if local, err := netip.ParseAddrPort(nc.LocalAddr().String()); err == nil {
		r.Destination = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	}
	return r
}

var (
	errDenied = errors.New("denied by a policy")
	errNoPeer = errors.New(reasonNoPeer)
)

func (l *tcpListener) judge(r *authz.Request) error {
	decision := l.mesh.engine.Plan().Inbound().Authorize(r)
	if decision.Allowed {
		return nil
	}
	return fmt.Errorf("%w: %s", errDenied, decision.Reason)
}

// again decides again about a connection that was admitted as then. A peer that has no identity any more is denied.
func (l *tcpListener) again(nc net.Conn, then *authz.Request) error {
	now := l.request(nc)
	if then.Principal != "" && now.Principal == "" {
		return errNoPeer
	}
	return l.judge(&now)
}

// Recheck closes the connections that the current documents deny, and those whose peers the current bundles do not vouch
// for.
func (l *tcpListener) Recheck() {
	l.Listener.Recheck()
	l.mu.Lock()
	open := maps.Clone(l.open)
	l.mu.Unlock()
	for c, then := range open {
		if err := l.again(c.Conn, &then); err != nil {
			c.CloseFor(err)
		}
	}
}

// forget forgets a connection.
func (l *tcpListener) forget(c *netconn.Conn) {
	l.mu.Lock()
	delete(l.open, c)
	l.mu.Unlock()
}
