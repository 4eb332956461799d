package consul

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/policy/route"
)

// Set has all entries, by the names of their services.
type Set struct {
	Routers   map[string]*Router
	Splitters map[string]*Splitter
	Resolvers map[string]*Resolver
	Services  map[string]*ServiceDefaults
	Proxy     *ProxyDefaults // nil if there is none

	Own *ServiceDefaults // that of the service that the process is an instance of; nil if there is none
}

// Target is a set of instances.
type Target struct {
	Service, Subset, Datacenter string
}

// Chain is the discovery chain of a service, which says where the calls to it go.
type Chain struct {
	Service  string
	Protocol string // tcp, http, http2 or grpc
	Legs     []Leg  // the first one that matches a request counts; the last one matches all requests

	Targets []Target // all targets, including those of failover

	used []lookup
}

// Leg is a part of a chain: a route, or the part for requests that match no route.
type Leg struct {
	Route    *Route // nil if there is none
	Index    int    // the index of the route in its router, or -1
	Splitter bool   // a splitter divides the calls
	Shares   []Share

	timeout bool // the chain begins with a resolver, whose RequestTimeout counts
}

// Share says where a share of the calls goes.
type Share struct {
	Weight  int // in hundredths of a percent
	Target  Target
	Headers route.Headers

	weight            float32
	request, response *Modifiers
}

// lookup is the result of looking up an entry for a chain. It may be that there is none.
type lookup struct {
	kind, name string
	found      any
}

// Error is an error in a chain.
type Error struct {
	Kind, Name string // the entry
	Field      string // the path of the field in the entry
	Message    string
}

func (e *Error) Error() string { return e.Kind + " " + e.Name + ": " + e.Field + ": " + e.Message }

// Current reports whether set has the same entries as the one that the chain was made from, as far as the chain uses them.
func (c *Chain) Current(set *Set) bool {
	for _, l := range c.used {
		if set.look(l.kind, l.name) != l.found {
			return false
		}
	}
	return true
}

// look returns an entry, as a pointer that may be nil.
func (s *Set) look(kind, name string) any {
	switch kind {
	case ServiceRouterKind:
		return s.Routers[name]
	case ServiceSplitterKind:
		return s.Splitters[name]
	case ServiceResolverKind:
		return s.Resolvers[name]
	case ServiceDefaultsKind:
		return s.Services[name]
	}
	return s.Proxy
}

// Protocol returns the protocol of a service. Its service-defaults entry hides proxy-defaults, even if it sets no protocol.
func (s *Set) Protocol(service string) string {
	if own := s.Services[service]; own != nil {
		return cmp.Or(own.Protocol, "tcp")
	} else if s.Proxy != nil {
		return cmp.Or(s.Proxy.Protocol, "tcp")
	}
	return "tcp"
}

// Chain compiles the chain of a service.
func (s *Set) Chain(service string) (*Chain, *Error) {
	c := s.chainer(service)
	if err := c.compile(); err != nil {
		return nil, err
	}
	return c.chain, nil
}

func (s *Set) chainer(service string) chainer {
	return chainer{Set: s, chain: &Chain{Service: service}, seen: make(map[Target]bool), used: make(map[lookup]bool)}
}

// chainer is one run of Chain.
type chainer struct {
	*Set
	chain  *Chain
	splits []string // the services whose splitters are being flattened, the outermost first
	seen   map[Target]bool
	used   map[lookup]bool // the elements of chain.used
}

func (c *chainer) uses(kind, name string) {
	if l := (lookup{kind, name, c.look(kind, name)}); !c.used[l] {
		c.used[l] = true
		c.chain.used = append(c.chain.used, l)
	}
}

// The bounds of a chain. Without them, a few entries that lead to each other could keep a process busy for hours.
const (
	maxShares = 10_000 // of a leg, or of the splitters that lead to it
	maxDepth  = 100    // successive splitters or redirects

	// MaxSize bounds the shares of all legs of a chain.
	MaxSize = 20_000
)

// Size returns the number of shares of all legs.
func (c *Chain) Size() (n int) {
	for i := range c.Legs {
		n += len(c.Legs[i].Shares)
	}
	return n
}

