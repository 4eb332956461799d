// Package rawtest serves raw connections in tests.
package rawtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Listen listens on a free port of 127.0.0.1. The caller closes the listener, or gives it to [Serve].
func Listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// Refusing returns an address of 127.0.0.1 that refuses connections until the end of the test. Its port is in use by a connection, since
// whoever listens on any free port, in this process or another, may get one that was merely closed.
func Refusing(t testing.TB) string {
	t.Helper()
	ln := Listen(t)
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		ln.Close()
	})
	return conn.LocalAddr().String()
}

// Serve calls serve with each connection that ln accepts, on a goroutine of its own, and closes the connection when serve returns. At the end of
// the test it closes ln, and waits until serve has returned for every connection.
func Serve(t testing.TB, ln net.Listener, serve func(net.Conn)) {
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { ln.Close() })
}

// Echo sends back what it receives. It is a function for [Serve].
func Echo(conn net.Conn) {
	_, _ = io.Copy(conn, conn)
}
