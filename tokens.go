package mesh

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/judge"
)

// authenticate verifies the tokens of a request, before anything is decided about it. If one is not accepted, authenticate answers
// and returns false. It also returns false, without an answer, if it must not wait for the keys of a token: then the request is
// pending.
func (in *inbound) authenticate(w http.ResponseWriter, r *http.Request) bool {
	ctx := r.Context()
	if in.context != nil { // that of the observers
		ctx = in.context
	}
	in.sender = sentFrom{ctx, in.view.Remote}
	in.token, in.edited = judge.Authenticate(&in.sender, in.rules, r, &in.view, in.Start)
	if err := in.token.Err; err != nil {
		if later, _ := ctx.Value(admission.LaterKey{}).(*bool); later != nil && *later && in.postpone() {
			return false
		}
		in.Decision = judge.Refused(err)
		err.Refuse(w, r, in.rules.Tokens().Realm(r))
		return false
	}
	return true
}

// observeEnd tells the observers that the request has ended, and whose it was.
func (in *inbound) observeEnd(ctx context.Context) {
	if claims := in.token.Claims; claims != nil {
		in.User = claims.Issuer() + "/" + claims.Subject()
	}
	in.Duration = time.Since(in.Start)
	in.mesh.observers.InboundEnd(ctx, &in.Inbound)
}

// initKeys has keys from hosts in the mesh fetched through the mesh, and other keys directly: documents about calls to hosts outside
// the mesh are not meant for the mesh's own calls, and neither is a Sidecar that refuses them.
func (m *Mesh) initKeys() {
	m.workload.Keys = &m.keys
	m.keys.Transport = func(r *http.Request) http.RoundTripper {
		if host := m.engine.Plan().Host(r.URL.Host); !host.Hidden && (host.Known || host.Service.Name != "") { // a service of the cluster has a Name
			return m.transport
		}
		return nil
	}
	m.keys.OnFetch = m.observers.Keys
}

// mostPending bounds the requests of other protocols that wait for keys: the message of each may be received and decoded before its
// sender is known.
const mostPending = 64

// sentFrom is a context for verifying tokens. It has the address of their sender, in case the request must wait for keys.
type sentFrom struct {
	context.Context
	from netip.Addr
}

// Value implements context.Context.
func (s *sentFrom) Value(key any) any {
	if key == (admission.SenderKey{}) {
		return s.from
	}
	return s.Context.Value(key)
}

// postpone makes the request pending, unless too many are.
func (in *inbound) postpone() bool {
	if !in.mesh.server.pending.Enter(in.view.Remote) {
		return false
	}
	in.pending = make(chan struct{})
	return true
}

// Await implements admission.Call. It keeps the place no longer than it waits, whether or not a message has come.
func (in *inbound) Await(ctx context.Context) bool {
	defer close(in.pending)
	defer in.mesh.server.pending.Leave(in.view.Remote)
	view := in.view
	token, _ := judge.Authenticate(&sentFrom{ctx, view.Remote}, in.rules, in.Request, &view, in.Start)
	return token.Err == nil
}
