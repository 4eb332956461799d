package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// A security document that selects the wrong workload is silent where it is missing. What can be told
// of that is told here.

// defaultNamespace is where documents without a namespace are, as with kubectl.
const defaultNamespace = "default"

// unplaced reports a security document that names no namespace: it is in the namespace default, and so it does nothing
// for a workload elsewhere, where its author may well expect it to.
func (c *compiler) unplaced(d *yamldoc.Document) {
	if d.Text("metadata.namespace") != "" {
		return
	}
	const message = "missing: the document is about the namespace default alone"
	if own := c.plan.workload.Namespace; own != defaultNamespace {
		d.Errorf("metadata.namespace", "%s, and this workload is in %s: name the namespace that is meant", message, own)
		return
	}
	d.Warnf("metadata.namespace", "%s: name the namespace that is meant", message)
}

// unprotected warns of a workload that none of the security documents there are is about. Its labels or its namespace may
// be wrong, and then neither STRICT nor any authorization is in force.
func (c *compiler) unprotected() {
	w := &c.plan.workload
	var first *document
	for _, ap := range c.access {
		if ap.is.selected {
			return
		}
		if first == nil {
			first = ap.document
		}
	}
	for _, pa := range c.peers {
		selector := pa.is.Spec.Selector
		if pa.namespace == w.Namespace && (selector.Labels() == nil || selector.Selects(w.Labels)) || pa.namespace == rootNamespace && selector.Labels() == nil {
			return
		}
		if first == nil {
			first = pa.document
		}
	}
	if first == nil {
		return
	}
	who := "in the namespace " + w.Namespace + " without labels"
	if len(w.Labels) > 0 {
		var labels []string
		for _, key := range slices.Sorted(maps.Keys(w.Labels)) {
			labels = append(labels, key+"="+w.Labels[key])
		}
		who = "in the namespace " + w.Namespace + " with the labels " + strings.Join(labels, ",")
	}
	first.Warnf("", "neither this security document nor any other is about this workload, %s: it authorizes everybody; "+
		"if one is meant to apply, correct the workload's namespace and labels", who)
}

// InForce returns how many documents of each source are in force for the workload, in the order of the sources. Those that are
// skipped do not count: kinds without a meaning in-process, documents that are only about gateways, those that are not
// exported to the workload's namespace, and those whose selector selects others. The items of a List count, not the List.
// The slice must not be changed.
func (p *Plan) InForce() []int { return p.inForce }

// countInForce returns for how many documents of each source counts says true.
func (c *compiler) countInForce(counts func(*document) bool) []int {
	numbers, from := make([]int, len(c.ends)), 0
	for i, end := range c.ends {
		for _, d := range c.documents[from:end] {
			if counts(d) {
				numbers[i]++
			}
		}
		from = end
	}
	return numbers
}

// inForce says that the document has a meaning for the workload. One that protects the workloads of another namespace is about
// others as a whole, which is no reason to take it for a mistake: see unprotected.
func (d *document) inForce() bool {
	switch is := d.is.(type) {
	case nil:
		return false
	case *virtual:
		return is.visible && !d.atGateways()
	case *destination:
		return is.visible && (is.selector == nil || is.selects)
	case *entry:
		return is.visible
	case *reporting:
		return is.selected || is.is.Spec.Selector.Labels() == nil
	case *access:
		return is.selected || is.is.Spec.Selector.Labels() == nil
	}
	return true
}

// atGateways says that the document is only about gateways.
func (d *document) atGateways() bool {
	v, ok := d.is.(*virtual)
	return ok && (!v.inMesh || d.idle)
}

// unread says that a document of this name exists, but cannot be read; or that one cannot that does not even say its name.
// That others refer to it is no second mistake then. The kind does not count: it may be what is wrong.
func (c *compiler) unread(namespace, name string) bool {
	if c.broken == nil {
		c.broken = make(map[identity]bool)
		for _, d := range c.documents {
			if d.Failed() {
				c.broken[identity{"", d.namespace, d.name}] = true
			}
		}
	}
	return c.broken[identity{}] || c.broken[identity{"", namespace, name}]
}
