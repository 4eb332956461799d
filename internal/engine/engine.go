package engine

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/internal/mirror"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// Config holds the settings of an [Engine].
type Config struct {
	// Resolver finds endpoints. nil means [discovery.DNS].
	Resolver discovery.Resolver

	// Template is the template for connections. It must be set.
	Template *sockets.Template

	// RegistryOnly refuses hosts outside the mesh.
	RegistryOnly bool

	// Protections are settings that no document can express. If several apply to a host, the last one wins.
	Protections []HostProtection

	// Hooks are told what happens.
	Hooks Hooks
}

// Engine takes calls to their destinations. [New] makes one; it is safe for concurrent use once a plan has been applied.
type Engine struct {
	// Each call reads these, up to the first hooks, so they share a cache line.

	// view is what calls use: one load at the start of a call fixes its plan.
	view atomic.Pointer[view]

	clock clock

	// valid is the identity of this process that was last found to be valid, so that it only can expire.
	valid atomic.Pointer[tlsid.Identity]

	identity *tlsid.Keeper // nil without one
	hooks    Hooks

	// Mirrors sends the copies of calls. The HTTP adapter sets its Send.
	Mirrors mirror.Mirrorer[route.Mirror]

	config      Config
	trustDomain string // of the identities that endpoints have

	// cluster says how a target is treated.
	cluster func(*policy.Plan, route.Target) policy.Cluster

	watcher *discovery.Watcher
	names   *discovery.Watcher // for names that documents have looked up in DNS, whatever the Resolver is

	deadlines deadline.Texts

	routesSeen atomic.Pointer[routesSeen] // of status

	// closed is written with mu held.
	closed atomic.Bool

	mu      sync.Mutex  // held while the view changes; calls do not take it unless they need a new cluster
	sweeper *time.Timer // of targets that no document names; nil while there are none

	// Recent treatments of targets: see alikeLocked. Guarded by mu.
	alike     [8]*treatment
	alikeNext int
}

// New returns an engine that has no plan yet: see [Engine.Apply].
func New(config Config) (*Engine, error) {
	if err := checkProtections(config.Protections); err != nil {
		return nil, err
	}
	e := &Engine{config: config, hooks: config.Hooks, cluster: (*policy.Plan).Cluster}
	var resolver discovery.Resolver = discovery.DNS{}
	if config.Resolver != nil {
		resolver = config.Resolver
	}
	e.watcher = discovery.NewWatcher(resolver, e.discoveryFailed)
	e.names = discovery.NewWatcher(namesOf(resolver), e.discoveryFailed)
	e.Mirrors.Share = func(to *route.Mirror) uint32 { return fraction.PerMillion(to.Fraction) }
	e.Mirrors.Done = e.mirrorDone
	e.view.Store(e.newView(nil))
	return e, nil
}

// namesOf returns what looks up the names that documents give as addresses: DNS, with the settings of the resolver if that is DNS, too. Its
// SRV records are those of services.
func namesOf(r discovery.Resolver) discovery.DNS {
	switch r := r.(type) {
	case discovery.DNS:
		return discovery.DNS{Interval: r.Interval, Network: r.Network, Resolver: r.Resolver}
	case *discovery.DNS:
		return namesOf(*r)
	}
	return discovery.DNS{}
}

// Identify gives the engine the identity that connections present, which may be nil, and the trust domain of the
// endpoints. It must not be called after [Engine.Apply].
func (e *Engine) Identify(identity *tlsid.Keeper, trustDomain string) {
	e.identity, e.trustDomain = identity, trustDomain
	e.config.Template.Identity = identity
}

// Rotate makes new calls use new connections wherever the identity was presented.
func (e *Engine) Rotate() {
	e.mu.Lock() // a cluster that is being made would be missed
	clusters := e.view.Load().clusters.list()
	e.mu.Unlock()
	for _, c := range clusters {
		c.identified()
		c.sockets.Rotate()
	}
}

// Recheck cuts off the connections to endpoints that the bundles of identity, which is in force now, do not vouch for, with the calls on them. It
// is called after [Engine.Rotate].
func (e *Engine) Recheck(identity *tlsid.Identity) { e.config.Template.Recheck(identity) }

// Plan returns the plan in force.
func (e *Engine) Plan() *policy.Plan {
	return e.view.Load().plan
}

// CloseIdleConnections closes the connections that serve no call.
func (e *Engine) CloseIdleConnections() {
	e.view.Load().clusters.each(func(c *cluster) { c.sockets.CloseIdle() })
	e.config.Template.CloseIdle()
}

// Close ends the engine: new calls fail with [ErrClosed], mirrored copies and discovery stop, and idle connections close. It
// waits for everything that the engine itself runs. Calls in flight end in their own time, and their connections close after
// them. Close may be called more than once.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed.Store(true)
	last := e.view.Load()
	e.view.Store(e.newView(last.plan)) // a call that needs a cluster now learns that the engine is closed
	if e.sweeper != nil {
		e.sweeper.Stop()
	}
	e.mu.Unlock()

	// Each of these may wait for code of the program, which must not keep the others from ending.
	var ending sync.WaitGroup
	ending.Go(func() { e.Mirrors.Close() })
	ending.Go(func() { e.watcher.Close() })
	ending.Go(func() { e.names.Close() })
	closeIdle := func(c *cluster) { c.sockets.CloseIdle() }
	last.clusters.each((*cluster).close)
	last.clusters.each(closeIdle)
	e.config.Template.CloseIdle()
	ending.Wait()
	last.clusters.each(closeIdle) // those of mirrored copies
	e.config.Template.CloseIdle()
}

// Observed reports whether there are observers of calls.
func (e *Engine) Observed() bool { return e.hooks.Call != nil }

// HeadersObserved reports whether observers set headers of attempts.
func (e *Engine) HeadersObserved() bool { return e.hooks.Headers }

// Template returns the template for connections.
func (e *Engine) Template() *sockets.Template { return e.config.Template }

// Of returns the engine behind the transport of a mesh, nil for any other.
func Of(transport any) *Engine {
	if t, ok := transport.(interface{ Engine() *Engine }); ok {
		return t.Engine()
	}
	return nil
}

func (e *Engine) mirrorDone(to *route.Mirror, err error) {
	if f := e.hooks.MirrorDropped; f != nil && refusal.Is(err) {
		f(to.Target, err)
	}
}

func (e *Engine) discoveryFailed(service discovery.Service, err error) {
	if errors.Is(err, discovery.ErrUnknownService) {
		return // this is an answer, which the call that asked gets
	}
	if f := e.hooks.DiscoveryFailed; f != nil {
		f(service, err)
	}
}
