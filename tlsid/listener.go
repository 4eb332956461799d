package tlsid

import (
	"cmp"
	"container/list"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Listener is a net.Listener that gives each connection the TLS that the mode of its port demands:
//
//   - Strict: TLS only. Plaintext is reset, with no answer.
//   - Permissive: TLS or plaintext, told apart by the first byte: 0x16 begins a TLS handshake record (RFC 8446, section
//     5.1), and no request of HTTP/1 or HTTP/2. Connections on which the client waits for the server to speak first are
//     closed at the timeout.
//   - Disable: plaintext only. The bytes are not looked at, not even waited for: a server that speaks TLS on its own, or
//     speaks first, works.
//
// A TLS connection is returned by Accept as a bare *tls.Conn with its handshake done, so that net/http sets Request.TLS and
// speaks HTTP/2. A wrapper around the Listener, such as netutil.LimitListener, takes that away: wrap the inner listener.
// Handshakes run concurrently with Accept, so a slow one does not delay the others. Neither does a connection of an inner listener for the
// PROXY protocol whose peer is slow to say where it comes from.
//
// A TLS connection lives at most as long as the two leaf certificates it was made with, and what [ListenerConfig].Peer says: at the first
// expiry it is reset, without the close_notify of TLS, since what was sent over it may be a part.
// Shortly before, from the last tenth or twentieth of its life (drawn at random, so that not all clients reconnect at
// once; one minute at most), it is Retiring.
//
// A Listener is safe for concurrent use. NewListener makes one; the zero value is of no use.
type Listener struct {
	inner  net.Listener
	config ListenerConfig

	start    sync.Once
	shutdown sync.Once
	closeErr error          // of shutdown
	ready    chan net.Conn  // accepted, waiting for Accept
	closed   chan struct{}  // closed by Close
	failed   chan struct{}  // closed when the inner listener failed for good, with failure
	failure  error          // why failed is closed
	running  sync.WaitGroup // the accepting goroutine and those of pending connections
	drained  sync.Once      // see ListenerConfig.Drained

	byLocal  sync.Map     // net.Addr, as LocalAddr returns it, to *conn: those in live
	retiring atomic.Int64 // how many of live are about to expire

	mu      sync.Mutex
	down    bool               // Close was called: nothing may be added to pending
	over    bool               // Close is over: nothing is added to live any more
	pending map[*conn]struct{} // being sniffed or in the handshake
	perIP   map[netip.Addr]int // how many of pending by network
	silent  list.List          // of pending, those that have sent nothing yet, the oldest first
	talking list.List          // of pending, those that have, until they are offered to Accept
	live    map[*conn]struct{} // accepted and not closed
}

var _ net.Listener = (*Listener)(nil)

// NewListener returns a Listener over inner. It accepts from inner from the first call of Accept on. The caller closes it;
// that closes inner.
func NewListener(inner net.Listener, config ListenerConfig) *Listener {
	if config.Mode == nil {
		config.Mode = func() Mode { return Strict }
	}
	config.HandshakeTimeout = cmp.Or(config.HandshakeTimeout, defaultHandshakeTimeout)
	config.MaxPending = cmp.Or(config.MaxPending, defaultMaxPending)
	config.MaxPendingPerIP = cmp.Or(config.MaxPendingPerIP, defaultMaxPendingPerIP)
	config.TLS = noting(config.TLS)
	backlog := config.MaxPending
	if backlog < 0 {
		backlog = defaultMaxPending
	}
	return &Listener{
		inner: inner, config: config,
		ready: make(chan net.Conn, backlog), closed: make(chan struct{}), failed: make(chan struct{}),
		pending: make(map[*conn]struct{}), perIP: make(map[netip.Addr]int), live: make(map[*conn]struct{}),
	}
}

// Addr returns the address of the inner listener.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Accept returns the next connection that may be served. After Close its error is net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	if d := l.config.HandshakeTimeout; d < 0 {
		return nil, fmt.Errorf("tlsid: ListenerConfig.HandshakeTimeout is %v, want 0 or more", d)
	}
	l.start.Do(l.begin)
	select {
	case <-l.closed:
		return nil, l.errClosed()
	default:
	}
	select {
	case c := <-l.ready:
		return c, nil
	default:
	}
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.closed:
		return nil, l.errClosed()
	case <-l.failed:
		return nil, l.failure
	}
}

func (l *Listener) errClosed() error {
	addr := l.inner.Addr()
	return &net.OpError{Op: "accept", Net: addr.Network(), Addr: addr, Err: net.ErrClosed}
}

