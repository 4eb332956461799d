package policy

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/nosidecar/mesh/internal/cors"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
)

// The documents that route calls are also about the requests that arrive, as far as they have CORS policies. Which of them a host belongs to
// depends neither on the labels of the workload nor on what its Sidecar imports: these are about its own calls.

// arrivals has the documents about requests that arrive, by host.
type arrivals struct {
	plan  *Plan
	hosts hostMap[arrival]
}

// arrival is a document about requests that arrive for a host.
type arrival struct {
	virtual   *virtual
	whole     *expansion
	attached  *attached
	ports     []int    // those that it applies to; nil for all
	otherwise *arrival // the document for other ports; nil if there is none

	once     sync.Once // for the first request of another origin
	table    *route.Table
	policies []*cors.Policy // one for each route of the table; nil for those without
}

// scopes says to which requests a VirtualService applies.
type scopes struct {
	calls    []int  // the ports of calls of the workload; nil for all
	arriving *scope // nil if it is that of calls
}

// scope says to which requests that arrive a VirtualService applies.
type scope struct {
	ports []int // nil for all
	some  bool  // there are such requests
}

// nobody stands for callers, of which nothing is known where their requests arrive: no match on their labels or their namespace applies.
func (p *Plan) nobody() istio.Client { return istio.Client{ClusterDomain: p.workload.ClusterDomain} }

// scopesOf returns the scopes of a document, or nil if it applies to all ports. It reports whether any route applies to calls of the workload.
func (p *Plan) scopesOf(is *istio.VirtualService) (some bool, s *scopes) {
	ports, some := portsOf(is, p.client())
	if is.BySender() {
		to, arrive := portsOf(is, p.nobody())
		return some, &scopes{ports, &scope{to, arrive}}
	}
	if ports == nil {
		return some, nil
	}
	return some, &scopes{calls: ports}
}

// arrives notes a document that claims its hosts, in the order of the claims.
func (c *compiler) arrives(own *claim) {
	switch {
	case own.attached != nil:
		if !own.attached.consumer { // those of callers are not in force where requests arrive
			c.arriving = append(c.arriving, own)
		}
	case own.virtual.visible:
		c.arriving = append(c.arriving, own)
	}
}

// hasCORS reports whether the document of a claim has a CORS policy.
func (c *claim) hasCORS() bool {
	switch {
	case c.attached != nil:
		return slices.ContainsFunc(c.attached.members, func(m member) bool { return m.cors })
	case c.whole != nil:
		return c.whole.cors
	}
	return c.virtual.cors
}

// arrival returns the claim for requests that arrive, or nil if it is about none.
func (c *claim) arrival() *arrival {
	a := &arrival{virtual: c.virtual, whole: c.whole, attached: c.attached, ports: c.ports()}
	if a.attached != nil {
		return a
	}
	some, s := c.scopes()
	if s != nil && s.arriving != nil {
		a.ports, some = s.arriving.ports, s.arriving.some
	}
	if !some {
		return nil
	}
	return a
}

// corsPolicies compiles the CORS policies for requests that arrive.
func (c *compiler) corsPolicies() {
	if !slices.ContainsFunc(c.arriving, (*claim).hasCORS) {
		return
	}
	in := &arrivals{plan: c.plan}
	for _, own := range c.arriving {
		if own.attached != nil {
			in.add(own.attached.host, own.arrival())
			continue
		}
		for _, host := range own.virtual.hosts {
			in.add(host, own.arrival())
		}
	}
	c.plan.inbound.CORS = in.policy
	c.preflights()
}

// add adds a document for a host, for the ports that those before it leave.
func (in *arrivals) add(host string, a *arrival) {
	if a == nil {
		return
	}
	last, added := in.hosts.add(host, a)
	if added {
		return
	}
	for last.otherwise != nil {
		last = last.otherwise
	}
	if last.ports != nil {
		last.otherwise = a
	}
}

// policy returns the CORS policy of a request, or nil if it has none.
func (in *arrivals) policy(r *route.Request) *cors.Policy {
	for a := in.of(r.Authority); a != nil; a = a.otherwise {
		if a.ports != nil && !slices.Contains(a.ports, r.Port) {
			continue
		}
		a.once.Do(func() { a.compile(in.plan) })
		if rule, _, ok := a.table.Match(r); ok {
			return a.policies[rule.Index]
		}
		return nil
	}
	return nil
}

// of returns the document of a host as it appears in requests, as in [Plan.Host].
func (in *arrivals) of(authority string) *arrival {
	p, asked := in.plan, hostname(authority)
	name := p.canonical(asked)
	if full := asked + ".svc." + p.workload.ClusterDomain; name == asked && strings.Count(asked, ".") == 1 && in.hosts.plain(asked) == nil && in.hosts.plain(full) != nil {
		name = full
	}
	if a := in.hosts.plain(name); a != nil {
		return a
	}
	if name != asked && !p.knows(name) {
		end, _ := in.hosts.covering(name)
		if of := p.service(name); of.Namespace == "" || !strings.HasSuffix(end, "."+of.Namespace+".svc."+p.workload.ClusterDomain) {
			return nil
		}
	}
	return in.hosts.find(name)
}

// compile compiles the routes of a document as far as CORS policies depend on them. That cannot fail: the documents were checked.
func (a *arrival) compile(p *Plan) {
	var routes []route.Route
	add := func(r route.Route, config *cors.Config) {
		routes = append(routes, route.Route{Matches: r.Matches, Direct: &route.DirectResponse{Status: http.StatusNotFound}})
		var policy *cors.Policy
		if config != nil {
			var err error
			if policy, err = cors.New(*config); err != nil {
				panic("policy: a CORS policy that was checked is refused: " + err.Error())
			}
		}
		a.policies = append(a.policies, policy)
	}
	if a.attached != nil {
		for _, s := range a.attached.steps(p.workload.ClusterDomain) {
			add(s.Route, s.cors)
		}
	} else {
		whole := a.whole.of(a.virtual, (*virtual).peek)
		for i, r := range whole.Routes(p.nobody()) {
			add(r, whole.Spec.HTTP[i].CORS())
		}
	}
	var err error
	if a.table, err = route.NewTable(routes); err != nil {
		panic("policy: routes that were compiled before are refused: " + err.Error())
	}
}
