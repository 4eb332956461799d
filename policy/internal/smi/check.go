package smi

import (
	"fmt"
	"maps"
	"math"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// maxWeight is the maximum weight in thousandths. Sums of weights fit into an int64.
const maxWeight = math.MaxUint32

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (ts *TrafficSplit) Check(doc *yamldoc.Document) {
	ts.Metadata.Check(doc)
	spec, v := &ts.Spec, version(ts.APIVersion)
	service(doc, spec.Service, "spec.service")
	if len(spec.Backends) == 0 {
		doc.Errorf("spec.backends", "must not be empty")
	}
	var sum int64
	seen := make(map[string]int)
	for i := range spec.Backends {
		b, at := &spec.Backends[i], yamldoc.Index("spec.backends", i)
		service(doc, b.Service, at+".service")
		switch first, twice := seen[b.Service]; {
		case twice:
			doc.Warnf(at+".service", "%s is listed twice, also in spec.backends[%d]: the weights add up", b.Service, first)
		case b.Service == spec.Service:
			doc.Warnf(at+".service", "the split service is one of its own backends: what goes there is not split again")
		}
		seen[b.Service] = i
		switch w := b.Weight; {
		case w.Milli < 0:
			doc.Errorf(at+".weight", "must not be negative")
		case v > 1 && !w.Whole:
			doc.Errorf(at+".weight", "must be a whole number in v1alpha%d", v)
		case w.Milli > maxWeight:
			doc.Errorf(at+".weight", "must be at most %d", maxWeight/1000)
		default:
			sum += w.Milli
		}
	}
	if sum == 0 && len(spec.Backends) > 0 && !doc.Failed() {
		doc.Warnf("spec.backends", "has no effect: every weight is 0, so the requests go to the service itself")
	}
	if v < 3 && spec.Matches != nil {
		doc.Errorf("spec.matches", "does not exist in v1alpha%d: use v1alpha3 or v1alpha4", v)
	}
	for i, m := range spec.Matches {
		at := yamldoc.Index("spec.matches", i)
		if m.APIGroup != "" && m.APIGroup != SpecsGroup {
			doc.Errorf(at+".apiGroup", "%q is not %s", m.APIGroup, SpecsGroup)
		}
		if !yamldoc.IsName(m.Name) {
			doc.Errorf(at+".name", "%q is not the name of an HTTPRouteGroup", m.Name)
		}
	}
}

func service(doc *yamldoc.Document, name, at string) {
	if !yamldoc.IsName(strings.TrimSuffix(strings.ToLower(name), ".")) {
		doc.Errorf(at, "%q is not the name of a service", name)
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (g *HTTPRouteGroup) Check(doc *yamldoc.Document) {
	g.Metadata.Check(doc)
	v := version(g.APIVersion)
	at := "spec.matches"
	switch {
	case v >= 3 && g.Matches != nil:
		doc.Errorf("matches", "belongs into spec in v1alpha%d", v)
		return
	case v >= 3 && g.Spec == nil:
		doc.Errorf("spec", "missing: it is required")
		return
	case v < 3 && g.Spec != nil:
		doc.Errorf("spec", "does not exist in v1alpha%d: write matches beside metadata", v)
		return
	case v < 3 && g.Matches == nil:
		doc.Errorf("matches", "missing: it is required")
		return
	case v < 3:
		at = "matches"
	}
	if len(g.matches()) == 0 {
		doc.Warnf(at, "is empty: it matches nothing")
	}
	names := make(map[string]int)
	for i, m := range g.matches() {
		at := yamldoc.Index(at, i)
		if m.Name == "" {
			doc.Errorf(at+".name", "must not be empty")
		} else if first, twice := names[m.Name]; twice {
			doc.Errorf(at+".name", "%q is the name of the match %d too", m.Name, first)
		}
		names[m.Name] = i
		if err := wrongRegex(m.PathRegex); err != "" {
			doc.Errorf(at+".pathRegex", "%s", err)
		}
		if m.Methods != nil && len(m.Methods) == 0 {
			doc.Warnf(at+".methods", "is empty: all methods match")
		}
		if v == 1 && m.Headers != nil {
			doc.Errorf(at+".headers", "does not exist in v1alpha1: use v1alpha2 or later")
		}
		for j, headers := range m.Headers {
			at := yamldoc.Index(at+".headers", j)
			for _, name := range slices.Sorted(maps.Keys(headers)) {
				if strings.Trim(name, tokenCharacters) != "" {
					doc.Errorf(yamldoc.Key(at, name), "%q is not the name of a header", name)
				}
				if err := wrongRegex(headers[name]); err != "" {
					doc.Errorf(yamldoc.Key(at, name), "%s", err)
				}
			}
		}
	}
}

// tokenCharacters has the characters that the name of a header may contain (RFC 9110, section 5.6.2).
const tokenCharacters = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func wrongRegex(expr string) string {
	if _, err := syntax.Parse(expr, syntax.Perl); err != nil {
		return fmt.Sprintf("%v; the syntax is RE2, https://github.com/google/re2/wiki/Syntax", err)
	}
	return ""
}
