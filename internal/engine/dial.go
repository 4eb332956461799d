package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/route"
)

// dialAttempts is how many endpoints a dial tries: as many as the mesh's default retries make of a call. A connection that
// could not be made has carried nothing.
const dialAttempts = 3

// DialContext connects to a service for protocols other than HTTP, as mesh.DialContext says.
func (e *Engine) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, &net.AddrError{Err: "the port is not a number", Addr: address}
	}
	c := &Call{engine: e, kind: Raw, ctx: ctx, start: time.Now(), target: route.Target{Port: port}}
	conn, err := c.dial(network, address)
	if err != nil {
		return nil, c.failed(err)
	}
	return conn, nil
}

// dial is the way of a connection, which has those stages of a call that need no requests.
func (c *Call) dial(network, address string) (conn net.Conn, err error) {
	defer func() { // a connection is no call: it does not keep the endpoints of a removed destination known
		if c.cluster != nil {
			c.cluster.leave()
		}
	}()
	// It comes in plaintext, as a request of http does, and leaves as the documents ask.
	if err := c.locate(c.ctx, &Request{Host: address, Request: route.Request{Scheme: "http"}}); err != nil {
		return nil, err
	}
	if c.cluster == nil {
		return contextDialer(c.engine.template)(c.ctx, network, address)
	}
	for n := 1; n <= dialAttempts; n++ {
		conn, err = c.connect(n)
		if err == nil || refusal.Is(err) || c.ctx.Err() != nil {
			break
		}
	}
	return conn, err
}

// connect is one attempt. It ends with the connection, but what it says of the endpoint and of the destination is known
// before.
func (c *Call) connect(n int) (net.Conn, error) {
	a := new(Attempt)
	if err := c.Acquire(c.ctx, a, n); err != nil {
		return nil, err
	}
	settled := false
	defer func() {
		if !settled { // a panic in the dialer
			a.Abandon()
		}
	}()
	conn, expires, err := a.conns.dial(c.ctx)
	settled = true
	if err != nil {
		return nil, a.End(err)
	}
	a.Answered(http.StatusOK)
	a.report(http.StatusOK)
	a.lease.Done(breaker.Success)
	raw := &rawConn{Conn: conn, attempt: a}
	raw.expire(expires)
	return raw, nil
}

// dial makes a connection for protocols other than HTTP. It tells when the first certificate it was made with expires: zero
// without certificates.
func (c *Connections) dial(ctx context.Context) (_ net.Conn, expires time.Time, _ error) {
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
	config.NextProtos = markers(config.NextProtos) // they are HTTP's
	secure := tls.Client(conn, config)
	ctx, cancel := context.WithTimeout(ctx, c.socket.owner.connectTimeout())
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, time.Time{}, fmt.Errorf("TLS handshake with %s: %w", c.Address(), err)
	}
	return secure, expires, nil
}

// rawConn is a connection of DialContext.
type rawConn struct {
	net.Conn
	attempt *Attempt
	once    sync.Once
	expiry  *time.Timer // nil without certificates
}

// expire closes the connection at a time, if it is not zero.
func (c *rawConn) expire(at time.Time) {
	if at.IsZero() {
		return
	}
	c.expiry = time.AfterFunc(math.MaxInt64, func() { c.Close() }) // which reads expiry, so not before that is set
	c.expiry.Reset(time.Until(at))
}

// Close implements net.Conn.
func (c *rawConn) Close() error {
	if c.expiry != nil {
		c.expiry.Stop()
	}
	err := c.Conn.Close()
	c.once.Do(func() { c.attempt.leave(false) })
	return err
}

// CloseWrite shuts down the writing side, where the connection beneath can.
func (c *rawConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// NetConn returns the connection beneath: a *tls.Conn where there is TLS.
func (c *rawConn) NetConn() net.Conn {
	return c.Conn
}
