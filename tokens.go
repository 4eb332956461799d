package mesh

import (
	"net/http"

	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/jwt"
)

// authenticate verifies the tokens of a request, before anything is decided about it: what policies and the handler see are the
// claims, and never what the client wrote where they stand. If a token is not accepted, it answers, and returns false.
func (in *inbound) authenticate(w http.ResponseWriter, r *http.Request, tokens *jwt.Authenticator) bool {
	ctx := r.Context()
	if in.context != nil { // that of the observers
		ctx = in.context
	}
	in.token = tokens.Authenticate(ctx, r, in.Start)
	if err := in.token.Err; err != nil {
		none := authz.Match{Rule: -1}
		in.Decision = authz.Decision{Match: none, Audit: none, Shadow: authz.Shadow{Match: none}, Reason: err.Error()}
		err.Refuse(w, r, tokens.Realm(r))
		return false
	}
	if header := in.token.Header(r.Header); header != nil {
		in.view.Header, in.edited = header, true
	}
	if claims := in.token.Claims; claims != nil {
		in.view.Claims = claims
		in.User = claims.Issuer() + "/" + claims.Subject()
	}
	return true
}

// initKeys has keys of hosts in the mesh fetched through the mesh, and others as any program does: what documents tell of calls to a
// host outside is not about the mesh's own.
func (m *Mesh) initKeys() {
	m.workload.Keys = &m.keys
	m.keys.Transport = func(r *http.Request) http.RoundTripper {
		if host := m.engine.Plan().Host(r.URL.Host); host.Known || host.Service.Name != "" { // Name is that of a service of the cluster
			return m.transport
		}
		return nil
	}
	m.keys.OnFetch = m.observers.keysFetched
}
