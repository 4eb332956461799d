package policy

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
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

// null is said of a field that nulls yields.
const null = "has no value and counts as absent, as in a cluster: give it one or remove it"

// nulls yields the null fields of a document that would restrict something if they had a value. A null "from" lets everybody in, and without
// "tls" calls may be in plaintext.
func nulls(d *yamldoc.Document, group, kind string) iter.Seq[string] {
	return func(yield func(string) bool) {
		protects := catalog.Protects(group, kind) || group == smi.SpecsGroup
		if !protects && kind != "DestinationRule" && kind != "ServiceEntry" {
			return
		}
		below := "spec"
		if (group == smi.SpecsGroup || group == smi.AccessGroup) && !d.Has(below) {
			below = "" // of an early version
		}
		for at := range d.Nulls(below) {
			if strings.HasPrefix(at, "metadata") {
				continue
			}
			if (protects || strings.Contains(at+".", ".tls.") || at == "spec.subjectAltNames") && !yield(at) {
				return
			}
		}
	}
}

// Annotations of Linkerd.
const (
	inboundPolicy = "config.linkerd.io/default-inbound-policy"
	identityPorts = "config.linkerd.io/proxy-require-identity-inbound-ports"
)

// podsOf are the metadata of pods in documents of Kubernetes that make them.
var podsOf = []string{"spec.template.metadata", "spec.jobTemplate.spec.template.metadata"}

// restrictions yields the annotations of Linkerd, anywhere in a document, that restrict who may call workloads.
func restrictions(d *yamldoc.Document) iter.Seq[string] {
	return func(yield func(string) bool) {
		seen := make(map[string]bool)
		for _, key := range []string{inboundPolicy, identityPorts} {
			for at := range d.Paths("", key) {
				value := d.Text(at)
				restricts := value != "" && (key != inboundPolicy || value != "all-unauthenticated" && value != "audit")
				if restricts = restricts || seen[at]; restricts && !yield(at) { // of two of one name, the second may be meant
					return
				}
				seen[at] = true
			}
		}
	}
}

// guarded reports restrictions in a document that has no meaning here otherwise.
func guarded(d *yamldoc.Document) {
	for at := range restrictions(d) {
		d.Errorf(at, "%s is not enforced yet: write an AuthorizationPolicy of security.istio.io, and remove the annotation from the documents", d.Text(at))
	}
}

// wrapped yields the paths of the documents about a mesh that a document of another kind contains, such as a Template of OpenShift, with whether they
// restrict who may call whom. A mere reference to a document has no metadata.
func (c *compiler) wrapped(d *yamldoc.Document) iter.Seq2[string, bool] {
	return func(yield func(string, bool) bool) {
		for path := range d.Paths("", "apiVersion") {
			at := yamldoc.Parent(path)
			group, _, of := strings.Cut(d.Text(path), "/")
			kind := d.Text(at + ".kind")
			if state := c.apis[group].Kinds[kind]; at == "" || !of || !d.Has(at+".metadata") || state != catalog.Enforced && state != catalog.Refused {
				continue
			}
			if !yield(at, catalog.Protects(group, kind)) {
				return
			}
		}
	}
}

func (c *compiler) wraps(d *yamldoc.Document) bool {
	for range c.wrapped(d) {
		return true
	}
	return false
}

// unwrapped reports the documents in a document that has no meaning here otherwise.
func (c *compiler) unwrapped(d *yamldoc.Document) {
	for at := range c.wrapped(d) {
		d.Errorf(at, "%s in %s does not take effect: make it a document of its own, as oc process does with those in a Template",
			one(d.Text(at+".kind")), one(d.Text("kind")))
	}
}

// restricts reports whether a document of Kubernetes has a restriction that may be about the workload: it is about its Namespace, or about pods
// whose labels are not known to be others.
func (c *compiler) restricts(p *piece) bool {
	restricted := false
	for range restrictions(p.Document) {
		restricted = true
	}
	w := &c.plan.workload
	switch {
	case !restricted || p.protects():
		return false
	case p.kind == "Namespace" && p.group == "":
		return p.name == w.Namespace
	case c.elsewhere(p):
		return false
	}
	for _, metadata := range podsOf {
		for key, value := range w.Labels {
			if at := yamldoc.Key(metadata+".labels", key); p.IsText(at) && p.Text(at) != value {
				return false
			}
		}
	}
	return true
}

// tuned warns of the annotations by which Linkerd sets how a Service is called, and Istio who may call it.
func tuned(d *yamldoc.Document) {
	keys, _ := d.Keys("metadata.annotations")
	for _, key := range keys {
		if of, _, _ := strings.Cut(key, "/"); of == "retry.linkerd.io" || of == "timeout.linkerd.io" || of == "balancer.linkerd.io" {
			d.Warnf(yamldoc.Key("metadata.annotations", key), "is not enforced: write a ServiceProfile, or a VirtualService and a DestinationRule")
		} else if key == "networking.istio.io/exportTo" {
			d.Warnf(yamldoc.Key("metadata.annotations", key), "is not enforced: the Service is known to all: who may call it is up to AuthorizationPolicies")
		}
	}
}

// unprotected warns if there are security documents, but none of them is about the workload. Its labels or its namespace may be wrong, so
// that neither STRICT nor any authorization is in force.
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
	for _, ra := range c.tokens {
		if ra.is.selected {
			return
		}
		if first == nil {
			first = ra.document
		}
	}
	for _, s := range c.guards.servers {
		if s.namespace == w.Namespace && s.is.Spec.Selects(w.Labels) {
			return
		}
		if first == nil {
			first = s.document
		}
	}
	for _, tt := range c.targets {
		if tt.is.selected {
			return
		}
		if first == nil {
			first = tt.document
		}
	}
	for _, pa := range c.peers {
		selector := pa.is.Spec.Selector
		if pa.namespace == w.Namespace && selector.Selects(w.Labels) || pa.namespace == w.RootNamespace && selector.Labels() == nil {
			return
		}
		if first == nil {
			first = pa.document
		}
	}
	if first == nil {
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
		return len(is.parents) > 0
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

// unread reports whether a document with this name could not be read, or one whose name is unknown. A reference to it is then not another
// mistake. The kind of the document is ignored, since it may be what is wrong.
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
