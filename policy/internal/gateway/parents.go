package gateway

import (
	"cmp"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// Parent is what a route is attached to.
type Parent struct {
	Entry           bool // a ServiceEntry of Istio
	Server          bool // a Server of Linkerd; otherwise, if it is no ServiceEntry, a Service
	Namespace, Name string
	Port            int    // 0 means all ports, unless Section is set
	Section         string // the name of a port
	Index           int    // in spec.parentRefs
}

// groupOf returns the API group of a document.
func groupOf(object *yamldoc.Object) string {
	group, _, _ := strings.Cut(object.APIVersion, "/")
	return group
}

// of returns the group and the kind that a reference in a document of the group own means.
func (p *ParentReference) of(own string) (group, kind string) {
	group, kind = own, "Gateway"
	if p.Group != nil {
		group = *p.Group
	}
	if p.Kind != nil {
		kind = *p.Kind
	}
	return group, kind
}

// IsGateway reports whether what a kind of a group stands for is a gateway, or a part of one. It has no meaning here.
func IsGateway(group, kind string) bool {
	switch kind {
	case "Gateway", "ListenerSet", "XListenerSet":
		return group == Group || group == TrialGroup
	}
	return false
}

func (p *ParentReference) atService() bool {
	group, kind := p.of(Group)
	return kind == "Service" && (group == "" || group == "core")
}

func (p *ParentReference) atEntry() bool {
	group, kind := p.of(Group)
	return kind == "ServiceEntry" && group == istio.Group
}

// atServer reports whether a route is attached to a Server of Linkerd. Case does not matter.
func (p *ParentReference) atServer(own string) bool {
	group, kind := p.of(own)
	return strings.EqualFold(kind, "Server") && strings.EqualFold(group, LinkerdGroup)
}

// atMesh reports whether a route is attached to a Service or a ServiceEntry.
func (p *ParentReference) atMesh(string) bool { return p.atService() || p.atEntry() }

// parent returns what is meant by a reference in a document.
func (p *ParentReference) parent(object *yamldoc.Object, index int) Parent {
	to := Parent{Entry: p.atEntry(), Namespace: cmp.Or(p.Namespace, object.Namespace()), Name: p.Name, Section: p.SectionName, Index: index}
	to.Server = p.atServer(groupOf(object))
	if p.Port != nil {
		to.Port = int(*p.Port)
	}
	return to
}

// Parents implements [Document].
func (r *HTTPRoute) Parents() []Parent { return r.Spec.parents(&r.Object, (*ParentReference).atMesh) }

// Parents implements [Document].
func (r *GRPCRoute) Parents() []Parent { return r.Spec.parents(&r.Object, (*ParentReference).atMesh) }

// Servers implements [Document].
func (r *HTTPRoute) Servers() []Parent { return r.Spec.parents(&r.Object, (*ParentReference).atServer) }

// Servers implements [Document].
func (r *GRPCRoute) Servers() []Parent { return r.Spec.parents(&r.Object, (*ParentReference).atServer) }

// parents returns what is meant by the references for which is returns true.
func (s *RouteSpec) parents(object *yamldoc.Object, is func(p *ParentReference, own string) bool) (parents []Parent) {
	for i := range s.ParentRefs {
		if p := &s.ParentRefs[i]; is(p, groupOf(object)) {
			parents = append(parents, p.parent(object, i))
		}
	}
	return parents
}
