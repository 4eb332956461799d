// Package netconn wraps connections without hiding what they can do.
package netconn

import (
	"errors"
	"io"
	"net"
	"sync"
)

// Conn is a connection of which others want to know when it is closed. It can do what the connection beneath can: half-close it,
// and copy from one connection to another in the kernel.
type Conn struct {
	net.Conn

	mu     sync.Mutex
	closed bool
	reason error
	told   []func(reason error)
}

// OnClose has f called once the connection was closed, with the reason: nil if its user has closed it. If it is closed already, f
// is called at once.
func (c *Conn) OnClose(f func(reason error)) {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.told = append(c.told, f)
	}
	c.mu.Unlock()
	if closed {
		f(c.reason)
	}
}

// Close implements net.Conn.
func (c *Conn) Close() error { return c.CloseFor(nil) }

// CloseFor closes the connection for a reason that is not its user's.
func (c *Conn) CloseFor(reason error) error {
	c.mu.Lock() // the first reason counts: who waits in Read closes the connection too, when it fails
	told := c.told
	c.told = nil
	if !c.closed {
		c.closed, c.reason = true, reason
	}
	c.mu.Unlock()
	err := c.Conn.Close()
	for _, f := range told {
		f(reason)
	}
	return err
}

// CloseWrite shuts down the writing side, where the connection beneath can.
func (c *Conn) CloseWrite() error { return CloseWrite(c.Conn) }

// NetConn returns the connection beneath: a *tls.Conn where there is TLS.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// WriteTo implements io.WriterTo.
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, c.Conn) }

// ReadFrom implements io.ReaderFrom.
func (c *Conn) ReadFrom(src io.Reader) (int64, error) { return io.Copy(c.Conn, src) }

// CloseWrite shuts down the writing side of a connection that can.
func CloseWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
