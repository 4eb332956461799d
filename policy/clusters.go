package policy

import (
	"errors"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
)

// rules has the DestinationRules of one host in one namespace, in order.
type rules []rule

// rule has DestinationRules with the same host, namespace, selector and exportTo, which are merged.
type rule []*destination

// applies returns the rule for the workload: the first one that selects it, or otherwise the last one for all workloads. If there is none, the
// host has the defaults of the mesh.
func (r rules) applies() rule {
	var general rule
	for _, same := range r {
		switch first := same[0]; {
		case first.closed != "":
			return same
		case first.selects:
			return same
		case first.selector == nil:
			general = same
		}
	}
	return general
}

// policy returns the policy for all endpoints.
func (r rule) policy() *istio.TrafficPolicy {
	for _, d := range r {
		if d.policy {
			return d.get().Spec.TrafficPolicy
		}
	}
	return nil
}

// defines reports whether the rule has a subset with the name.
func (r rule) defines(name string) bool {
	return slices.ContainsFunc(r, func(d *destination) bool { return d.index(name) >= 0 })
}

// subset returns the subset with the name, or nil if there is none.
func (r rule) subset(name string) *istio.Subset {
	for _, d := range r {
		if i := d.index(name); i >= 0 {
			return &d.get().Spec.Subsets[i]
		}
	}
	return nil
}

// destination is a DestinationRule.
type destination struct {
	lazy[istio.DestinationRule]
	host     string            // the full name of the host
	exportTo string            // where it is visible, in a normal form
	selector map[string]string // the labels that it selects workloads by; nil for all workloads
	closed   string            // not a rule: because of this document all calls to the host fail
	subsets  []subset
	only     rules    // the rules of a host that has only this one
	visible  bool     // it is visible to the workload
	selects  bool     // the selector selects the workload
	policy   bool     // it has a policy for all endpoints
	repeats  bool     // two subsets have the same name
	modes    tlsModes // all modes in it, including those of subsets and ports
}

// subset is the part of a subset that a plan keeps.
type subset struct {
	name     string
	line     int32 // relative to that of the document
	labelled bool  // it selects by labels
}

// index returns the index of the subset with the name, or -1 if there is none.
func (d *destination) index(name string) int {
	return slices.IndexFunc(d.subsets, func(s subset) bool { return s.name == name })
}

func (c *compiler) readDestination(doc *yamldoc.Document, r *reading, is *istio.DestinationRule) *destination {
	w, spec := &c.plan.workload, &is.Spec
	d := &destination{
		host:   istio.Resolve(spec.Host, r.namespace, w.ClusterDomain),
		policy: spec.TrafficPolicy != nil,
		modes:  modesOf(spec),
	}
	d.visible, _ = istio.VisibleFrom(w.Namespace, r.namespace, spec.ExportTo)
	d.exportTo = c.word(exported(spec.ExportTo, r.namespace))
	if s := spec.WorkloadSelector; s != nil {
		d.selects = r.namespace == w.Namespace && s.Selects(w.Labels)
		if d.selector = s.MatchLabels; d.selector == nil {
			d.selector = map[string]string{}
		}
	}
	d.only = rules{{d}}
	d.subsets = make([]subset, len(spec.Subsets))
	names := make(map[string]bool, len(spec.Subsets))
	for i := range spec.Subsets {
		s := &spec.Subsets[i]
		line := doc.LineOf(yamldoc.Index("spec.subsets", i)) - doc.Line
		d.subsets[i] = subset{name: c.word(s.Name), line: int32(line), labelled: len(s.Labels) > 0}
		d.repeats = d.repeats || names[s.Name]
		names[s.Name] = true
	}
	if !doc.Failed() {
		c.enforceable(doc, spec)
	}
	d.keep(is)
	return d
}

// Cluster returns the policy of a target. A target without a host has the mesh's defaults. Port-level settings apply if the target has a port.
func (p *Plan) Cluster(t route.Target) Cluster {
	host := p.canonical(hostname(t.Host))
	r := p.rule(host)
	if r != nil && r[0].closed != "" {
		return Cluster{Closed: r[0].closed}
	}
	if of, ok := p.governs(host); ok {
		return p.governed(of, t)
	}
	c := Cluster{Missing: t.Subset != ""}
	if r != nil {
		if subset := r.subset(t.Subset); subset != nil {
			c = p.cluster(r.policy(), subset.TrafficPolicy, t.Port)
			c.Subset = subset.Labels
		} else if t.Subset == "" {
			c = p.cluster(r.policy(), nil, t.Port)
		}
	}
	if budget := p.budgets[host]; budget != nil {
		c.RetryBudget = *budget
	} else {
		c.RetryBudget.Off = true
	}
	if a := p.accruals[host]; a != nil && !c.Eject {
		c.Accrual = *a
	}
	c.UpgradeHTTP2 = c.UpgradeHTTP2 || p.http2(host, t.Port)
	p.entryTLS(&c.TLS, host)
	return c
}

