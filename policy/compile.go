package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/istio"
	"github.com/nosidecar/mesh/retry"
)

// rootNamespace holds the DestinationRules for all of the mesh.
const rootNamespace = "istio-system"

// Compile reads the documents of all sources and compiles them for a workload. It reports everything it finds; if any
// of it is an error, the plan is nil. Without documents the plan has the defaults of the mesh.
func Compile(sources []Source, w Workload) (*Plan, Findings) {
	w.Namespace = cmp.Or(w.Namespace, "default")
	w.ClusterDomain = strings.ToLower(cmp.Or(strings.Trim(w.ClusterDomain, "."), "cluster.local"))
	w.Labels = maps.Clone(w.Labels)
	c := &compiler{
		plan: &Plan{
			workload: w,
			rules:    make(map[string]*hostMap[rules]),
			retries:  istio.DefaultRetry(),
		},
		apis:  apis(),
		first: make(map[groupIdentity]*document),
	}
	order := make(map[string]int, len(sources))
	streams := make([][]byte, len(sources))
	for i, source := range sources {
		if _, twice := order[source.Name]; !twice {
			order[source.Name] = i
		}
		streams[i] = source.Data
	}
	for i, docs := range yamldoc.Parse(streams...) {
		for _, doc := range docs {
			c.read(sources[i].Name, doc)
		}
	}
	c.destinationRules()
	c.virtualServices()

	findings := c.findings()
	findings.sort(order)
	if c.failed() {
		return nil, findings
	}
	return c.plan, findings
}

// compiler is one run of Compile.
type compiler struct {
	plan *Plan
	dec  yamldoc.Decoder
	apis map[string]api

	documents []*document
	first     map[groupIdentity]*document // the first document of each identity
	virtual   []virtualService
	rules     []destinationRule
}

// document is a document of a source.
type document struct {
	*yamldoc.Document
	identity
	file string
}

// identity is what a document is known by.
type identity struct {
	kind, namespace, name string
}

func (id identity) String() string {
	return id.kind + " " + id.namespace + "/" + id.name
}

// groupIdentity tells kinds of different groups apart.
type groupIdentity struct {
	group string
	identity
}

type virtualService struct {
	*document
	*istio.VirtualService
}

type destinationRule struct {
	*document
	*istio.DestinationRule
}

// read sorts a document by its kind and decodes it.
func (c *compiler) read(file string, doc *yamldoc.Document) {
	d := &document{Document: doc, file: file}
	d.kind = doc.Text("kind")
	d.name = doc.Text("metadata.name")
	if d.kind != "" {
		d.namespace = cmp.Or(doc.Text("metadata.namespace"), "default")
	}
	c.documents = append(c.documents, d)
	if doc.Failed() {
		return
	}
	group, version := doc.Text("apiVersion"), ""
	if i := strings.LastIndexByte(group, '/'); i >= 0 {
		group, version = group[:i], group[i+1:]
	} else {
		group, version = "", group
	}
	switch {
	case d.kind == "":
		doc.Errorf("kind", "missing: say what kind of document this is, such as VirtualService")
		return
	case version == "":
		doc.Errorf("apiVersion", "missing: say which API the document belongs to, such as %s/v1", istio.Group)
		return
	case d.kind == "List" && group == "":
		items, ok := doc.Items("items")
		if !ok {
			doc.Errorf("items", "must be a list of documents")
		}
		for _, item := range items {
			c.read(file, item)
		}
		return
	}
	state, message := lookUp(c.apis, group, version, d.kind)
	switch state {
	case unknown:
		doc.Errorf("kind", "%s", message)
		return
	case refused:
		doc.Errorf("kind", "%s", message)
	case meaningless:
		doc.Warnf("kind", "%s", message)
		return
	}
	key := groupIdentity{group, d.identity}
	if first := c.first[key]; first == nil {
		c.first[key] = d
	} else if d.name != "" {
		doc.Errorf("metadata.name", "%s is defined twice, first in %s:%d: remove or rename one of them",
			d, first.file, first.Line)
	}
	if state != enforced {
		return
	}
	switch d.kind {
	case "VirtualService":
		var vs istio.VirtualService
		if c.dec.Decode(doc, &vs) {
			vs.Check(doc)
			c.virtual = append(c.virtual, virtualService{d, &vs})
		}
	case "DestinationRule":
		var dr istio.DestinationRule
		if c.dec.Decode(doc, &dr) {
			dr.Check(doc)
			c.rules = append(c.rules, destinationRule{d, &dr})
		}
	}
}

// failed says that some document has an error.
func (c *compiler) failed() bool {
	return slices.ContainsFunc(c.documents, func(d *document) bool { return d.Failed() })
}

// findings collects what the documents have been reported for.
func (c *compiler) findings() Findings {
	var findings Findings
	for _, d := range c.documents {
		for _, p := range d.Problems {
			f := Finding{
				File: d.file, Line: p.Line,
				Kind: d.kind, Namespace: d.namespace, Name: d.name, Field: p.Path,
				Severity: Error, Message: p.Message,
			}
			if p.Warning {
				f.Severity = Warning
			}
			findings = append(findings, f)
		}
	}
	return findings
}

// DefaultRetry is the retry policy of calls to hosts that no document routes: the mesh's default.
func (p *Plan) DefaultRetry() retry.Config {
	return p.retries
}
