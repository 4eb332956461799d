package balancergrpc

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/grpcstatus"
)

// builder is what gRPC looks up by name.
type builder struct{}

// Name implements balancer.Builder.
func (builder) Name() string { return name }

// Build implements balancer.Builder.
func (builder) Build(cc grpcbalancer.ClientConn, _ grpcbalancer.BuildOptions) grpcbalancer.Balancer {
	return &connector{cc: cc}
}

// connector is the balancer of a ClientConn in gRPC's sense, between two idle periods: it keeps the connections. gRPC never
// calls it concurrently.
type connector struct {
	cc      grpcbalancer.ClientConn
	service *service // nil until the resolver has reported
	conns   *connections
	picker  *picker
}

// UpdateClientConnState implements balancer.Balancer.
func (c *connector) UpdateClientConnState(state grpcbalancer.ClientConnState) error {
	s, _ := state.ResolverState.Attributes.Value(serviceKey{}).(*service)
	if s == nil {
		c.fail(errTarget)
		return grpcbalancer.ErrBadResolverState
	}
	s.seen.Store(true)
	if c.service == nil {
		c.service = s
		c.conns = &connections{cc: c.cc, each: max(1, s.client.Connections), attach: c.attach, changed: func(e *endpoint) {
			s.connected(e)
			c.publish()
		}}
		c.picker = &picker{connector: c, service: s}
	}
	targets, err := s.targets()
	err = errors.Join(err, c.conns.update(targets))
	for _, e := range c.conns.endpoints {
		e.link.endpoint.Store(e)
		s.connected(e)
	}
	c.picker.problem(err)
	c.publish()
	return nil
}

// attach prepares the function that ends calls on a connection: one function for all calls, so that a pick allocates
// nothing.
func (c *connector) attach(conn *conn) {
	s, host := c.service, conn.endpoint.link.host
	conn.done = func(info grpcbalancer.DoneInfo) {
		conn.release()
		s.done(host, &info, 0)
	}
}

// ResolverError implements balancer.Balancer. The last known set stays.
func (c *connector) ResolverError(err error) {
	if c.service == nil {
		c.fail(err)
	}
}

func (c *connector) fail(err error) {
	c.cc.UpdateState(grpcbalancer.State{
		ConnectivityState: connectivity.TransientFailure,
		Picker:            failing{fmt.Errorf("balancergrpc: no endpoints yet: %w", err)},
	})
}

// publish makes all calls that wait for a connection pick again.
func (c *connector) publish() {
	c.picker.publish(c.conns.states.CurrentState())
}

// UpdateSubConnState implements balancer.Balancer. Connections have listeners.
func (c *connector) UpdateSubConnState(grpcbalancer.SubConn, grpcbalancer.SubConnState) {}

// ExitIdle implements balancer.Balancer.
func (c *connector) ExitIdle() {
	if c.conns != nil {
		c.conns.connect()
	}
}

// Close implements balancer.Balancer.
func (c *connector) Close() {
	if c.service == nil {
		return
	}
	c.picker.close()
	_ = c.conns.update(nil)
	c.service.disconnected()
}

// failing fails every pick.
type failing struct{ err error }

// Pick implements balancer.Picker.
func (f failing) Pick(grpcbalancer.PickInfo) (grpcbalancer.PickResult, error) {
	return grpcbalancer.PickResult{}, f.err
}

// picker makes the picks. Everything that changes from call to call is in the service; publishing it again only wakes
// waiting calls.
type picker struct {
	connector *connector
	service   *service

	mu     sync.Mutex
	state  connectivity.State
	wrong  error       // what is wrong with the endpoints
	alarm  *time.Timer // pending, unless nil
	closed bool
}

// Pick implements balancer.Picker.
func (p *picker) Pick(info grpcbalancer.PickInfo) (grpcbalancer.PickResult, error) {
	call := callOf(info.Ctx)
	pick := call.pickInfo()
	if p.service.client.Config.Algorithm == balancer.PeakEWMA && call != nil && call.unary {
		pick.Now = time.Now()
	}
	var passed []string // hosts that turned out not to be connected to
	for {
		h, err := p.service.balancer.Pick(pick)
		if err != nil {
			return p.refuse(err, call)
		}
		if e := linkOf(h).endpoint.Load(); e != nil {
			if conn := e.pick(); conn != nil {
				call.sentTo(h.ID())
				return grpcbalancer.PickResult{SubConn: conn.sub, Done: p.done(conn, h, pick.Now)}, nil
			}
		}
		h.Release(0, false)
		if p.service.hashes || slices.Contains(passed, h.ID()) {
			// Its connection is being made; when that succeeds or fails, the picker is published again.
			return grpcbalancer.PickResult{}, grpcbalancer.ErrNoSubConnAvailable
		}
		passed = append(passed, h.ID())
		pick.Tried = append(pick.Tried, h.ID())
	}
}

// done returns the function that ends a call, which is timed if it has a beginning.
func (p *picker) done(conn *conn, h *balancer.Host, began time.Time) func(grpcbalancer.DoneInfo) {
	if began.IsZero() {
		return conn.done
	}
	return func(info grpcbalancer.DoneInfo) {
		conn.release()
		p.service.done(h, &info, time.Since(began))
	}
}

// refuse returns the error for a call for which the balancer has no host.
func (p *picker) refuse(err error, call *call) (grpcbalancer.PickResult, error) {
	p.mu.Lock()
	wrong := p.wrong
	p.mu.Unlock()
	if err == balancer.ErrNoHealthy {
		switch outlook, reason := p.service.outlook(); {
		case outlook == hopeful:
			if p.service.client.Outlier != nil {
				p.wakeLater() // the ejection of a host that is connected to may just have ended
			}
			return grpcbalancer.PickResult{}, grpcbalancer.ErrNoSubConnAvailable
		case outlook == disconnected && reason != nil:
			return grpcbalancer.PickResult{}, fmt.Errorf("balancergrpc: no connection to %q: %w", p.service.host, reason)
		}
		p.wakeLater() // gRPC gets no event when an ejection ends
	}
	refusal := p.service.refusals[err]
	if wrong != nil {
		refusal = fmt.Errorf("%w: %w", refusal, wrong)
	}
	if call != nil && !call.waits {
		// With a status, gRPC passes the error on unchanged, but it would also fail wait-for-ready calls.
		refusal = grpcstatus.Wrap(codes.Unavailable, refusal)
	}
	return grpcbalancer.PickResult{}, refusal
}

// ejectionCheck is how often calls that wait for an ejection to end look whether it has.
const ejectionCheck = 100 * time.Millisecond

// wakeLater makes calls that wait for an ejection to end pick again in a while.
func (p *picker) wakeLater() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.alarm == nil && !p.closed {
		p.alarm = time.AfterFunc(ejectionCheck, p.wake)
	}
}

func (p *picker) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alarm = nil
	if !p.closed {
		p.publishLocked()
	}
}

func (p *picker) publish(state connectivity.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state
	p.publishLocked()
}

// publishLocked tells gRPC the state, which only notes it: so what it notes last is what there is.
func (p *picker) publishLocked() {
	p.connector.cc.UpdateState(grpcbalancer.State{ConnectivityState: p.state, Picker: p})
}

func (p *picker) problem(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrong = err
}

func (p *picker) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.alarm != nil {
		p.alarm.Stop()
	}
}
