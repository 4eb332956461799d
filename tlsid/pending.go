package tlsid

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/nosidecar/mesh/internal/places"
)

// take starts handling a new connection, if there is room for it.
func (l *Listener) take(inner net.Conn) {
	due := time.Now().Add(l.config.HandshakeTimeout)
	c := &conn{Conn: inner, listener: l}
	switch inner.(type) {
	case *net.TCPConn, *net.UnixConn:
		c.ip = c.address()
	}
	evicted, full := l.enter(c)
	if evicted != nil {
		evicted.Conn.Close() // which ends its goroutine
	}
	if full != nil {
		inner.Close()
		if full != net.ErrClosed {
			l.refuse(Refusal{RemoteAddr: inner.RemoteAddr(), Mode: l.config.Mode(), Err: full})
		}
		return
	}
	go func() {
		defer l.running.Done()
		refusal := l.admit(c, due)
		if evicted := l.release(c); evicted && refusal.Err != nil {
			refusal.Err = l.tooMany()
		}
		if refusal.Err != nil {
			l.refuse(refusal)
		}
	}()
}

// enter makes a connection one of the pending ones, or returns why there is no room for it. Another one that has to make room is evicted: the
// caller closes it.
func (l *Listener) enter(c *conn) (evicted *conn, full error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, net.ErrClosed
	}
	if err := l.crowdedLocked(c.ip); err != nil {
		return nil, err
	}
	if l.config.MaxPending > 0 && len(l.pending) >= l.config.MaxPending {
		if evicted = l.evictLocked(); evicted == nil {
			return nil, l.tooMany()
		}
	}
	c.waits = l.silent.PushBack(c)
	l.pending[c] = struct{}{}
	l.perIP[c.ip]++
	l.running.Add(1)
	return evicted, nil
}

// crowdedLocked returns an error if there is no room for another connection from a network.
func (l *Listener) crowdedLocked(ip netip.Addr) error {
	if most := l.config.MaxPendingPerIP; ip.IsValid() && most > 0 && l.perIP[ip] >= most {
		return fmt.Errorf("%w: %d from %s", ErrTooManyPending, most, ip)
	}
	return nil
}

// locate finds out where a pending connection comes from, if take did not. A connection that wraps one of package net may have to read that
// from its peer, as with the PROXY protocol, so this must not delay others.
func (l *Listener) locate(c *conn, due time.Time) error {
	if c.local != nil {
		return nil
	}
	if err := c.SetDeadline(due); err != nil {
		return err
	}
	ip := c.address()
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.evicted {
		return net.ErrClosed
	}
	if err := l.crowdedLocked(ip); err != nil {
		return err
	}
	l.leaveLocked(c.ip)
	c.ip = ip
	l.perIP[ip]++
	return c.SetDeadline(time.Time{})
}

func (l *Listener) tooMany() error {
	return fmt.Errorf("%w: %d in all", ErrTooManyPending, l.config.MaxPending)
}

// evictLocked evicts the pending connection that is least likely to succeed: the oldest that has sent nothing, or else the
// oldest. It returns nil if all have finished their handshake.
func (l *Listener) evictLocked() *conn {
	oldest := cmp.Or(l.silent.Front(), l.talking.Front())
	if oldest == nil {
		return nil
	}
	c := oldest.Value.(*conn)
	c.evicted = true
	l.releaseLocked(c)
	return c
}

// talks records that a pending connection has sent something.
func (l *Listener) talks(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.waits != nil {
		l.silent.Remove(c.waits)
		c.waits, c.talking = l.talking.PushBack(c), true
	}
}

// release gives back the place of a pending connection, unless it was evicted.
func (l *Listener) release(c *conn) (evicted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.evicted {
		l.releaseLocked(c)
	}
	return c.evicted
}

func (l *Listener) releaseLocked(c *conn) {
	l.settleLocked(c)
	delete(l.pending, c)
	l.leaveLocked(c.ip)
}

func (l *Listener) leaveLocked(ip netip.Addr) {
	if l.perIP[ip]--; l.perIP[ip] == 0 {
		delete(l.perIP, ip)
	}
}

// settleLocked keeps the connection from being evicted.
func (l *Listener) settleLocked(c *conn) {
	if c.waits == nil {
		return
	}
	if c.talking {
		l.talking.Remove(c.waits)
	} else {
		l.silent.Remove(c.waits)
	}
	c.waits = nil
}

// admit makes the connection ready for Accept, or closes it and returns why. Connections that Close cuts do not count as
// refused.
func (l *Listener) admit(c *conn, due time.Time) Refusal {
	err := l.locate(c, due)
	mode := l.config.Mode()
	if err == nil {
		err = l.secure(c, mode, due)
	}
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

// offer keeps Close and evictions away from a connection that Accept may return. If nobody takes it, admit closes it.
func (l *Listener) offer(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.offered = true
	l.settleLocked(c)
}

func (l *Listener) refuse(r Refusal) {
	if l.config.Refused != nil {
		l.config.Refused(r)
	}
}

const recordHandshake = 0x16 // the type of the TLS record that a ClientHello comes in

// secure finds out what the client speaks and does the handshake if it is TLS.
func (l *Listener) secure(c *conn, mode Mode, due time.Time) error {
	if mode == Disable {
		return nil
	}
	if err := c.SetDeadline(due); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.Conn, c.first[:]); err != nil {
		return err
	}
	c.unread.Store(true)
	l.talks(c)
	if c.first[0] == recordHandshake {
		if l.config.TLS == nil {
			return &noIdentityError{errors.New("TLS connection, but the listener has no TLS configuration")}
		}
		c.tls = tls.Server(c, l.config.TLS)
		// No context: that would cost another goroutine per handshake. Close ends the handshake by closing c.
		if err := c.tls.Handshake(); err != nil {
			return err
		}
		if err := c.date(time.Now()); err != nil {
			return err
		}
	} else if err := forbids(mode, false); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{}) // from here on the server sets deadlines
}

// keep counts a connection as live, and watches its age.
func (l *Listener) keep(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live[c] = struct{}{}
	l.byLocal.Store(c.local, c)
	if c.expires.IsZero() {
		return
	}
	life := max(time.Until(c.expires), 0)
	notice := min(life/20+rand.N(life/20+1), time.Minute/2+rand.N(time.Minute/2)) // from then on the connection is retiring
	c.timer = time.AfterFunc(life-notice, c.retire)
}

// networkOf returns the IP address that MaxPendingPerIP counts by. It is invalid for addresses without one, such as those of
// unix sockets, for which only MaxPending holds.
func networkOf(addr net.Addr) netip.Addr {
	var ip netip.Addr
	if tcp, ok := addr.(*net.TCPAddr); ok {
		ip = tcp.AddrPort().Addr()
	} else if addr != nil {
		if at, err := netip.ParseAddrPort(addr.String()); err == nil {
			ip = at.Addr()
		}
	}
	return places.Network(ip)
}
