package meshgrpc

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/refusal"
)

// BalancerName is the load balancer of [DialOptions] in a service config. It works only with calls of these options.
const BalancerName = "nosidecar_mesh"

// gRPC knows load balancers only by their names, in a table that may be written to only by init functions. The balancer has
// no state of its own: which connection a call gets is found in the call.
func init() { balancer.Register(balancerBuilder{}) }

type balancerBuilder struct{}

func (balancerBuilder) Name() string { return BalancerName }

func (balancerBuilder) Build(cc balancer.ClientConn, _ balancer.BuildOptions) balancer.Balancer {
	return &connections{cc: cc}
}

// connections are the connections of a ClientConn: the balancer of gRPC, and its picker. There is nothing to balance, since
// the mesh has chosen the endpoint of a try before it begins. So connections are made when a try first needs them, and
// all that is known of endpoints outlives them: a ClientConn that goes idle loses its balancer.
type connections struct {
	cc     balancer.ClientConn
	groups table

	mu     sync.Mutex
	closed bool
	count  [connectivity.Shutdown + 1]int // of connections, by state; those that are idle or shut down do not matter

	failing bool // the latest connection could not be made
}

var (
	_ balancer.Balancer = (*connections)(nil)
	_ balancer.Picker   = (*connections)(nil)
)

// Pick implements balancer.Picker.
func (b *connections) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	t, _ := info.Ctx.Value(tryKey{}).(*try)
	if t == nil {
		return balancer.PickResult{}, status.Error(codes.Internal,
			"the call did not pass the interceptors of meshgrpc.DialOptions")
	}
	return t.pick(b)
}

// choose returns a connection of link, counted, or the one that is being made. waits is the one that the call waited for.
func (b *connections) choose(link *engine.Connections, c *client, waits *conn) (ready, dialling *conn, err error) {
	for g := b.groups.get(link); ; g = nil {
		if g == nil {
			if g, err = b.open(link, c); err != nil {
				return nil, nil, err
			}
		}
		if ready, dialling = g.pick(); ready != nil || dialling != nil {
			return ready, dialling, nil
		}
		if waits != nil {
			if err := waits.failure.Load(); err != nil {
				return nil, nil, b.failed(*err)
			}
		}
		switch dialling, err = g.dial(true); {
		case err == errGroupClosed:
			b.groups.remove(g)
		case dialling != nil || err != nil:
			return nil, dialling, err
		}
	}
}

// failed returns why there is no connection: that is not the endpoint's fault if the ClientConn was closed.
func (b *connections) failed(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errBalancerClosed
	}
	return err
}

// open returns the group of a link that had none.
func (b *connections) open(link *engine.Connections, c *client) (*group, error) {
	g := &group{owner: b, link: link, limits: limitsOf(link.Limits())}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, errBalancerClosed
	}
	known := b.groups.add(g)
	b.mu.Unlock()
	if known == g && !c.watch(g) {
		g.close()
		return nil, errBalancerClosed // the link is in use, so this cannot be
	}
	return known, nil
}

//lint:ignore SA1019 what gRPC says, which knows no better, either
var errBalancerClosed = refusal.Because(grpc.ErrClientConnClosing)

// changed counts the change of a connection's state, and has the calls that wait for connections look again: nothing else
// does.
func (b *connections) changed(from, to connectivity.State, failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	if failed {
		b.failing = true
	} else if to == connectivity.Ready {
		b.failing = false
	}
	b.count[from]--
	b.count[to]++
	b.cc.UpdateState(balancer.State{ConnectivityState: b.stateLocked(), Picker: b})
}

func (b *connections) stateLocked() connectivity.State {
	switch {
	case b.count[connectivity.Ready] > 0:
		return connectivity.Ready
	case b.count[connectivity.Connecting] > 0:
		return connectivity.Connecting
	case b.failing:
		return connectivity.TransientFailure
	}
	return connectivity.Idle // the next call connects
}

// UpdateClientConnState implements balancer.Balancer.
func (b *connections) UpdateClientConnState(balancer.ClientConnState) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cc.UpdateState(balancer.State{ConnectivityState: b.stateLocked(), Picker: b})
	return nil
}

// ResolverError implements balancer.Balancer. What a resolver finds is of no interest.
func (b *connections) ResolverError(error) {
	_ = b.UpdateClientConnState(balancer.ClientConnState{})
}

// UpdateSubConnState implements balancer.Balancer.
func (b *connections) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

// ExitIdle implements balancer.Balancer.
func (b *connections) ExitIdle() {}

// Close implements balancer.Balancer.
func (b *connections) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	for _, g := range b.groups.list() {
		g.close()
	}
}

// table finds the groups of links. Links come and go seldom, and are looked up with every call: what is looked up often is in
// a map that does not change.
type table struct {
	read atomic.Pointer[map[*engine.Connections]*group] // some of all, and some that are gone

	mu     sync.Mutex
	all    map[*engine.Connections]*group
	missed int // lookups, since read is what it is
	gone   int // of read
}

func (t *table) get(link *engine.Connections) *group {
	if read := t.read.Load(); read != nil {
		if g := (*read)[link]; g != nil {
			return g
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.all[link]
	if g != nil {
		if t.missed++; t.missed > len(t.all) {
			t.publishLocked()
		}
	}
	return g
}

func (t *table) publishLocked() {
	read := maps.Clone(t.all)
	t.read.Store(&read)
	t.missed, t.gone = 0, 0
}

// add adds g, unless its link has a group, and returns that or g.
func (t *table) add(g *group) *group {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.all[g.link]; known != nil {
		return known
	}
	if t.all == nil {
		t.all = make(map[*engine.Connections]*group)
	}
	t.all[g.link] = g
	return g
}

func (t *table) remove(g *group) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[g.link] != g {
		return
	}
	delete(t.all, g.link)
	if read := t.read.Load(); read != nil && (*read)[g.link] == g {
		if t.gone++; 2*t.gone > len(*read) {
			t.publishLocked()
		}
	}
}

func (t *table) list() []*group {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Values(t.all))
}

// membership is the groups of a link: one for each ClientConn that uses it.
type membership struct {
	mu     sync.Mutex
	closed bool
	groups map[*group]struct{}
}

// watch has g closed with its link. It reports false if that is closed already.
func (c *client) watch(g *group) bool {
	known, loaded := c.links.LoadOrStore(g.link, &membership{groups: make(map[*group]struct{})})
	m := known.(*membership)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return false
	}
	m.groups[g] = struct{}{}
	m.mu.Unlock()
	g.mu.Lock()
	g.members = m
	closed := g.closed
	g.mu.Unlock()
	if closed { // and knew nothing of m then
		m.remove(g)
	}
	if !loaded {
		g.link.OnClose(func() {
			c.links.Delete(g.link)
			m.close()
		})
	}
	return true
}

func (m *membership) close() {
	m.mu.Lock()
	m.closed = true
	groups := m.groups
	m.groups = nil
	m.mu.Unlock()
	for g := range groups {
		g.close()
	}
}

func (m *membership) remove(g *group) {
	m.mu.Lock()
	delete(m.groups, g)
	m.mu.Unlock()
}
