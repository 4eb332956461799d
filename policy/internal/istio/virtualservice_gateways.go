package istio

import (
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// AtGateways returns the paths of the parts of a document that are only about requests through gateways, or "spec" if the whole document
// is. These parts have no effect here. For a delegate, that depends on the documents that hand requests to it. If leniently is set,
// a delegate counts as being about gateways.
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

// AtGateways reports whether the route is only about requests through gateways.
func (r *HTTPRoute) AtGateways() bool {
	return len(r.Match) > 0 && !slices.ContainsFunc(r.Match, func(m HTTPMatchRequest) bool { return !m.atGateways() })
}

// atGateways reports whether the match is only about requests through gateways.
func (m *HTTPMatchRequest) atGateways() bool {
	return len(m.Gateways) > 0 && !slices.Contains(m.Gateways, "mesh")
}

// InMesh reports whether the document is about calls in the mesh, and not only about requests through gateways.
func (vs *VirtualService) InMesh() bool {
	return vs.Spec.inMesh()
}

func (spec *VirtualServiceSpec) inMesh() bool {
	return len(spec.Gateways) == 0 || slices.Contains(spec.Gateways, "mesh")
}
