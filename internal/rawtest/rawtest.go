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
