// Package memnet is a network in memory for tests. In a bubble of testing/synctest, time does not pass while a goroutine waits for a
// connection of the kernel. With these connections it does.
package memnet

import (
	"context"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
)

// Network connects dialers to the listeners of its addresses. Its zero value has no listeners. It is safe for concurrent use. A network
// that is used in a bubble belongs to that bubble.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*listener
	dials     int
}

// Listen returns a listener for an address such as "10.0.0.1:80". A listener for the empty address gets the connections to all addresses
// without a listener. Closing a listener frees its address. Listen panics if the address is taken.
func (n *Network) Listen(address string) net.Listener {
	l := &listener{network: n, address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		panic("memnet: " + address + " is taken")
	}
	if n.listeners == nil {
		n.listeners = make(map[string]*listener)
	}
	n.listeners[address] = l
	return l
}

// DialContext connects to a listener and waits until it accepts. Its signature suits [net/http.Transport] and gRPC. Without a listener,
// the connection is refused. The connection is a [net.Pipe] with addresses: a write at one end waits for a read at the other.
func (n *Network) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dials++
	l := n.listeners[address]
	if l == nil {
		l = n.listeners[""]
	}
	n.mu.Unlock()
	failed := func(err error) error { return &net.OpError{Op: "dial", Net: network, Addr: addr(address), Err: err} }
	if l == nil {
		return nil, failed(syscall.ECONNREFUSED)
	}
	near, far := net.Pipe()
	select {
	case l.conns <- &conn{far, addr(address), "client"}:
		return &conn{near, "client", addr(address)}, nil
	case <-l.closed:
		return nil, failed(syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, failed(context.Cause(ctx))
	}
}

// Dials returns the number of calls of DialContext, successful or not.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// Serve serves HTTP at an address until the end of the test. Its cleanup waits for the server.
func (n *Network) Serve(t testing.TB, address string, handler http.Handler) {
	l, server, done := n.Listen(address), &http.Server{Handler: handler}, make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l) // until Close
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// Transport returns a transport whose connections lead to handler, whatever their address, until the end of the test.
func Transport(t testing.TB, handler http.HandlerFunc) *http.Transport {
	var n Network
	n.Serve(t, "", handler)
	rt := &http.Transport{DialContext: n.DialContext}
	t.Cleanup(rt.CloseIdleConnections)
	return rt
}

type listener struct {
	network *Network
	address string
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, l.address)
		l.network.mu.Unlock()
		close(l.closed)
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.address) }

// conn is one end of a connection, with addresses.
type conn struct {
	net.Conn
	local, remote addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

type addr string

func (addr) Network() string  { return "memory" }
func (a addr) String() string { return string(a) }
