package istio

import (
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// AtGateways returns the parts of a document that are about calls that come in by a gateway, by the paths of their fields:
// "spec" if that is all of it. They have no effect here, whatever they use. Of a delegate, that depends on those who hand
// requests to it: with leniently, it is taken to be for gateways.
func AtGateways(doc *yamldoc.Document, leniently bool) (parts []string) {
	only := func(path string) bool {
		names := doc.Texts(path)
		return len(names) > 0 && !slices.Contains(names, "mesh")
	}
	if only("spec.gateways") || leniently && doc.Len("spec.hosts") == 0 {
		return []string{"spec"}
	}
	for _, list := range []string{"spec.http", "spec.tls", "spec.tcp"} {
		all := doc.Len(list) > 0
		for i := range doc.Len(list) {
			at := yamldoc.Index(list, i)
			idle := doc.Len(at+".match") > 0
			for j := range doc.Len(at + ".match") {
				idle = idle && only(yamldoc.Index(at+".match", j)+".gateways")
			}
			if all = all && idle; idle {
				parts = append(parts, at)
			}
		}
		if all {
			parts = append(parts, list)
		}
	}
	return parts
}

// AtGateways says that a route is about calls that come in by a gateway only.
func (r *HTTPRoute) AtGateways() bool {
	return len(r.Match) > 0 && !slices.ContainsFunc(r.Match, func(m HTTPMatchRequest) bool { return !m.atGateways() })
}

// atGateways says that a match is about calls that come in by a gateway only.
func (m *HTTPMatchRequest) atGateways() bool {
	return len(m.Gateways) > 0 && !slices.Contains(m.Gateways, "mesh")
}

// InMesh says that the document is about calls inside the mesh and not only about those that come in by a gateway.
func (vs *VirtualService) InMesh() bool {
	return vs.Spec.inMesh()
}

func (spec *VirtualServiceSpec) inMesh() bool {
	return len(spec.Gateways) == 0 || slices.Contains(spec.Gateways, "mesh")
}
