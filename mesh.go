package mesh

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// Mesh enforces a set of documents on the calls of a process. [New] makes one; it is safe for concurrent use.
type Mesh struct {
	options

	watchesAttempts bool // some observer wants to know of attempts
	watchesInbound  bool // some observer wants to know of inbound requests

	watcher  *discovery.Watcher
	names    *discovery.Watcher // of DNS, whatever finds the endpoints
	mirrors  route.Mirrorer
	identity *tlsid.Keeper     // nil without one
	outside  *limit.Conns      // for hosts outside the mesh; unlimited, with the template's proxy
	replaced http.RoundTripper // in place of all connections, for benchmarks
	closing  context.Context   // ends when Close begins
	cancel   context.CancelFunc

	// view is what calls look at: one load at the start of a call fixes its plan.
	view atomic.Pointer[view]

	documents documents
	server    server
	running   sync.WaitGroup // what follows feeds

	mu     sync.Mutex // held while the view changes; calls do not take it unless they need a new cluster
	closed bool
}

// view is a plan with the clusters that calls under it have needed so far. It never changes: another cluster or another
// plan make another view. The hosts are a cache, which fills as hosts are called.
type view struct {
	plan     *policy.Plan
	clusters map[route.Target]*cluster
	hosts    *hostCache
}

func (m *Mesh) newView(plan *policy.Plan) *view {
	return &view{plan: plan, clusters: make(map[route.Target]*cluster), hosts: newHostCache(m, plan)}
}

