package balancergrpc

import (
	"sync/atomic"

	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/nosidecar/mesh/internal/grpcconns"
)

// connections are the connections of a ClientConn to its endpoints: made and closed as the endpoints change, and kept
// connected. gRPC never calls a balancer and the listeners of its connections concurrently, so only picks need
// synchronization.
type connections struct {
	cc        grpcbalancer.ClientConn
	each      int // connections to an endpoint
	attach    func(*conn)
	changed   func(*endpoint)
	endpoints map[string]*endpoint // by the ID of the host
	states    grpcbalancer.ConnectivityStateEvaluator
}

// target is an endpoint to connect to.
type target struct {
	id, address string
	link        *link
}

// update replaces the endpoints with the targets. Connections to endpoints that were there before, at the same address,
// stay. Those to endpoints that are gone close when their last call is over.
func (s *connections) update(targets []target) error {
	before := s.endpoints
	s.endpoints = make(map[string]*endpoint, len(targets))
	var fresh []*endpoint
	var failed error
	for _, t := range targets {
		if s.endpoints[t.id] != nil {
			continue
		}
		e := before[t.id]
		if e == nil || e.target != t {
			var err error
			if e, err = s.open(t); err != nil {
				failed = err
				continue
			}
			fresh = append(fresh, e)
		}
		s.endpoints[t.id] = e
	}
	for id, e := range before {
		if s.endpoints[id] != e {
			s.retire(e)
		}
	}
	for _, e := range fresh {
		e.connect()
	}
	return failed
}

// connect connects all idle connections.
func (s *connections) connect() {
	for _, e := range s.endpoints {
		e.connect()
	}
}

func (s *connections) open(t target) (*endpoint, error) {
	e := &endpoint{target: t, owner: s}
	for range s.each {
		c := &conn{endpoint: e, state: connectivity.Idle}
		//lint:ignore SA1019 only that it takes several addresses is deprecated
		sub, err := s.cc.NewSubConn([]resolver.Address{{Addr: t.address}}, grpcbalancer.NewSubConnOptions{StateListener: c.changed})
		if err != nil {
			s.retire(e)
			return nil, err
		}
		c.sub = sub
		s.attach(c)
		e.conns = append(e.conns, c)
		s.states.RecordTransition(connectivity.Shutdown, connectivity.Idle)
	}
	return e, nil
}

// retire closes the connections of an endpoint when their last calls are over.
func (s *connections) retire(e *endpoint) {
	e.ready.Set(nil)
	for _, c := range e.conns {
		s.states.RecordTransition(c.state, connectivity.Shutdown)
		c.state = connectivity.Shutdown
		if c.Retire() {
			c.sub.Shutdown()
		}
	}
}

// endpoint is the connections to one endpoint.
type endpoint struct {
	target
	owner *connections
	conns []*conn

	ready   grpcconns.Ready[*conn]
	failing atomic.Pointer[error] // why none of the connections could be made on the last try; otherwise nil
}

// pick returns a connection that is ready, the one with the fewest calls, and counts a call on it; nil if none is ready.
func (e *endpoint) pick() *conn {
	c := e.ready.Fewest()
	if c == nil || c.Enter() == 0 {
		return nil
	}
	return c
}

func (e *endpoint) connect() {
	for _, c := range e.conns {
		if c.state == connectivity.Idle {
			c.sub.Connect()
		}
	}
}

// publish makes the states of the connections known to picks.
func (e *endpoint) publish() {
	var ready []*conn
	failing, reason := true, new(error)
	for _, c := range e.conns {
		if c.state == connectivity.Ready {
			ready = append(ready, c)
		}
		failing = failing && c.state == connectivity.TransientFailure
		*reason = c.err
	}
	if !failing {
		reason = nil
	}
	e.failing.Store(reason)
	e.ready.Set(ready)
}

// conn is one connection.
type conn struct {
	endpoint *endpoint
	sub      grpcbalancer.SubConn
	done     func(grpcbalancer.DoneInfo) // ends a call on the connection
	state    connectivity.State
	err      error // why it could not be made
	grpcconns.Calls
}

// release ends a call that pick began.
func (c *conn) release() {
	if c.Leave() {
		c.sub.Shutdown()
	}
}

// changed is the listener of the connection.
func (c *conn) changed(state grpcbalancer.SubConnState) {
	e, s := c.endpoint, c.endpoint.owner
	now := state.ConnectivityState
	if c.state == connectivity.Shutdown || now == connectivity.Shutdown {
		return // we shut it down
	}
	if now == connectivity.Idle {
		c.sub.Connect()
	}
	if c.state == connectivity.TransientFailure && now != connectivity.Ready && now != connectivity.TransientFailure {
		// A connection that fails repeatedly counts as failing all the time. Otherwise, with many of them, one would always
		// be connecting, and calls would wait when they should fail.
		return
	}
	if now == connectivity.TransientFailure {
		c.err = state.ConnectionError
	}
	s.states.RecordTransition(c.state, now)
	c.state = now
	e.publish()
	s.changed(e)
}
