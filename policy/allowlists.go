package policy

import (
	"slices"

	"github.com/nosidecar/mesh/policy/authz"
)

// allowlist decides about requests in addition to AuthorizationPolicies and intentions: a request is allowed only if all of them allow it. Each
// dialect that protects workloads by what it allows has its own, so that no document of one dialect allows what another one does not.
type allowlist struct {
	authorizer *authz.Authorizer
	from       []any  // what it is made of: if that is unchanged, a plan takes over the list of the last plan
	port       uint16 // it is about requests at this port, and at one that is not known; 0 for all
	denied     string // why a request is denied that its policies do not allow
	unrouted   string // why one is denied that belongs to no route; empty without routes
	audited    string // the policy that also marks what it allows; empty for none

	authorizes bool     // some of its policies are enforced
	asserted   []string // see [Inbound]
}

// require adds an allowlist of policies that are enforced.
func (in *Inbound) require(l allowlist, policies []authz.Policy, config authz.Config) (err error) {
	if l.authorizer, err = authz.Compile(policies, config); err != nil {
		return err
	}
	var about Inbound
	about.regard(policies)
	l.authorizes, l.asserted = about.authorizes, about.asserted
	in.add(l)
	return nil
}

// add adds a compiled allowlist.
func (in *Inbound) add(l allowlist) {
	in.allowlists = append(in.allowlists, l)
	in.authorizes = in.authorizes || l.authorizes
	in.asserted = append(in.asserted, l.asserted...)
}

// keepAllowlist adds the allowlist of the last plan that is made of the same. It reports false if there is none.
func (c *compiler) keepAllowlist(from []any) bool {
	if c.last.inbound == nil {
		return false
	}
	lists := c.last.inbound.allowlists
	i := slices.IndexFunc(lists, func(l allowlist) bool { return slices.Equal(l.from, from) })
	if i >= 0 {
		c.plan.inbound.add(lists[i])
	}
	return i >= 0
}

// about reports whether the list is about requests at the port at which r arrived, or may be.
func (l *allowlist) about(r *authz.Request) bool {
	port := r.Destination.Port()
	return l.port == 0 || port == 0 || port == l.port
}

// explain changes a decision of the authorizer to that of the list.
func (l *allowlist) explain(d *authz.Decision) {
	if d.Policy == l.audited && l.audited != "" {
		d.Audit = d.Match
	}
	switch {
	case d.Allowed || d.BadRequest:
	case d.NotFound:
		d.Reason = l.unrouted
	default:
		d.Reason = l.denied
	}
}

// decide changes the decision about a request to what it is with this list, too. What was denied stays denied, enforced or in the shadow.
func (l *allowlist) decide(r *authz.Request, d *authz.Decision) {
	shadow := d.Shadow.Present && d.Shadow.Allowed
	if !d.Allowed && !shadow || !l.about(r) {
		return
	}
	also := l.authorizer.Decide(r)
	l.explain(&also)
	d.Steady = d.Steady && also.Steady
	if d.Audit.Policy == "" {
		d.Audit = also.Audit
	}
	if also.Allowed {
		if d.Allowed && d.Policy == "" && also.Policy != "" {
			d.Match, d.Reason = also.Match, also.Reason
		}
		return
	}
	if shadow {
		d.Shadow.Allowed, d.Shadow.Match, d.Shadow.Reason = false, also.Match, also.Reason
	}
	if d.Allowed {
		d.Allowed, d.BadRequest, d.NotFound, d.Match, d.Reason = false, also.BadRequest, also.NotFound, also.Match, also.Reason
	}
}
