package policy

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/cors"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// Inbound is the part of a plan about connections and requests to its workload. It is immutable and safe for concurrent use.
type Inbound struct {
	// CORS returns the CORS policy of a request to the workload, or nil if it has none. It is nil if no document has a policy. A mesh calls it.
	CORS func(*route.Request) *cors.Policy

	mode       tlsid.Mode
	ports      map[int]tlsid.Mode // the ports with a mode of their own
	authorizer *authz.Authorizer  // nil without AuthorizationPolicies and intentions
	allowlists []allowlist        // what must allow requests, too
	authorizes bool               // there is an enforced policy
	rules      []jwt.Rule         // of tokens
	tokens     *jwt.Authenticator // nil without rules
	closed     []string           // why all requests are denied; empty if they are not
	asserted   []string           // headers in conditions of policies that are trusted only from authenticated peers
}

// Inbound returns the part of the plan about connections and requests to the workload. It is never nil.
func (p *Plan) Inbound() *Inbound {
	return p.inbound
}

// Mode returns the mode in which the workload accepts connections at one of its ports. PeerAuthentications set it; the default is
// [tlsid.Permissive]. Port 0, which means an unknown port, has the strictest mode of all ports.
func (in *Inbound) Mode(port int) tlsid.Mode {
	if mode, own := in.ports[port]; own {
		return mode
	}
	return in.mode
}

// Authorize decides about a request. It does not change the request or refer to it afterwards. If a document that may protect the workload
// is refused and has no last good version ([Source.Alone]), all requests are denied. Then the mode of the port at which the request arrived
// counts: in mode [tlsid.Strict] a peer without an identity is denied, and in mode [tlsid.Disable] no peer has an identity.
// Then the AuthorizationPolicies, intentions, Servers of Linkerd and TrafficTargets of SMI decide: all of them must allow the request. They
// do not see the headers x-envoy-* and x-request-id of a peer without an identity, and neither do handlers.
func (in *Inbound) Authorize(r *authz.Request) (d authz.Decision) {
	if len(in.closed) > 0 {
		return deny(in.closed[0])
	}
	switch mode := in.Mode(int(r.Destination.Port())); {
	case mode == tlsid.Strict && r.Principal == "":
		return deny("PeerAuthentication STRICT: the peer has no identity")
	case mode == tlsid.Disable && r.Principal != "", r.Principal == "" && in.asserts(r):
		r = in.disregarding(r)
	}
	first, rest, only := in.authorizer, in.allowlists, (*allowlist)(nil)
	for first == nil && len(rest) > 0 {
		if rest[0].about(r) {
			first, only = rest[0].authorizer, &rest[0]
		}
		rest = rest[1:]
	}
	// Here, since another function would have a Decision in its frame, too: the stack of an HTTP/2 request would grow once more.
	d = first.Decide(r)
	if only != nil {
		only.explain(&d)
	}
	for i := range rest {
		rest[i].decide(r, &d)
	}
	return d
}

// Authorizes reports whether an enforced policy applies to the workload: an AuthorizationPolicy, service-intentions of Consul, a Server of
// Linkerd, or a TrafficTarget of SMI.
func (in *Inbound) Authorizes() bool {
	return in.authorizes
}

func deny(reason string) authz.Decision {
	none := authz.Match{Rule: -1}
	return authz.Decision{Match: none, Audit: none, Shadow: authz.Shadow{Match: none}, Reason: reason}
}

// disregarding returns a request as if its peer had no identity and had sent none of the asserted headers.
func (in *Inbound) disregarding(r *authz.Request) *authz.Request {
	plain := *r
	plain.Principal = ""
	if in.asserts(r) {
		plain.Header = maps.Clone(r.Header)
		for _, name := range in.asserted {
			delete(plain.Header, name)
		}
	}
	return &plain
}

func (in *Inbound) asserts(r *authz.Request) bool {
	for _, name := range in.asserted {
		if r.Header[name] != nil {
			return true
		}
	}
	return false
}

// assertion returns the header that a condition is about, and reports whether it is trusted only from authenticated peers.
func assertion(key string) (name string, ok bool) {
	name, ok = strings.CutPrefix(key, "request.headers[")
	name = http.CanonicalHeaderKey(strings.TrimSuffix(name, "]"))
	return name, ok && asserted.Header(name)
}

// access is an AuthorizationPolicy.
type access struct {
	is       *istio.AuthorizationPolicy
	policy   authz.Policy
	selected bool // it is about the workload
}

