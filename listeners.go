package mesh

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// watched is a listener of the mesh. Its connections are checked again when documents change, and Handler learns shortly before
// one is closed because a certificate expires.
type watched interface {
	Recheck()
	Retiring(*http.Request) bool
	Conn(*http.Request) net.Conn
	from(local net.Addr) bool
}

// watch adds a listener to those that are watched, and forget removes it.
func (s *server) watch(l watched) {
	s.change(func(list []watched) []watched { return append(list, l) })
}

func (s *server) forget(l watched) {
	if l, ok := l.(*listener); ok {
		l.saw() // or rather, will never see
	}
	s.change(func(list []watched) []watched {
		return slices.DeleteFunc(list, func(other watched) bool { return other == l })
	})
}

func (s *server) change(f func([]watched) []watched) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := f(slices.Clone(s.watched()))
	s.listeners.Store(&list)
}

func (s *server) watched() []watched {
	if list := s.listeners.Load(); list != nil {
		return *list
	}
	return nil
}

// recheck decides again about what was admitted: first requests in flight, which is quick, then connections.
func (s *server) recheck() {
	s.running.recheck()
	for _, l := range s.watched() {
		l.Recheck()
	}
}

// errUnknownConnection is for a request to a port of ours whose connection a wrapper hides.
var errUnknownConnection = errors.New("mesh: the connection of the request cannot be identified: wrap the listener inside Listen, not its result")

// over returns the listener of ours that r came over, and its connection. The connection is nil if a wrapper hides it, and both are nil if r
// came over no listener of ours.
func (s *server) over(r *http.Request) (watched, net.Conn) {
	list := s.watched()
	for _, l := range list {
		if conn := l.Conn(r); conn != nil {
			return l, conn
		}
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	for _, l := range list {
		if local != nil && l.from(local) {
			return l, nil
		}
	}
	return nil, nil
}

// hiddenTLS returns the state of a TLS connection that net/http takes for plaintext because a wrapper around the listener
// hides it. It returns an error if r came to a port of ours and its connection cannot be identified. elsewhere reports whether r came over
// no listener of ours.
func (s *server) hiddenTLS(r *http.Request) (state *tls.ConnectionState, elsewhere bool, err error) {
	l, conn := s.over(r)
	switch conn := conn.(type) {
	case nil:
		if l != nil {
			return nil, false, errUnknownConnection
		}
		return nil, true, nil
	case *tls.Conn:
		state := conn.ConnectionState()
		return &state, false, nil
	}
	return nil, false, nil
}

// see notes that a Handler has got r, for the listener that it came over.
func (s *server) see(r *http.Request) {
	if l, _ := s.over(r); l != nil {
		if l, ok := l.(*listener); ok {
			l.saw()
		}
	}
}

// saw notes that the server behind the listener has a Handler.
func (l *listener) saw() {
	if l.seen.CompareAndSwap(false, true) {
		l.mesh.server.unseen.Add(-1)
	}
}

// watchAnswers warns of the first answer that is written to a connection while no Handler has seen a request over the listener.
func (l *listener) watchAnswers(c net.Conn) {
	http1, hello := false, int64(longestHello)
	if secure, ok := c.(*tls.Conn); ok {
		http1, hello = secure.ConnectionState().NegotiatedProtocol != "h2", longestSealedHello
		c = secure.NetConn()
	}
	var sent atomic.Int64
	c.(interface{ OnWrite(func([]byte) bool) }).OnWrite(func(b []byte) (more bool) {
		switch {
		case l.seen.Load() || l.told.Load():
			return false
		case bytes.HasPrefix(b, []byte("HTTP/1.")):
			if len(b) < 10 || b[9] >= '4' { // as net/http answers by itself
				return true
			}
		case http1: // encrypted
			if len(b) <= longestAlert {
				return true
			}
		case sent.Add(int64(len(b))) <= hello:
			return true
		}
		if l.mesh.engine.Plan().Inbound().Authorizes() && l.told.CompareAndSwap(false, true) {
			l.mesh.warn("what is answered at " + l.Addr().String() + " comes to no Mesh.Handler, so that nothing has authorized it. Put " +
				"Mesh.Handler around the whole server there, or serve it over another listener than those of Mesh.Listen")
		}
		return true
	})
}

// What a server writes before its first answer, or without one, in bytes: an alert of TLS, and the settings of HTTP/2 and a ping, in plaintext
// and over TLS. net/http's first answer over HTTP/2, with a body of five bytes, has 70.
const (
	longestAlert       = 64
	longestHello       = 128
	longestSealedHello = 192
)

// errElsewhere and errUncertain are why requests are cut off that no listener of ours has refused.
var (
	errElsewhere = fmt.Errorf("%w: the request came over another listener than those of Mesh.Listen", tlsid.ErrPlaintext)
	errUncertain = fmt.Errorf("%w, and the port is STRICT: serve over a listener of Mesh.Listen", tlsid.ErrNoPeer)
)

// cutOff ends a request to a STRICT port from a peer without an identity, without an answer, as if its connection had been refused. It
// panics.
func (m *Mesh) cutOff(r *http.Request, in *inbound) {
	refusal := tlsid.Refusal{Mode: tlsid.Strict, Err: errUncertain, RemoteAddr: &net.UnixAddr{Name: r.RemoteAddr, Net: "unix"}}
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		refusal.RemoteAddr = net.TCPAddrFromAddrPort(remote)
	}
	if in.state == nil {
		refusal.Err = errElsewhere
		if m.server.connOf(r) != nil { // it came before its connection was closed
			refusal.Err = tlsid.ErrPlaintext
		}
	}
	m.observers.ConnectionRefused(net.TCPAddrFromAddrPort(in.view.Destination), refusal)
	panic(http.ErrAbortHandler)
}

