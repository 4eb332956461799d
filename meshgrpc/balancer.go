package meshgrpc

import (
	"fmt"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/refusal"
)

// BalancerName is the name of the load balancer of [DialOptions], for a service config. The balancer works only together with
// these options.
const BalancerName = "nosidecar_mesh"

// gRPC finds load balancers only by name, in a table that only init functions may write to. The balancer has no state of its own:
// the call says which connection it needs.
func init() { balancer.Register(balancerBuilder{}) }

type balancerBuilder struct{}

func (balancerBuilder) Name() string { return BalancerName }

func (balancerBuilder) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return &connections{cc: cc, refused: checkAuthority(opts)}
}

// checkAuthority returns a refusal if the authority of a ClientConn is not the host of its target, as it is sent: a server may decode what is
// escaped, or not. An interceptor, which routes the calls, cannot see the authority, so the server would get another host than documents do.
func checkAuthority(opts balancer.BuildOptions) error {
	host := opts.Target.Endpoint()
	if strings.HasPrefix(host, ":") {
		host = "localhost" + host
	}
	if opts.Authority == host {
		return nil
	}
	if strings.Contains(host, "://") { // gRPC knows no such scheme
		return refusal.Because(notTarget(host))
	}
	return refusal.New(fmt.Sprintf("meshgrpc: documents do not see the authority %q of grpc.WithAuthority: "+
		"set it with grpc.WithDefaultCallOptions(grpc.CallAuthority(%[1]q)) instead", opts.Authority))
}

// connections has the connections of a ClientConn. It is its gRPC balancer and picker. There is nothing to balance, since the mesh
// chooses the endpoint of a try before the try begins. So a connection is made when a try first needs it. The state of endpoints
// is kept elsewhere: a ClientConn that goes idle loses its balancer.
type connections struct {
	cc      balancer.ClientConn
	refused error    // why no call can be made, nil if calls can
	groups  sync.Map // *sockets.Connections to *group

	mu     sync.Mutex
	closed bool
	count  [connectivity.Shutdown + 1]int // the number of connections by state; Idle and Shutdown do not matter

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

// choose returns a ready connection of link, on which the call is counted, or the connection that is being made. waits is the
// connection that the call has waited for, if any.
func (b *connections) choose(link *sockets.Connections, waits *conn) (ready, dialling *conn, err error) {
	if b.refused != nil {
		return nil, nil, b.refused
	}
	for {
		g, err := b.group(link)
		if err != nil {
			return nil, nil, err
		}
		if ready, dialling = g.pick(); ready != nil || dialling != nil {
			return ready, dialling, nil
		}
		if waits != nil {
			if err := waits.failure.Load(); err != nil {
				return nil, nil, b.failed(*err)
			}
		}
		switch dialling, err = g.dial(nil); {
		case err == errGroupClosed:
			g.forgotten()
		case dialling != nil || err != nil:
			return nil, dialling, err
		}
	}
}

// failed returns the reason why there is no connection. If the ClientConn was closed, it is not the fault of the endpoint.
func (b *connections) failed(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errBalancerClosed
	}
	return err
}

// group returns the group of a link, which it creates if necessary.
func (b *connections) group(link *sockets.Connections) (*group, error) {
	if g, _ := link.Kept.Load().(*group); g != nil && g.owner == b {
		return g, nil
	}
	if g, ok := b.groups.Load(link); ok {
		g.(*group).keep()
		return g.(*group), nil
	}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, errBalancerClosed
	}
	known, loaded := b.groups.LoadOrStore(link, &group{owner: b, link: link, limits: limitsOf(link.Limits())})
	b.mu.Unlock()
	g := known.(*group)
	if !loaded && !g.watch() {
		return nil, errBalancerClosed // the link is in use, so it was the ClientConn that was closed
	}
	return g, nil
}

//lint:ignore SA1019 gRPC itself still returns this error
var errBalancerClosed = refusal.Because(grpc.ErrClientConnClosing)

// changed counts a connection whose state has changed. It makes gRPC pick again for the calls that wait for a connection; nothing
// else does.
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

// ResolverError implements balancer.Balancer. The balancer does not need the results of the resolver.
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
	for _, g := range b.groups.Range {
		g.(*group).close()
	}
}