// New builds a mesh and loads its documents. ctx bounds the building only; the mesh lives until [Mesh.Close].
//
// An error in any document is an error here: it lists every finding, each with its file, line, field and remedy.
func New(ctx context.Context, opts ...Option) (*Mesh, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	m := &Mesh{}
	for _, option := range opts {
		if err := option(&m.options); err != nil {
			return nil, err
		}
	}
	m.watchesAttempts = slices.ContainsFunc(m.observers, func(o Observer) bool {
		return o.AttemptStart != nil || o.AttemptEnd != nil
	})
	m.watchesInbound = slices.ContainsFunc(m.observers, func(o Observer) bool {
		return o.InboundStart != nil || o.InboundEnd != nil
	})
	if err := m.server.init(m.inbound); err != nil {
		return nil, err
	}
	if m.template == nil {
		standard, ok := http.DefaultTransport.(*http.Transport)
		if !ok {
			return nil, errors.New("mesh: http.DefaultTransport is not an *http.Transport: use WithTransport")
		}
		m.template = standard
	}
	m.template = m.template.Clone()
	var unlimited *limit.Pool
	outside, err := unlimited.Conns(m.template)
	if err != nil {
		return nil, err
	}
	m.outside = outside

	environment, err := policy.WorkloadFromEnv()
	if err != nil {
		return nil, err
	}
	environment.Address = cmp.Or(environment.Address, ownAddress())
	environment.Unlabelled = m.resolver == nil // which is DNS
	m.workload = m.workload.Or(environment)
	if err := m.checkProtections(); err != nil {
		return nil, err
	}

	m.closing, m.cancel = context.WithCancel(context.Background())
	var resolver discovery.Resolver = discovery.DNS{}
	if m.resolver != nil {
		resolver = m.resolver
	}
	m.watcher = discovery.NewWatcher(resolver, m.discoveryFailed)
	m.names = discovery.NewWatcher(discovery.DNS{}, m.discoveryFailed)
	m.mirrors.Send = m.mirror
	m.mirrors.Done = m.mirrorDone
	m.view.Store(&view{})
	if err := m.identify(ctx); err != nil {
		m.Close()
		return nil, err
	}
	if err := m.begin(ctx); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// ownAddress returns the address of the first interface that others can reach, and "" if there is none.
func ownAddress() string {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	return ""
}

// replaceView makes the view of a plan the one in force, and returns the clusters that others took the place of, by their
// successors.
func (m *Mesh) replaceView(plan *policy.Plan) (map[*cluster]*cluster, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	old := m.view.Load()
	next := m.newView(plan)
	replaced := make(map[*cluster]*cluster) // old by new
	for target, c := range old.clusters {
		config := m.clusterConfig(plan, target)
		if !config.same(&c.config) {
			successor, err := newCluster(m, target, config, c)
			if err != nil {
				return nil, err
			}
			replaced[successor] = c
			c = successor
		}
		next.clusters[target] = c
	}
	m.view.Store(next)
	return replaced, nil
}

// cluster returns the state of a target, which the first call to it creates. It returns nil if v is not the view in
// force any more: then the caller starts again with the one that is.
func (m *Mesh) cluster(v *view, target route.Target) (*cluster, error) {
	if c := v.clusters[target]; c != nil {
		return c, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	current := m.view.Load()
	if current.plan != v.plan {
		return nil, nil
	}
	if c := current.clusters[target]; c != nil {
		return c, nil
	}
	c, err := newCluster(m, target, m.clusterConfig(current.plan, target), nil)
	if err != nil {
		return nil, err
	}
	next := *current
	next.clusters = maps.Clone(current.clusters)
	if len(next.clusters) >= clustersKept {
		dropIdle(next.clusters, time.Now())
	}
	next.clusters[target] = c
	m.view.Store(&next)
	return c, nil
}

const (
	// clustersKept is how many targets are kept before idle ones are dropped: which ports a host is called on, and under
	// AllowAny also which hosts are called, is up to the callers.
	clustersKept = 256

	// clusterIdle is how long a target must have been without calls to be dropped then.
	clusterIdle = 10 * time.Minute
)

func dropIdle(clusters map[route.Target]*cluster, now time.Time) {
	for target, c := range clusters {
		if c.idleSince(now.Add(-clusterIdle)) {
			delete(clusters, target)
			c.close()
		}
	}
}

// drop forgets a target that turned out to be none.
func (m *Mesh) drop(c *cluster) {
	m.mu.Lock()
	current := m.view.Load()
	if current.clusters[c.target] == c {
		next := *current
		next.clusters = maps.Clone(current.clusters)
		delete(next.clusters, c.target)
		m.view.Store(&next)
	}
	m.mu.Unlock()
	c.close()
}

// Client returns an http.Client whose calls go through the mesh. Each call returns a new client, whose Jar,
// CheckRedirect and Timeout may be set.
func (m *Mesh) Client() *http.Client {
	return &http.Client{Transport: m.Transport()}
}

// Wrap returns a copy of client whose calls go through the mesh: its Jar, CheckRedirect and Timeout are kept, its
// Transport is replaced. To keep the settings of an *http.Transport, give it to [WithTransport].
func (m *Mesh) Wrap(client *http.Client) *http.Client {
	wrapped := *client
	wrapped.Transport = m.Transport()
	return &wrapped
}

// Transport returns the mesh as an http.RoundTripper. All calls return the same one.
func (m *Mesh) Transport() *Transport {
	return (*Transport)(m)
}

// Close ends the mesh: new calls fail with [ErrClosed], mirrored copies and discovery stop, and idle connections close.
// It waits for everything the mesh itself runs. Calls in flight are the caller's: they may end in their own time, and
// their connections close after them. Close may be called more than once.
func (m *Mesh) Close() error {
	m.mu.Lock()
	m.closed = true
	last := m.view.Load()
	empty := *last
	empty.clusters = nil // a call that needs one now is told that the mesh is closed
	m.view.Store(&empty)
	m.mu.Unlock()

	m.cancel()
	if m.identity != nil {
		m.identity.Close()
	}
	m.running.Wait()
	m.mirrors.Close()
	m.watcher.Close()
	m.names.Close()
	for _, c := range last.clusters {
		c.close()
		c.conns.closeIdle()
	}
	m.outside.CloseIdleConnections()
	return nil
}

func (m *Mesh) policyLoaded(findings policy.Findings, err error) {
	for i := range m.observers {
		if f := m.observers[i].PolicyLoad; f != nil {
			f(PolicyLoad{Findings: findings, Err: err})
		}
	}
}

func (m *Mesh) stateChanged(change StateChange) {
	for i := range m.observers {
		if f := m.observers[i].StateChange; f != nil {
			f(change)
		}
	}
}

func (m *Mesh) mirrorDone(target route.Target, err error) {
	if refusal.Is(err) {
		m.stateChanged(StateChange{Kind: MirrorDropped, Target: target, Err: err})
	}
}

func (m *Mesh) discoveryFailed(service discovery.Service, err error) {
	if errors.Is(err, discovery.ErrUnknownService) {
		return // an answer, which the call that asked for it gets
	}
	m.stateChanged(StateChange{Kind: DiscoveryFailed, Target: route.Target{Host: service.Host}, Err: err})
}
