package meshgrpc

import (
	"errors"
	"testing"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
)

// channel is a ClientConn that notes the state of its balancer.
type channel struct {
	balancer.ClientConn
	state connectivity.State
}

func (c *channel) UpdateState(s balancer.State) { c.state = s.ConnectivityState }

// The state of a ClientConn is that of its best connection. Without any, it is a failure only if the latest could not be made.
func TestStateOfConnections(t *testing.T) {
	const idle, connecting, ready, gone = connectivity.Idle, connectivity.Connecting, connectivity.Ready, connectivity.Shutdown
	cc := new(channel)
	b := &connections{cc: cc}
	for i, step := range []struct {
		from, to connectivity.State
		failed   bool
		want     connectivity.State
	}{
		{idle, connecting, false, connecting},
		{connecting, ready, false, ready},
		{idle, connecting, false, ready},
		{connecting, gone, true, ready},
		{ready, gone, false, connectivity.TransientFailure},
		{idle, connecting, false, connecting},
		{connecting, ready, false, ready},
		{ready, gone, false, idle},
	} {
		if b.changed(step.from, step.to, step.failed); cc.state != step.want {
			t.Errorf("step %d: %v, want %v", i, cc.state, step.want)
		}
	}
	b.Close()
	if b.changed(idle, connecting, false); cc.state != idle {
		t.Errorf("gRPC hears of a connection after Close: %v", cc.state)
	}
}

// The timer of a connection that was closed is not started again.
func TestConnectionThatIsGoneDoesNotExpire(t *testing.T) {
	g := used(t)
	c, _ := g.pick()
	c.release()
	c.retire()
	c.used.Store(true)
	if c.expire(); c.idle.Stop() {
		t.Error("its timer runs")
	}
}

// An additional connection that cannot be made does not keep the endpoint from being dialled when it has no connection.
func TestAdditionalConnectionThatFails(t *testing.T) {
	g := used(t)
	full, _ := g.pick()
	defer full.release()
	full.streams.Store(1)
	full.Enter()
	defer full.release()
	c, err := g.dial(full)
	if err != nil || c.only {
		t.Fatalf("dial: %v; the only one: %t", err, c.only)
	}
	c.shutdown(errors.New("failed"))
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failures != 0 || !g.backoff.IsZero() {
		t.Errorf("%d failures, no attempt before %v", g.failures, g.backoff)
	}
}
