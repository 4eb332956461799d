package gateway

import (
	"cmp"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// Parent is what a route is attached to.
type Parent struct {
	Entry           bool // a ServiceEntry of Istio; otherwise a Service
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

// parent returns what is meant by a reference in a document of a namespace.
func (p *ParentReference) parent(namespace string, index int) Parent {
	to := Parent{Entry: p.atEntry(), Namespace: cmp.Or(p.Namespace, namespace), Name: p.Name, Section: p.SectionName, Index: index}
	if p.Port != nil {
		to.Port = int(*p.Port)
	}
	return to
}

// Parents implements [Document].
func (r *HTTPRoute) Parents() []Parent { return r.Spec.parents(r.Namespace()) }

// Parents implements [Document].
func (r *GRPCRoute) Parents() []Parent { return r.Spec.parents(r.Namespace()) }

func (s *RouteSpec) parents(namespace string) (parents []Parent) {
	for i := range s.ParentRefs {
		if p := &s.ParentRefs[i]; p.atService() || p.atEntry() {
			parents = append(parents, p.parent(namespace, i))
		}
	}
	return parents
}
