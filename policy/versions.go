package policy

import (
	"maps"
	"reflect"

	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
	"github.com/nosidecar/mesh/tlsid"
)

// admits returns what the document says about who may connect, whose tokens are accepted, or what is protected and authorized. It returns nil
// for other kinds.
func (d *document) admits() any {
	switch is := d.is.(type) {
	case *istio.PeerAuthentication:
		return &is.Spec
	case *tokens:
		return &is.is.Spec
	case *linkerd.Server:
		return []any{is.Spec, is.Metadata.Labels}
	case *linkerd.ServerAuthorization:
		return &is.Spec
	case *linkerd.AuthorizationPolicy:
		return &is.Spec
	case *linkerd.MeshTLSAuthentication:
		return &is.Spec
	case *linkerd.NetworkAuthentication:
		return &is.Spec
	case *target:
		return is.is.Content()
	case *smi.HTTPRouteGroup:
		return is.Routes()
	case *smi.TCPRoute:
		return is.Spec
	}
	return nil
}

// settle decides between two versions of one document that differ, of a kind that admits knows. Unlike prohibitions, they cannot both be in
// force. Which one is newer is unknown, so the one counts that is certainly the stricter. If neither is, the last good version stays, as for a
// refused change. If that is neither of the two, both are refused.
func (d *document) settle(first *document) {
	loser, kept, why := d, first, ""
	one, _ := first.admits().(*istio.PeerAuthenticationSpec)
	two, peers := d.admits().(*istio.PeerAuthenticationSpec)
	switch {
	case peers && asStrict(one, two):
		why = "is stricter"
	case peers && asStrict(two, one):
		loser, kept, why = first, d, "is stricter"
	case first.lastGood():
		why = "was in force before"
	case d.lastGood():
		loser, kept, why = first, d, "was in force before"
	default:
		for _, of := range [][2]*document{{first, d}, {d, first}} {
			of[0].Errorf("metadata.name", "%s is there in another version, too, in %s:%d, and which one counts is unknown: remove one of them",
				of[0], of[1].file, of[1].Line)
		}
		return
	}
	loser.from.twin = true
	loser.Errorf("metadata.name", "%s is there in another version, too, in %s:%d, which %s and counts: remove one of them", loser, kept.file, kept.Line, why)
}

// lastGood reports whether the document is the last good version of its object.
func (d *document) lastGood() bool { return d.from.last != nil && d.same(d.from.last) }

// admitsSame reports whether admits returns the same of two documents.
func (d *document) admitsSame(other *document) bool {
	return reflect.DeepEqual(d.admits(), other.admits())
}

// asStrict reports whether a demands at least as much as b of those who connect, whatever both inherit. Only STRICT is certainly as strict as
// anything: under DISABLE, unlike PERMISSIVE, policies that deny an identity do not see it.
func asStrict(a, b *istio.PeerAuthenticationSpec) bool {
	one, two := translated(a), translated(b)
	if (one.labels == nil) != (two.labels == nil) || !maps.Equal(one.labels, two.labels) {
		return false // about different workloads
	}
	strict := peerMode{tlsid.Strict, true}
	if one.mode != two.mode && one.mode != strict {
		return false
	}
	for _, ports := range []map[int]tlsid.Mode{one.ports, two.ports} {
		for port := range ports {
			if mode := one.at(port); mode != strict && mode != two.at(port) {
				return false
			}
		}
	}
	return true
}

// at returns the mode of a port. It is unset if that is inherited.
func (r *peerRule) at(port int) peerMode {
	if mode, set := r.ports[port]; set {
		return peerMode{mode, true}
	}
	return r.mode
}
