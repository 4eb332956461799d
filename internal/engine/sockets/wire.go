package sockets

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/failure"
)

// wire is a connection to an endpoint, below the TLS that this process adds.
type wire struct {
	net.Conn
	owner *Connections
	nth   uint64 // of those of its owner

	sent     atomic.Bool           // the handshake may be over, and something of a request may have been sent
	distrust atomic.Pointer[error] // why the connection was cut; nil unless it was

	onDistrust func(why error) // closes the connection instead of Close; guarded by owner.mu
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		err = w.explain(err)
	}
	return n, err
}

// Write implements net.Conn.
func (w *wire) Write(p []byte) (int, error) {
	if why := w.distrust.Load(); why != nil {
		return 0, *why // so that Close of the TLS connection does not wait until its alert is sent
	}
	if !w.sent.Load() && hasData(p) {
		w.sent.Store(true)
	}
	n, err := w.Conn.Write(p)
	if err != nil {
		err = w.explain(err)
	}
	return n, err
}

// explain returns the error that the TLS connection gets, and returns to its caller. What is cut off in the handshake has carried nothing
// of a request, so it counts as a failure to connect.
func (w *wire) explain(err error) error {
	if why := w.distrust.Load(); why != nil {
		return *why
	}
	if !w.sent.Load() && !errors.Is(err, net.ErrClosed) && !failure.IsTimeout(err) {
		return failure.Mark(failure.Connect, fmt.Errorf("cut off in the TLS handshake: %w", err))
	}
	return err
}

// hasData reports whether p, which consists of whole TLS records, has one with application data. In TLS 1.3 the last messages of the
// handshake look like that, too.
func hasData(p []byte) bool {
	const header, applicationData = 5, 23
	for len(p) >= header {
		if p[0] == applicationData {
			return true
		}
		p = p[min(len(p), header+int(p[3])<<8+int(p[4])):]
	}
	return false
}

// Close implements net.Conn.
func (w *wire) Close() error {
	w.owner.forget(w)
	return w.Conn.Close()
}

// cut closes the connection because its endpoint is not trusted any more.
func (w *wire) cut(why error) {
	if !w.distrust.CompareAndSwap(nil, &why) {
		return
	}
	w.owner.mu.Lock()
	f := w.onDistrust
	w.owner.mu.Unlock()
	if f != nil {
		f(why)
		return
	}
	w.Close()
}

// NetConn returns the underlying connection, like the method of tls.Conn.
func (w *wire) NetConn() net.Conn { return w.Conn }

// SetKeepAliveConfig does what the method of the underlying connection does, if there is one.
func (w *wire) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	if tcp, ok := w.Conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		return tcp.SetKeepAliveConfig(config)
	}
	return nil
}

// wireOf returns the wire that conn wraps, nil if there is none.
func wireOf(conn net.Conn) *wire {
	for {
		if w, ok := conn.(*wire); ok {
			return w
		}
		outer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = outer.NetConn()
	}
}