func (c *chainer) compile() *Error {
	service := c.chain.Service
	c.uses(ServiceRouterKind, service)
	router := c.Routers[service]
	if router == nil {
		leg := Leg{Index: -1}
		if err := c.lead(&leg, Target{Service: service}, place{}); err != nil {
			return err
		}
		leg.timeout = !leg.Splitter
		c.chain.Legs = []Leg{leg}
		return nil
	}
	from := place{ServiceRouterKind, service, ""}
	if err := c.speaks(service, from); err != nil {
		return err
	}
	if c.chain.Protocol == "tcp" {
		return from.withoutRequests()
	}
	size := 0
	for i := range router.Routes {
		r := &router.Routes[i]
		leg := Leg{Route: r, Index: i}
		to, from := Target{Service: service}, place{ServiceRouterKind, service, fmt.Sprintf("Routes[%d].Destination", i)}
		if d := r.Destination; d != nil {
			to = Target{Service: cmp.Or(d.Service, service), Subset: d.ServiceSubset}
		}
		if err := c.lead(&leg, to, from); err != nil {
			return err
		}
		if size += len(leg.Shares); size > MaxSize {
			return from.errorf("cannot be enforced: the routes up to here divide the calls into more than %d shares together", MaxSize)
		}
		c.chain.Legs = append(c.chain.Legs, leg)
	}
	rest := Leg{Index: -1}
	if err := c.lead(&rest, Target{Service: service}, from); err != nil {
		return err
	}
	c.chain.Legs = append(c.chain.Legs, rest)
	return nil
}

// place is the field that leads to a service, for errors.
type place struct{ kind, name, field string }

func (p place) errorf(format string, args ...any) *Error {
	return &Error{Kind: p.kind, Name: p.name, Field: p.field, Message: fmt.Sprintf(format, args...)}
}

// withoutRequests returns the error about an entry with conditions on requests, for a service that has none.
func (p place) withoutRequests() *Error {
	return p.errorf("cannot be enforced: the protocol of %s is tcp, which has no requests; set Protocol in a service-defaults entry of it to http, http2 or grpc", p.name)
}

// speaks checks that a service has the protocol of the chain, which is that of its first service.
func (c *chainer) speaks(service string, from place) *Error {
	c.uses(ServiceDefaultsKind, service)
	if c.Services[service] == nil {
		c.uses(ProxyDefaultsKind, "")
	}
	protocol := c.Set.Protocol(service)
	if c.chain.Protocol == "" {
		c.chain.Protocol = protocol
	}
	if protocol != c.chain.Protocol {
		return from.errorf("cannot be enforced: the protocol of %s is %s, and that of %s is %s: give them the same in their service-defaults entries",
			service, protocol, c.chain.Service, c.chain.Protocol)
	}
	return nil
}

// lead sets the shares of a leg.
func (c *chainer) lead(leg *Leg, to Target, from place) *Error {
	if to.Subset == "" {
		shares, err := c.split(to.Service, from)
		if err != nil {
			return err
		}
		if shares != nil {
			leg.Splitter, leg.Shares = true, shares
			for i := range leg.Shares {
				s := &leg.Shares[i]
				s.Weight = int(s.weight * 100)
				s.Headers = route.Headers{Request: s.request.translate(), Response: s.response.translate()}
			}
			return nil
		}
	}
	target, err := c.end(to, from)
	if err != nil {
		return err
	}
	leg.Shares = []Share{{Weight: 100_00, Target: target}}
	return nil
}

