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
	owner atomic.Pointer[Conns] // nil once closed: net/http may keep a closed connection for a while, but should not keep its Conns
	born  time.Time

	below *clientConn // nil if it is not for HTTP, or net/http has it in its pool
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if owner := c.owner.Swap(nil); owner != nil {
		defer owner.remove(c)
		if c.below != nil {
			defer c.below.of.gone(c.below)
		}
	}
	return c.Conn.Close()
}

// NetConn returns the underlying connection, like the method of tls.Conn.
func (c *conn) NetConn() net.Conn {
	return c.Conn
}

// CloseWrite shuts down the writing side, if the underlying connection can.
func (c *conn) CloseWrite() error { return netconn.CloseWrite(c.Conn) }

// ReadFrom lets the underlying connection copy without a buffer, for example from a file.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(c.Conn, r)
}

// WriteTo implements io.WriterTo.
func (c *conn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, c.Conn) }