// connOf returns the connection of r, if it came over a listener of ours.
func (s *server) connOf(r *http.Request) net.Conn {
	_, conn := s.over(r)
	return conn
}

// place is where a listener listens.
type place struct {
	port int
	text string
}

func placeOf(addr net.Addr) place { return place{portOf(addr), addr.String()} }

// from reports whether a connection with a local address may have come to the listener.
func (p *place) from(local net.Addr) bool {
	if tcp, ok := local.(*net.TCPAddr); ok && p.port != 0 {
		return tcp.Port == p.port
	}
	return local.String() == p.text
}

// retires reports whether the connection of r will be closed soon because a certificate expires.
func (s *server) retires(r *http.Request) bool {
	return slices.ContainsFunc(s.watched(), func(l watched) bool { return l.Retiring(r) })
}

// warnElsewhere tells the observers, once for each port, that a request came over a connection that the mesh knows nothing about, although
// policies may name its peer: whoever serves TLS behind a wrapper, and not over Mesh.Listen, may not expect that its peers count as peers
// without an identity.
func (m *Mesh) warnElsewhere(in *inbound) {
	if m.identity == nil || !in.rules.Authorizes() || !m.server.firstAt(in.view.Destination.Port()) {
		return
	}
	m.warn("a request came to " + in.view.Destination.String() + " over another listener than those of Mesh.Listen, and not over TLS that " +
		"net/http knows of: no policy that names a peer applies to it. Serve over Mesh.Listen, or at least hide no *tls.Conn in a wrapper")
}

// mostTold is of how many ports there is a warning. Whoever has seen so many needs no more.
const mostTold = 32

// firstAt reports, once, that nothing was told of a port.
func (s *server) firstAt(port uint16) bool {
	if told := s.told.Load(); told != nil && (len(*told) >= mostTold || slices.Contains(*told, port)) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var told []uint16
	if before := s.told.Load(); before != nil {
		told = slices.Clone(*before)
	}
	if slices.Contains(told, port) {
		return false
	}
	told = append(told, port)
	s.told.Store(&told)
	return true
}

// warn tells the observers what whoever set up the server may not expect.
func (m *Mesh) warn(message string) {
	m.observers.PolicyLoad(PolicyLoad{remark: true, Findings: policy.Findings{{Severity: policy.Warning, Message: message}}})
}
