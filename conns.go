package mesh

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/netconn"
)

// observedConn is a raw connection that observers are told of. It counts bytes in Read and Write, so nothing is copied in
// the kernel.
type observedConn struct {
	net.Conn
	*connRecord
}

// connRecord is what observers see of a connection.
type connRecord struct {
	conn      Conn
	observers *Observer
	ours      bool // it reports its own closing, since the mesh may close it
	end       sync.Once
	broken    atomic.Pointer[error] // the first error of Read or Write
}

// observeDialled tells the observers of a connection that was made, or that could not be made, with err as the reason. It
// returns the connection for the program.
func (m *Mesh) observeDialled(conn net.Conn, start time.Time, d *engine.Dialled, err error) net.Conn {
	if d.Target.Host == "" {
		return conn // the address could not be parsed
	}
	r := &connRecord{observers: &m.observers}
	c := &r.conn
	c.Target, c.Outside, c.Endpoint, c.PeerID, c.Start = d.Target, d.Outside, d.Endpoint, d.PeerID, start
	c.Telemetry = m.engine.Plan().Telemetry()
	if err != nil {
		r.observers.ConnStart(c)
		c.Flags = Flags(d.Flags)
		r.ended(err)
		return nil
	}
	return r.follow(conn)
}

// observeAccepted tells the observers of a connection from a peer whose ID is principal, in the form that documents use. It
// returns the connection for the program.
func (m *Mesh) observeAccepted(conn net.Conn, start time.Time, principal string) net.Conn {
	r := &connRecord{observers: &m.observers}
	r.conn.Inbound, r.conn.Start, r.conn.Telemetry = true, start, m.engine.Plan().Telemetry()
	if principal != "" {
		r.conn.PeerID = "spiffe://" + principal
	}
	return r.follow(conn)
}

// follow reports a connection from its start to its end.
func (r *connRecord) follow(conn net.Conn) net.Conn {
	r.conn.Local, r.conn.Remote = conn.LocalAddr(), conn.RemoteAddr()
	panicked := true
	defer func() {
		if panicked { // in an observer: nobody gets the connection
			conn.Close()
		}
	}()
	r.observers.ConnStart(&r.conn)
	panicked = false
	if ours, ok := conn.(*netconn.Conn); ok {
		r.ours = true
		ours.OnClose(r.ended)
	}
	return &observedConn{conn, r}
}

// ended reports the end, once. The reason is nil for a connection that the program has closed.
func (r *connRecord) ended(reason error) {
	r.end.Do(func() {
		c := &r.conn
		c.Err, c.Duration = reason, time.Since(c.Start)
		if broken := r.broken.Load(); broken != nil && reason == nil {
			c.Err, c.Flags = *broken, FlagConnectionTerminated
			if c.Inbound {
				c.Flags = FlagCallerGone
			}
		}
		r.observers.ConnEnd(c)
	})
}

// note records how the connection broke. The end of a stream and an expired deadline do not count as breaking.
func (r *connRecord) note(err error) {
	if err == nil || err == io.EOF || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	r.broken.CompareAndSwap(nil, &err)
}

// Read implements net.Conn.
func (c *observedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.conn.received.Add(int64(n))
	if err != nil {
		c.note(err)
	}
	return n, err
}

// Write implements net.Conn.
func (c *observedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.conn.sent.Add(int64(n))
	if err != nil {
		c.note(err)
	}
	return n, err
}

// Close implements net.Conn.
func (c *observedConn) Close() error {
	err := c.Conn.Close()
	if !c.ours {
		c.ended(nil)
	}
	return err
}

// CloseWrite shuts down the writing side, if the underlying connection can.
func (c *observedConn) CloseWrite() error { return netconn.CloseWrite(c.Conn) }

// NetConn returns the underlying connection: a *tls.Conn if there is TLS.
func (c *observedConn) NetConn() net.Conn {
	if ours, ok := c.Conn.(*netconn.Conn); ok {
		return ours.NetConn()
	}
	return c.Conn
}
