package limit

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// conn is an open connection.
type conn struct {
	net.Conn
	owner *Conns
	born  time.Time

	calls  atomic.Int64
	closed atomic.Bool
}

// last counts a call and reports whether the connection must be closed after it.
func (c *conn) last(now time.Time) bool {
	config := &c.owner.pool.config
	calls := c.calls.Add(1)
	return config.MaxRequestsPerConnection > 0 && calls >= int64(config.MaxRequestsPerConnection) ||
		config.MaxConnectionDuration > 0 && now.Sub(c.born) >= config.MaxConnectionDuration
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		defer c.owner.remove(c)
	}
	return c.Conn.Close()
}

// NetConn returns the connection beneath, as that of tls.Conn does.
func (c *conn) NetConn() net.Conn {
	return c.Conn
}

// CloseWrite shuts down the writing side, where the connection beneath can.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ReadFrom lets the connection beneath copy without a buffer, as for a file.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(c.Conn, r)
}
