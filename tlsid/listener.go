package tlsid

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Defaults of ListenerConfig.
const (
	defaultHandshakeTimeout = 10 * time.Second
	defaultMaxPending       = 4096
	defaultMaxPendingPerIP  = 512
)

// Why a connection was refused, for errors.Is.
var (
	// ErrPlaintext is the reason when a connection does not begin with a TLS record on a port that is Strict.
	ErrPlaintext = errors.New("tlsid: plaintext connection, the port is STRICT")

	// ErrTLSDisabled is the reason when the mode of a port became Disable while a connection made its TLS handshake.
	ErrTLSDisabled = errors.New("tlsid: TLS connection, the port is DISABLE")

	// ErrTooManyPending is the reason when as many connections are sniffed or in their handshake as ListenerConfig
	// allows, in all or from one IP address.
	ErrTooManyPending = errors.New("tlsid: too many connections in their handshake")
)

// ListenerConfig holds the settings of a Listener. All fields but TLS have working defaults.
type ListenerConfig struct {
	// TLS is the server side of TLS, for example that of Keeper.Server. NewListener takes what it needs; what is changed
	// in it later has no effect, but its callbacks are asked for each connection. It names the protocols (NextProtos)
	// that the server behind the listener speaks: net/http takes HTTP/2 connections if "h2" is among them.
	// nil: every TLS connection is refused.
	TLS *tls.Config

	// Mode returns the mode of the port. It is asked for each connection, at its start and again at the end of its
	// handshake, from several goroutines. nil, or a value that is no mode: Strict.
	Mode func() Mode

	// HandshakeTimeout bounds the time from the arrival of a connection to the end of its handshake, with the wait for
	// its first byte. 0: 10 s.
	HandshakeTimeout time.Duration

	// MaxPending and MaxPendingPerIP bound how many connections may wait for their first byte or be in their handshake,
	// in all and from one IP address. A connection beyond them is closed at once, rather than an older one in its favour:
	// under a flood the others are near the end of their handshake, and closing them would let nobody in.
	// 0: 4096 and 512. Negative: no limit.
	MaxPending, MaxPendingPerIP int

	// Refused is told of each connection that Accept does not return, except those that Close cuts. It is called from
	// the goroutine that accepts or from that of the connection, with no lock held, possibly several times at once; it
	// should return soon and must not call Close. nil: nobody is told.
	Refused func(Refusal)
}

// A Refusal is a connection that was not accepted.
type Refusal struct {
	// RemoteAddr is where the connection came from. nil: the inner listener failed for now, with the error Err, and is
	// asked again soon.
	RemoteAddr net.Addr

	// Mode is what the port demanded.
	Mode Mode

	// Err says why: ErrPlaintext, ErrTLSDisabled, ErrTooManyPending, io.EOF for a peer that left without a byte (as
	// probes of load balancers do), os.ErrDeadlineExceeded for one that was too slow, or what crypto/tls says of a failed
	// handshake, such as a *PeerError.
	Err error
}

// A Listener is a net.Listener that gives each connection the TLS that the mode of its port demands:
//
//   - Strict: TLS only. Plaintext is reset, with no answer.
//   - Permissive: TLS or plaintext, told apart by the first byte: 0x16 begins a TLS handshake record (RFC 8446, section
//     5.1), and no request of HTTP/1 or HTTP/2. Connections on which the client waits for the server to speak first are
//     closed at the timeout.
//   - Disable: plaintext only. The bytes are not looked at, not even waited for: a server that speaks TLS on its own, or
//     speaks first, works.
//
// A TLS connection is returned by Accept as a bare *tls.Conn with its handshake done, so that net/http sets Request.TLS
// and speaks HTTP/2. Handshakes are made beside Accept, and slow ones delay nobody.
//
// A TLS connection lives at most as long as the two leaf certificates it was made with: at the first expiry it is closed.
// Shortly before, from the last tenth or twentieth of its life (drawn at random, so that not all clients reconnect at
// once; one minute at most), it is Retiring.
//
// A Listener is safe for concurrent use.
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

	anyRetiring atomic.Int64 // len(retiring)

	mu       sync.Mutex
	down     bool                   // Close was called: nothing may be added to pending
	pending  map[*conn]struct{}     // being sniffed or in the handshake
	perIP    map[netip.Addr]int     // how many of pending by IP address
	live     map[*conn]struct{}     // accepted and not closed
	retiring map[addresses]struct{} // of live, those about to expire
}

