package authz

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// query is a request on its way through the rules.
type query struct {
	*Request
	paths      []reading // meaningless for a raw TCP connection
	unreadable bool      // there are no paths: the path could be anything
	hosts      []string  // if there are none, the host could be anything; set only if a rule has conditions on hosts

	slots int               // the number of headers that the rules have conditions on
	plain uint64            // a bit for each of the first 64 slots whose header is known to have a single reading
	odd   []*headerReadings // by slot, for headers with several readings; nil until a rule needs them
}

// extended reports whether the query is an extended CONNECT (RFC 8441), a websocket over HTTP/2. Envoy's rules see the GET of HTTP/1. Such a
// request is denied what is denied to either method.
func (q *query) extended() bool {
	return !q.L4 && q.Method == http.MethodConnect && q.Header[":protocol"] != nil
}

// asGET returns an extended query as Envoy's rules see it. It is for functions that have no other use: in the frames of those that decide about
// each request, the copies would make the stack of an HTTP/2 request grow.
func (q *query) asGET() *query {
	as, get := *q, *q.Request
	get.Method = http.MethodGet
	as.Request = &get
	return &as
}

// rule is a compiled Rule.
type rule struct {
	name  Match
	every bool // must match under every reading (ALLOW), rather than any
	hosts bool // an operation has conditions on hosts
	paths bool // an operation has conditions on paths
	from  []source
	to    []operation
	when  []condition
}

type source struct {
	principals, namespaces, accounts, trustDomains texts
	users                                          users
	source, remote                                 addresses
}

type operation struct {
	hosts, methods, paths texts
	ports                 ports
}

// attribute is the attribute of a request that a condition is about.
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
	requestPrincipal
	claim
)

type condition struct {
	attribute attribute
	header    string // its canonical name
	slot      int    // of the header among those that rules have conditions on
	single    bool   // the header is not a list
	binary    bool   // the header is in base64
	demanded  bool   // the header must be present, also for a negation
	forbidden bool   // the header must not be present
	utf8      bool   // what is not UTF-8 could mean anything: libraries for regular expressions differ
	texts     texts
	addresses addresses
	ports     ports
	users     users
	claim     []string // the path of its names
}

type texts struct{ values, notValues list }

type addresses struct{ values, notValues []netip.Prefix }

type ports struct{ values, notValues []uint16 }

func (t *texts) empty() bool     { return t.values.empty() && t.notValues.empty() }
func (a *addresses) empty() bool { return len(a.values) == 0 && len(a.notValues) == 0 }
func (p *ports) empty() bool     { return len(p.values) == 0 && len(p.notValues) == 0 }

func (s *source) empty() bool {
	return s.principals.empty() && s.namespaces.empty() && s.accounts.empty() && s.trustDomains.empty() &&
		s.users.empty() && s.source.empty() && s.remote.empty()
}

func (o *operation) empty() bool {
	return o.hosts.empty() && o.methods.empty() && o.paths.empty() && o.ports.empty()
}

// escaped reports whether some path of the rule changes when it is decoded.
func (r *rule) escaped() bool {
	differs := func(p pattern) bool { return p.text != p.decoded }
	return slices.ContainsFunc(r.to, func(o operation) bool {
		return slices.ContainsFunc(o.paths.values.all, differs) || slices.ContainsFunc(o.paths.notValues.all, differs)
	})
}

// withoutHTTP returns the rule for raw TCP connections, or false if it never matches one. A rule of an Allow policy never matches
// if any part of it needs HTTP, even if another operation does not. From other rules, such parts are removed.
func (r *rule) withoutHTTP() (*rule, bool) {
	l4 := *r
	l4.from, l4.to, l4.when = nil, nil, nil
	for _, s := range r.from {
		if r.every && !s.users.empty() {
			return nil, false
		}
		s.users = users{}
		l4.from = append(l4.from, s)
	}
	for _, o := range r.to {
		if r.every && !(o.hosts.empty() && o.methods.empty() && o.paths.empty()) {
			return nil, false
		}
		l4.to = append(l4.to, operation{ports: o.ports})
	}
	for _, c := range r.when {
		switch c.attribute {
		case header, host, method, requestPrincipal, claim:
			if r.every {
				return nil, false
			}
		default:
			l4.when = append(l4.when, c)
		}
	}
	return &l4, true
}

