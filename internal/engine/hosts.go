package engine

import (
	"hash/maphash"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

const (
	// hostsCached bounds the cache of hosts: its keys come from callers. Twice as many may be kept for each scheme.
	hostsCached = 16384

	// longestCached bounds the keys, too: a DNS name has at most 253 bytes.
	longestCached = 512

	// For how long a host that discovery does not know is treated as outside the mesh before discovery is asked again: a
	// service may register after its first call.
	unknownAtFirst = 250 * time.Millisecond
	unknownAtMost  = 5 * time.Second
)

// host is what a plan says about the host of a call. It is computed once.
type host struct {
	// What each call reads comes first.

	// spelled is the name and the port as the caller wrote them.
	spelled string

	// port is the port that the caller asks for: the URL's, or the default of its scheme.
	port int

	// policies are the retry policies that the protection changes, by rule; nil if it changes none.
	policies *sync.Map

	// usual leads to the clusters of some destinations of the host: see usualOf.
	usual [4]usual

	policy.HostPlan

	// away has the name as the caller wrote it, and is the target if the host turns out to be outside the mesh.
	away route.Target

	// mine says that the host belongs to the mesh if discovery knows it. A host that is Known belongs to it in any case.
	mine bool

	// documents names the document of each rule. It is nil unless calls are observed, which ask for it often.
	documents []string

	// protection is what the program asked for in addition to the documents, nil for nothing.
	protection *Protection

	// denied is set if discovery has said that it does not know the host.
	denied atomic.Pointer[denial]
}

// usual leads to the cluster of a destination, or of no destination, if it was called before.
type usual struct{ known atomic.Pointer[knownCluster] }

type knownCluster struct {
	backend *route.Backend
	cluster *atomic.Pointer[cluster]
}

// usualOf returns where the cluster of a destination is remembered. Most hosts have few destinations. Of those that share a place,
// the first one to be called has it.
func (h *host) usualOf(rule *route.Rule, b *route.Backend) *usual {
	if b == nil {
		return &h.usual[0]
	}
	return &h.usual[uint(rule.Index+b.Index)%uint(len(h.usual))]
}

// cluster returns the cluster that was remembered for a destination, nil if there is none.
func (u *usual) cluster(b *route.Backend) *cluster {
	if known := u.known.Load(); known != nil && known.backend == b {
		return known.cluster.Load()
	}
	return nil
}

// keep remembers a cluster, unless another one has the place.
func (u *usual) keep(b *route.Backend, c *cluster) {
	if known := u.known.Load(); known == nil || known.cluster.Load() == nil {
		u.known.Store(&knownCluster{b, c.self})
	}
}

// denial says why, for how long, and until when a host is treated as outside the mesh.
type denial struct {
	err   error // of discovery
	wait  time.Duration
	until time.Time
}

// outside reports whether the host, which no document names, is treated as outside the mesh now.
func (h *host) outside(now moment) bool {
	d := h.denied.Load()
	return !h.mine || d != nil && now.time().Before(d.until)
}

// deny records that discovery does not know the host. Discovery is asked again soon, and then less and less often.
func (h *host) deny(now time.Time, err error) {
	last := h.denied.Load()
	next := denial{err: err, wait: unknownAtFirst}
	if last != nil {
		if now.Before(last.until) {
			return // another call has asked meanwhile
		}
		next.wait = min(2*last.wait, unknownAtMost)
	}
	next.until = now.Add(next.wait)
	h.denied.CompareAndSwap(last, &next)
}

// unknown returns what discovery has said about a host that it does not know, or nil if it was not asked.
func (h *host) unknown() error {
	if d := h.denied.Load(); d != nil {
		return d.err
	}
	return nil
}

// documentOf returns the document that a rule comes from, if one does.
func (h *host) documentOf(rule *route.Rule) string {
	switch {
	case h.Routes == nil: // the defaults
		return ""
	case h.documents != nil:
		return h.documents[rule.Index]
	}
	return h.Origin(rule, -1).Document
}

// policy returns the retry policy of a rule, with what the host's protection adds.
func (h *host) policy(rule *route.Rule) *retry.Policy {
	if h.policies == nil {
		return rule.Retry
	}
	return h.protected(rule)
}

// protected returns the retry policy of a rule, changed by the host's protection.
func (h *host) protected(rule *route.Rule) *retry.Policy {
	p := h.protection
	if policy, ok := h.policies.Load(rule); ok {
		return policy.(*retry.Policy)
	}
	config := rule.Route.Retry
	if p.RetryAfter {
		config.MaxRetryAfter = 0 // the default
	}
	if p.StopNestedRetries {
		config.NestedRetries = false
	}
	policy, err := retry.NewPolicy(config)
	if err != nil {
		policy = rule.Retry // cannot happen: neither change can make a valid policy invalid
	}
	h.policies.Store(rule, policy)
	return policy
}

// hostCache caches the hosts of a plan by the spelling of callers. Reading takes no lock.
type hostCache struct {
	plain, secure cachedHosts // of http and https, whose ports differ

	engine *Engine
	plan   *policy.Plan
}

// cachedHosts has two generations of hosts: those that were asked for since the young one began, and those of the time
// before, which are dropped with the next generation unless they are asked for again. So hosts in use stay cached, however many names
// callers make up, and no call pays for more than its own host.
type cachedHosts struct {
	seed       maphash.Seed
	young, old atomic.Pointer[generation] // nil at first
	changes    atomic.Int64               // how often a host was put into a generation

	mu sync.Mutex // held while a generation begins
}

type generation struct {
	hosts sync.Map // string to *host
	n     atomic.Int64

	// first has some of the hosts by the hashes of their spelling, for a look-up that is several times as fast. The first one with a
	// hash stays, so that callers do not contend for the places of many hosts.
	first [256]atomic.Pointer[host]
}

// get returns a host, nil if it is not cached.
func (c *cachedHosts) get(authority string) *host {
	young := c.young.Load()
	if young == nil {
		return nil
	}
	first := &young.first[maphash.String(c.seed, authority)%uint64(len(young.first))]
	if h := first.Load(); h != nil && h.spelled == authority {
		return h
	}
	if h, ok := young.hosts.Load(authority); ok {
		first.CompareAndSwap(nil, h.(*host))
		return h.(*host)
	}
	if old := c.old.Load(); old != nil {
		if h, ok := old.hosts.Load(authority); ok {
			return c.put(authority, h.(*host))
		}
	}
	return nil
}

// put caches a host, and returns the one that is cached: another call may have been first.
func (c *cachedHosts) put(authority string, h *host) *host {
	young := c.young.Load()
	if young == nil || young.n.Load() >= hostsCached {
		young = c.begin(young)
	}
	cached, was := young.hosts.LoadOrStore(authority, h)
	if !was {
		young.n.Add(1)
		c.changes.Add(1)
	}
	return cached.(*host)
}

// begin returns a generation that is younger than the given one.
func (c *cachedHosts) begin(than *generation) *generation {
	c.mu.Lock()
	defer c.mu.Unlock()
	young := c.young.Load()
	if young == than {
		young = new(generation)
		c.old.Store(than)
		c.young.Store(young)
	}
	return young
}

// each calls f for each host. It may call it twice for the same host.
func (c *cachedHosts) each(f func(*host)) {
	for _, g := range []*generation{c.young.Load(), c.old.Load()} {
		if g != nil {
			g.hosts.Range(func(_, h any) bool {
				f(h.(*host))
				return true
			})
		}
	}
}

func (c *hostCache) init(e *Engine, plan *policy.Plan) {
	c.engine, c.plan = e, plan
	c.plain.seed = maphash.MakeSeed()
	c.secure.seed = c.plain.seed
}

// lookup returns the host that routes a call. It is the one that the authority names, if a document names it too, and the
// dialled host otherwise. The port is the dialled host's in any case.
func (c *hostCache) lookup(r *Request) *host {
	asked := c.get(r.Scheme, r.Host)
	if r.Authority == "" || r.Authority == r.Host {
		return asked
	}
	name := r.Authority
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	if named := c.get(r.Scheme, withPort(name, strconv.Itoa(asked.port))); named.Known {
		return named
	}
	return asked
}

func (c *hostCache) get(scheme, authority string) *host {
	if h := c.of(scheme).get(authority); h != nil {
		return h
	}
	return c.add(scheme, authority)
}

// of returns the hosts of a scheme.
func (c *hostCache) of(scheme string) *cachedHosts {
	if scheme == "https" {
		return &c.secure
	}
	return &c.plain
}

// add makes a host that is not cached, and caches it.
func (c *hostCache) add(scheme, authority string) *host {
	port := "80"
	if scheme == "https" {
		port = "443"
	}
	authority = strings.Clone(authority) // the cache must not keep the header that it may be part of in memory
	if _, own, err := net.SplitHostPort(authority); err == nil {
		port = own
	}
	whole := field.ASCII(withPort(authority, port))
	h := &host{HostPlan: c.plan.Host(whole), spelled: authority}
	h.away.Host = h.Service.Host
	if service, ok := c.plan.InCluster(whole); ok && (c.engine.config.Resolver != nil || service.Service == h.Service) {
		h.HostPlan = service // otherwise it is outside, and the URL says where
	}
	h.port, _ = strconv.Atoi(port)
	if h.protection = c.engine.protection(c.plan, h.HostPlan); h.protection != nil && (h.protection.RetryAfter || h.protection.StopNestedRetries) {
		h.policies = new(sync.Map)
	}
	if c.engine.Observed() && h.Routes != nil {
		h.documents = make([]string, h.Routes.Len())
		for i := range h.documents {
			h.documents[i] = h.Origin(h.Routes.Rule(i), -1).Document
		}
	}
	h.mine = h.Known || !h.Hidden && c.engine.mayOwn(h, scheme, authority) // which may ask a Proxy function, so no lock is held
	if len(authority) > longestCached {
		return h
	}
	return c.of(scheme).put(authority, h)
}

// withPort returns an authority with a port: its own, or the given one if it has none.
func withPort(authority, port string) string {
	if _, _, err := net.SplitHostPort(authority); err == nil {
		return authority
	}
	return net.JoinHostPort(strings.Trim(authority, "[]"), port)
}

// mayOwn reports whether a host that no document names is part of the mesh if discovery knows it.
func (e *Engine) mayOwn(h *host, scheme, authority string) bool {
	if e.config.Resolver != nil {
		return true
	}
	// DNS knows the whole world. So for RegistryOnly the documents are the registry, and a host behind a proxy is best left
	// to the proxy.
	if e.config.RegistryOnly || h.RegistryOnly {
		return false
	}
	return !e.config.Template.Proxies(scheme, authority)
}