var _ net.Listener = (*Listener)(nil)

// addresses tell the connections of a listener apart.
type addresses struct{ local, remote string }

// NewListener returns a Listener over inner. It accepts from inner from the first call of Accept on. The caller closes it;
// that closes inner.
func NewListener(inner net.Listener, config ListenerConfig) *Listener {
	if config.Mode == nil {
		config.Mode = func() Mode { return Strict }
	}
	if config.HandshakeTimeout <= 0 {
		config.HandshakeTimeout = defaultHandshakeTimeout
	}
	if config.MaxPending == 0 {
		config.MaxPending = defaultMaxPending
	}
	if config.MaxPendingPerIP == 0 {
		config.MaxPendingPerIP = defaultMaxPendingPerIP
	}
	config.TLS = noting(config.TLS)
	backlog := config.MaxPending
	if backlog < 0 {
		backlog = defaultMaxPending
	}
	return &Listener{
		inner: inner, config: config,
		ready: make(chan net.Conn, backlog), closed: make(chan struct{}), failed: make(chan struct{}),
		pending: make(map[*conn]struct{}), perIP: make(map[netip.Addr]int), live: make(map[*conn]struct{}),
		retiring: make(map[addresses]struct{}),
	}
}

// Addr returns the address of the inner listener.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Accept returns the next connection that may be served. After Close its error is net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
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

// Close closes the inner listener and the connections that Accept did not return, and waits for them. Connections that it
// returned stay open, and are still closed when their certificates expire.
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
		for {
			select {
			case c := <-l.ready:
				c.Close()
			default:
				return
			}
		}
	})
	return l.closeErr
}

// Recheck asks for the mode again and closes the connections it forbids, with what they carry: plaintext ones if it is
// Strict, TLS ones if it is Disable. Call it after the mode changed: a connection that is just being accepted is either
// seen by Recheck, or sees the new mode itself.
func (l *Listener) Recheck() {
	mode := l.config.Mode()
	if mode == Permissive {
		return
	}
	l.mu.Lock()
	var forbidden []net.Conn
	for c := range l.live {
		if forbids(mode, c.tls != nil) != nil {
			forbidden = append(forbidden, c.outer())
		}
	}
	l.mu.Unlock()
	var closing sync.WaitGroup // side by side: crypto/tls gives a peer that does not read 5 s to take the alert
	for _, c := range forbidden {
		closing.Go(func() { c.Close() })
	}
	closing.Wait()
}

// Retiring reports whether the connection that an inbound request came over will soon be closed because a certificate it
// was made with expires. A handler that then sets the response header "Connection: close" has the client move to a new
// connection without losing a request: net/http ends an HTTP/1 connection after the response, and an HTTP/2 connection
// with GOAWAY.
func (l *Listener) Retiring(r *http.Request) bool {
	if l.anyRetiring.Load() == 0 {
		return false
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	of := addresses{local.String(), r.RemoteAddr}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok = l.retiring[of]
	return ok
}

// forbids returns why a connection, of TLS or plaintext, is not allowed in a mode.
func forbids(mode Mode, tls bool) error {
	switch {
	case mode == Permissive:
		return nil
	case mode == Disable:
		if tls {
			return ErrTLSDisabled
		}
		return nil
	case !tls:
		return ErrPlaintext
	}
	return nil
}

// begin starts to accept.
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

// take starts to look at a new connection, if there is room for it.
func (l *Listener) take(inner net.Conn) {
	c := &conn{Conn: inner, listener: l}
	ip := ipOf(inner.RemoteAddr())
	var full error
	l.mu.Lock()
	switch {
	case l.down:
		full = net.ErrClosed
	case l.config.MaxPending > 0 && len(l.pending) >= l.config.MaxPending:
		full = fmt.Errorf("%w: %d in all", ErrTooManyPending, l.config.MaxPending)
	case ip.IsValid() && l.config.MaxPendingPerIP > 0 && l.perIP[ip] >= l.config.MaxPendingPerIP:
		full = fmt.Errorf("%w: %d from %s", ErrTooManyPending, l.config.MaxPendingPerIP, ip)
	default:
		l.pending[c] = struct{}{}
		l.perIP[ip]++
		l.running.Add(1)
	}
	l.mu.Unlock()
	if full != nil {
		inner.Close()
		if full != net.ErrClosed {
			l.refuse(Refusal{RemoteAddr: inner.RemoteAddr(), Mode: l.config.Mode(), Err: full})
		}
		return
	}
	go func() {
		defer l.running.Done()
		refusal := l.admit(c)
		l.release(c, ip)
		if refusal.Err != nil {
			l.refuse(refusal)
		}
	}()
}

// release gives back the place of a pending connection.
func (l *Listener) release(c *conn, ip netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, c)
	if l.perIP[ip]--; l.perIP[ip] == 0 {
		delete(l.perIP, ip)
	}
}

