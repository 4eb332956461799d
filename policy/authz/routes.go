package authz

import (
	"errors"
	"fmt"
)

// routed is a compiled route.
type routed struct {
	any   *rule // matches requests with a reading that the route matches
	every *rule // matches requests all of whose readings it matches
	allow group // the rules about its requests
}

// addRoutes compiles the routes of a policy.
func (a *Authorizer) addRoutes(p *Policy, slots map[string]int) error {
	switch {
	case len(p.Routes) == 0:
		return nil
	case len(a.routes) > 0:
		return errors.New("there are routes in another policy already")
	case p.Action != Allow || p.DryRun || p.Intentions != nil:
		return errors.New("a policy with routes allows, and has no dry run and no intentions")
	}
	a.routes = make([]routed, len(p.Routes))
	for n := range p.Routes {
		in := &p.Routes[n]
		r, err := compileRule(in, a.normalization)
		switch {
		case err != nil:
		case len(in.From)+len(in.Of) > 0:
			err = errors.New("it says who is allowed, which is up to rules")
		default:
			err = neverIn(in)
		}
		if err != nil {
			return fmt.Errorf("route %d: %w", n, err)
		}
		a.note(r, slots)
		every := *r
		every.every = true
		a.routes[n] = routed{any: r, every: &every}
	}
	return nil
}

// allowOf adds a rule about the requests of routes.
func (a *Authorizer) allowOf(p *Policy, routes []int, r *rule) error {
	if p.Action != Allow || p.DryRun {
		return errors.New("only a rule that allows is about routes")
	}
	for _, n := range routes {
		if n < 0 || n >= len(a.routes) {
			return fmt.Errorf("there is no route %d", n)
		}
		a.routes[n].allow.add(r)
	}
	return nil
}

// route decides about a request by the route that it belongs to.
func (a *Authorizer) route(q *query, d *Decision) {
	a.routeAs(q, d)
	if d.Allowed && q.extended() {
		a.routeAsGET(q, d)
	}
}

//go:noinline
func (a *Authorizer) routeAsGET(q *query, d *Decision) { a.routeAs(q.asGET(), d) }

// routeAs is route for a request under one of its methods. The routes that match some reading are asked until one matches them all: each reading
// belongs to one of those. So the request is denied if any of them does not allow it. The decision names the rule about all
// requests if it takes that one to allow some reading.
func (a *Authorizer) routeAs(q *query, d *Decision) {
	d.Allowed, d.Match, d.NotFound, d.Reason = false, noMatch, true, reasonUnrouted
	always, match := a.http.allow.first(q), noMatch
	for i := range a.routes {
		r := &a.routes[i]
		if !r.any.match(q) {
			continue
		}
		d.NotFound, d.Reason = false, reasonDivided
		by := r.allow.first(q)
		if by == noMatch {
			by = always
		}
		switch {
		case by == noMatch:
			d.Reason = reasonUnmatched
			return
		case match == noMatch || by == always:
			match = by
		}
		if r.every.match(q) {
			d.Allowed, d.Match, d.Reason = true, match, reasonAllowed
			return
		}
	}
}
