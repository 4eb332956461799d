package istio

import (
	"cmp"
	"net/http"

	"github.com/nosidecar/mesh/policy/jwt"
)

// Rules translates the document, which must have passed Check.
func (ra *RequestAuthentication) Rules() []jwt.Rule {
	all := make([]jwt.Rule, len(ra.Spec.JWTRules))
	for i := range all {
		all[i] = ra.Spec.JWTRules[i].rule()
	}
	return all
}

// Selects reports whether the document applies to a workload with the given namespace and labels. A document in the root namespace
// applies to workloads of all namespaces. One that is attached to a gateway or waypoint applies to none.
func (ra *RequestAuthentication) Selects(namespace string, labels map[string]string, rootNamespace string) bool {
	if attached(ra.Spec.TargetRef, ra.Spec.TargetRefs) {
		return false
	}
	return (ra.Namespace() == namespace || ra.Namespace() == rootNamespace) && ra.Spec.Selector.Selects(labels)
}

func (r *JWTRule) rule() jwt.Rule {
	rule := jwt.Rule{
		Issuer: r.Issuer, Audiences: r.Audiences, URI: cmp.Or(r.JWKSURI, r.JWKSURIOld), Params: r.FromParams, Cookies: r.FromCookies,
		Timeout: r.Timeout.Duration, Forward: r.ForwardOriginalToken, PayloadHeader: http.CanonicalHeaderKey(r.OutputPayloadToHeader),
		SpaceDelimited: r.SpaceDelimitedClaims,
	}
	if r.JWKS != "" {
		rule.Keys, _, _ = jwt.ParseKeys(r.JWKS) // Check has reported errors
	}
	rule.Discover = rule.Keys == nil && rule.URI == "" // as Istio does
	for _, h := range r.FromHeaders {
		rule.Headers = append(rule.Headers, jwt.Header{Name: http.CanonicalHeaderKey(h.Name), Prefix: h.Prefix})
	}
	for _, c := range r.OutputClaimToHeaders {
		rule.ClaimHeaders = append(rule.ClaimHeaders, jwt.ClaimHeader{Header: http.CanonicalHeaderKey(c.Header), Claim: c.Claim})
	}
	return rule
}
