package smi

import (
	"math"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (tt *TrafficTarget) Check(doc *yamldoc.Document) {
	tt.Metadata.Check(doc)
	v := version(tt.APIVersion)
	if !tt.placed(doc, v) {
		return
	}
	at, content := "", tt.Content()
	if tt.Spec != nil {
		at = "spec."
	}
	to, of := at+"destination", content.Destination
	if !yamldoc.IsName(of.Name) {
		doc.Errorf(to+".name", "%q is not the name of a service account", of.Name)
	}
	if of.Namespace != "" && of.Namespace != tt.Namespace() {
		doc.Errorf(to+".namespace", "a TrafficTarget must be in the namespace of its destination, and this one is in %s: set metadata.namespace, "+
			"or correct this", tt.Namespace())
	}
	switch {
	case of.Port == nil:
	case v > 2:
		doc.Errorf(to+".port", "does not exist in v1alpha%d: list a TCPRoute with the port in rules", v)
	case !isPort(*of.Port):
		doc.Errorf(to+".port", "%d is not a port", *of.Port)
	}
	checkRules(doc, content.Rules, tt.RulesField())
	if len(content.Sources) == 0 {
		doc.Errorf(at+"sources", "must not be empty")
	}
	for i, from := range content.Sources {
		at := yamldoc.Index(at+"sources", i)
		if !yamldoc.IsName(from.Name) {
			doc.Errorf(at+".name", "%q is not the name of a service account", from.Name)
		}
		switch {
		case from.Namespace == "":
			doc.Warnf(at+".namespace", "missing: nobody is allowed by this source; write the namespace of the service account")
		case !yamldoc.IsLabel(from.Namespace):
			doc.Errorf(at+".namespace", "%q is not a namespace", from.Namespace)
		}
	}
}

// placed reports whether everything is where the version has it.
func (tt *TrafficTarget) placed(doc *yamldoc.Document, v byte) bool {
	misplaced := ""
	for _, field := range []struct {
		name string
		set  bool
	}{{"destination", tt.Destination != nil}, {"specs", tt.Specs != nil}, {"sources", tt.Sources != nil}} {
		switch {
		case v == 1 && !field.set && tt.Spec == nil:
			doc.Errorf(field.name, "missing: it is required")
			misplaced = field.name
		case v > 1 && field.set:
			doc.Errorf(field.name, "belongs into spec in v1alpha%d", v)
			misplaced = field.name
		}
	}
	switch {
	case misplaced != "":
		return false
	case v == 1 && tt.Spec != nil:
		doc.Errorf("spec", "does not exist in v1alpha1: write destination, specs and sources beside metadata")
	case v > 1 && tt.Spec == nil:
		doc.Errorf("spec", "missing: it is required")
	default:
		return true
	}
	return false
}

func checkRules(doc *yamldoc.Document, rules []Rule, at string) {
	if len(rules) == 0 {
		doc.Errorf(at, "must not be empty")
	}
	for i, rule := range rules {
		at := yamldoc.Index(at, i)
		if !yamldoc.IsName(rule.Name) {
			doc.Errorf(at+".name", "%q is not a name of Kubernetes", rule.Name)
		}
		switch {
		case rule.Matches == nil:
		case rule.Kind != HTTPRouteGroupKind:
			doc.Errorf(at+".matches", "a %s has no matches with a name: remove it", rule.Kind)
		case len(rule.Matches) == 0:
			doc.Errorf(at+".matches", "is empty, which may mean all or none: remove it to allow all matches, or remove the rule")
		}
		if rule.Kind == UDPRouteKind {
			doc.Warnf(at+".kind", "allows nothing here: UDP is not carried")
		}
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (r *TCPRoute) Check(doc *yamldoc.Document) {
	r.Metadata.Check(doc)
	v := version(r.APIVersion)
	matches := r.Spec != nil && r.Spec.Matches != nil
	switch {
	case v < 4 && matches:
		doc.Errorf("spec.matches", "does not exist in v1alpha%d: use v1alpha4", v)
	case v < 4:
	case !matches || r.Spec.Matches.Ports == nil:
		doc.Errorf("spec.matches.ports", "missing: it is required; an empty list means all ports")
	default:
		for i, port := range r.Spec.Matches.Ports {
			if !isPort(port) {
				doc.Errorf(yamldoc.Index("spec.matches.ports", i), "%d is not a port", port)
			}
		}
	}
}

func isPort(n int) bool { return 0 < n && n <= math.MaxUint16 }
