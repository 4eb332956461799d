package policy

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/namespaces"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/smi"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Compile reads the documents of all sources and compiles them for a workload. It returns all findings. If one of them is an error, the plan is
// nil, unless the document stands alone: see [Source.Alone]. Without documents, the plan has the defaults of the mesh.
func Compile(sources []Source, w Workload) (*Plan, Findings) {
	return Recompile(nil, sources, w)
}

// Recompile is like Compile, but reads only documents that are not in last, a plan for the same workload. The result is the same, except that
// last has the last good versions of documents that stand alone. If last is nil or is for another workload, Recompile reads all documents.
func Recompile(last *Plan, sources []Source, w Workload) (*Plan, Findings) {
	if findings := w.check(); findings != nil {
		return nil, findings
	}
	c := compile(last, sources, w)
	defer c.leave()
	if c.failed() {
		return nil, c.findings()
	}
	c.keep()
	c.share()
	if !c.unselected() && len(c.closed) == 0 {
		c.unprotected()
	}
	c.unnamed()
	c.anonymous()
	if c.plan.inForce = c.last.inForce; !slices.Equal(c.plan.inForce, c.countInForce(c.inForce)) {
		c.plan.inForce = slices.Clone(c.room.counts)
	}
	c.pack()
	return c.plan, c.findings()
}

// share makes the plan share what has not changed with the last plan, and copies the rest from the room.
func (c *compiler) share() {
	p, last := c.plan, c.last
	named := p.named.share(&last.named, func(_, now *struct{}) *struct{} { return now })
	entries := p.entries.share(&last.entries, func(_, now *entry) *entry { return now })
	implied := p.implied.share(&last.implied, func(_, now *entry) *entry { return now })
	p.shown.share(&last.shown, func(_, now *struct{}) *struct{} { return now })
	p.attached.share(&last.attached, func(_, now *attached) *attached { return now })
	ports := p.ports.share(&last.ports, func(_, now *served) *served { return now })
	alike := named && entries && implied && ports && p.consul == nil && last.consul == nil // all names have the same meaning
	p.claims.share(&last.claims, func(last, now *claim) *claim {
		if alike && last.same(now) {
			return last
		}
		return now.kept()
	})
	for namespace, in := range p.rules {
		in.share(last.rulesIn(namespace), func(last, now *rules) *rules {
			if last != nil && last.same(*now) {
				return last
			}
			return now
		})
	}
}

// leave gives the room back.
func (c *compiler) leave() {
	c.room.virtual, c.room.rules, c.room.routes = c.virtual, c.rules, c.gatewayRoutes
	c.plan.rooms.give(c.room)
}

// Report is the result of checking a set of documents.
type Report struct {
	// Documents is the number of documents. The items of a List count, but not the List itself.
	Documents int

	// InForce is the number of documents of each source that have a meaning in-process, in the order of the sources. Unlike
	// [Plan.InForce], it includes documents for other workloads.
	InForce []int

	Findings Findings
}

// Check checks documents as [Compile] does, and returns a report. No document stands alone: an error of any is a mistake to mend.
func Check(sources []Source, w Workload) Report {
	if findings := w.check(); findings != nil {
		return Report{InForce: make([]int, len(sources)), Findings: findings}
	}
	sources = slices.Clone(sources)
	for i := range sources {
		sources[i].Alone = false
	}
	c := compile(nil, sources, w)
	return Report{
		Documents: c.count, Findings: c.findings(),
		InForce: c.countInForce(func(d *document) bool { return d.is != nil && !d.atGateways() }),
	}
}

// check returns what is wrong with the workload.
func (w *Workload) check() Findings {
	var findings Findings
	for _, n := range []struct{ what, field, name string }{
		{"namespace of the workload", "Namespace", w.Namespace},
		{"root namespace", "RootNamespace", w.RootNamespace},
	} {
		if n.name != "" && !yamldoc.IsLabel(n.name) { // no document is in it, so that no policy would apply
			findings = append(findings, Finding{Severity: Error, Message: fmt.Sprintf("the %s %q is not the name of a namespace: correct Workload.%s, "+
				"which is lower-case letters, digits and hyphens", n.what, n.name, n.field)})
		}
	}
	if w.ServiceAccount != "" && !yamldoc.IsName(w.ServiceAccount) {
		findings = append(findings, Finding{Severity: Error, Message: fmt.Sprintf("%q is not the name of a service account: "+
			"correct Workload.ServiceAccount, which is lower-case letters, digits, hyphens and dots, without the namespace", w.ServiceAccount)})
	}
	return findings
}