// rule returns the DestinationRule of a host. It looks in the workload's namespace, then in that of the service, then in the root namespace.
// The first namespace with a rule for the host counts. For a workload in the root namespace, only the rules that no other namespace sees come
// first, since the others are about the whole mesh.
func (p *Plan) rule(host string) rule {
	own := p.workload.Namespace
	if own == p.workload.RootNamespace {
		own = rootOnly
	}
	for _, namespace := range []string{own, p.namespaceOf(host), p.workload.RootNamespace} {
		if found := p.rules[namespace].find(host); found != nil {
			return found.applies()
		}
	}
	return nil
}

// rootOnly stands for the root namespace in Plan.rules: for the rules that only its own workloads see. No namespace has this name.
const rootOnly = "."

// namespaceOf returns the namespace of a service: that in its name or, for a host outside the cluster, that of its ServiceEntry. It is empty if
// there is none.
func (p *Plan) namespaceOf(host string) string {
	namespace := p.service(host).Namespace
	if e := p.entry(host); namespace == "" && e != nil {
		return e.namespace
	}
	return namespace
}

// cluster translates the policy of a rule with that of a subset, either of which may be nil, for one port.
func (p *Plan) cluster(rule, subset *istio.TrafficPolicy, port int) Cluster {
	var c Cluster
	merged := istio.Merge(rule, subset, port)
	s := merged.Settings(p.workload.Locality, p.workload.Labels)
	c.Balancer, c.Passthrough = s.Balancer, s.Passthrough
	if key := &c.Balancer.HashKey; key.Source == balancer.SourceIPKey {
		key.SourceIP = p.workload.Address
	}
	c.Eject, c.Outlier = s.Eject, s.Outlier
	c.Pool, c.RetryLimit, c.UpgradeHTTP2 = s.Pool, s.RetryLimit, s.UpgradeHTTP2
	c.TLS = tlsOf(merged.TLS)
	return c
}

// check returns an error if a layer cannot enforce the cluster.
func (c *Cluster) check() error {
	var outlier error
	if c.Eject {
		outlier = c.Outlier.Validate()
	}
	return errors.Join(c.Balancer.Validate(), outlier, c.Pool.Validate(), c.RetryLimit.Validate())
}

// destinationRules adds the rules that are visible to the workload to the plan.
func (c *compiler) destinationRules() {
	p := c.plan
	hosts := make(map[*rules]*ruledHost) // those with several documents
	for _, dr := range c.rules {
		if dr.Failed() || !dr.is.visible || !c.opens(dr) {
			continue
		}
		if dr.is.selector == nil || dr.is.selects {
			p.name(dr.is.host)
			c.selecting(dr, dr.is.host)
		}
		in := c.rulesIn(p.keptUnder(dr.namespace, dr.is.exportTo == dr.namespace || dr.is.selector != nil))
		found, added := in.add(dr.is.host, &dr.is.only)
		if added && !dr.is.repeats {
			continue
		}
		h := hosts[found]
		if h == nil {
			h = &ruledHost{merges: make(map[ruleKey]*merged), before: make(map[ruleKey]*destination)}
			in.set(dr.is.host, &h.rules)
			hosts[&h.rules] = h
			if !added {
				h.add(c, decoded[destination]{is: (*found)[0][0]}) // which leads to no warning
			}
		}
		h.add(c, dr)
	}
	for _, shut := range c.shut {
		if shut.unclaimed && p.entry(shut.host) != nil || shut.foreign != "" && p.isOthers(shut.foreign, shut.host) {
			continue
		}
		if shut.unclaimed && p.imports != nil && (shut.foreign == "" || p.imports.cover(shut.foreign, shut.host)) {
			p.shown.add(shut.host, &isNamed) // by the entry, if it could be used
		}
		p.name(shut.host)
		in, by := c.rulesIn(p.keptUnder(shut.namespace, true)), rules{{{host: shut.host, closed: shut.by}}}
		if found := in.of(shut.host); found != nil {
			by = slices.Concat(*found, by)
		}
		in.set(shut.host, &by)
	}
}

// keptUnder returns where the rules of a namespace are kept. private says that no other namespace sees them, or that they come first in any case.
func (p *Plan) keptUnder(namespace string, private bool) string {
	if w := &p.workload; private && namespace == w.RootNamespace && namespace == w.Namespace {
		return rootOnly
	}
	return namespace
}

// rulesIn returns the rules of the hosts in a namespace.
func (p *Plan) rulesIn(namespace string) *hostMap[rules] {
	if in := p.rules[namespace]; in != nil {
		return in
	}
	return new(hostMap[rules])
}

// rulesIn returns the rules of the hosts in a namespace, to be added to.
func (c *compiler) rulesIn(namespace string) *hostMap[rules] {
	if c.plan.rules[namespace] == nil {
		in := newHostMap(c.last.rulesIn(namespace), c.room.rulesOf(namespace))
		c.plan.rules[namespace] = &in
	}
	return c.plan.rules[namespace]
}

