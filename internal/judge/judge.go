// Package judge decides about an inbound request in the order that a workload has: whose tokens it has, and then what the policies say. The
// handler of a mesh and mesh authz share it.
package judge

import (
	"context"
	"net/http"
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/tlsid"
)

// Denied returns the decision about a request that is denied before any policy is asked.
func Denied(reason string) authz.Decision {
	none := authz.Match{Rule: -1}
	return authz.Decision{Match: none, Audit: none, Shadow: authz.Shadow{Match: none}, Reason: reason}
}

// Authenticate verifies the tokens of a request, before the policies decide about it. The claims become part of view, the view of r,
// and so does the header that the handler gets: policies see what rules make of the claims, and never what the client wrote in its
// place. edited reports that this header is not that of r. If the result has an error, the request must be refused.
//
// Where only peers with an identity are served, the tokens of others are not looked at: the policies deny them.
func Authenticate(ctx context.Context, rules *policy.Inbound, r *http.Request, view *authz.Request, now time.Time) (result jwt.Result, edited bool) {
	tokens := rules.Tokens()
	if tokens == nil || view.Principal == "" && rules.Mode(int(view.Destination.Port())) == tlsid.Strict {
		return result, false
	}
	if result = tokens.Authenticate(ctx, r, now); result.Err != nil {
		return result, false
	}
	if result.Claims != nil {
		view.Claims = result.Claims
	}
	header := result.Header(r.Header)
	if header != nil {
		view.Header = header
	}
	return result, header != nil
}

// Again decides about a request that was admitted before, perhaps under other documents. Its tokens are not verified again: its claims
// stay what they were. But headers that rules set now are what they make of these claims, and not what the client wrote there when no
// rule did.
func Again(rules *policy.Inbound, r *authz.Request) authz.Decision {
	tokens := rules.Tokens()
	if tokens == nil {
		return rules.Authorize(r)
	}
	claims, _ := r.Claims.(*jwt.Claims)
	result := tokens.Again(claims)
	if result.Err != nil {
		return Denied(result.Err.Error())
	}
	view := *r
	if header := result.Header(r.Header); header != nil {
		view.Header = header
	}
	return rules.Authorize(&view)
}
