package policy

import (
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// ofGateways returns the field by which a document of a kind that is not enforced is about gateways alone, and "" for any other document.
// Such a document has no meaning in-process: what a gateway does with a request is done before the request gets here.
func (c *compiler) ofGateways(doc *yamldoc.Document, r *reading) string {
	if doc.Twice() { // the field that counts may be the other one
		return ""
	}
	switch {
	case r.group == catalog.GatewayGroup:
		if every(doc, "spec.parentRefs", parentGateway) {
			return "spec.parentRefs"
		}
	case r.group == istio.Group && r.kind == "EnvoyFilter":
		if every(doc, "spec.configPatches", func(doc *yamldoc.Document, at string) bool { return doc.Text(at+".match.context") == "GATEWAY" }) {
			return "spec.configPatches"
		}
		return c.attachedToGateways(doc, "spec.workloadSelector.labels")
	case r.group == catalog.ExtensionsGroup:
		return c.attachedToGateways(doc, "spec.selector.matchLabels")
	}
	return ""
}

// attachedToGateways is ofGateways for documents that are attached to something, or select workloads by labels.
func (c *compiler) attachedToGateways(doc *yamldoc.Document, labels string) string {
	switch {
	case doc.Has("spec.targetRef"):
		if targetGateway(doc, "spec.targetRef") && !doc.Has("spec.targetRefs") {
			return "spec.targetRef"
		}
	case doc.Has("spec.targetRefs"):
		if every(doc, "spec.targetRefs", targetGateway) {
			return "spec.targetRefs"
		}
	default:
		selects := make(map[string]string)
		keys, _ := doc.Keys(labels)
		for _, key := range keys {
			selects[key] = doc.Text(yamldoc.Key(labels, key))
		}
		selector := &istio.WorkloadSelector{MatchLabels: selects}
		if selector.OfGateway() && !selector.Selects(c.plan.workload.Labels) {
			return labels
		}
	}
	return ""
}

// every reports whether a list has elements, and is returns true for the path of each.
func every(doc *yamldoc.Document, list string, is func(doc *yamldoc.Document, at string) bool) bool {
	for i := range doc.Len(list) {
		if !is(doc, yamldoc.Index(list, i)) {
			return false
		}
	}
	return doc.Len(list) > 0
}

// parentGateway reports whether a route is attached to a gateway there. That is what a reference without kind and group means.
func parentGateway(doc *yamldoc.Document, at string) bool {
	group, kind := doc.Text(at+".group"), doc.Text(at+".kind")
	if !doc.Has(at + ".group") {
		group = catalog.GatewayGroup
	}
	if !doc.Has(at + ".kind") {
		kind = "Gateway"
	}
	return gateway.IsGateway(group, kind)
}

// targetGateway reports whether the reference there is to a gateway, as in an AuthorizationPolicy.
func targetGateway(doc *yamldoc.Document, at string) bool {
	ref := istio.PolicyTargetReference{Group: doc.Text(at + ".group"), Kind: doc.Text(at + ".kind"), Name: doc.Text(at + ".name")}
	return ref.Group == catalog.GatewayGroup && ref.Gateway()
}
