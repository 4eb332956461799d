package policy

import (
	"net/http"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/jwt"
)

// Tokens returns the authenticator that verifies the tokens of requests, as the RequestAuthentications of the workload specify. It is nil
// if there are none.
func (in *Inbound) Tokens() *jwt.Authenticator { return in.tokens }

// tokens is a RequestAuthentication.
type tokens struct {
	is       *istio.RequestAuthentication
	rules    []jwt.Rule
	selected bool // it is about the workload
}

func (c *compiler) readTokens(doc *yamldoc.Document, is *istio.RequestAuthentication) *tokens {
	w := &c.plan.workload
	t := &tokens{is: is, selected: is.Selects(w.Namespace, w.Labels, w.RootNamespace)}
	if !doc.Failed() {
		t.rules = is.Rules()
	}
	return t
}

// requestAuthentications compiles the rules about tokens that apply to the workload. All of them apply: none replaces another.
func (c *compiler) requestAuthentications() {
	in := c.plan.inbound
	var own []decoded[tokens]
	broken := false
	for _, ra := range c.tokens {
		broken = broken || ra.Failed()
		if ra.Failed() || !ra.is.selected {
			continue
		}
		own = append(own, ra)
		in.rules = append(in.rules, ra.is.rules...)
	}
	if len(in.rules) == 0 {
		if !broken {
			c.unverified()
		}
		return
	}
	equal := func(a, b jwt.Rule) bool { return a.Equal(&b) }
	if last := c.last.inbound; last != nil && last.tokens != nil && slices.EqualFunc(last.rules, in.rules, equal) {
		in.tokens = last.tokens // keeps the tokens that were already verified
		return
	}
	remotes := c.plan.workload.Keys
	if remotes == nil {
		remotes = new(jwt.Remotes)
	}
	var err error
	if in.tokens, err = jwt.New(in.rules, remotes); err != nil { // although each document alone is valid
		culprit(c, own).Errorf("spec", "cannot be enforced: %v", err)
	}
}

// unverified warns about policies that need a token if no RequestAuthentication verifies any.
func (c *compiler) unverified() {
	for _, ap := range c.access {
		if ap.Failed() || !ap.is.selected {
			continue
		}
		for i := range ap.is.policy.Rules {
			if needsToken(&ap.is.policy.Rules[i]) {
				ap.Warnf(yamldoc.Index("spec.rules", i), "asks for a token, and no RequestAuthentication of this workload verifies one: no request has any")
				break
			}
		}
	}
}

// preflights warns about CORS policies without an effect: preflights have no token, and are denied before the policies are asked.
func (c *compiler) preflights() {
	closing := c.needsTokens()
	if closing == nil {
		return
	}
	for _, own := range c.arriving {
		if !own.hasCORS() {
			continue
		}
		if d := c.claimer(own); d.namespace == c.plan.workload.Namespace {
			d.Warnf("spec", "its CORS policies have no effect on preflights that arrive here: they have no token, so that they are answered with 403 because of %s "+
				"(%s:%d): add a rule for the method OPTIONS to it", closing.identity, closing.file, closing.Line)
		}
	}
}

// needsTokens returns a policy because of which the workload denies every preflight: it allows requests with a token, and no policy allows any
// other that could be one.
func (c *compiler) needsTokens() (closing *document) {
	for _, ap := range c.access {
		if ap.Failed() || !ap.is.selected || ap.is.policy.Action != authz.Allow || ap.is.policy.DryRun {
			continue
		}
		for i := range ap.is.policy.Rules {
			r := &ap.is.policy.Rules[i]
			if opens(r) {
				return nil
			}
			if closing == nil && needsToken(r) {
				closing = ap.document
			}
		}
	}
	return closing
}

// opens reports whether an ALLOW rule may allow a preflight.
func opens(r *authz.Rule) bool {
	withToken := len(r.From) > 0 && !slices.ContainsFunc(r.From, func(s authz.Source) bool { return len(s.RequestPrincipals) == 0 }) ||
		slices.ContainsFunc(r.When, func(c authz.Condition) bool { return strings.HasPrefix(c.Key, "request.auth.") && len(c.Values) > 0 })
	return !withToken && (len(r.To) == 0 || slices.ContainsFunc(r.To, func(o authz.Operation) bool {
		return len(o.Methods) == 0 || slices.Contains(o.Methods, http.MethodOptions) || slices.Contains(o.Methods, "*")
	}))
}

// needsToken reports whether a rule has conditions on tokens.
func needsToken(r *authz.Rule) bool {
	return slices.ContainsFunc(r.From, func(s authz.Source) bool { return len(s.RequestPrincipals)+len(s.NotRequestPrincipals) > 0 }) ||
		slices.ContainsFunc(r.When, func(c authz.Condition) bool { return strings.HasPrefix(c.Key, "request.auth.") })
}