func compile(last *Plan, sources []Source, w Workload) *compiler {
	c := newCompiler(last, w, nil)
	c.readAll(sources)
	c.lineUp()
	for c.combineAll(); c.judge(); c.combineAll() {
		c = c.again()
	}
	return c
}

// combineAll makes a plan of what is in force of the documents.
func (c *compiler) combineAll() {
	c.arrange()
	oldestFirst(c.virtual)
	oldestFirst(c.rules)
	oldestFirst(c.entries)
	c.chooseSidecar()
	c.services()
	c.serviceEntries()
	c.configEntries()
	c.destinationRules()
	c.certificateNames()
	c.trafficSplits()
	c.serviceProfiles()
	c.serviceSettings()
	c.virtualServices()
	c.disputed()
	c.unimported()
	c.combine()
	c.subsets()
	c.peerAuthentications()
	c.authorizationPolicies()
	c.linkerdServers()
	c.trafficTargets()
	c.requestAuthentications()
	c.corsPolicies()
	c.telemetries()
}

// newCompiler returns a compiler of a plan without documents. It uses the room of a compiler that is no longer used, unless that is nil.
func newCompiler(last *Plan, w Workload, in *room) *compiler {
	w.Namespace = cmp.Or(w.Namespace, defaultNamespace)
	w.RootNamespace = cmp.Or(w.RootNamespace, namespaces.DefaultRoot)
	w.TrustDomain = cmp.Or(w.TrustDomain, istio.LocalTrustDomain)
	w.ClusterDomain = strings.ToLower(cmp.Or(strings.Trim(w.ClusterDomain, "."), "cluster.local"))
	w.Labels, w.Ports = maps.Clone(w.Labels), maps.Clone(w.Ports)
	if last == nil || !reflect.DeepEqual(last.workload, w) {
		last = new(Plan)
	}
	shared := cmp.Or(last.rooms, new(rooms))
	if in == nil {
		in = shared.take()
	}
	clear(in.first)
	return &compiler{
		plan: &Plan{
			workload: w,
			named:    newHostMap(&last.named, &in.named),
			claims:   newHostMap(&last.claims, &in.claimed),
			entries:  newHostMap(&last.entries, &in.entries),
			implied:  newHostMap(&last.implied, &in.implied),
			below:    make(map[*entry]struct{}),
			shown:    newHostMap(&last.shown, &in.shown),
			ports:    newHostMap(&last.ports, &in.ports),
			rules:    make(map[string]*hostMap[rules], len(last.rules)),
			budgets:  make(map[string]*retry.BudgetConfig),
			accruals: make(map[string]*gateway.Accrual),
			peers:    make(map[string]*PeerRules),
			places:   make(map[any]place),
			words:    last.words,
			rooms:    shared,
			defaults: defaults(),
		},
		last:    last,
		room:    in,
		apis:    catalog.Groups(),
		texts:   make(map[string]string),
		first:   firsts{seed: maphash.MakeSeed(), byHash: in.first},
		virtual: empty(&in.virtual, 0),
		rules:   empty(&in.rules, 0),

		gatewayRoutes: empty(&in.routes, 0),

		profiles: make(map[string]*profile),
		splits:   make(map[string]*split),
		joints:   make(map[string][]*joint),
		leading:  make(map[leads]bool),

		lastClaims: make(map[string]*claim),
		joined:     make(map[string]int),
	}
}

