package balancergrpc

import (
	"errors"
	"runtime"
	"sync"
	"testing"

	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
)

// toldConn is gRPC's side: a test says what becomes of connections.
type toldConn struct {
	grpcbalancer.ClientConn
	made []*toldSubConn
	err  error
}

type toldSubConn struct {
	grpcbalancer.SubConn
	address  string
	listener func(grpcbalancer.SubConnState)
	connects int
	shut     bool
}

func (c *toldSubConn) Connect()  { c.connects++ }
func (c *toldSubConn) Shutdown() { c.shut = true }

func (c *toldSubConn) become(state connectivity.State, err error) {
	c.listener(grpcbalancer.SubConnState{ConnectivityState: state, ConnectionError: err})
}

func (f *toldConn) NewSubConn(addresses []resolver.Address, opts grpcbalancer.NewSubConnOptions) (grpcbalancer.SubConn, error) {
	if f.err != nil {
		return nil, f.err
	}
	c := &toldSubConn{address: addresses[0].Addr, listener: opts.StateListener}
	f.made = append(f.made, c)
	return c, nil
}

func newConnections(t *testing.T, each int, targets ...target) (*toldConn, *connections, *int) {
	t.Helper()
	cc, changes := &toldConn{}, new(int)
	s := &connections{cc: cc, each: each, attach: func(*conn) {}, changed: func(*endpoint) { *changes++ }}
	if err := s.update(targets); err != nil {
		t.Fatal(err)
	}
	return cc, s, changes
}

func TestLifeOfAConnection(t *testing.T) {
	cc, s, changes := newConnections(t, 1, target{id: "a", address: "10.0.0.1:80"})
	conn, e := cc.made[0], s.endpoints["a"]
	broken := errors.New("connection refused")
	for _, step := range []struct {
		name           string
		become         connectivity.State
		ready, failing bool
		state          connectivity.State // of all
		connects       int
		changes        int
	}{
		{"connecting", connectivity.Connecting, false, false, connectivity.Connecting, 1, 1},
		{"connected", connectivity.Ready, true, false, connectivity.Ready, 1, 2},
		{"lost, and to be made again", connectivity.Idle, false, false, connectivity.Idle, 2, 3},
		{"connecting again", connectivity.Connecting, false, false, connectivity.Connecting, 2, 4},
		{"failed", connectivity.TransientFailure, false, true, connectivity.TransientFailure, 2, 5},
		{"to be tried again, but failing", connectivity.Idle, false, true, connectivity.TransientFailure, 3, 5},
		{"tried again, but failing", connectivity.Connecting, false, true, connectivity.TransientFailure, 3, 5},
		{"back", connectivity.Ready, true, false, connectivity.Ready, 3, 6},
	} {
		conn.become(step.become, broken)
		state, reason := s.states.CurrentState(), e.failing.Load()
		picked := e.pick()
		if picked != nil {
			picked.release()
		}
		if e.ready.Any() != step.ready || (reason != nil) != step.failing || (picked != nil) != step.ready || state != step.state {
			t.Errorf("%s: ready %v, failing %v, %v; want %v, %v, %v",
				step.name, e.ready.Any(), reason != nil, state, step.ready, step.failing, step.state)
		}
		if conn.connects != step.connects || *changes != step.changes {
			t.Errorf("%s: %d connects, %d changes; want %d, %d", step.name, conn.connects, *changes, step.connects, step.changes)
		}
		if step.failing && *reason != broken {
			t.Errorf("%s: error %v", step.name, *reason)
		}
	}
	_ = s.update(nil)
	if !conn.shut || s.endpoints["a"] != nil || e.ready.Any() {
		t.Error("Close left something")
	}
	conn.become(connectivity.Shutdown, nil)
	if state := s.states.CurrentState(); state != connectivity.TransientFailure || *changes != 6 {
		t.Errorf("after Close: %v, %d changes", state, *changes)
	}
}

func TestUpdate(t *testing.T) {
	cc, s, _ := newConnections(t, 1, target{id: "a", address: "10.0.0.1:80"}, target{id: "b", address: "10.0.0.2:80"}, target{id: "a", address: "10.0.0.9:80"})
	if len(cc.made) != 2 {
		t.Fatalf("%d connections, want 2", len(cc.made))
	}
	a := s.endpoints["a"]
	if err := s.update([]target{target{id: "a", address: "10.0.0.1:80"}, target{id: "b", address: "10.0.0.2:81"}, target{id: "c", address: "10.0.0.3:80"}}); err != nil {
		t.Fatal(err)
	}
	if s.endpoints["a"] != a || cc.made[0].shut {
		t.Error("the connection to an endpoint that stayed did not stay")
	}
	if !cc.made[1].shut || s.endpoints["b"].address != "10.0.0.2:81" || s.endpoints["c"] == nil || len(cc.made) != 4 {
		t.Errorf("%d connections, %+v", len(cc.made), s.endpoints["b"])
	}
	cc.err = errors.New("closing")
	if err := s.update([]target{target{id: "d", address: "10.0.0.4:80"}}); err != cc.err || s.endpoints["d"] != nil {
		t.Errorf("error %v, want %v", err, cc.err)
	}
}

// TestConnectionWithFewestCallsIsPicked: of several connections the one with the fewest calls is picked.
func TestConnectionWithFewestCallsIsPicked(t *testing.T) {
	cc, s, _ := newConnections(t, 3, target{id: "a", address: "10.0.0.1:80"})
	for _, conn := range cc.made[:2] {
		conn.become(connectivity.Ready, nil)
	}
	e := s.endpoints["a"]
	first, second := e.pick(), e.pick()
	if first == second {
		t.Error("the second call went to a connection that has one, and another has none")
	}
	second.release()
	if third := e.pick(); third != second {
		t.Error("the third call did not go to the connection without calls")
	}
}

// lateConn is gRPC's side, which is slow to take one state.
type lateConn struct {
	toldConn
	slow      connectivity.State
	meanwhile func()

	mu    sync.Mutex
	state connectivity.State
}

func (c *lateConn) UpdateState(s grpcbalancer.State) {
	if s.ConnectivityState == c.slow {
		c.meanwhile()
	}
	c.mu.Lock()
	c.state = s.ConnectivityState
	c.mu.Unlock()
}

// A picker that wakes calls does not put back the state that its ClientConn had before.
func TestWakingTellsTheStateThatThereIs(t *testing.T) {
	told, conns, _ := newConnections(t, 1, target{id: "a", address: "10.0.0.1:80"})
	told.made[0].become(connectivity.Ready, nil)
	cc := &lateConn{slow: connectivity.TransientFailure}
	c := &connector{cc: cc, conns: conns}
	c.picker = &picker{connector: c, state: cc.slow}
	published := make(chan struct{})
	cc.meanwhile = func() {
		go func() {
			c.publish()
			close(published)
		}()
		for range 1000 { // time to go first, for what may
			runtime.Gosched()
		}
	}
	c.picker.wake()
	<-published
	if cc.state != connectivity.Ready {
		t.Errorf("the state is %v, want READY", cc.state)
	}
}