func (c *compiler) readAccess(doc *yamldoc.Document, is *istio.AuthorizationPolicy) *access {
	w := &c.plan.workload
	a := &access{is: is}
	if doc.Failed() {
		return a
	}
	a.selected = is.Selects(w.Namespace, w.Labels, w.RootNamespace)
	if is.Spec.Action == "CUSTOM" { // Check has left those for gateways
		if a.selected {
			doc.Errorf("spec.action", istio.NotCustom)
		}
		a.selected = false
		return a
	}
	a.policy = is.Policy(w.TrustDomain)
	config := authz.Config{Normalization: w.Paths}
	if _, err := authz.Compile([]authz.Policy{a.policy}, config); err != nil {
		unenforceable(a.policy, config, err, func(at, why string) { doc.Errorf(at, "cannot be enforced: %s", why) })
	} else if a.policy.Action == authz.Allow {
		// A value that matches no peer is an error in a DENY policy. In an ALLOW policy it does no harm, but is a mistake.
		strict := a.policy
		strict.Action = authz.Deny
		if _, err := authz.Compile([]authz.Policy{strict}, config); err != nil {
			unenforceable(strict, config, err, func(at, why string) { doc.Warnf(at, "%s", why) })
		}
	}
	return a
}

// authorizationPolicies compiles the policies that apply to the workload.
func (c *compiler) authorizationPolicies() {
	p := c.plan
	config := authz.Config{Normalization: p.workload.Paths}
	var own []authz.Policy
	var from []decoded[access]
	for _, ap := range c.access {
		if !ap.Failed() && ap.is.selected {
			own, from = append(own, ap.is.policy), append(from, ap)
		}
	}
	mode, ports := p.Peers(p.workload.Namespace).of(p.workload.Labels)
	in := &Inbound{mode: mode.mode, ports: maps.Clone(ports), closed: c.closed, authorizes: len(c.closed) > 0}
	for _, mode := range ports { // an unknown port could be any of them
		if unknown := in.Mode(0); mode == tlsid.Strict || mode == tlsid.Permissive && unknown == tlsid.Disable {
			in.ports[0] = mode
		}
	}
	in.regard(own)
	if intentions := c.intentions(); intentions != nil {
		in.authorizes = true
		own = append(own, authz.Policy{Name: consul.ServiceIntentionsKind, Intentions: intentions})
	}
	authorizer, err := authz.Compile(own, config)
	if err != nil { // although each policy alone is valid
		culprit(c, from).Errorf("", "cannot be enforced: %v", err)
	}
	if len(own) > 0 {
		in.authorizer = authorizer
	}
	p.inbound = in
}

// regard notes what the policies that apply to the workload are about.
func (in *Inbound) regard(policies []authz.Policy) {
	for _, policy := range policies {
		in.authorizes = in.authorizes || !policy.DryRun && policy.Action != authz.Audit
		for _, rule := range slices.Concat(policy.Rules, policy.Routes) {
			for _, condition := range rule.When {
				if name, ok := assertion(condition.Key); ok {
					in.asserted = append(in.asserted, name)
				}
			}
		}
	}
}

// unenforceable reports why a policy cannot be compiled, at the part that cannot be compiled.
func unenforceable(policy authz.Policy, config authz.Config, err error, report func(at, why string)) {
	found := false
	try := func(rule authz.Rule, at, part string) {
		alone := authz.Policy{Name: policy.Name, Action: policy.Action, Rules: []authz.Rule{rule}}
		if _, err := authz.Compile([]authz.Policy{alone}, config); err != nil {
			why := strings.TrimPrefix(err.Error(), "authz: policy "+policy.Name+": rule 0: ")
			report(at, strings.TrimPrefix(why, part+" 0: "))
			found = true
		}
	}
	for i, rule := range policy.Rules {
		at := yamldoc.Index("spec.rules", i)
		for j := range rule.From {
			try(authz.Rule{From: rule.From[j : j+1]}, yamldoc.Index(at+".from", j)+".source", "from")
		}
		for j := range rule.To {
			try(authz.Rule{To: rule.To[j : j+1]}, yamldoc.Index(at+".to", j)+".operation", "to")
		}
		for j := range rule.When {
			try(authz.Rule{When: rule.When[j : j+1]}, yamldoc.Index(at+".when", j), "when")
		}
	}
	if !found {
		report("spec", err.Error())
	}
}
