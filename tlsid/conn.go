package tlsid

import (
	"container/list"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/internal/netconn"
)

// conn is a connection: a plaintext one as Accept returns it, or the one below a *tls.Conn.
type conn struct {
	net.Conn
	listener *Listener
	local    net.Addr // a value that no other connection has
	ip       netip.Addr

	first  [1]byte     // the byte that was read to find out what the client speaks
	unread atomic.Bool // first has not yet been read by the server or by TLS

	// Written before the connection is live.
	tls     *tls.Conn         // nil: plaintext
	own     *x509.Certificate // our leaf; nil: not known
	expires time.Time         // when the first of what proved the two ends expires; zero: never

	retiring atomic.Bool // retire was called
	onWrite  atomic.Pointer[func([]byte) bool]

	// Under listener.mu.
	waits   *list.Element // in listener.silent or listener.talking; nil: in neither
	talking bool          // in listener.talking
	evicted bool          // another connection took its place among the pending ones
	offered bool          // to Accept
	timer   *time.Timer   // for retire; nil: none, or closed
}

// localAddr is an address of a type that may have equal values.
type localAddr struct{ net.Addr }

// uniqueAddr returns a copy of an address that differs from every other one by ==.
func uniqueAddr(addr net.Addr) net.Addr {
	switch addr := addr.(type) {
	case nil:
		return new(net.UnixAddr)
	case *net.TCPAddr:
		own := *addr
		return &own
	case *net.UnixAddr:
		own := *addr
		return &own
	}
	return &localAddr{addr}
}

// address sets the address by which the connection is known, and returns the network of its peer.
func (c *conn) address() netip.Addr {
	c.local = uniqueAddr(c.Conn.LocalAddr())
	return networkOf(c.Conn.RemoteAddr())
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// outer returns the connection as Accept does.
func (c *conn) outer() net.Conn {
	if c.tls != nil {
		return c.tls
	}
	return c
}

// date notes when the certificates of the connection expire, and returns an error if one has.
func (c *conn) date(now time.Time) error {
	if c.own != nil {
		c.expires = c.own.NotAfter
		if now.After(c.expires) {
			id, _ := x509svid.IDFromCert(c.own)
			return &ExpiredError{ID: id, NotAfter: c.expires}
		}
	}
	state := c.tls.ConnectionState()
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	peer := state.PeerCertificates[0]
	if now.After(peer.NotAfter) {
		id, _ := x509svid.IDFromCert(peer)
		return &PeerError{ID: id, Err: &ExpiredError{ID: id, NotAfter: peer.NotAfter}}
	}
	until := peer.NotAfter
	if verify := c.listener.config.Peer; verify != nil {
		if p, err := verify(&state, now); err == nil {
			until = p.NotAfter()
		}
	}
	if c.own == nil || until.Before(c.expires) {
		c.expires = until
	}
	return nil
}

// retire is called by the timer, first to announce the end of the connection, then to close it.
func (c *conn) retire() {
	l := c.listener
	l.mu.Lock()
	if c.timer == nil {
		l.mu.Unlock()
		return
	}
	if !c.retiring.Load() {
		c.retiring.Store(true)
		l.retiring.Add(1)
		c.timer.Reset(time.Until(c.expires))
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	c.reset()
	c.Close() // without TLS's close_notify: what was sent may be a part, and the peer need not read
}

// Close closes the connection.
func (c *conn) Close() error {
	l := c.listener
	l.mu.Lock()
	delete(l.live, c)
	l.byLocal.Delete(c.local)
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
		if c.retiring.Load() {
			l.retiring.Add(-1)
		}
	}
	l.mu.Unlock()
	err := c.Conn.Close()
	l.drain()
	return err
}

// reset makes Close send a TCP reset, if the connection is TCP.
func (c *conn) reset() {
	_ = c.SetLinger(0)
}

// takeFirst copies the byte that was read to find out what the client speaks, the first time.
func (c *conn) takeFirst(b []byte) int {
	if len(b) == 0 || !c.unread.Load() || !c.unread.CompareAndSwap(true, false) {
		return 0
	}
	return copy(b, c.first[:])
}

// Read reads the bytes of the client, the first one included.
func (c *conn) Read(b []byte) (int, error) {
	if n := c.takeFirst(b); n > 0 {
		return n, nil
	}
	return c.Conn.Read(b)
}

// OnWrite has f called with what each Write is about to write, until it returns false. Of a TLS connection that is encrypted.
func (c *conn) OnWrite(f func([]byte) bool) { c.onWrite.Store(&f) }

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	if f := c.onWrite.Load(); f != nil && !(*f)(b) {
		c.onWrite.Store(nil)
	}
	return c.Conn.Write(b)
}

// WriteTo and ReadFrom keep what the connection below does better than a loop of Read and Write, such as splice(2) and
// sendfile(2).

// WriteTo implements io.WriterTo.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	var first [1]byte
	if n := c.takeFirst(first[:]); n > 0 {
		if n, err := w.Write(first[:]); err != nil {
			return int64(n), err
		}
		n, err := io.Copy(w, c.Conn)
		return 1 + n, err
	}
	return io.Copy(w, c.Conn)
}

// ReadFrom implements io.ReaderFrom.
func (c *conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite shuts down the writing side, if the connection below can.
func (c *conn) CloseWrite() error { return netconn.CloseWrite(c.Conn) }

// SetLinger sets what Close does with unsent data, like SetLinger of [net.TCPConn], if the connection below can.
func (c *conn) SetLinger(sec int) error {
	if tcp, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return errors.ErrUnsupported
}

// SyscallConn implements syscall.Conn, if the connection below does.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