// split returns the shares of a service that has a splitter. Shares that lead to further splitters are replaced by the shares of
// these. It returns nil if the service has no splitter.
func (c *chainer) split(service string, from place) ([]Share, *Error) {
	c.uses(ServiceSplitterKind, service)
	splitter := c.Splitters[service]
	if splitter == nil {
		return nil, nil
	}
	switch {
	case slices.Contains(c.splits, service):
		return nil, from.errorf("leads in a circle: %s", strings.Join(append(c.splits, service), " -> "))
	case len(c.splits) == maxDepth:
		return nil, from.errorf("cannot be enforced: it leads through more than %d splitters, one after the other", maxDepth)
	}
	from = place{ServiceSplitterKind, service, ""}
	if err := c.speaks(service, from); err != nil {
		return nil, err
	}
	if c.chain.Protocol == "tcp" {
		return nil, from.withoutRequests()
	}
	c.splits = append(c.splits, service)
	defer func() { c.splits = c.splits[:len(c.splits)-1] }()
	shares := []Share{}
	for i := range splitter.Splits {
		split := &splitter.Splits[i]
		from := place{ServiceSplitterKind, service, fmt.Sprintf("Splits[%d]", i)}
		weight := normal(float32(split.Weight))
		to := Target{Service: cmp.Or(split.Service, service), Subset: split.ServiceSubset}
		if to.Service != service && to.Subset == "" {
			inner, err := c.split(to.Service, from)
			if err != nil {
				return nil, err
			}
			for _, s := range inner {
				s.weight = normal(weight * s.weight / 100)
				s.request, s.response = split.RequestHeaders.merge(s.request), s.response.merge(split.ResponseHeaders)
				shares = append(shares, s)
			}
			if inner != nil {
				if len(shares) > maxShares {
					return nil, from.errorf("cannot be enforced: the splitters divide the calls into more than %d shares together", maxShares)
				}
				continue
			}
		}
		target, err := c.end(to, from)
		if err != nil {
			return nil, err
		}
		shares = append(shares, Share{Target: target, weight: weight, request: split.RequestHeaders, response: split.ResponseHeaders})
	}
	return shares, nil
}

// Subset returns the filter of the subset of a target, for people to read, and its predicate. The predicate is nil if the target has all
// endpoints.
func (s *Set) Subset(t Target) (text string, predicate Predicate) {
	r := s.Resolvers[t.Service]
	if r == nil || t.Subset == "" {
		return "", nil
	}
	subset := r.Subsets[t.Subset]
	if text = subset.Filter; subset.OnlyPassing {
		if text != "" {
			text = "(" + text + ") and "
		}
		text += "only passing"
	}
	return text, r.predicates[t.Subset]
}

// Settings returns the settings of calls to a target in the chain of a service. led is the service whose resolver counts: the service of
// the target unless calls to led fail over to it.
func (s *Set) Settings(chain, led string, t Target) Settings {
	settings := s.Own.upstream(chain).settings(s.resolved(led))
	switch s.Protocol(t.Service) {
	case "http2", "grpc":
		settings.HTTP2 = true
	}
	return settings
}

// resolved returns the settings of the resolver of a service.
func (s *Set) resolved(service string) Settings {
	settings := Settings{Balancer: (*LoadBalancer)(nil).config()}
	settings.Pool.ConnectTimeout = connectTimeout
	if r := s.Resolvers[service]; r != nil {
		settings.Balancer = r.LoadBalancer.config()
		if r.ConnectTimeout.Duration > 0 {
			settings.Pool.ConnectTimeout = r.ConnectTimeout.Duration
		}
	}
	return settings
}

// LedApart reports whether calls to a service that replaces led, by failover, have other settings than calls to the service itself.
func (s *Set) LedApart(led, service string) bool {
	a, b := s.resolved(led), s.resolved(service)
	return !a.Balancer.Equal(b.Balancer) || a.Pool != b.Pool
}

// Apart reports whether calls have different settings in two chains.
func (s *Set) Apart(chain, other string) bool {
	a, b := s.Own.upstream(chain).settings(Settings{}), s.Own.upstream(other).settings(Settings{})
	return a.Pool != b.Pool || a.Eject != b.Eject || a.Outlier != b.Outlier
}

// Routes returns the routes of a chain. host returns the route.Target of a target.
func (c *Chain) Routes(set *Set, host func(Target) route.Target) []route.Route {
	routes := make([]route.Route, len(c.Legs))
	for i := range c.Legs {
		leg := &c.Legs[i]
		out := route.Route{Timeout: requestTimeout, RetryTried: true}
		switch r := set.Resolvers[leg.Shares[0].Target.Service]; {
		case c.Protocol == "tcp":
			out.Timeout = 0
		case leg.Route != nil:
			out = leg.Route.Route()
		case leg.timeout && r != nil && r.RequestTimeout.Duration > 0:
			out.Timeout = r.RequestTimeout.Duration
		}
		for _, share := range leg.Shares {
			out.Destinations = append(out.Destinations, route.Destination{Target: host(share.Target), Weight: share.Weight, Headers: share.Headers})
		}
		routes[i] = out
	}
	return routes
}