// admit makes the connection ready for Accept, or closes it and returns why. Those that Close cuts are not refused.
func (l *Listener) admit(c *conn) Refusal {
	mode := l.config.Mode()
	err := l.secure(c, mode)
	if err == nil {
		l.keep(c)
		// After keep, so that a mode that changes now is seen here or by Recheck.
		mode = l.config.Mode()
		err = forbids(mode, c.tls != nil)
	}
	if err == nil {
		l.offer(c)
		select {
		case l.ready <- c.outer():
			return Refusal{}
		case <-l.closed:
			err = net.ErrClosed
		}
	}
	if errors.Is(err, ErrPlaintext) {
		c.reset()
	}
	c.Close()
	select {
	case <-l.closed:
		return Refusal{}
	default:
		return Refusal{RemoteAddr: c.RemoteAddr(), Mode: mode, Err: err}
	}
}

// offer leaves it to admit to close the connection if nobody takes it.
func (l *Listener) offer(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.offered = true
}

func (l *Listener) refuse(r Refusal) {
	if l.config.Refused != nil {
		l.config.Refused(r)
	}
}

const recordHandshake = 0x16 // the type of the TLS record that a ClientHello comes in

// secure finds out what the client speaks and makes the handshake if it is TLS.
func (l *Listener) secure(c *conn, mode Mode) error {
	if mode == Disable {
		return nil
	}
	if err := c.SetDeadline(time.Now().Add(l.config.HandshakeTimeout)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.Conn, c.first[:]); err != nil {
		return err
	}
	c.unread.Store(true)
	if c.first[0] == recordHandshake {
		if l.config.TLS == nil {
			return errors.New("tlsid: TLS connection, the listener has no TLS configuration")
		}
		c.tls = tls.Server(c, l.config.TLS)
		// No context: its goroutine would be one more for each handshake. Close ends the handshake by closing c.
		if err := c.tls.Handshake(); err != nil {
			return err
		}
		if err := c.date(time.Now()); err != nil {
			return err
		}
	} else if err := forbids(mode, false); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{}) // from here on deadlines are the server's
}

// keep counts a connection as live, and watches its age.
func (l *Listener) keep(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live[c] = struct{}{}
	if c.expires.IsZero() {
		return
	}
	life := max(time.Until(c.expires), 0)
	c.notice = min(life/20+rand.N(life/20+1), time.Minute/2+rand.N(time.Minute/2))
	c.timer = time.AfterFunc(life-c.notice, c.retire)
}

// conn is a connection: a plaintext one as Accept returns it, or what the *tls.Conn stands on.
type conn struct {
	net.Conn
	listener *Listener

	first  [1]byte     // the byte that was read to find out what the client speaks
	unread atomic.Bool // first was not read yet by the server, or by TLS

	// Written before the connection is live.
	tls     *tls.Conn         // nil: plaintext
	own     *x509.Certificate // our leaf; nil: not known
	expires time.Time         // when the first of the two leaves expires; zero: never

	notice time.Duration // before expires; from then on the connection is retiring

	// Under listener.mu.
	offered   bool        // to Accept
	timer     *time.Timer // for retire; nil: none, or closed
	retiring  bool        // retire was called
	addresses addresses   // key of listener.retiring
}

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
	presented := c.tls.ConnectionState().PeerCertificates
	if len(presented) == 0 {
		return nil
	}
	peer := presented[0]
	if now.After(peer.NotAfter) {
		id, _ := x509svid.IDFromCert(peer)
		return &PeerError{ID: id, Err: &ExpiredError{ID: id, NotAfter: peer.NotAfter}}
	}
	if c.own == nil || peer.NotAfter.Before(c.expires) {
		c.expires = peer.NotAfter
	}
	return nil
}

