package limit

import (
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/netconn"
)

// conn is an open connection.
type conn struct {
	net.Conn
	owner atomic.Pointer[Conns] // nil once closed: net/http may keep a closed connection for a while, but should not keep its Conns
	born  time.Time

	http1 *http1Conn // that it is below; nil if net/http has the connection

	calls atomic.Int64
}

// last counts a call, and reports whether it is the last one that the connection may serve.
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
		if c.http1 != nil {
			defer c.http1.of.gone(c.http1)
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

// countedCall is a call that is counted on its connection.
type countedCall struct {
	conns *Conns
	trace httptrace.ClientTrace
	req   *http.Request
}

// gotConn runs on the goroutine of RoundTrip, after the connection was chosen and before the request is written.
func (call *countedCall) gotConn(info httptrace.GotConnInfo) {
	nc := info.Conn
	for {
		if conn, ok := nc.(*conn); ok {
			if conn.last(time.Now()) && !call.req.Close {
				call.sayClose()
			}
			return
		}
		layer, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		nc = layer.NetConn()
	}
}

// sayClose makes the call the last one on its connection.
func (call *countedCall) sayClose() {
	h := call.req.Header
	if h.Get("Upgrade") != "" {
		// If the peer accepts the upgrade, the connection serves no other call anyway. If not, the next call is the last one.
		return
	}
	// HTTP/1 reads the header, since it may have copied the request. HTTP/2 reads either, and then accepts no further calls on the
	// connection. Options that the caller set remain.
	call.req.Close = true
	if options := strings.Join(h["Connection"], ", "); options != "" {
		h["Connection"] = []string{options + ", close"}
	} else {
		h["Connection"] = []string{"close"}
	}
}
