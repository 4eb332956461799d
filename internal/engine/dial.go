package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
)

// dialTries is how many endpoints a dial tries: as many as the mesh's default retries make of a call. A connection that
// could not be made has carried nothing.
const dialTries = 3

// DialContext connects to a service for protocols other than HTTP. The address is "host:port".
func (e *Engine) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := &dial{engine: e, start: time.Now(), address: address}
	d.target.Port, err = strconv.Atoi(port)
	if err != nil {
		return nil, &net.AddrError{Err: "the port is not a number", Addr: address}
	}
	conn, err := d.run(ctx, network)
	if err == nil {
		return conn, nil
	}
	if kind := failure.Of(ctx, nil, err); kind == failure.Canceled || kind == failure.RequestTimeout {
		return nil, err // the caller gave up
	} else if kind != failure.Refused {
		d.flags |= flagsOf(kind, false)
	}
	return nil, e.hooks.Error(Failure{Layer: d.layer, Target: d.target, Flags: d.flags, Attempts: d.attempts, Err: err})
}

// dial is one connection on its way.
type dial struct {
	engine   *Engine
	start    time.Time
	address  string
	target   route.Target
	cluster  *cluster
	layer    Layer
	flags    Flags
	attempts int
	tried    []string
}

func (d *dial) refuse(layer Layer, flags Flags, err error) error {
	d.layer, d.flags = layer, d.flags|flags
	return refusal.Because(err)
}

func (d *dial) run(ctx context.Context, network string) (net.Conn, error) {
	inside, err := d.route(ctx)
	if err != nil {
		return nil, err
	}
	if !inside {
		d.layer = LayerEndpoint
		return contextDialer(d.engine.template)(ctx, network, d.address)
	}
	defer d.cluster.leave() // a connection is no call: it does not keep the endpoints of a removed destination known
	var conn net.Conn
	for try := 1; try <= dialTries; try++ {
		conn, err = d.attempt(ctx)
		if err == nil || refusal.Is(err) || ctx.Err() != nil {
			return conn, err
		}
	}
	return nil, err
}

// route finds the cluster of the address, and enters it. It reports whether the address belongs to the mesh.
func (d *dial) route(ctx context.Context) (inside bool, err error) {
	e := d.engine
	for {
		v := e.view.Load()
		host := v.plan.Host(d.address)
		d.target.Host = host.Service.Host
		if !host.Known && e.config.Resolver == nil && e.config.RegistryOnly {
			return false, d.refuse(LayerRoute, FlagNoRoute, ErrNotInMesh)
		}
		c, err := e.cluster(v, d.target)
		if err != nil {
			return false, d.refuse(LayerRoute, 0, err)
		}
		if c == nil || !c.enter(d.start) {
			continue // the documents changed meanwhile
		}
		d.cluster = c
		if host.Known {
			return true, nil
		}
		err = c.wait(ctx)
		if err == nil {
			return true, nil
		}
		c.leave()
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case !errors.Is(err, discovery.ErrUnknownService):
			return false, d.refuse(LayerDiscovery, FlagNoHealthyUpstream, err)
		}
		e.drop(c)
		if e.config.RegistryOnly {
			return false, d.refuse(LayerRoute, FlagNoRoute, ErrNotInMesh)
		}
		return false, nil
	}
}

// attempt connects to one endpoint.
func (d *dial) attempt(ctx context.Context) (_ net.Conn, err error) {
	c := d.cluster
	var lease breaker.Lease
	if c.circuit != nil {
		if lease, err = c.circuit.Allow(); err != nil {
			return nil, d.refuse(LayerBreaker, FlagOverflow, err)
		}
	}
	outcome := breaker.Ignored
	defer func() { lease.Done(outcome) }()

	h, err := d.pick(ctx)
	if err != nil {
		return nil, err
	}
	e := h.Value().(*endpoint)
	link, err := e.enter(d.engine.identity, "http") // it comes in plaintext, and leaves as the documents ask
	if err != nil {
		h.Release(0, false)
		return nil, d.refuse(LayerIdentity, FlagConnectFailure, err)
	}
	defer func() {
		if outcome != breaker.Success { // or there was a panic
			h.Release(0, outcome == breaker.Failure)
			link.leave()
		}
	}()
	d.layer = LayerEndpoint
	d.attempts++
	began := time.Now()
	conn, expires, err := link.dial(ctx)
	result := breaker.Result(http.StatusOK)
	switch {
	case err == nil:
		outcome = breaker.Success
	case ctx.Err() != nil || refusal.Is(err): // not the endpoint's doing
		result = breaker.NoResult
	default:
		result, outcome = breaker.ConnectFailure, breaker.Failure
	}
	if e.tracker != nil {
		e.tracker.Report(result)
	}
	if err != nil {
		if errors.Is(err, limit.ErrOverflow) {
			d.layer, d.flags = LayerLimit, d.flags|FlagOverflow
		}
		return nil, err
	}
	took := time.Since(began)
	raw := &rawConn{Conn: conn, left: func() {
		h.Release(took, false)
		link.leave()
	}}
	raw.expire(expires)
	return raw, nil
}

func (d *dial) pick(ctx context.Context) (*balancer.Host, error) {
	c := d.cluster
	if c.config.Missing {
		return nil, d.refuse(LayerRoute, FlagNoCluster, ErrUnknownSubset)
	}
	h, layer, err := c.pick(ctx, balancer.PickInfo{Tried: d.tried}, time.Now())
	switch {
	case err == nil:
	case layer == LayerDiscovery && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	default:
		return nil, d.refuse(layer, FlagNoHealthyUpstream, err)
	}
	d.tried = append(d.tried, h.ID())
	return h, nil
}

// dial makes a connection for protocols other than HTTP. It tells when the first certificate it was made with expires: zero
// without certificates.
func (l *Link) dial(ctx context.Context) (_ net.Conn, expires time.Time, _ error) {
	conns, err := l.open()
	if err != nil {
		return nil, time.Time{}, err
	}
	conn, err := conns.Dial(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	config := l.tls(func(notAfter time.Time) {
		if expires.IsZero() || notAfter.Before(expires) {
			expires = notAfter
		}
	})
	if config == nil {
		return conn, time.Time{}, nil
	}
	config.NextProtos = nil // they are HTTP's
	secure := tls.Client(conn, config)
	ctx, cancel := context.WithTimeout(ctx, l.lane.owner.connectTimeout())
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, time.Time{}, fmt.Errorf("TLS handshake with %s: %w", l.Address(), err)
	}
	return secure, expires, nil
}

// rawConn is a connection of DialContext.
type rawConn struct {
	net.Conn
	left   func()
	once   sync.Once
	expiry *time.Timer // nil without certificates
}

// expire closes the connection at a time, if it is not zero.
func (c *rawConn) expire(at time.Time) {
	if at.IsZero() {
		return
	}
	c.expiry = time.AfterFunc(math.MaxInt64, func() { c.Close() }) // which reads expiry, so not before that is set
	c.expiry.Reset(time.Until(at))
}

// Close implements net.Conn.
func (c *rawConn) Close() error {
	if c.expiry != nil {
		c.expiry.Stop()
	}
	err := c.Conn.Close()
	c.once.Do(c.left)
	return err
}

// CloseWrite shuts down the writing side, where the connection beneath can.
func (c *rawConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// NetConn returns the connection beneath: a *tls.Conn where there is TLS.
func (c *rawConn) NetConn() net.Conn {
	return c.Conn
}