// same reports whether two lists have the same DestinationRules.
func (r rules) same(other rules) bool {
	return slices.EqualFunc(r, other, func(a, b rule) bool { return slices.Equal(a, b) })
}

// ruledHost collects the rules of a host in a namespace.
type ruledHost struct {
	rules  rules
	merges map[ruleKey]*merged
	before map[ruleKey]*destination // without exportTo: of rules that select the workload the first one, of those for all workloads the last one
}

// ruleKey is what the documents of a rule have in common.
type ruleKey struct{ exportTo, selector string }

func (h *ruledHost) add(c *compiler, dr decoded[destination]) {
	of := ruleKey{dr.is.exportTo, "none"}
	if dr.is.selector != nil {
		of.selector = "labels " + labelKey(dr.is.selector)
	}
	m := h.merges[of]
	if m != nil {
		c.merging(m, dr)
		h.rules[m.at] = append(h.rules[m.at], dr.is)
		return
	}
	m = &merged{at: len(h.rules), first: dr.is, subsets: make(map[string]bool, len(dr.is.subsets))}
	h.merges[of] = m
	h.rules = append(h.rules, rule{dr.is})
	if dr.is.selector == nil || dr.is.selects {
		if of.exportTo = ""; dr.is.selects {
			of.selector = "selects"
		}
		c.replacing(h.before[of], dr)
		if h.before[of] == nil || !dr.is.selects {
			h.before[of] = dr.is
		}
	}
	c.merging(m, dr)
}

// replacing warns that only one of two rules for the same host and workload counts.
func (c *compiler) replacing(before *destination, dr decoded[destination]) {
	if before == nil {
		return
	}
	other := c.of(before)
	if dr.is.selects {
		dr.Warnf("spec.workloadSelector", "has no effect: %s selects the same workload and host already (%s:%d)",
			other.identity, other.file, other.Line)
		return
	}
	other.Warnf("spec.exportTo", "differs from that of %s, which is for the same host (%s:%d): they are not merged, and the last one counts",
		dr.identity, dr.file, dr.Line)
}

// opens reports whether the files that a document names can be used. It checks only documents that stand alone and are not yet in force, so
// that the error is about that document rather than about all documents together.
func (c *compiler) opens(dr decoded[destination]) bool {
	files := c.plan.workload.Files
	if files == nil || c.age(dr.document) > 0 || !dr.is.modes.has(TLSSimple) && !dr.is.modes.has(TLSMutual) {
		return true
	}
	try := func(at string, s *istio.ClientTLSSettings) {
		if t := tlsOf(s); t.Mode == TLSSimple || t.Mode == TLSMutual {
			if err := files.Check(t); err != nil {
				dr.Errorf(at+".tls", "cannot be put into force: %v", err)
			}
		}
	}
	for at, p := range dr.is.peek().Spec.Policies() {
		try(at, p.TLS)
		for i := range p.PortLevelSettings {
			try(yamldoc.Index(at+".portLevelSettings", i), p.PortLevelSettings[i].TLS)
		}
	}
	return !dr.Failed()
}

// exported returns the namespaces that a document is exported to, sorted and without duplicates.
func exported(to []string, namespace string) string {
	if len(to) == 0 || slices.Contains(to, "*") {
		return "*"
	}
	to = slices.Clone(to)
	for i := range to {
		if to[i] == "." {
			to[i] = namespace
		}
	}
	slices.Sort(to)
	return strings.Join(slices.Compact(to), ",")
}

// merged are the rules that are merged so far.
type merged struct {
	at      int // in the list of their host
	first   *destination
	policy  bool
	subsets map[string]bool
}

// merging warns about parts of a rule that have no effect because an earlier rule for the same host has them, or the rule itself.
func (c *compiler) merging(m *merged, dr decoded[destination]) {
	if dr.is.policy && m.policy {
		first := c.of(m.first)
		dr.Warnf("spec.trafficPolicy", "has no effect: %s is for the same host and has one already (%s:%d)", first.identity, first.file, first.Line)
	}
	m.policy = m.policy || dr.is.policy
	for i := range dr.is.subsets {
		name := dr.is.subsets[i].name
		if m.subsets[name] {
			first := c.of(m.first)
			dr.Warnf(yamldoc.Index("spec.subsets", i), "has no effect: %s is for the same host and has a subset %s already "+
				"(%s:%d)", first.identity, name, first.file, first.Line)
		}
		m.subsets[name] = true
	}
}

// enforceable makes the layers check all settings of a rule, so that errors do not first appear with a request.
func (c *compiler) enforceable(doc *yamldoc.Document, spec *istio.DestinationRuleSpec) {
	try := func(at string, own *istio.TrafficPolicy, port int) {
		cluster := c.plan.cluster(spec.TrafficPolicy, own, port)
		if err := cluster.check(); err != nil {
			doc.Errorf(at, "cannot be enforced: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	for at, own := range spec.Policies() {
		try(at, own, 0)
		for i, s := range own.PortLevelSettings {
			try(yamldoc.Index(at+".portLevelSettings", i), own, int(s.Port.Number))
		}
	}
}
