package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
)

// A security document that selects the wrong workloads does nothing for the right ones, and nobody notices. The functions below report
// what can be known about that.

// defaultNamespace is the namespace of documents that name none, as in kubectl.
const defaultNamespace = "default"

// unplaced reports a security document without a namespace. It is in the namespace default, so it does nothing for a workload in another
// namespace, although its author may expect it to.
func (c *compiler) unplaced(d *yamldoc.Document) {
	if d.Text("metadata.namespace") != "" {
		return
	}
	const message = "missing: the document applies to the namespace default only"
	if own := c.plan.workload.Namespace; own != defaultNamespace {
		d.Errorf("metadata.namespace", "%s, and this workload is in %s: set the namespace that you mean", message, own)
		return
	}
	d.Warnf("metadata.namespace", "%s: set the namespace that you mean", message)
}

// unselected warns if the workload has no labels, but policies or Sidecars that could be about it select by labels: the process may just not know its
// labels, so that a policy that should deny something does not apply. It reports whether it warned.
func (c *compiler) unselected() bool {
	w := &c.plan.workload
	if len(w.Labels) > 0 {
		return false
	}
	selects := func(d *document, s *istio.WorkloadSelector, everywhere string) bool {
		return s.Labels() != nil && (d.namespace == w.Namespace || d.namespace == everywhere)
	}
	server := find(c.guards.servers, func(s decoded[linkerd.Server]) bool { return s.is.Spec.ByLabels() && s.namespace == w.Namespace })
	policy := cmp.Or(
		find(c.access, func(ap decoded[access]) bool { return selects(ap.document, ap.is.is.Spec.Selector, w.RootNamespace) }),
		find(c.peers, func(pa decoded[istio.PeerAuthentication]) bool {
			return selects(pa.document, pa.is.Spec.Selector, w.Namespace) // one of the root namespace selects in that namespace only
		}),
		find(c.tokens, func(ra decoded[tokens]) bool { return selects(ra.document, ra.is.is.Spec.Selector, w.RootNamespace) }))
	sidecar := find(c.sidecars, func(s decoded[sidecar]) bool {
		labels, _ := s.is.is.Labels()
		return len(labels) > 0 && s.namespace == w.Namespace
	})
	const noLabels = "does not apply to this process, and neither does any other %s that selects by labels, since it has none: set Labels in mesh.WithWorkload"
	switch {
	case server != nil:
		server.Warnf("spec.podSelector", noLabels, "policy")
	case policy != nil:
		policy.Warnf("spec.selector", noLabels, "policy")
	case sidecar != nil:
		sidecar.Warnf("spec.workloadSelector", noLabels, "Sidecar")
	default:
		return false
	}
	return true
}

// unprotected warns if there are security documents, but none of them is about the workload. Its labels or its namespace may be wrong, so
// that neither STRICT nor any authorization is in force.
func (c *compiler) unprotected() {
	w := &c.plan.workload
	about := cmp.Or(
		find(c.access, func(ap decoded[access]) bool { return ap.is.selected }),
		find(c.tokens, func(ra decoded[tokens]) bool { return ra.is.selected }),
		find(c.guards.servers, func(s decoded[linkerd.Server]) bool { return s.namespace == w.Namespace && s.is.Spec.Selects(w.Labels) }),
		find(c.targets, func(tt decoded[target]) bool { return tt.is.selected }),
		find(c.peers, func(pa decoded[istio.PeerAuthentication]) bool {
			s := pa.is.Spec.Selector
			return pa.namespace == w.Namespace && s.Selects(w.Labels) || pa.namespace == w.RootNamespace && s.Labels() == nil
		}))
	first := cmp.Or(firstOf(c.access), firstOf(c.tokens), firstOf(c.guards.servers), firstOf(c.targets), firstOf(c.peers))
	if about != nil || first == nil {
		return
	}
	workload := "in the namespace " + w.Namespace + " without labels"
	if len(w.Labels) > 0 {
		var labels []string
		for _, key := range slices.Sorted(maps.Keys(w.Labels)) {
			labels = append(labels, key+"="+w.Labels[key])
		}
		workload = "in the namespace " + w.Namespace + " with the labels " + strings.Join(labels, ",")
	}
	first.Warnf("", "neither this security document nor any other is about this workload, %s: it authorizes everybody; "+
		"if one is meant to apply, correct the workload's namespace and labels", workload)
}

// find returns the first document of a list for which is returns true, or nil if there is none.
func find[T any](list []decoded[T], is func(decoded[T]) bool) *document {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i].document
	}
	return nil
}

// firstOf returns the first document of a list, or nil if there is none.
func firstOf[T any](list []decoded[T]) *document {
	return find(list, func(decoded[T]) bool { return true })
}

// InForce returns how many documents of each source are in force for the workload, in the order of the sources. It does not count kinds
// without a meaning in-process, documents that are only about gateways, documents that are not exported to the workload's namespace, and
// documents whose selector does not select the workload. The items of a List count, but not the List itself. The slice must not be changed.
func (p *Plan) InForce() []int { return p.inForce }

// countInForce returns the number of documents of each source for which counts returns true, in the room.
func (c *compiler) countInForce(counts func(*document) bool) []int {
	numbers := zeroed(&c.room.counts, len(c.sources))
	for _, d := range c.documents {
		if counts(d) {
			numbers[d.from.source]++
		}
	}
	return numbers
}

// inForce reports whether the document has a meaning for the workload. A security document for all workloads of another namespace counts:
// it is not likely to be a mistake. See unprotected.
func (c *compiler) inForce(d *document) bool {
	w := &c.plan.workload
	switch is := d.is.(type) {
	case nil:
		return false
	case *virtual:
		return c.plan.sees(is) && !d.atGateways()
	case *gatewayRoute:
		return len(is.parents) > 0 || len(is.servers) > 0 && d.namespace == w.Namespace
	case *destination:
		return is.visible && (is.selector == nil || is.selects)
	case *entry:
		return is.visible
	case *sidecar:
		return is.reach > ofOthers || is.labels == ""
	case *reporting:
		return is.selected || is.is.Spec.Selector.Labels() == nil
	case *tokens:
		return is.selected || is.is.Spec.Selector.Labels() == nil
	case *access:
		return is.selected || is.is.Spec.Selector.Labels() == nil
	case *linkerd.Server:
		return !is.Spec.ByLabels() || d.namespace == w.Namespace && is.Spec.Selects(w.Labels)
	case *target:
		return is.selected
	}
	return true
}

// atGateways reports whether the document is only about gateways.
func (d *document) atGateways() bool {
	v, ok := d.is.(*virtual)
	return ok && (!v.inMesh || d.idle)
}