// Close closes the inner listener and the connections that Accept did not return, and waits for them. Connections that
// Accept returned stay open, and are still closed when their certificates expire.
func (l *Listener) Close() error {
	l.shutdown.Do(func() {
		l.mu.Lock()
		l.down = true
		pending := make([]*conn, 0, len(l.pending))
		for c := range l.pending {
			if !c.offered { // that one Accept may have returned
				pending = append(pending, c)
			}
		}
		l.mu.Unlock()
		close(l.closed)
		l.closeErr = l.inner.Close()
		for _, c := range pending {
			c.Conn.Close()
		}
		l.running.Wait()
		for unserved := true; unserved; {
			select {
			case c := <-l.ready:
				c.Close()
			default:
				unserved = false
			}
		}
		l.mu.Lock()
		l.over = true
		l.mu.Unlock()
		l.drain()
	})
	return l.closeErr
}

// drain calls Drained if nothing can come over the listener any more.
func (l *Listener) drain() {
	l.mu.Lock()
	drained := l.over && len(l.live) == 0
	l.mu.Unlock()
	if drained && l.config.Drained != nil {
		l.drained.Do(l.config.Drained)
	}
}

// Recheck asks for the mode again and resets the connections it forbids, with what they carry: plaintext ones if it is
// Strict, TLS ones if it is Disable. It also closes those that ListenerConfig.Withdrawn names. Call it after either changed: a
// connection that is just being accepted is either seen by Recheck, or sees the new mode itself.
func (l *Listener) Recheck() {
	mode, withdrawn := l.config.Mode(), l.config.Withdrawn
	if mode == Permissive && withdrawn == nil {
		return
	}
	l.mu.Lock()
	live := slices.Collect(maps.Keys(l.live))
	l.mu.Unlock()
	for _, c := range live {
		if forbids(mode, c.tls != nil) != nil || withdrawn != nil && withdrawn(c.outer()) != nil {
			c.reset()
			c.Close() // without TLS's close_notify, which would wait for a peer that does not read
		}
	}
}

// Retiring reports whether the connection that an inbound request came over will soon be closed because a certificate it was
// made with expires. A handler that then sets the response header "Connection: close" makes the client move to a new
// connection without losing a request: net/http ends an HTTP/1 connection after the response, and an HTTP/2 connection with
// GOAWAY.
func (l *Listener) Retiring(r *http.Request) bool {
	if l.retiring.Load() == 0 {
		return false
	}
	c := l.find(r)
	return c != nil && c.retiring.Load()
}

// Conn returns the connection that a request came over: a *tls.Conn, or a plaintext one. It is nil for a request that did
// not come over an open connection of l. Request.TLS says the same, unless a wrapper around l hides from net/http that a
// connection is a *tls.Conn. The connection is net/http's: read from it, write to it or close it only to end it.
func (l *Listener) Conn(r *http.Request) net.Conn {
	if c := l.find(r); c != nil {
		return c.outer()
	}
	return nil
}

// find returns the connection of a request. Each has its own address value, which net/http reports and wrappers pass on.
func (l *Listener) find(r *http.Request) *conn {
	local := r.Context().Value(http.LocalAddrContextKey)
	switch local.(type) {
	case *net.TCPAddr, *net.UnixAddr, *localAddr:
		if c, ok := l.byLocal.Load(local); ok {
			return c.(*conn)
		}
	}
	return nil
}

// forbids returns why a TLS or plaintext connection is not allowed in a mode. An invalid mode counts as Strict.
func forbids(mode Mode, tls bool) error {
	switch {
	case mode == Disable && tls:
		return ErrTLSDisabled
	case mode != Disable && mode != Permissive && !tls:
		return ErrPlaintext
	}
	return nil
}

// begin starts accepting.
func (l *Listener) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.down {
		l.running.Go(l.accept)
	}
}

// accept takes connections from the inner listener until that fails for good or is closed.
func (l *Listener) accept() {
	const firstDelay, maxDelay = 5 * time.Millisecond, time.Second // as net/http
	delay := firstDelay
	for {
		inner, err := l.inner.Accept()
		if err == nil {
			delay = firstDelay
			l.take(inner)
			continue
		}
		select {
		case <-l.closed:
			return
		default:
		}
		//lint:ignore SA1019 ill-defined for most errors, but for those of accept (no descriptors left) net/http goes by it
		if ne, ok := err.(net.Error); !ok || !ne.Temporary() {
			l.failure = err
			close(l.failed)
			return
		}
		l.refuse(Refusal{Mode: l.config.Mode(), Err: err})
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-l.closed:
			timer.Stop()
			return
		}
		delay = min(2*delay, maxDelay)
	}
}
