package policy

import (
	"iter"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
)

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
