package authz

import "net/http"

var noMatch = Match{Rule: -1}

// Authorizer has compiled policies. It is immutable and safe for concurrent use. A nil Authorizer and the zero value have no
// policies and allow everything.
type Authorizer struct {
	http, l4   ruleSet
	intentions *intentions // nil for none
	routes     []routed    // empty for none

	hasAllow       bool // there is an enforced Allow policy
	hasShadow      bool // there are policies with DryRun
	hasShadowAllow bool
	present        bool // there is any policy
	enforced       bool // there is an enforced policy that may deny
	escaped        bool // a path of some rule changes when it is decoded
	hosts          bool // a rule has conditions on hosts
	slots          int  // the number of headers that the rules have conditions on
	normalization  Normalization
}

// ruleSet is the rules of all policies, grouped by action.
type ruleSet struct {
	deny, allow, audit      group
	shadowDeny, shadowAllow group
}

// Decide decides about r. It does not change r or refer to it afterwards.
func (a *Authorizer) Decide(r *Request) (d Decision) {
	d.Match, d.Audit, d.Shadow.Match = noMatch, noMatch, noMatch
	if a == nil || !a.present {
		d.Allowed, d.Steady, d.Reason = true, true, reasonNone
		return d
	}
	d.Steady = a.slots == 0 && !a.hosts && r.Method != http.MethodConnect // which a header may extend
	var one [2]reading
	var host [1]string
	q := query{Request: r, paths: one[:1], slots: a.slots}
	rules := &a.l4
	if !r.L4 {
		rules = &a.http
		q.paths = a.read(r.Method, r.Target, one[:0])
		q.unreadable = len(q.paths) == 0
		if a.hosts {
			q.hosts = hostReadings(r, host[:0])
		}
		if q.unreadable && a.enforced {
			d.BadRequest, d.Reason = true, reasonMalformed
			if a.hasShadow {
				d.Shadow = Shadow{Present: true, Match: noMatch, Reason: reasonMalformed}
			}
			return d
		}
	}
	d.Audit = rules.audit.firstOfAny(&q)
	switch m := rules.deny.firstOfAny(&q); {
	case m != noMatch:
		d.Match, d.Reason = m, reasonDenied
	case a.intentions != nil && !a.intentions.decide(&q, &d):
	case len(a.routes) > 0 && !r.L4:
		a.route(&q, &d)
	case !a.hasAllow && a.intentions != nil:
		d.Allowed = true // for the reason that the intentions have
	case !a.hasAllow:
		d.Allowed, d.Reason = true, reasonNoAllow
	default:
		d.Match = rules.allow.first(&q)
		d.Allowed, d.Reason = d.Match != noMatch, reasonAllowed
		if !d.Allowed {
			d.Reason = reasonUnmatched
		}
	}
	if a.hasShadow {
		d.Shadow = a.shadow(rules, &q, &d)
	}
	return d
}

// firstOfAny returns the first rule that matches a request under any of its methods.
func (g *group) firstOfAny(q *query) Match {
	if m := g.first(q); m != noMatch || !q.extended() {
		return m
	}
	return g.firstAsGET(q)
}

//go:noinline
func (g *group) firstAsGET(q *query) Match { return g.first(q.asGET()) }

// shadow returns the decision that would have been made instead of d if the policies with DryRun were enforced too.
func (a *Authorizer) shadow(rules *ruleSet, q *query, d *Decision) Shadow {
	same := Shadow{Present: true, Allowed: d.Allowed, Match: d.Match, Reason: d.Reason}
	if !d.Allowed && d.Reason != reasonUnmatched { // denied by what no Allow policy can change
		return same
	}
	if q.unreadable {
		return Shadow{Present: true, Match: noMatch, Reason: reasonMalformed}
	}
	if m := rules.shadowDeny.firstOfAny(q); m != noMatch {
		return Shadow{Present: true, Match: m, Reason: reasonDenied}
	}
	if d.Reason == reasonAllowed || !a.hasShadowAllow {
		return same
	}
	if m := rules.shadowAllow.first(q); m != noMatch {
		return Shadow{Present: true, Allowed: true, Match: m, Reason: reasonAllowed}
	}
	return Shadow{Present: true, Match: noMatch, Reason: reasonUnmatched}
}
