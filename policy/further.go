package policy

import "github.com/nosidecar/mesh/policy/authz"

// further decides about requests in addition to AuthorizationPolicies and intentions: a request is allowed only if all of them allow it. Each
// dialect that protects workloads by what it allows has one, so that no document of one dialect allows what another one does not.
type further struct {
	authorizer *authz.Authorizer
	port       uint16 // it is about requests at this port, and at one that is not known; 0 for all
	denied     string // why a request is denied that its policies do not allow
	audited    string // the policy that also marks what it allows; empty for none
}

// also adds a further decision, by policies that are enforced.
func (in *Inbound) also(f further, policies []authz.Policy, config authz.Config) (err error) {
	if f.authorizer, err = authz.Compile(policies, config); err != nil {
		return err
	}
	in.further = append(in.further, f)
	in.regard(policies)
	return nil
}

// regard notes what the policies that apply to the workload are about.
func (in *Inbound) regard(policies []authz.Policy) {
	for _, policy := range policies {
		in.authorizes = in.authorizes || !policy.DryRun && policy.Action != authz.Audit
		for _, rule := range policy.Rules {
			for _, condition := range rule.When {
				if name, ok := assertion(condition.Key); ok {
					in.asserted = append(in.asserted, name)
				}
			}
		}
	}
}

// about reports whether the decision is about requests at the port at which r arrived, or may be.
func (f *further) about(r *authz.Request) bool {
	port := r.Destination.Port()
	return f.port == 0 || port == 0 || port == f.port
}

// explain changes a decision of the authorizer to what this one says of it.
func (f *further) explain(d *authz.Decision) {
	if d.Policy == f.audited && f.audited != "" {
		d.Audit = d.Match
	}
	if !d.Allowed && !d.BadRequest {
		d.Reason = f.denied
	}
}

// decide changes the decision about a request to what it is with this one. What was denied stays denied, enforced or in the shadow.
func (f *further) decide(r *authz.Request, d *authz.Decision) {
	shadow := d.Shadow.Present && d.Shadow.Allowed
	if !d.Allowed && !shadow || !f.about(r) {
		return
	}
	also := f.authorizer.Decide(r)
	f.explain(&also)
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
		d.Allowed, d.BadRequest, d.Match, d.Reason = false, also.BadRequest, also.Match, also.Reason
	}
}
