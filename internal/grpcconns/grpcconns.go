// Package grpcconns keeps the connections of a gRPC balancer to its endpoints: it makes and closes them as the endpoints
// change, keeps them connected, and knows which of them can take a call.
//
// gRPC calls a balancer, and the listeners of its connections, one at a time. So it must be with Update, Connect and
// Close, while Lookup, Pick and Release are for the calls and safe for concurrent use.
package grpcconns

import (
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
)

// Config is what a [Set] is made with.
type Config struct {
	// Connections is the number of connections to each endpoint. A server that limits the streams of a connection makes
	// calls wait after they were given one; with several connections that comes later. 0 means 1.
	Connections int

	// Attach, if set, is called for each new connection before it can be picked.
	Attach func(*Conn)

	// Changed is called when the state of a connection changed. The owner must give gRPC a picker then: nothing else
	// makes calls that wait for a connection look again.
	Changed func(*Endpoint)
}

// Target is an endpoint to connect to.
type Target struct {
	ID      string
	Address resolver.Address
	Value   any // for the owner
}

// Set is the connections of one gRPC balancer.
type Set struct {
	cc        balancer.ClientConn
	config    Config
	endpoints atomic.Pointer[map[string]*Endpoint] // by ID; copied on write
	states    balancer.ConnectivityStateEvaluator
	err       error // of the latest connection that could not be made
}

// New returns an empty set.
func New(cc balancer.ClientConn, config Config) *Set {
	s := &Set{cc: cc, config: config}
	s.config.Connections = max(1, config.Connections)
	s.endpoints.Store(&map[string]*Endpoint{})
	return s
}

// Update makes the targets the endpoints of the set. Connections to endpoints that were there before, at the same
// address, stay. Those to endpoints that are gone close when their last call is over.
func (s *Set) Update(targets []Target) error {
	before := *s.endpoints.Load()
	after := make(map[string]*Endpoint, len(targets))
	var fresh []*Endpoint
	var failed error
	for _, target := range targets {
		e := before[target.ID]
		if after[target.ID] != nil {
			continue
		}
		if e == nil || !e.Target.Address.Equal(target.Address) || e.Target.Value != target.Value {
			var err error
			if e, err = s.newEndpoint(target); err != nil {
				failed = err
				continue
			}
			fresh = append(fresh, e)
		}
		after[target.ID] = e
	}
	s.endpoints.Store(&after)
	for id, e := range before {
		if after[id] != e {
			s.shutdown(e)
		}
	}
	for _, e := range fresh {
		e.connect()
	}
	return failed
}

// Lookup returns the endpoint with an ID, or nil.
func (s *Set) Lookup(id string) *Endpoint {
	return (*s.endpoints.Load())[id]
}

// State returns the state of all connections taken together, as gRPC counts it, and the error of the latest that could
// not be made.
func (s *Set) State() (connectivity.State, error) {
	return s.states.CurrentState(), s.err
}

// Connect has all connections that are idle connect.
func (s *Set) Connect() {
	for _, e := range *s.endpoints.Load() {
		e.connect()
	}
}

// Close shuts down all connections.
func (s *Set) Close() {
	_ = s.Update(nil)
}

func (s *Set) newEndpoint(target Target) (*Endpoint, error) {
	e := &Endpoint{Target: target, set: s}
	for range s.config.Connections {
		c := &Conn{Endpoint: e, state: connectivity.Idle}
		//lint:ignore SA1019 only that it takes several addresses is deprecated
		conn, err := s.cc.NewSubConn([]resolver.Address{target.Address}, balancer.NewSubConnOptions{
			StateListener: func(state balancer.SubConnState) { c.changed(state) },
		})
		if err != nil {
			s.shutdown(e)
			return nil, err
		}
		c.SubConn = conn
		if s.config.Attach != nil {
			s.config.Attach(c)
		}
		e.conns = append(e.conns, c)
		s.states.RecordTransition(connectivity.Shutdown, connectivity.Idle)
	}
	return e, nil
}

// shutdown closes the connections of an endpoint. gRPC leaves them the calls that they have.
func (s *Set) shutdown(e *Endpoint) {
	e.first.Store(nil)
	e.ready.Store(nil)
	for _, c := range e.conns {
		s.states.RecordTransition(c.state, connectivity.Shutdown)
		c.state = connectivity.Shutdown
		c.SubConn.Shutdown()
	}
}

// Endpoint is the connections to one endpoint.
type Endpoint struct {
	Target Target

	set   *Set
	conns []*Conn

	first   atomic.Pointer[Conn]    // that is ready; nil if none is
	ready   atomic.Pointer[[]*Conn] // all that are
	failing atomic.Bool
}

// Pick returns a connection that is ready, the one with the fewest calls, and counts a call on it; nil if none is ready.
func (e *Endpoint) Pick() *Conn {
	if e.set.config.Connections == 1 {
		return e.first.Load() // there is nothing to compare
	}
	ready := e.ready.Load()
	if ready == nil {
		return nil
	}
	best := (*ready)[0]
	for _, c := range (*ready)[1:] {
		if c.calls.Load() < best.calls.Load() {
			best = c
		}
	}
	best.calls.Add(1)
	return best
}

// Ready reports whether Pick would return a connection.
func (e *Endpoint) Ready() bool {
	return e.first.Load() != nil
}

// Failing reports whether none of the connections could be made the last time that it was tried. If an endpoint is
// neither Ready nor Failing, it is being connected to, and Config.Changed will tell of the outcome.
func (e *Endpoint) Failing() bool {
	return e.failing.Load()
}

func (e *Endpoint) connect() {
	for _, c := range e.conns {
		if c.state == connectivity.Idle {
			c.SubConn.Connect()
		}
	}
}

// publish makes the states of the connections known to picks.
func (e *Endpoint) publish() {
	var ready []*Conn
	failing := true
	for _, c := range e.conns {
		if c.state == connectivity.Ready {
			ready = append(ready, c)
		}
		failing = failing && c.state == connectivity.TransientFailure
	}
	e.failing.Store(failing)
	if ready == nil {
		e.first.Store(nil)
		e.ready.Store(nil)
	} else {
		e.first.Store(ready[0])
		e.ready.Store(&ready)
	}
}

// Conn is one connection.
type Conn struct {
	Endpoint *Endpoint
	SubConn  balancer.SubConn

	// Done is for the owner: what ends a call on the connection, made once instead of for each call.
	Done func(balancer.DoneInfo)

	calls atomic.Int64
	state connectivity.State
}

// Release ends a call that Pick began.
func (c *Conn) Release() {
	if c.Endpoint.set.config.Connections > 1 {
		c.calls.Add(-1)
	}
}

// changed is the listener of the connection.
func (c *Conn) changed(state balancer.SubConnState) {
	e, s := c.Endpoint, c.Endpoint.set
	now := state.ConnectivityState
	if c.state == connectivity.Shutdown || now == connectivity.Shutdown {
		return // it is ours to shut down
	}
	if now == connectivity.Idle {
		c.SubConn.Connect()
	}
	if c.state == connectivity.TransientFailure && now != connectivity.Ready && now != connectivity.TransientFailure {
		// A connection that fails over and over is failing all the time. Else, with many of them, one would always be
		// connecting, and calls would wait where they should fail.
		return
	}
	if now == connectivity.TransientFailure {
		s.err = state.ConnectionError
	}
	s.states.RecordTransition(c.state, now)
	c.state = now
	e.publish()
	s.config.Changed(e)
}
