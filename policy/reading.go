package policy

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// document is a document of a source.
type document struct {
	*yamldoc.Document
	*reading
	file string
	from *piece
	idle bool // it is a delegate, and no route in the mesh hands requests to it
	used bool // a TrafficTarget or a TrafficSplit refers to it
}

func (d *document) place() place { return place{d.file, d.Line} }

// reading is the content of a document, independent of other documents. It does not change: plans share it as long as the text of the document
// stays the same.
type reading struct {
	identity
	group   string
	uid     string
	created time.Time      // zero if unknown; only documents from an API server have it
	is      any            // the content by kind: *virtual, *destination and so on; nil if the document has no effect
	digest  yamldoc.Digest // its Content is the reading
	items   *items         // those of a List, if the readings of all of them can be reused; few documents are Lists
}

// items are the digests of the items of a List.
type items []*yamldoc.Digest

// text is the text of a source, as it was read. It does not change: plans share it as long as a source has the same text.
type text struct {
	sum     yamldoc.Sum
	outline yamldoc.Outline
	partial bool // the outline lacks documents that must be read again
}

// identity identifies a document.
type identity struct {
	kind, namespace, name string
}

func (id identity) String() string {
	return id.kind + " " + id.namespace + "/" + id.name
}

// groupIdentity is an identity that distinguishes kinds of the same name in different groups.
type groupIdentity struct {
	group string
	identity
}

// decoded is a document with its content.
type decoded[T any] struct {
	*document
	is *T
}

// readAll reads the documents of all sources. Sources with a text that the last plan has are not read again, nor are documents that it has in
// other texts.
func (c *compiler) readAll(sources []Source) {
	c.sources = sources
	streams := empty(&c.room.streams, len(sources))[:len(sources)]
	for i := range streams {
		streams[i].Data, streams[i].Err = sources[i].Data, sources[i].Err
	}
	known := c.recall(streams)
	documents := yamldoc.ParseNew(&c.room.texts, streams, func(sum yamldoc.Sum) *yamldoc.Digest { return known[sum] })
	c.pieces, c.unused = empty(&c.room.pieces, len(documents)), empty(&c.room.slab, len(documents))[:len(documents)]
	for _, doc := range documents {
		i := doc.Stream()
		r := c.take(i, doc)
		switch _, own := doc.Sum(); {
		case streams[i].Known != nil:
		case own && keeps(doc, r):
			c.plan.texts[i].outline.Add(doc, &r.digest)
		default:
			c.plan.texts[i].partial = true
		}
	}
	for i, t := range c.plan.texts {
		if t.outline.Len() == 0 && !t.partial {
			c.blank = append(c.blank, sources[i].Name)
		}
	}
}

// recall gives the plan the texts of the sources: where the last plan has the same text, that one with its outline, and otherwise new ones. It
// returns the digests of the documents in the other texts of the last plan.
func (c *compiler) recall(streams []yamldoc.Stream) map[yamldoc.Sum]*yamldoc.Digest {
	last, texts := c.last.texts, make([]*text, len(streams))
	same := make([]bool, len(last))
	var moved []int // the sources whose text is not that of the source that had their place
	for i := range streams {
		sum := yamldoc.SumOf(streams[i].Data)
		if i < len(last) && last[i].sum == sum && !last[i].partial {
			texts[i], streams[i].Known, same[i] = last[i], &last[i].outline, true
			continue
		}
		texts[i] = &text{sum: sum}
		moved = append(moved, i)
	}
	others, documents := make(map[yamldoc.Sum]*text), 0
	for i, t := range last {
		if !same[i] {
			others[t.sum] = t
			documents += t.outline.Len()
		}
	}
	for _, i := range moved {
		if t := others[texts[i].sum]; t != nil && !t.partial {
			texts[i], streams[i].Known = t, &t.outline
		}
	}
	known := make(map[yamldoc.Sum]*yamldoc.Digest, documents)
	for _, t := range others {
		for sum, digest := range t.outline.Digests() {
			known[sum] = digest
		}
	}
	c.plan.texts = texts
	return known
}

