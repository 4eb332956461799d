package authz

import (
	"net/netip"
	"slices"
	"strings"
)

// group is the rules of one kind of policy, in the order of the documents.
type group struct {
	rules []*rule
}

func (g *group) add(r *rule) { g.rules = append(g.rules, r) }

func (g *group) index() {}

// first returns the first rule that matches, or noMatch.
func (g *group) first(q *query) Match {
	for _, r := range g.rules {
		if r.match(q) {
			return r.name
		}
	}
	return noMatch
}

// query is a request on its way through the rules.
type query struct {
	*Request
	paths []reading // at least one, but for L4
}

// rule is a compiled Rule.
type rule struct {
	name  Match
	every bool // must match under every reading (ALLOW), rather than any
	from  []source
	to    []operation
	when  []condition
}

type source struct {
	principals, namespaces, accounts, trustDomains texts
	source, remote                                 addresses
}

type operation struct {
	hosts, methods, paths texts
	ports                 ports
}

// attribute is what a condition is about.
type attribute uint8

const (
	header attribute = iota
	host
	method
	sourceIP
	remoteIP
	destinationIP
	destinationPort
	principal
	namespace
	account
	trustDomain
	sni
)

type condition struct {
	attribute attribute
	header    string // its canonical name
	texts     texts
	addresses addresses
	ports     ports
}

type texts struct{ values, notValues []pattern }

type addresses struct{ values, notValues []netip.Prefix }

type ports struct{ values, notValues []uint16 }

func (t *texts) empty() bool     { return len(t.values) == 0 && len(t.notValues) == 0 }
func (a *addresses) empty() bool { return len(a.values) == 0 && len(a.notValues) == 0 }
func (p *ports) empty() bool     { return len(p.values) == 0 && len(p.notValues) == 0 }

func (s *source) empty() bool {
	return s.principals.empty() && s.namespaces.empty() && s.accounts.empty() && s.trustDomains.empty() &&
		s.source.empty() && s.remote.empty()
}

func (o *operation) empty() bool {
	return o.hosts.empty() && o.methods.empty() && o.paths.empty() && o.ports.empty()
}

// escaped reports whether the text of a path is another once it is decoded.
func (r *rule) escaped() bool {
	differs := func(p pattern) bool { return p.text != p.decoded }
	return slices.ContainsFunc(r.to, func(o operation) bool {
		return slices.ContainsFunc(o.paths.values, differs) || slices.ContainsFunc(o.paths.notValues, differs)
	})
}

// withoutHTTP returns the rule for raw TCP connections, or false if it never matches one. Any part that needs HTTP spoils a
// rule of an Allow policy altogether, also when another operation would do without. From the others it is dropped.
func (r *rule) withoutHTTP() (*rule, bool) {
	l4 := *r
	l4.to, l4.when = nil, nil
	for _, o := range r.to {
		if r.every && !(o.hosts.empty() && o.methods.empty() && o.paths.empty()) {
			return nil, false
		}
		l4.to = append(l4.to, operation{ports: o.ports})
	}
	for _, c := range r.when {
		switch c.attribute {
		case header, host, method:
			if r.every {
				return nil, false
			}
		default:
			l4.when = append(l4.when, c)
		}
	}
	return &l4, true
}

func (r *rule) match(q *query) bool {
	if len(r.from) > 0 && !slices.ContainsFunc(r.from, func(s source) bool { return s.match(q, r.every) }) {
		return false
	}
	for i := range r.when {
		if !r.when[i].match(q, r.every) {
			return false
		}
	}
	return r.matchTo(q)
}

func (r *rule) matchTo(q *query) bool {
	if len(r.to) == 0 {
		return true
	}
	under := func(p reading) bool {
		return slices.ContainsFunc(r.to, func(o operation) bool { return o.match(q, p, r.every) })
	}
	if len(q.paths) == 0 {
		return under(reading{})
	}
	for _, p := range q.paths {
		if under(p) != r.every {
			return !r.every
		}
	}
	return r.every
}

func (s *source) match(q *query, every bool) bool {
	return s.principals.match(q.Principal) && s.namespaces.match(q.Principal) && s.accounts.match(q.Principal) &&
		s.trustDomains.match(trustDomainOf(q.Principal)) &&
		s.source.match(q.Source, every) && s.remote.match(q.Remote, every)
}

func (o *operation) match(q *query, p reading, every bool) bool {
	return o.ports.match(q.Destination.Port(), every) && o.methods.match(q.Method) && o.hosts.match(q.Host) &&
		o.paths.matchPath(p)
}

func (c *condition) match(q *query, every bool) bool {
	switch c.attribute {
	case header:
		return c.matchHeader(q.Header[c.header], every)
	case host:
		return c.texts.match(q.Host)
	case method:
		return c.texts.match(q.Method)
	case sourceIP:
		return c.addresses.match(q.Source, every)
	case remoteIP:
		return c.addresses.match(q.Remote, every)
	case destinationIP:
		return c.addresses.match(q.Destination.Addr(), every)
	case destinationPort:
		return c.ports.match(q.Destination.Port(), every)
	case sni:
		return c.texts.match(q.SNI)
	case trustDomain:
		return c.texts.match(trustDomainOf(q.Principal))
	}
	return c.texts.match(q.Principal)
}

// matchHeader judges the values of a header. "*" asks only for the header to be there, though it be empty.
func (c *condition) matchHeader(values []string, every bool) bool {
	switch len(values) {
	case 0:
		return len(c.texts.values) == 0
	case 1:
		return c.texts.matchPresent(values[0])
	}
	for _, v := range values {
		if c.texts.matchPresent(v) != every {
			return !every
		}
	}
	if c.texts.matchPresent(strings.Join(values, ",")) != every {
		return !every
	}
	return every
}

func (t *texts) match(s string) bool {
	return (len(t.values) == 0 || matchAny(t.values, s)) && !matchAny(t.notValues, s)
}

func (t *texts) matchPresent(s string) bool {
	return (len(t.values) == 0 || anyPresent(t.values, s)) && !anyPresent(t.notValues, s)
}

func (t *texts) matchPath(r reading) bool {
	return (len(t.values) == 0 || anyPath(t.values, r)) && !anyPath(t.notValues, r)
}

func (a *addresses) match(addr netip.Addr, every bool) bool {
	if a.empty() {
		return true
	}
	if !addr.IsValid() {
		return !every
	}
	addr = addr.Unmap().WithZone("")
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	return (len(a.values) == 0 || slices.ContainsFunc(a.values, in)) && !slices.ContainsFunc(a.notValues, in)
}

func (p *ports) match(port uint16, every bool) bool {
	if p.empty() {
		return true
	}
	if port == 0 {
		return !every
	}
	return (len(p.values) == 0 || slices.Contains(p.values, port)) && !slices.Contains(p.notValues, port)
}

func trustDomainOf(principal string) string {
	domain, _, _ := strings.Cut(principal, "/")
	return domain
}