// retire is called by the timer, first to announce the end, then to make it.
func (c *conn) retire() {
	l := c.listener
	l.mu.Lock()
	if c.timer == nil {
		l.mu.Unlock()
		return
	}
	if !c.retiring {
		c.retiring = true
		c.addresses = addresses{c.LocalAddr().String(), c.RemoteAddr().String()}
		l.retiring[c.addresses] = struct{}{}
		l.anyRetiring.Store(int64(len(l.retiring)))
		c.timer.Reset(time.Until(c.expires))
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	c.outer().Close()
}

// Close closes the connection.
func (c *conn) Close() error {
	l := c.listener
	l.mu.Lock()
	delete(l.live, c)
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
		if c.retiring {
			delete(l.retiring, c.addresses)
			l.anyRetiring.Store(int64(len(l.retiring)))
		}
	}
	l.mu.Unlock()
	return c.Conn.Close()
}

// reset has Close send a TCP reset, where there is TCP.
func (c *conn) reset() {
	if tcp, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		tcp.SetLinger(0)
	}
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

// WriteTo and ReadFrom keep what the connection below can do better than a loop of Read and Write, such as splice(2) and
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

// CloseWrite shuts down the writing side, where the connection below can.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn implements syscall.Conn, where the connection below does.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// ipOf returns the IP address that MaxPendingPerIP counts by. It is invalid for addresses without one, such as those of
// unix sockets, for which only MaxPending holds.
func ipOf(addr net.Addr) netip.Addr {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	if addr == nil {
		return netip.Addr{}
	}
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// noting returns a copy of a server's configuration that notes on each connection when the certificate that was chosen for
// it expires. It is one copy for all connections: crypto/tls hands its callbacks the connection.
func noting(config *tls.Config) *tls.Config {
	if config == nil {
		return nil
	}
	noted := config.Clone()
	certificates, get := config.Certificates, config.GetCertificate
	if len(certificates) > 0 || get != nil {
		noted.Certificates = nil // crypto/tls asks GetCertificate for a client without a server name only if there are none
		noted.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			certificate, err := choose(hello, certificates, get)
			if err != nil {
				return nil, err
			}
			return certificate, note(hello.Conn, certificate)
		}
	}
	if forClient := config.GetConfigForClient; forClient != nil {
		// Mostly one configuration is returned again and again.
		type pair struct{ from, to *tls.Config }
		var last atomic.Pointer[pair]
		noted.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			config, err := forClient(hello)
			if err != nil || config == nil {
				return nil, err
			}
			p := last.Load()
			if p == nil || p.from != config {
				p = &pair{config, noting(config)}
				last.Store(p)
			}
			return p.to, nil
		}
	}
	return noted
}

// choose picks the certificate as crypto/tls does.
func choose(hello *tls.ClientHelloInfo, certificates []tls.Certificate,
	get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) (*tls.Certificate, error) {

	if get != nil && (len(certificates) == 0 || hello.ServerName != "") {
		if certificate, err := get(hello); certificate != nil || err != nil {
			return certificate, err
		}
	}
	if len(certificates) == 0 {
		return nil, errors.New("tlsid: no certificate for the connection")
	}
	for i := range certificates {
		if len(certificates) == 1 || hello.SupportsCertificate(&certificates[i]) == nil {
			return &certificates[i], nil
		}
	}
	return &certificates[0], nil
}

// note notes when our certificate of a connection expires.
func note(inner net.Conn, certificate *tls.Certificate) error {
	c, ok := inner.(*conn)
	if !ok || len(certificate.Certificate) == 0 {
		return nil
	}
	leaf := certificate.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(certificate.Certificate[0]); err != nil {
			return err
		}
	}
	c.own = leaf
	return nil
}