// keeps reports whether the next plan can reuse the reading.
func keeps(doc *yamldoc.Document, r *reading) bool {
	if r.kind == "" || doc.Failed() || doc.Omitted() > 0 || len(doc.Problems) >= 10 || r.list() && r.items == nil {
		return false
	}
	return true
}

func (r *reading) list() bool { return r.kind == "List" && r.group == "" }

// take adds a document to the pieces. It reads the document unless the last plan has it.
func (c *compiler) take(source int, doc *yamldoc.Document) *reading {
	from := &c.sources[source]
	r, known := doc.Content().(*reading)
	if !known {
		r = c.readNew(from.Name, doc)
		r.digest = *doc.Digest()
		r.digest.Content = r
	}
	if len(c.unused) == 0 { // it is an item of a List
		c.unused = make([]piece, 64)
	}
	p := &c.unused[0]
	c.unused = c.unused[1:]
	*p = piece{document: document{Document: doc, reading: r, file: from.Name, from: p}, source: source, alone: from.Alone}
	if !known {
		c.fresh = append(c.fresh, &p.document)
	}
	c.pieces = append(c.pieces, p)
	c.count++
	if r.list() && !doc.Failed() {
		c.count--
		c.takeItems(source, doc, r)
	}
	return r
}

// takeItems calls take for the items of a List.
func (c *compiler) takeItems(source int, doc *yamldoc.Document, r *reading) {
	if r.items != nil {
		for _, item := range doc.KnownItems("items", *r.items) {
			c.take(source, item)
		}
		return
	}
	documents := doc.Items("items")
	known, all := make(items, len(documents)), true
	for i, item := range documents {
		problems := len(item.Problems)
		one := c.take(source, item)
		known[i] = &one.digest
		all = all && problems == 0 && !one.list() && keeps(item, one)
	}
	if all {
		r.items = &known
	}
}

// notEnforced is the content of a document that was checked and is refused.
type notEnforced struct{}

// readNew reads a document that was not read before, and reports the errors that do not depend on other documents.
func (c *compiler) readNew(file string, doc *yamldoc.Document) *reading {
	r := new(reading)
	r.kind = c.word(doc.Text("kind"))
	r.name = doc.Text("metadata.name")
	r.uid = doc.Text("metadata.uid")
	r.created, _ = time.Parse(time.RFC3339, doc.Text("metadata.creationTimestamp")) // zero if it is malformed; Check reports that if only the oldest document counts
	if r.kind != "" {
		r.namespace = c.word(cmp.Or(doc.Text("metadata.namespace"), defaultNamespace))
	}
	if doc.Failed() {
		return r
	}
	if kind := consul.KindOf(doc); kind != "" {
		c.readEntryOfConsul(doc, r, kind)
		return r
	}
	version := c.word(doc.Text("apiVersion"))
	if i := strings.LastIndexByte(version, '/'); i >= 0 {
		r.group, version = version[:i], version[i+1:]
	}
	if c.isTypedList(doc, r) {
		r.kind, r.group = "List", ""
	}
	switch {
	case r.kind == "" && version == "" && kustomization(file):
		doc.Warnf("", "a Kustomization has no meaning in-process: it is skipped")
		return r
	case r.kind == "" && version == "" && strings.EqualFold(filepath.Ext(file), ".json") && !hidesDocuments(doc):
		doc.Warnf("", "no document, since it has neither kind nor apiVersion: it is skipped")
		return r
	case r.kind == "":
		doc.Errorf("kind", "missing%s", cmp.Or(marked(doc, "kind"), ": say what kind of document this is, such as VirtualService; "+
			"keep what is no document elsewhere, such as the values of a chart"))
		return r
	case version == "":
		doc.Errorf("apiVersion", "missing%s", cmp.Or(marked(doc, "apiVersion"), ": say which API the document belongs to, such as "+istio.Group+"/v1"))
		return r
	case r.list():
		checkList(doc)
		return r
	}
	state, message := lookUp(c.apis, r.group, version, r.kind)
	if kind := consul.Objects[r.kind]; state == catalog.Enforced && r.group == consul.Group {
		c.readEntryOfConsul(doc, r, kind)
		c.pruned(doc, r)
		return r
	}
	if state == catalog.Refused || state == catalog.Enforced && r.group == catalog.GatewayGroup {
		if at := c.ofGateways(doc, r); at != "" {
			doc.Warnf(at, "applies to gateways only, which do not exist in-process: it is skipped")
			return r
		}
	}
	switch state {
	case catalog.Unknown, catalog.Refused:
		if doc.Errorf("kind", "%s", message); state == catalog.Refused {
			r.is = notEnforced{}
		}
		return r
	case catalog.Meaningless:
		if apart(doc) {
			guarded(doc)
			c.unwrapped(doc)
		}
		doc.Warnf("kind", "%s", message)
		return r
	}
	r.is = c.decode(doc, r)
	for at := range nulls(doc, r) {
		doc.Warnf(at, null)
	}
	c.pruned(doc, r)
	return r
}

