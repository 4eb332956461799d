package policy

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// lastApplied is the annotation in which kubectl stores a document as it was applied.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

const dropped = "the API server dropped this when the document was applied (%s): apply the corrected document, or remove the annotation %s if it is out of date"

// pruned reports the fields that a document had when it was applied, but that the API server dropped because its schema does not have them. What
// is left may mean something else: a rule with a misspelt "from" becomes one that matches all callers.
func (c *compiler) pruned(doc *yamldoc.Document, r *reading) {
	text := doc.Text(yamldoc.Key("metadata.annotations", lastApplied))
	if text == "" {
		return
	}
	parsed := yamldoc.Parse([]byte(text))[0]
	if len(parsed) != 1 {
		return
	}
	written := parsed[0]
	for _, field := range []string{"kind", "metadata.name"} {
		if written.Text(field) != doc.Text(field) {
			return // it was copied from another document
		}
	}
	if cmp.Or(written.Text("metadata.namespace"), defaultNamespace) != cmp.Or(doc.Text("metadata.namespace"), defaultNamespace) {
		return
	}
	c.shape(written, r)
	protects := catalog.Protects(r.group, r.kind) || r.group == smi.SpecsGroup || // TrafficTargets allow what these describe
		routesServer(written, r)
	if r.group == consul.Group {
		protects = catalog.Protects(r.group, doc.Text("kind"))
	}
	for _, p := range written.Problems {
		switch {
		case p.Warning, strings.HasPrefix(p.Path, "metadata"), strings.HasPrefix(p.Path, "status"), failed(doc, p.Path):
			continue
		case doc.Has(p.Path), !doc.Has(yamldoc.Parent(p.Path)): // it was not dropped, or was dropped with the object around it
			continue
		}
		report := doc.Warnf
		if protects || r.kind == "DestinationRule" && strings.Contains(p.Path, ".tls.") {
			report = doc.Errorf
		}
		report(p.Path, dropped, p.Message, lastApplied)
	}
	for at := range nulls(written, r) {
		if !doc.Has(at) && doc.Has(yamldoc.Parent(at)) {
			doc.Warnf(at, dropped, "it has no value", lastApplied)
		}
	}
}

// failed reports whether a document has an error at a path already.
func failed(doc *yamldoc.Document, path string) bool {
	return slices.ContainsFunc(doc.Problems, func(p yamldoc.Problem) bool { return p.Path == path && !p.Warning })
}

// shape reports the mistakes in the shape of a document of the kind of r, and the fields that its version does not have.
func (c *compiler) shape(doc *yamldoc.Document, r *reading) {
	if r.group == consul.Group {
		consul.Read(&c.dec, doc, r.kind, new(consul.Environment))
		return
	}
	is := blank(r.group, r.kind)
	if c.dec.Decode(doc, is) && c.varies(doc, r) {
		is.Check(doc)
	}
}

// varies reports whether the fields of a document depend on its version, so that it takes more than its shape to say which ones there are.
func (c *compiler) varies(doc *yamldoc.Document, r *reading) bool {
	group, version, _ := strings.Cut(doc.Text("apiVersion"), "/")
	state, _ := lookUp(c.apis, group, version, r.kind)
	of := group == smi.SpecsGroup || group == smi.AccessGroup || group == linkerd.PolicyGroup && r.kind != "HTTPRoute"
	return of && group == r.group && state == catalog.Enforced
}

// null is said of a field that nulls yields.
const null = "has no value and counts as absent, as in a cluster: give it one or remove it"

// nulls yields the null fields of a document that would restrict something if they had a value. A null "from" lets everybody in, and without
// "tls" calls may be in plaintext.
func nulls(d *yamldoc.Document, r *reading) iter.Seq[string] {
	return func(yield func(string) bool) {
		group, kind := r.group, r.kind
		protects := catalog.Protects(group, kind) || group == smi.SpecsGroup || routesServer(d, r)
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
