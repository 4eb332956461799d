// Package judge decides whether an inbound request is allowed: it verifies the request's tokens first, and then asks the policies. The
// handler of a mesh and the command mesh authz share it.
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

// Refused returns the decision about a request whose tokens are not accepted.
func Refused(err *jwt.Error) authz.Decision {
	d := Denied(err.Error())
	d.BadToken = true
	return d
}

// Authenticate verifies the tokens of a request, before the policies decide about it. It puts the claims into view, which is the view of r,
// together with the header that the handler gets: policies see the headers that rules make from claims, and never what the client sent
// under these names. edited reports whether this header differs from that of r. If the result has an error, the request must be refused.
//
// If only peers with an identity are served, the tokens of other peers are not verified, because the policies deny their requests.
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

// Again decides about a request that was admitted before, perhaps under other documents. It does not verify the tokens again: the claims
// stay the same. The headers that the current rules make from claims are made again, so that a policy never sees what the client sent
// under a name that no rule used before.
func Again(rules *policy.Inbound, r *authz.Request) authz.Decision {
	tokens := rules.Tokens()
	if tokens == nil {
		return rules.Authorize(r)
	}
	claims, _ := r.Claims.(*jwt.Claims)
	result := tokens.Again(claims)
	if result.Err != nil {
		return Refused(result.Err)
	}
	view := *r
	if header := result.Header(r.Header); header != nil {
		view.Header = header
	}
	return rules.Authorize(&view)
}
