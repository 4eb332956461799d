// Package netconn wraps connections without hiding their optional methods.
package netconn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
)

// Conn is a connection that reports when it is closed. Like the connection that it wraps, it can be half-closed, and data can be copied
// from one connection to another within the kernel.
type Conn struct {
	net.Conn

	mu     sync.Mutex
	closed bool
	reason error
	told   []func(reason error)
}

// OnClose registers f to be called when the connection is closed. The reason is nil if its user has closed it. If the connection is
// already closed, f is called immediately.
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

// CloseFor closes the connection for a reason other than that of its user. If there is one, it resets the connection.
func (c *Conn) CloseFor(reason error) error {
	c.mu.Lock() // the first reason counts: its user closes the connection too when Read fails
	told := c.told
	c.told = nil
	if !c.closed {
		c.closed, c.reason = true, reason
	}
	c.mu.Unlock()
	end := c.Conn.Close
	if reason != nil {
		end = func() error { return Reset(c.Conn) }
	}
	err := end()
	for _, f := range told {
		f(reason)
	}
	return err
}

// Reset closes a connection in such a way that its peer does not take a part of a stream for the whole: with a reset if it is TCP, and without
// TLS's close_notify, which would wait for a peer that does not read.
func Reset(conn net.Conn) error {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	for layer := conn; layer != nil; {
		if tcp, ok := layer.(interface{ SetLinger(int) error }); ok {
			_ = tcp.SetLinger(0)
			break
		}
		wrapper, ok := layer.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		layer = wrapper.NetConn()
	}
	return conn.Close()
}

// CloseWrite shuts down the writing side, if the wrapped connection supports it.
func (c *Conn) CloseWrite() error { return CloseWrite(c.Conn) }

// NetConn returns the wrapped connection, which is a *tls.Conn if the connection uses TLS.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// WriteTo implements io.WriterTo.
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, c.Conn) }

// ReadFrom implements io.ReaderFrom.
func (c *Conn) ReadFrom(src io.Reader) (int64, error) { return io.Copy(c.Conn, src) }

// CloseWrite shuts down the writing side of a connection. It returns errors.ErrUnsupported if the connection cannot do that.
func CloseWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