// isTypedList reports whether a document is a list of documents of one kind, as an API server returns it.
func (c *compiler) isTypedList(doc *yamldoc.Document, r *reading) bool {
	kind, list := strings.CutSuffix(r.kind, "List")
	if !list || kind == "" {
		return false
	}
	if c.apis[r.group].Kinds[kind] != catalog.Unknown {
		return true
	}
	for i := range doc.Len("items") { // a kind of others may have a name that ends like that of a list
		if at := yamldoc.Index("items", i); doc.Has(at+".kind") || doc.Has(at+".metadata") {
			return true
		}
	}
	return false
}

// checkList reports what is wrong with a list of documents.
func checkList(doc *yamldoc.Document) {
	if !apart(doc) {
		return
	}
	if !doc.HasItems("items") {
		doc.Errorf("items", "must be a list of documents")
	}
	fields := []string{"apiVersion", "kind", "metadata", "items"}
	keys, _ := doc.Keys("")
	for _, key := range keys {
		if !slices.Contains(fields, key) {
			doc.Errorf(yamldoc.Key("", key), "unknown field %q%s", key, yamldoc.Hint(key, fields))
		}
	}
}

// apart reports a field that a document has twice, where nothing else does. Often the line between two documents is missing. Which of the fields is
// meant is unknown, and what the second document says would be lost. It reports whether there is none.
func apart(doc *yamldoc.Document) bool {
	key, line := doc.Repeated("")
	if key != "" {
		doc.ErrorLine(line, key, "set twice, first in line %d: remove one or, if another document begins here, put a line --- before it", doc.LineOf(key))
	}
	return key == ""
}

// hidesDocuments reports whether something in a document may be a document.
func hidesDocuments(doc *yamldoc.Document) bool {
	for range doc.Paths("", "apiVersion") {
		return true
	}
	return false
}

// marked says, if a field has a byte order mark before its name, why it is missing. Files with such a mark are often joined.
func marked(doc *yamldoc.Document, field string) string {
	if keys, _ := doc.Keys(""); slices.Contains(keys, "\uFEFF"+field) {
		return ", since a byte order mark (U+FEFF) is before it: remove that"
	}
	return ""
}

// kustomization reports whether a file with this name is a Kustomization, which need not have an apiVersion or a kind.
func kustomization(file string) bool {
	name := filepath.Base(file)
	return name == "kustomization.yaml" || name == "kustomization.yml"
}

// word returns an equal string that all documents share.
func (c *compiler) word(s string) string {
	if known, ok := c.texts[s]; ok {
		return known
	}
	c.texts[s] = s
	return s
}

