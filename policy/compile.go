package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// rootNamespace holds the documents that are about all of the mesh.
const rootNamespace = "istio-system"

// Compile reads the documents of all sources and compiles them for a workload. It reports everything it finds; if any
// of it is an error, the plan is nil. Without documents the plan has the defaults of the mesh.
func Compile(sources []Source, w Workload) (*Plan, Findings) {
	c := compile(sources, w)
	if c.failed() {
		return nil, c.findings(sources)
	}
	if !c.unselected() {
		c.unprotected()
	}
	return c.plan, c.findings(sources)
}

// Report is what there is to say about a set of documents.
type Report struct {
	// Documents is their number. A List is not a document itself; its items are.
	Documents int

	Findings Findings
}

// Check reads documents as [Compile] does, for a report about them.
func Check(sources []Source, w Workload) Report {
	c := compile(sources, w)
	return Report{Documents: c.count, Findings: c.findings(sources)}
}

func compile(sources []Source, w Workload) *compiler {
	w.Namespace = cmp.Or(w.Namespace, defaultNamespace)
	w.TrustDomain = cmp.Or(w.TrustDomain, istio.LocalTrustDomain)
	w.ClusterDomain = strings.ToLower(cmp.Or(strings.Trim(w.ClusterDomain, "."), "cluster.local"))
	w.Labels = maps.Clone(w.Labels)
	c := &compiler{
		plan: &Plan{
			workload: w,
			rules:    make(map[string]*hostMap[rules]),
			ports:    make(map[string][]servicePort),
			budgets:  make(map[string]retry.BudgetConfig),
			peers:    make(map[string]*PeerRules),
			retries:  istio.DefaultRetry(),
			defaults: defaults(istio.DefaultRetry()),
		},
		apis:     apis(),
		first:    make(map[groupIdentity]*document),
		profiles: make(map[string]*profile),
		splits:   make(map[string]*split),
	}
	streams := make([][]byte, len(sources))
	for i, source := range sources {
		streams[i] = source.Data
	}
	for i, docs := range yamldoc.Parse(streams...) {
		if len(docs) == 0 {
			c.blank = append(c.blank, sources[i].Name)
		}
		for _, doc := range docs {
			c.read(sources[i].Name, doc)
		}
	}
	c.services()
	c.serviceEntries()
	c.destinationRules()
	c.certificateNames()
	c.trafficSplits()
	c.serviceProfiles()
	c.virtualServices()
	c.combine()
	c.subsets()
	c.peerAuthentications()
	c.authorizationPolicies()
	return c
}

// compiler is one run of Compile.
type compiler struct {
	plan *Plan
	dec  yamldoc.Decoder
	apis map[string]api

	count     int // of the documents, without Lists
	documents []*document
	blank     []string                    // sources without any
	first     map[groupIdentity]*document // the first document of each identity

	// The documents of each kind, in their order.
	virtual     []decoded[istio.VirtualService]
	rules       []decoded[istio.DestinationRule]
	entries     []decoded[istio.ServiceEntry]
	linkerd     []decoded[linkerd.ServiceProfile]
	smi         []decoded[smi.TrafficSplit]
	routeGroups []decoded[smi.HTTPRouteGroup]
	kubernetes  []decoded[service]
	peers       []decoded[istio.PeerAuthentication]
	access      []decoded[istio.AuthorizationPolicy]

	// What applies to the calls to a host, beside its VirtualService.
	profiles map[string]*profile
	splits   map[string]*split
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

// decoded is a document with what it says.
type decoded[T any] struct {
	*document
	is *T
}

// keep decodes a document and adds it to those of its kind, if it has their shape.
func keep[T any, P interface {
	*T
	Check(*yamldoc.Document)
}](c *compiler, d *document, list *[]decoded[T]) {
	is := new(T)
	if c.dec.Decode(d.Document, is) {
		P(is).Check(d.Document)
		*list = append(*list, decoded[T]{d, is})
	}
}

// read sorts a document by its kind and decodes it.
func (c *compiler) read(file string, doc *yamldoc.Document) {
	d := &document{Document: doc, file: file}
	d.kind = doc.Text("kind")
	d.name = doc.Text("metadata.name")
	if d.kind != "" {
		d.namespace = cmp.Or(doc.Text("metadata.namespace"), defaultNamespace)
	}
	c.documents = append(c.documents, d)
	c.count++
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
	case d.kind == "" && version == "" && kustomization(file):
		doc.Warnf("", "a Kustomization has no meaning in-process: it is skipped")
		return
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
		if ok {
			c.count--
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
	if state == refused {
		if group == istio.SecurityGroup {
			c.refused(d)
		}
		return
	}
	switch d.kind {
	case "VirtualService":
		keep(c, d, &c.virtual)
	case "DestinationRule":
		keep(c, d, &c.rules)
	case "ServiceEntry":
		keep(c, d, &c.entries)
	case "ServiceProfile":
		keep(c, d, &c.linkerd)
	case "TrafficSplit":
		keep(c, d, &c.smi)
	case "HTTPRouteGroup":
		keep(c, d, &c.routeGroups)
	case "Service":
		keep(c, d, &c.kubernetes)
	case "PeerAuthentication":
		c.unplaced(d)
		keep(c, d, &c.peers)
	case "AuthorizationPolicy":
		c.unplaced(d)
		keep(c, d, &c.access)
	}
}

// refused checks a RequestAuthentication, which is not enforced, so that its mistakes come up now and not with its
// enforcement.
func (c *compiler) refused(d *document) {
	is := new(istio.RequestAuthentication)
	if c.dec.Decode(d.Document, is) {
		is.Check(d.Document)
	}
}

// failed says that some document has an error.
func (c *compiler) failed() bool {
	return slices.ContainsFunc(c.documents, func(d *document) bool { return d.Failed() })
}

// findings collects what the documents have been reported for, in the order of the sources.
func (c *compiler) findings(sources []Source) Findings {
	type rest struct {
		count, line int
		failed      bool
	}
	var findings Findings
	var omitted map[string]rest // by file, the problems beyond what is kept
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
		if n := d.Omitted(); n > 0 {
			if omitted == nil {
				omitted = make(map[string]rest)
			}
			r := omitted[d.file]
			omitted[d.file] = rest{count: r.count + n, line: max(r.line, d.Line), failed: r.failed || d.Failed()}
		}
	}
	for _, file := range c.blank {
		if c.count > 0 { // else it is not the file that is blank
			findings = append(findings, Finding{File: file, Line: 1, Severity: Warning, Message: "there is no document in it: remove it if that is meant"})
		}
	}
	for _, file := range slices.Sorted(maps.Keys(omitted)) {
		r := omitted[file]
		f := Finding{File: file, Line: r.line, Severity: Warning, Message: fmt.Sprintf("and %d more findings in this file", r.count)}
		if r.failed {
			f.Severity = Error
		}
		findings = append(findings, f)
	}
	order := make(map[string]int, len(sources))
	for i, source := range sources {
		if _, twice := order[source.Name]; !twice {
			order[source.Name] = i
		}
	}
	findings.sort(order)
	return findings
}

// Defaults are the routes of a host that no document routes: to the host itself, with the mesh's default retries.
func (p *Plan) Defaults() *route.Table {
	return p.defaults
}

func defaults(retries retry.Config) *route.Table {
	table, err := route.NewTable([]route.Route{{Destinations: make([]route.Destination, 1), Retry: retries}})
	if err != nil {
		panic("policy: the mesh's defaults are refused: " + err.Error())
	}
	return table
}
