package policy

import (
	"iter"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

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

// unread warns of annotations of a Service that are about calls to it, and have no effect here.
func unread(d *yamldoc.Document) {
	keys, _ := d.Keys("metadata.annotations")
	for _, key := range keys {
		if strings.HasPrefix(key, "balancer.alpha.linkerd.io/") {
			d.Warnf(yamldoc.Key("metadata.annotations", key), "is not enforced: it is an experiment of Linkerd")
		} else if key == "networking.istio.io/exportTo" {
			d.Warnf(yamldoc.Key("metadata.annotations", key), "is not enforced: the Service is known to all: who may call it is up to AuthorizationPolicies")
		}
	}
}