// match reports whether the rule matches, under every reading of the request or under any.
//
// The path and the host have readings, which operations use, and so does each header. All operations together are evaluated under
// one reading of path and host at a time, so a path is never read one way for a value and another way for a negation. Each
// condition on a header is evaluated under one reading of that header at a time. The result is the same as if the whole rule was
// evaluated under each combination of readings. The parts are joined by AND, which distributes over "under every", and over "under
// any" if no two parts use the same reading. If two do (two conditions on one header), a Deny rule may match by two different
// readings: it is wider then, never narrower.
func (r *rule) match(q *query) bool {
	return r.matchFrom(q) && r.matchWhen(q) && r.matchTo(q)
}

func (r *rule) matchFrom(q *query) bool {
	for i := range r.from {
		if r.from[i].match(q, r.every) {
			return true
		}
	}
	return len(r.from) == 0
}

func (r *rule) matchWhen(q *query) bool {
	for i := range r.when {
		if !r.when[i].match(q, r.every) {
			return false
		}
	}
	return true
}

func (r *rule) matchTo(q *query) bool {
	if len(r.to) == 0 {
		return true
	}
	if q.unreadable {
		return r.matchHosts(q, nil)
	}
	paths := q.paths
	if !r.paths {
		paths = paths[:1] // without conditions on paths, all readings are equal
	}
	for i := range paths {
		if r.matchHosts(q, &paths[i]) != r.every {
			return !r.every
		}
	}
	return r.every
}

// matchHosts evaluates the operations under one reading of the path, which is nil if the path could be anything.
func (r *rule) matchHosts(q *query, path *reading) bool {
	if !r.hosts || len(q.hosts) == 0 {
		return r.matchView(q, path, nil)
	}
	for i := range q.hosts {
		if r.matchView(q, path, &q.hosts[i]) != r.every {
			return !r.every
		}
	}
	return r.every
}

func (r *rule) matchView(q *query, path *reading, host *string) bool {
	for i := range r.to {
		if r.to[i].match(q, path, host, r.every) {
			return true
		}
	}
	return false
}

func (s *source) match(q *query, every bool) bool {
	return s.principals.match(q.Principal) && s.namespaces.match(q.Principal) && s.accounts.match(q.Principal) &&
		(s.trustDomains.empty() || s.trustDomains.match(trustDomainOf(q.Principal))) && s.users.match(q) &&
		s.source.match(q.Source, every) && s.remote.match(q.Remote, every)
}

func (o *operation) match(q *query, path *reading, host *string, every bool) bool {
	return o.ports.match(q.Destination.Port(), every) && o.methods.match(q.Method) && o.matchPath(path, every) &&
		o.hosts.matchHost(host, every)
}

func (o *operation) matchPath(path *reading, every bool) bool {
	if path == nil {
		return o.paths.empty() || !every
	}
	return o.paths.matchPath(path)
}

func (c *condition) match(q *query, every bool) bool {
	switch c.attribute {
	case header:
		return c.matchHeader(q, every)
	case host:
		return c.matchHost(q, every)
	case method:
		return c.texts.match(q.Method)
	case requestPrincipal:
		return c.users.match(q)
	case claim:
		return c.matchClaim(q)
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

func (t *texts) match(s string) bool {
	return (t.values.empty() || t.values.match(s)) && (t.notValues.empty() || !t.notValues.match(s))
}

func (t *texts) matchPath(r *reading) bool {
	return (t.values.empty() || t.values.matchPath(r)) && (t.notValues.empty() || !t.notValues.matchPath(r))
}

// matchHost evaluates one reading of the host, which is nil if the host could be anything.
func (t *texts) matchHost(host *string, every bool) bool {
	if host == nil {
		return t.empty() || !every
	}
	return t.match(*host)
}

func (c *condition) matchHost(q *query, every bool) bool {
	if len(q.hosts) == 0 {
		return !every
	}
	for i := range q.hosts {
		if c.texts.match(q.hosts[i]) != every {
			return !every
		}
	}
	return every
}

func (a *addresses) match(addr netip.Addr, every bool) bool {
	if a.empty() {
		return true
	}
	if !addr.IsValid() {
		return !every
	}
	addr = addr.Unmap().WithZone("")
	return (len(a.values) == 0 || contains(a.values, addr)) && !contains(a.notValues, addr)
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	for i := range prefixes {
		if prefixes[i].Contains(addr) {
			return true
		}
	}
	return false
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
