package mesh

import (
	"net/http"
	"sync/atomic"
	"weak"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// origin is what the requests over one connection have in common, for protocols other than HTTP. Who the peer is does not belong to it: its
// certificate may expire, and bundles may change, so that is verified for each request.
type origin struct {
	view    authz.Request // without what each request has of its own
	decided [16]atomic.Pointer[decided]
}

// decided is a decision that allowed a request, and what it depends on beyond the connection.
type decided struct {
	rules                     weak.Pointer[policy.Inbound] // so that an idle connection keeps no old documents
	principal, method, target string
	decision                  authz.Decision
}

// longestTarget is the length up to which targets are kept.
const longestTarget = 256

// Origin implements admission.Gate.
func (h *handler) Origin(r *http.Request) admission.Origin {
	h.mesh.server.see(r)
	if h.mesh.server.TrustedHops > 0 { // a header has the address of the client
		return nil
	}
	return &origin{view: authz.NewRequest(r, "", 0)}
}

// see sets view to that of a request over the connection.
func (o *origin) see(r *http.Request, view *authz.Request) {
	*view = o.view
	view.Host, view.Method, view.Target, view.Header = r.Host, r.Method, r.RequestURI, r.Header
}

// authorize is rules.Authorize for a request over the connection, from a peer with an identity, which brings no token. What was allowed is
// remembered, and holds for the same rules, peer, method and target.
func (o *origin) authorize(rules *policy.Inbound, r *authz.Request) authz.Decision {
	place := &o.decided[slotOf(r.Target)]
	known := place.Load()
	current := known != nil && known.rules.Value() == rules
	if current && known.target == r.Target && known.method == r.Method && known.principal == r.Principal {
		return known.decision
	}
	now := rules.Authorize(r)
	// If two targets share a place, it stays that of the first: remembering takes longer than deciding.
	if now.Allowed && now.Steady && !current && len(r.Target) <= longestTarget {
		place.Store(&decided{weak.Make(rules), r.Principal, r.Method, r.Target, now})
	}
	return now
}

// slotOf returns the place of a target in origin.decided.
func slotOf(target string) int {
	sum := uint(len(target))
	for i := len(target) - 1; i >= max(0, len(target)-4); i-- {
		sum = sum*31 + uint(target[i])
	}
	return int(sum % 16)
}
