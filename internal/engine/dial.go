package engine

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/netconn"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/route"
)

// dialAttempts is how many endpoints a dial tries: as many attempts as a call gets with the mesh's default retries. A
// connection that could not be made has carried nothing.
const dialAttempts = 3

// Dialled describes a connection of [Engine.DialContext], or one that could not be made.
type Dialled struct {
	Target   route.Target
	Outside  bool                // of the mesh
	Endpoint *discovery.Endpoint // the one that was tried last; nil if there was none
	PeerID   string              // that the endpoint has proved
	Flags    Flags
}

// DialContext connects to a service for protocols other than HTTP, as mesh.DialContext says.
func (e *Engine) DialContext(ctx context.Context, network, address string) (net.Conn, Dialled, error) {
	var d Dialled
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, d, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, d, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, d, &net.AddrError{Err: "the port is not a number", Addr: address}
	}
	c := &Call{engine: e, kind: Raw, ctx: ctx, start: e.clock.now()}
	conn, err := c.dial(network, address, port, &d)
	if err != nil {
		err = c.failed(err)
	}
	d.Target, d.Outside, d.Flags = c.Target(), c.outside, c.flags
	return conn, d, err
}

// dial takes a connection through the stages of a call that need no requests.
func (c *Call) dial(network, address string, port int, d *Dialled) (conn net.Conn, err error) {
	defer func() { // an open connection is not a call: it does not keep the cluster of a removed destination
		if c.cluster != nil {
			c.cluster.leave()
		}
	}()
	// It starts in plaintext, like an http request, and is secured as the documents require.
	req := Request{Host: address, Request: route.Request{Scheme: "http"}, Target: route.Target{Port: port}}
	if err := c.locate(c.ctx, &req); err != nil {
		return nil, err
	}
	if c.cluster == nil {
		return c.engine.config.Template.Dial(c.ctx, network, address)
	}
	for n := 1; n <= dialAttempts; n++ {
		conn, err = c.connect(n, d)
		if err == nil || refusal.Is(err) || c.ctx.Err() != nil {
			break
		}
	}
	return conn, err
}

// connect makes one attempt. It ends with the connection, but its results for the endpoint and the destination are reported
// before.
func (c *Call) connect(n int, d *Dialled) (net.Conn, error) {
	a := new(Attempt)
	settled := false
	defer func() {
		if !settled { // a panic in the dialer, or of an observer
			a.Abandon()
		}
	}()
	if err := c.Acquire(c.ctx, a, n); err != nil {
		settled = true
		return nil, err
	}
	d.Endpoint = a.endpoint.host.Endpoint()
	conn, expires, err := a.conns.Connect(c.ctx)
	settled = true
	if err != nil {
		return nil, a.End(err)
	}
	d.PeerID = a.conns.ProvenID()
	raw := &netconn.Conn{Conn: conn}
	raw.OnClose(func(error) { a.leave(false) })
	a.connected(raw) // before anything else may close it
	a.conns.OnDistrust(conn, func(why error) { raw.CloseFor(why) })
	if !expires.IsZero() {
		timer := time.AfterFunc(time.Until(expires), func() { raw.CloseFor(errExpired) })
		raw.OnClose(func(error) { timer.Stop() })
	}
	return raw, nil
}

// connected reports that a raw connection was made. If an observer of that panics, nobody gets the connection, so it is closed.
func (a *Attempt) connected(raw *netconn.Conn) {
	reported := false
	defer func() {
		a.call.exit(a.cluster)
		if !reported {
			raw.Close()
		}
	}()
	a.Answered(statusOK)
	a.report(statusOK)
	a.lease.Done(breaker.Success)
	reported = true
}

var errExpired = errors.New("a certificate that the connection was made with has expired")
