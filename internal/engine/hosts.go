package engine

import (
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

const (
	// hostsCached bounds the cache of hosts: its keys come from callers.
	hostsCached = 1024

	// outsideFor is how long a host that discovery does not know is taken to be outside the mesh before it is asked again.
	outsideFor = 10 * time.Second
)

// host is what a plan says about the host of a URL, worked out once.
type host struct {
	policy.Host

	// port is the one the caller asks for: that of the URL, or of its scheme.
	port int

	// mine says that the host belongs to the mesh if discovery knows it; a host that is Known belongs in any case.
	mine bool

	// confirmed says that discovery knows the host.
	confirmed atomic.Bool

	// protection is what the program asked for, beside the documents; nil for nothing. The retry policies that it changes
	// are kept by the route they belong to.
	protection *Protection
	policies   sync.Map

	// outsideUntil is the end, in Unix nanoseconds, of the time for which discovery did not know the host.
	outsideUntil atomic.Int64
}

// policy returns the retry policy of a route, with what the host's protection adds.
func (h *host) policy(entry *route.Entry) *retry.Policy {
	p := h.protection
	if p == nil || !p.RetryAfter && !p.StopNestedRetries {
		return entry.Retry
	}
	if policy, ok := h.policies.Load(entry); ok {
		return policy.(*retry.Policy)
	}
	config := entry.Route.Retry
	if p.RetryAfter {
		config.MaxRetryAfter = 0 // the default
	}
	if p.StopNestedRetries {
		config.NestedRetries = false
	}
	policy, err := retry.Compile(config)
	if err != nil {
		policy = entry.Retry // cannot be: neither change can make a good policy bad
	}
	h.policies.Store(entry, policy)
	return policy
}

func (h *host) outside(now time.Time) bool {
	return !h.Known && (!h.mine || now.UnixNano() < h.outsideUntil.Load())
}

// hostCache remembers the hosts of a plan by the way callers write them. Reading takes no lock.
type hostCache struct {
	engine *Engine
	plan   *policy.Plan

	plain, secure atomic.Pointer[map[string]*host] // of http and https, whose ports differ

	mu sync.Mutex // held while one of them is replaced
}

func newHostCache(e *Engine, plan *policy.Plan) *hostCache {
	return &hostCache{engine: e, plan: plan}
}

// lookup returns the host that decides over req. That is the one its Host header names, if a document does too, and else
// the one its URL does. The port is the URL's in any case.
func (c *hostCache) lookup(req *http.Request) *host {
	asked := c.get(req, req.URL.Host)
	if req.Host == "" || req.Host == req.URL.Host {
		return asked
	}
	name := req.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	if named := c.get(req, withPort(name, strconv.Itoa(asked.port))); named.Known {
		return named
	}
	return asked
}

func (c *hostCache) get(req *http.Request, authority string) *host {
	hosts, port := &c.plain, "80"
	if req.URL.Scheme == "https" {
		hosts, port = &c.secure, "443"
	}
	if known := hosts.Load(); known != nil {
		if h := (*known)[authority]; h != nil {
			return h
		}
	}
	if _, own, err := net.SplitHostPort(authority); err == nil {
		port = own
	}
	h := &host{Host: c.plan.Host(withPort(authority, port))}
	h.port, _ = strconv.Atoi(port)
	h.protection = c.engine.protection(c.plan, h.Host)
	h.mine = h.Known || c.engine.mayOwn(req) // which may ask a Proxy function, so no lock is held yet

	c.mu.Lock()
	defer c.mu.Unlock()
	var grown map[string]*host
	if known := hosts.Load(); known != nil {
		if first := (*known)[authority]; first != nil {
			return first
		}
		if len(*known) < hostsCached {
			grown = maps.Clone(*known)
		}
	}
	if grown == nil {
		grown = make(map[string]*host)
	}
	grown[authority] = h
	hosts.Store(&grown)
	return h
}

// withPort returns an authority with a port: its own, or else the given one.
func withPort(authority, port string) string {
	if _, _, err := net.SplitHostPort(authority); err == nil {
		return authority
	}
	return net.JoinHostPort(strings.Trim(authority, "[]"), port)
}

// mayOwn reports whether the host of req, which no document names, is part of the mesh if discovery knows it.
func (e *Engine) mayOwn(req *http.Request) bool {
	if e.config.Resolver != nil {
		return true
	}
	// DNS knows the whole world. What RegistryOnly calls the registry are then the documents, and a host behind a proxy
	// is best left to it.
	if e.config.RegistryOnly {
		return false
	}
	if e.template.Proxy == nil {
		return true
	}
	proxy, err := e.template.Proxy(req)
	return proxy == nil && err == nil
}