// blank returns an empty document of an enforced kind.
func blank(group, kind string) istio.Document {
	if group == linkerd.PolicyGroup && kind != "HTTPRoute" {
		return linkerd.New(kind)
	}
	switch kind {
	case "ServiceProfile":
		return new(linkerd.ServiceProfile)
	case "TrafficSplit":
		return new(smi.TrafficSplit)
	case "HTTPRouteGroup":
		return new(smi.HTTPRouteGroup)
	case "TCPRoute":
		return new(smi.TCPRoute)
	case "TrafficTarget":
		return new(smi.TrafficTarget)
	case "Service":
		return new(service)
	case "HTTPRoute":
		return new(gateway.HTTPRoute)
	case "GRPCRoute":
		return new(gateway.GRPCRoute)
	}
	return istio.New(kind)
}

// decode returns the content of a document of an enforced kind, or notEnforced if the document does not have the shape of its kind.
func (c *compiler) decode(doc *yamldoc.Document, r *reading) any {
	var idle []string // parts that have no effect
	switch {
	case r.kind == "VirtualService":
		idle = istio.AtGateways(doc, true)
	case r.kind == "Service":
		unread(doc)
	case r.group == istio.SecurityGroup, r.group == smi.AccessGroup, r.group == linkerd.PolicyGroup && r.kind != "HTTPRoute", routesServer(doc, r):
		c.unplaced(doc)
	}
	is := blank(r.group, r.kind)
	if !c.dec.DecodeLeniently(doc, is, idle) {
		return notEnforced{}
	}
	if vs, ok := is.(*istio.VirtualService); ok && vs.IsDelegate() {
		vs.CheckDelegate(doc)
	} else {
		is.Check(doc)
	}
	switch is := is.(type) {
	case *istio.VirtualService:
		v := c.readVirtual(doc, r, is)
		if v.leaf && !doc.Failed() {
			v.inUse = c.delegated(doc)
		}
		return v
	case *istio.DestinationRule:
		return c.readDestination(doc, r, is)
	case *istio.ServiceEntry:
		return c.readEntry(doc, r, is)
	case *istio.AuthorizationPolicy:
		return c.readAccess(doc, is)
	case *istio.RequestAuthentication:
		return c.readTokens(doc, is)
	case *istio.Telemetry:
		return c.readTelemetry(doc, is)
	case *istio.Sidecar:
		return c.readSidecar(r, is)
	case *linkerd.ServiceProfile:
		return readProfile(doc, r, is)
	case *service:
		return c.readService(doc, r, is)
	case *gateway.HTTPRoute:
		return readRoute(c, doc, r, is)
	case *gateway.GRPCRoute:
		return readRoute(c, doc, r, is)
	case *smi.TrafficTarget:
		return c.readTarget(r, is)
	}
	c.strangers(doc, is)
	return is // *istio.PeerAuthentication, *smi.TrafficSplit, *smi.HTTPRouteGroup, *smi.TCPRoute or one of those in guards
}

// delegated returns the additional findings of a delegate to which a route in the mesh hands requests.
func (c *compiler) delegated(doc *yamldoc.Document) *yamldoc.Digest {
	again, is := doc.Again(), new(istio.VirtualService)
	if c.dec.DecodeLeniently(again, is, istio.AtGateways(again, false)) {
		if is.Check(again); !again.Failed() {
			is.Table(again, c.plan.client())
		}
	}
	return again.Digest().Without(doc.Digest())
}

// of returns the document with the content is, or the first one if several have the same text.
func (c *compiler) of(is any) *document {
	if c.byReading == nil {
		c.byReading = make(map[any]*document, len(c.documents))
		for _, d := range c.documents {
			if _, twice := c.byReading[d.is]; d.is != nil && !twice {
				c.byReading[d.is] = d
			}
		}
	}
	if p, ok := is.(*profile); ok && p.service != nil {
		is = p.service
	}
	return c.byReading[is]
}
