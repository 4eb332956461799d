package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/nosidecar/mesh/internal/netconn"
	"github.com/nosidecar/mesh/internal/transports"
)

// connections are the connections to one endpoint. They have their own transport, which dials the endpoint whatever the URL
// says: the request can stay as the caller made it.
type connections struct {
	template *http.Transport
	host     *Host

	mu     sync.Mutex
	own    *http.Transport            // nil until the first call: most of 10,000 endpoints may never get a call
	live   map[*netconn.Conn]struct{} // that are open
	closed bool
}

func (c *connections) transport() *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own == nil {
		c.own = transports.Clone(c.template)
		dial := c.own.DialContext
		c.own.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			address, err := c.dialAddress(address)
			if err != nil {
				return nil, err
			}
			nc, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return c.keep(nc)
		}
	}
	return c.own
}

// keep returns a new connection that close finds.
func (c *connections) keep(nc net.Conn) (net.Conn, error) {
	kept := &netconn.Conn{Conn: nc}
	c.mu.Lock()
	closed := c.closed
	if !closed {
		if c.live == nil {
			c.live = map[*netconn.Conn]struct{}{}
		}
		c.live[kept] = struct{}{}
	}
	c.mu.Unlock()
	if closed { // no call waits for it
		nc.Close()
		return nil, net.ErrClosed
	}
	kept.OnClose(func(error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.live, kept)
	})
	return kept, nil
}

// dialAddress returns where the endpoint serves the port that the caller asked for.
func (c *connections) dialAddress(asked string) (string, error) {
	_, service, err := net.SplitHostPort(asked)
	if err != nil {
		return asked, nil // net/http always adds the port
	}
	port, err := strconv.Atoi(service)
	if err != nil {
		return asked, nil
	}
	endpoint := c.host.Endpoint()
	at := endpoint.DialPort(port)
	if at == 0 {
		return "", fmt.Errorf("balancer: the endpoint %s does not serve port %d", endpoint.Address, port)
	}
	return net.JoinHostPort(endpoint.Address, strconv.Itoa(at)), nil
}

func (c *connections) closeIdle() {
	c.mu.Lock()
	own := c.own
	c.mu.Unlock()
	if own != nil {
		own.CloseIdleConnections()
	}
}

// close closes all connections, when the last call has ended and no other one can begin.
func (c *connections) close() {
	c.mu.Lock()
	c.closed = true
	live := slices.Collect(maps.Keys(c.live))
	c.mu.Unlock()
	c.closeIdle()
	// An HTTP/2 connection becomes idle a little after its last call has ended, and nothing would close it later.
	for _, nc := range live {
		nc.Close()
	}
}

// newTemplate returns a copy of base that can be copied for each endpoint.
func newTemplate(base *http.Transport) (*http.Transport, error) {
	if base == nil {
		standard, ok := http.DefaultTransport.(*http.Transport)
		if !ok {
			return nil, errors.New("balancer: http.DefaultTransport is not an *http.Transport; Base must be set")
		}
		base = standard
	}
	//lint:ignore SA1019 deprecated, but net/http still honours it
	if base.DialTLSContext != nil || base.DialTLS != nil {
		return nil, errors.New("balancer: Base must not have DialTLS or DialTLSContext; TLSClientConfig does")
	}
	t := transports.Clone(base)
	t.Proxy = nil
	t.DialContext = transports.Dial(t) // which net/http prefers to its Dial
	if t.MaxIdleConnsPerHost == 0 {
		// The default of 2 would open a new connection for nearly every call under load.
		t.MaxIdleConnsPerHost = 100
	}
	switch {
	case t.MaxConnsPerHost > 0:
		// net/http counts HTTP/2 connections wrongly against the limit.
		t.ForceAttemptHTTP2 = false
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
		if c := t.TLSClientConfig; c != nil { // a copy; Clone makes HTTP/2 add its protocol name there
			c.NextProtos = slices.DeleteFunc(slices.Clone(c.NextProtos), func(p string) bool { return p == "h2" })
		}
	case t.Protocols == nil && t.TLSNextProto == nil:
		// With a dial function, net/http would silently leave HTTP/2 out.
		t.ForceAttemptHTTP2 = true
	}
	return t, nil
}
