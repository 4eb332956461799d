package grpcconns_test

import (
	"errors"
	"testing"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/nosidecar/mesh/internal/grpcconns"
)

// fakeConn is gRPC's side: a test says what becomes of connections.
type fakeConn struct {
	balancer.ClientConn
	made []*fakeSubConn
	err  error
}

type fakeSubConn struct {
	balancer.SubConn
	address  string
	listener func(balancer.SubConnState)
	connects int
	shut     bool
}

func (c *fakeSubConn) Connect()  { c.connects++ }
func (c *fakeSubConn) Shutdown() { c.shut = true }

func (c *fakeSubConn) become(state connectivity.State, err error) {
	c.listener(balancer.SubConnState{ConnectivityState: state, ConnectionError: err})
}

func (f *fakeConn) NewSubConn(addresses []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	if f.err != nil {
		return nil, f.err
	}
	c := &fakeSubConn{address: addresses[0].Addr, listener: opts.StateListener}
	f.made = append(f.made, c)
	return c, nil
}

func target(id, address string) grpcconns.Target {
	return grpcconns.Target{ID: id, Address: resolver.Address{Addr: address}}
}

func newSet(t *testing.T, connections int, targets ...grpcconns.Target) (*fakeConn, *grpcconns.Set, *int) {
	t.Helper()
	cc, changes := &fakeConn{}, new(int)
	s := grpcconns.New(cc, grpcconns.Config{
		Connections: connections,
		Changed:     func(*grpcconns.Endpoint) { *changes++ },
	})
	if err := s.Update(targets); err != nil {
		t.Fatal(err)
	}
	return cc, s, changes
}

func TestLifeOfAConnection(t *testing.T) {
	cc, s, changes := newSet(t, 0, target("a", "10.0.0.1:80"))
	conn, e := cc.made[0], s.Lookup("a")
	broken := errors.New("connection refused")
	for _, step := range []struct {
		name           string
		become         connectivity.State
		ready, failing bool
		state          connectivity.State // of the set
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
		state, err := s.State()
		if e.Ready() != step.ready || e.Failing() != step.failing || (e.Pick() != nil) != step.ready || state != step.state {
			t.Errorf("%s: ready %v, failing %v, %v; want %v, %v, %v",
				step.name, e.Ready(), e.Failing(), state, step.ready, step.failing, step.state)
		}
		if conn.connects != step.connects || *changes != step.changes {
			t.Errorf("%s: %d connects, %d changes; want %d, %d", step.name, conn.connects, *changes, step.connects, step.changes)
		}
		if step.failing && err != broken {
			t.Errorf("%s: error %v", step.name, err)
		}
	}
	s.Close()
	if !conn.shut || s.Lookup("a") != nil || e.Ready() {
		t.Error("Close left something")
	}
	conn.become(connectivity.Shutdown, nil)
	if state, _ := s.State(); state != connectivity.TransientFailure || *changes != 6 {
		t.Errorf("after Close: %v, %d changes", state, *changes)
	}
}

func TestUpdate(t *testing.T) {
	cc, s, _ := newSet(t, 1, target("a", "10.0.0.1:80"), target("b", "10.0.0.2:80"), target("a", "10.0.0.9:80"))
	if len(cc.made) != 2 {
		t.Fatalf("%d connections, want 2", len(cc.made))
	}
	a := s.Lookup("a")
	if err := s.Update([]grpcconns.Target{target("a", "10.0.0.1:80"), target("b", "10.0.0.2:81"), target("c", "10.0.0.3:80")}); err != nil {
		t.Fatal(err)
	}
	if s.Lookup("a") != a || cc.made[0].shut {
		t.Error("the connection to an endpoint that stayed did not stay")
	}
	if !cc.made[1].shut || s.Lookup("b").Target.Address.Addr != "10.0.0.2:81" || s.Lookup("c") == nil || len(cc.made) != 4 {
		t.Errorf("%d connections, %+v", len(cc.made), s.Lookup("b"))
	}
	cc.err = errors.New("closing")
	if err := s.Update([]grpcconns.Target{target("d", "10.0.0.4:80")}); err != cc.err || s.Lookup("d") != nil {
		t.Errorf("error %v, want %v", err, cc.err)
	}
}

// TestConnectionWithFewestCallsIsPicked: of several connections the one with the fewest calls is picked.
func TestConnectionWithFewestCallsIsPicked(t *testing.T) {
	cc, s, _ := newSet(t, 3, target("a", "10.0.0.1:80"))
	for _, conn := range cc.made[:2] {
		conn.become(connectivity.Ready, nil)
	}
	e := s.Lookup("a")
	first, second := e.Pick(), e.Pick()
	if first == second {
		t.Error("the second call went to a connection that has one, and another has none")
	}
	second.Release()
	if third := e.Pick(); third != second {
		t.Error("the third call did not go to the connection without calls")
	}
}
