package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"weak"

	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/route"
)

// RouteStatus is a route of a host.
type RouteStatus struct {
	Host   string
	Origin policy.Origin
	Name   string

	Matches []string // alternatives; none means every request
	Targets []TargetStatus
	Action  string // what is done instead of sending the request: "" for nothing

	Timeout, PerTryTimeout time.Duration
	Retries                int
	Fault                  string // that is injected
}

// TargetStatus is a destination of a route.
type TargetStatus struct {
	Target route.Target
	Weight int
}

// The routes of at most so many hosts are shown, and at most so many per host.
const (
	routedShown = 100
	routesShown = 50
)

// routesSeen caches the routes as they were last asked for.
type routesSeen struct {
	view    weak.Pointer[view] // weak, so that the cache does not keep it in memory
	changes int64              // of the hosts and clusters that calls had needed in it
	routes  []RouteStatus
	omitted int
}

// routes returns the routes of hosts: first of those that were called, since the routes of others may still have to be
// compiled.
func (e *Engine) routes(v *view) (routes []RouteStatus, omitted int) {
	if v.plan == nil {
		return nil, 0
	}
	caches := []*cachedHosts{&v.hosts.plain, &v.hosts.secure}
	changes := v.clusters.changes.Load()
	for _, cache := range caches {
		changes += cache.changes.Load()
	}
	if seen := e.routesSeen.Load(); seen != nil && seen.view == weak.Make(v) && seen.changes == changes {
		return seen.routes, seen.omitted
	}
	called := make(map[string]bool)
	v.clusters.each(func(c *cluster) { called[c.target.Host] = true })
	for _, cache := range caches {
		cache.each(func(h *host) { called[h.Service.Host] = true })
	}
	all := slices.Sorted(maps.Keys(called))
	rest := slices.Sorted(v.plan.Hosts())
	rest = slices.DeleteFunc(rest, func(name string) bool { return called[name] })
	shown := 0
	for _, name := range append(all, rest...) {
		if shown == routedShown {
			omitted++ // if it has any
			continue
		}
		h := v.plan.Host(name)
		if h.Routes == nil {
			continue
		}
		shown++
		for i := range min(h.Routes.Len(), routesShown) {
			routes = append(routes, routeStatus(name, h, h.Routes.Rule(i)))
		}
	}
	slices.SortStableFunc(routes, func(a, b RouteStatus) int { return strings.Compare(a.Host, b.Host) })
	e.routesSeen.Store(&routesSeen{weak.Make(v), changes, routes, omitted})
	return routes, omitted
}

func routeStatus(name string, h policy.HostPlan, rule *route.Rule) RouteStatus {
	r := rule.Route
	s := RouteStatus{
		Host: name, Origin: h.Origin(rule, -1), Name: r.Name,
		Timeout: r.Timeout, PerTryTimeout: r.Retry.PerTryTimeout, Retries: r.Retry.Retries,
	}
	for i := range r.Matches {
		s.Matches = append(s.Matches, matchText(&r.Matches[i]))
	}
	switch {
	case r.Redirect != nil:
		s.Action = "redirect"
	case r.Direct != nil:
		s.Action = fmt.Sprintf("answer %d", r.Direct.Status)
	}
	s.Fault = faultText(r.Fault)
	for _, d := range r.Destinations {
		s.Targets = append(s.Targets, TargetStatus{d.Target, d.Weight})
	}
	return s
}

func faultText(c fault.Config) string {
	var parts []string
	if c.Delay.Fraction > 0 {
		parts = append(parts, fmt.Sprintf("delay %v for %g%%", c.Delay.Fixed, fraction.Percent(c.Delay.Fraction)))
	}
	switch a := c.Abort; {
	case a.Fraction == 0:
	case a.IsGRPC:
		parts = append(parts, fmt.Sprintf("abort with gRPC status %d for %g%%", a.GRPCStatus, fraction.Percent(a.Fraction)))
	default:
		parts = append(parts, fmt.Sprintf("abort with %d for %g%%", a.HTTPStatus, fraction.Percent(a.Fraction)))
	}
	return strings.Join(parts, ", ")
}

// matchText returns a match as readable text: "GET, path prefix /v1, header x-canary".
func matchText(m *route.Match) string {
	var parts []string
	add := func(what string, s route.StringMatch) {
		if s.Kind != route.Any {
			parts = append(parts, what+" "+stringText(s))
		}
	}
	add("path", m.URI)
	add("method", m.Method)
	add("scheme", m.Scheme)
	add("authority", m.Authority)
	for _, h := range m.Headers {
		add("header "+h.Key, h.Value)
	}
	for _, h := range m.WithoutHeaders {
		if h.Value.Kind == route.Any {
			h.Value.Kind = route.Present
		}
		add("not header "+h.Key, h.Value)
	}
	for _, q := range m.Query {
		add("query "+q.Key, q.Value)
	}
	if m.Port != 0 {
		parts = append(parts, fmt.Sprintf("port %d", m.Port))
	}
	return strings.Join(parts, ", ")
}

func stringText(s route.StringMatch) string {
	switch s.Kind {
	case route.Exact:
		return "= " + s.Value
	case route.Prefix:
		return s.Value + "*"
	case route.Regex:
		return "~ " + s.Value
	}
	return "is there"
}
