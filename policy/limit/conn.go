package limit

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/netconn"
)

// conn is an open connection.
type conn struct {
	net.Conn
	owner atomic.Pointer[Conns] // nil once it is closed: net/http may keep it for a while, and need not keep the rest
	born  time.Time

	calls atomic.Int64
}

// last counts a call and reports whether the connection must be closed after it.
func (c *conn) last(now time.Time) bool {
	owner := c.owner.Load()
	if owner == nil {
		return true
	}
	config := &owner.pool.config
	calls := c.calls.Add(1)
	return config.MaxRequestsPerConnection > 0 && calls >= int64(config.MaxRequestsPerConnection) ||
		config.MaxConnectionDuration > 0 && now.Sub(c.born) >= config.MaxConnectionDuration
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if owner := c.owner.Swap(nil); owner != nil {
		defer owner.remove(c)
	}
	return c.Conn.Close()
}

// NetConn returns the connection beneath, as that of tls.Conn does.
func (c *conn) NetConn() net.Conn {
	return c.Conn
}

// CloseWrite shuts down the writing side, where the connection beneath can.
func (c *conn) CloseWrite() error { return netconn.CloseWrite(c.Conn) }

// ReadFrom lets the connection beneath copy without a buffer, as for a file.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(c.Conn, r)
}

// WriteTo implements io.WriterTo.
func (c *conn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, c.Conn) }