// compiler is one run of Compile.
type compiler struct {
	plan  *Plan
	dec   yamldoc.Decoder
	apis  map[string]catalog.API
	last  *Plan             // the previous plan, whose unchanged parts are kept; never nil
	room  *room             // has what is no longer used once the plan is compiled
	fresh []*document       // documents that are not in last
	texts map[string]string // strings that documents share; see word

	sources []Source
	pieces  []*piece   // the documents of the sources
	unused  []piece    // memory for more of them
	alone   []*piece   // those that stand alone, the oldest first
	rounds  int        // how often the documents were combined again because some were refused
	closed  []string   // why all requests to the workload are denied: the documents that cannot be used
	shut    []shutHost // hosts to which all calls fail

	shutOutside []closedSidecar   // Sidecars that cannot be used, and may refuse calls to hosts outside the mesh
	count       int               // the number of documents, without Lists
	documents   []*document       // what is in force of the pieces
	blank       []string          // sources without documents
	first       firsts            // the first document of each identity
	broken      map[identity]bool // documents that could not be read; see unread
	rejected    map[identity]bool // documents that are refused; see absent
	byReading   map[any]*document // documents by their content; see of
	ruled       map[fileHost]bool // see keepsRule

	// The documents of each kind, in order.
	virtual     []decoded[virtual]
	rules       []decoded[destination]
	entries     []decoded[entry]
	profileDocs []decoded[profile]
	splitDocs   []decoded[smi.TrafficSplit]
	routeGroups []decoded[smi.HTTPRouteGroup]
	tcpRoutes   []decoded[smi.TCPRoute]
	targets     []decoded[target]
	serviceDocs []decoded[served]
	peers       []decoded[istio.PeerAuthentication]
	access      []decoded[access]
	tokens      []decoded[tokens]
	sidecars    []decoded[sidecar]
	reports     []decoded[reporting]
	guards      guards

	gatewayRoutes []decoded[gatewayRoute]

	entriesOfConsul []decoded[consul.Entry]

	// By host: what applies to calls in addition to the VirtualService.
	profiles map[string]*profile
	splits   map[string]*split

	lastClaims map[string]*claim // by host: the last of several claims, each of which has the ports that the earlier ones leave

	leading map[leads]bool // whether there are documents to join about these services; see joins

	arriving []*claim // those of requests that arrive, in the order in which the documents claim hosts

	joints map[string][]*joint // by host: those of all rounds
	joined map[string]int      // by namespace: the number of routes and matches of its documents with others; see mostJoined
}

// failed reports whether any document has an error.
func (c *compiler) failed() bool {
	return slices.ContainsFunc(c.documents, func(d *document) bool { return d.Failed() })
}

// findings collects the problems of the documents, in the order of the sources.
func (c *compiler) findings() Findings {
	type rest struct {
		count, line int
		failed      bool
	}
	var findings Findings
	var omitted map[string]rest // by file, the problems beyond what is kept
	add := func(d *document, problems []yamldoc.Problem, n int, about Finding) {
		failed := false
		for _, p := range problems {
			f := about
			f.File, f.Line, f.Kind, f.Namespace, f.Name, f.Field = d.file, p.Line, d.kind, d.namespace, d.name, p.Path
			f.Severity, f.Message = Error, p.Message
			if p.Warning {
				f.Severity = Warning
			}
			failed = failed || !p.Warning
			findings = append(findings, f)
		}
		if n > 0 {
			if omitted == nil {
				omitted = make(map[string]rest)
			}
			r := omitted[d.file]
			omitted[d.file] = rest{count: r.count + n, line: max(r.line, d.Line), failed: r.failed || failed || d.Failed()}
		}
	}
	for _, d := range c.documents {
		add(d, d.Problems, d.Omitted(), Finding{})
	}
	c.refusals(add)
	for _, file := range c.blank {
		if c.count > 0 { // with no documents at all, it is not the file's fault
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
	if len(findings) < 2 {
		return findings
	}
	order := make(map[string]int, len(c.sources))
	for i, source := range c.sources {
		if _, twice := order[source.Name]; !twice {
			order[source.Name] = i
		}
	}
	findings.sort(order)
	return findings
}

// Defaults returns the routes of a host that no document routes: to the host itself, with the mesh's default retries.
func (p *Plan) Defaults() *route.Table {
	return p.defaults
}

func defaults() *route.Table {
	table, err := route.NewTable([]route.Route{{Destinations: make([]route.Destination, 1), Retry: istio.DefaultRetry()}})
	if err != nil {
		panic("policy: the mesh's defaults are refused: " + err.Error())
	}
	return table
}
