package mesh_test

import (
	"crypto/tls"
	"io"
	"sync"
	"testing"
)

// A server of another protocol takes whatever ALPN its clients offer: a sidecar of Istio offers its own.
func TestListenTCPLeavesALPNToTheClient(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	ln := w.member(t, "postgres", strict).ListenTCP(listenLoopback(t))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "hello")
			conn.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
	id, err := w.Identity("default", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	for _, protocols := range [][]string{nil, {"istio-peer-exchange", "istio"}, {"postgresql"}, {"h2"}} {
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{
			InsecureSkipVerify: true, NextProtos: protocols, Certificates: []tls.Certificate{*id.Certificate()},
		})
		if err != nil {
			t.Errorf("offering %q: %v", protocols, err)
			continue
		}
		if said, err := io.ReadAll(conn); string(said) != "hello" || err != nil {
			t.Errorf("offering %q: %q, %v", protocols, said, err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != "" {
			t.Errorf("offering %q: the server chose %q, and speaks nothing of HTTP", protocols, got)
		}
		conn.Close()
	}
}
