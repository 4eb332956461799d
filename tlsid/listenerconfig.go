package tlsid

import (
	"crypto/tls"
	"errors"
	"net"
	"time"
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

	// ErrTooManyPending is the reason when as many connections are being sniffed or in their handshake as ListenerConfig
	// allows, in total or from one IP address.
	ErrTooManyPending = errors.New("tlsid: too many connections in their handshake")
)

// ListenerConfig holds the settings of a Listener. All fields but TLS have working defaults.
type ListenerConfig struct {
	// TLS is the server side of TLS, for example that of Keeper.Server. NewListener copies what it needs; later changes have
	// no effect, but its callbacks are called for each connection. Its NextProtos are the protocols that the server behind
	// the listener speaks: net/http takes HTTP/2 connections if "h2" is among them. nil: every TLS connection is refused.
	TLS *tls.Config

	// Mode returns the mode of the port. It is called for each connection, at its start and again at the end of its
	// handshake, from several goroutines. nil, or an invalid mode: Strict.
	Mode func() Mode

	// Peer verifies who made a TLS connection, at the end of its handshake, as Keeper.Peer does. The connection ends, as it does with its
	// leaf certificates, at the NotAfter of the Peer, which an authority may have before its leaf. An error changes nothing: to refuse
	// connections is the task of TLS. nil: only the leaf certificates count.
	Peer func(*tls.ConnectionState, time.Time) (Peer, error)

	// HandshakeTimeout bounds the time from the arrival of a connection to the end of its handshake, including the wait for
	// its first byte. 0: 10 s.
	HandshakeTimeout time.Duration

	// MaxPending and MaxPendingPerIP bound how many connections may wait for their first byte or be in their handshake, in
	// total and from one IP address; an IPv6 /64 network counts as one address. A connection beyond the limit of its address
	// is closed at once. At the total limit, the oldest that has sent nothing makes room, or else the oldest: silent
	// connections cannot lock out others. 0: 4096 and 512. Negative: no limit.
	MaxPending, MaxPendingPerIP int

	// Refused is called for each connection that Accept does not return, except those that Close cuts. It is called from the
	// goroutine that accepts or from that of the connection, with no lock held, possibly several times at once; it should
	// return soon and must not call Close. nil: refusals are not reported.
	Refused func(Refusal)

	// Withdrawn returns why a connection must not go on, and nil if it may. Recheck calls it for each connection that has been accepted, or
	// is about to be, with what Accept returns, and with no lock held. nil: all may.
	Withdrawn func(net.Conn) error

	// Drained is called once, with no lock held, when the listener is closed and so is each connection that it accepted. It must not call
	// Close. nil: nothing is called.
	Drained func()
}

// A Refusal is a connection that was not accepted.
type Refusal struct {
	// RemoteAddr is where the connection came from. nil: the inner listener failed for now, with the error Err, and is
	// asked again soon.
	RemoteAddr net.Addr

	// Mode is what the port demanded.
	Mode Mode

	// Err says why: ErrPlaintext, ErrTLSDisabled, ErrTooManyPending, io.EOF for a peer that left without sending a byte (as
	// load balancer probes do), os.ErrDeadlineExceeded for one that was too slow, or the error of crypto/tls for a failed
	// handshake, such as a *PeerError.
	Err error
}
