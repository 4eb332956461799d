package policy

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/route"
)

// governed holds what Consul's config entries specify. A service of Consul is the service of the same name in the namespace default.
type governed struct {
	set      consul.Set
	services map[string]consul.Target // the services that entries are about or lead to, by host, without subset
	chains   map[string]*chain        // by service

	// all means that the entries also apply to services that no document names.
	all bool
}

// chain is the discovery chain of a service.
type chain struct {
	*consul.Chain
	own  *consul.ServiceDefaults // the service-defaults of the caller
	name string                  // the name of the document that the chain begins with
	by   any                     // that document, as compiler.of takes it; nil if there is none

	done atomic.Pointer[built] // the routes, compiled for the first request
}

// readEntryOfConsul reads a document that is a config entry of Consul of a kind.
func (c *compiler) readEntryOfConsul(doc *yamldoc.Document, r *reading, kind string) {
	r.kind, r.group, r.namespace = c.word(kind), consul.Group, defaultNamespace
	doc.Loosen()
	if r.name == "" {
		r.name = doc.Text("Name")
	}
	state, message := lookUpEntry(kind)
	switch state {
	case catalog.Meaningless:
		if _, once := doc.Keys(""); once {
			doc.Warnf("kind", "%s", message)
		} else { // it may be of another kind
			doc.Errorf("Kind", "a field is set twice: remove one of the two")
		}
		return
	case catalog.Unknown, catalog.Refused:
		if doc.Errorf("Kind", "%s", message); state == catalog.Refused {
			r.is = notEnforced{}
		}
		return
	}
	w := &c.plan.workload
	env := consul.Environment{Service: w.Service, Paths: w.Paths}
	if w.Filters != nil {
		env.Filter = func(expression string, onlyPassing bool) (consul.Predicate, error) {
			return w.Filters.Compile(expression, onlyPassing)
		}
	}
	if e := consul.Read(&c.dec, doc, kind, &env); e != nil {
		r.name, r.is = e.Name, e
		return
	}
	if kind == consul.ServiceIntentionsKind && doc.Text("apiVersion") != "" {
		r.name = doc.Text("spec.destination.name") // the service that it protects; the name of the object is arbitrary
	}
	r.is = notEnforced{}
}

// configEntries puts the entries into the plan, with the chains that they form.
func (c *compiler) configEntries() {
	if len(c.entriesOfConsul) == 0 {
		return
	}
	g, at, names := c.gather()
	if names == nil {
		return
	}
	tried, reported, size := make(map[string]bool), make(map[consul.Error]bool), 0
	for i := 0; i < len(names); i++ { // names grows: chains lead to more services
		name := names[i]
		if tried[name] {
			continue
		}
		tried[name] = true
		ch, wrong := c.chain(g, name, at)
		if wrong != nil {
			if d, ok := at[identity{wrong.Kind, defaultNamespace, wrong.Name}]; ok && !reported[*wrong] {
				reported[*wrong] = true
				at := wrong.Field
				if at != "" {
					at = d.is.At + at
				}
				d.Errorf(at, "%s", wrong.Message)
			}
			continue
		}
		g.chains[name] = ch
		if size += ch.Size(); size > mostShares {
			c.tooLarge(ch, names, i, at)
			return
		}
		c.govern(consul.Target{Service: name}, at)
		for _, t := range ch.Targets {
			c.govern(consul.Target{Service: t.Service, Datacenter: t.Datacenter}, at)
			if !tried[t.Service] {
				names = append(names, t.Service)
			}
		}
	}
}

// mostShares bounds the shares of all chains together. They take memory, and a few small entries can lead to many of them.
var mostShares = 5 * consul.MaxSize // only tests change it

// tooLarge refuses routers and splitters, because the chain of names[i] is too large together with the earlier ones. It refuses all of
// names[i] and later names that stand alone. If there are none, it refuses the last earlier one that stands alone and, if there is none
// either, the document that the chain begins with.
func (c *compiler) tooLarge(ch *chain, names []string, i int, at map[identity]decoded[consul.Entry]) {
	var earlier, later []decoded[consul.Entry]
	for n, name := range names {
		for _, kind := range []string{consul.ServiceRouterKind, consul.ServiceSplitterKind} {
			if d, ok := at[identity{kind, defaultNamespace, name}]; !ok || !d.from.alone || d.Failed() {
				continue
			} else if n < i {
				earlier = append(earlier, d)
			} else {
				later = append(later, d)
			}
		}
	}
	refused := later
	if refused == nil {
		refused = earlier[max(0, len(earlier)-1):]
	}
	if len(refused) == 0 {
		first := slices.IndexFunc(c.entriesOfConsul, func(d decoded[consul.Entry]) bool { return ch.by == any(d.is) })
		refused = []decoded[consul.Entry]{c.entriesOfConsul[max(0, first)]}
	}
	for _, d := range refused {
		d.Errorf(d.is.NameField(), "cannot be enforced: routers and splitters up to here divide the calls to services into more than %d shares together", mostShares)
	}
}

// gather sorts the entries by kind, and returns the names of the services that they are about, those of entries that stand alone last. It returns
// none if an entry has an error, because then it is unknown what the entries mean together.
func (c *compiler) gather() (g *governed, at map[identity]decoded[consul.Entry], names []string) {
	p := c.plan
	g = &governed{services: make(map[string]consul.Target), chains: make(map[string]*chain)}
	g.set = consul.Set{
		Routers: make(map[string]*consul.Router), Splitters: make(map[string]*consul.Splitter),
		Resolvers: make(map[string]*consul.Resolver), Services: make(map[string]*consul.ServiceDefaults),
	}
	p.consul = g
	at = make(map[identity]decoded[consul.Entry], len(c.entriesOfConsul))
	failed := false
	var alone []string
	for _, d := range c.entriesOfConsul {
		failed = failed || d.Failed()
		at[d.identity] = d
		switch is := d.is.Is.(type) {
		case *consul.Router:
			g.set.Routers[d.name] = is
		case *consul.Splitter:
			g.set.Splitters[d.name] = is
		case *consul.Resolver:
			g.set.Resolvers[d.name] = is
		case *consul.ServiceDefaults:
			g.set.Services[d.name] = is
		case *consul.ProxyDefaults:
			g.set.Proxy = is
			continue
		default:
			continue
		}
		if d.from.alone {
			alone = append(alone, d.name)
		} else {
			names = append(names, d.name)
		}
	}
	if w := p.workload.Service; w != "" {
		g.set.Own = g.set.Services[w]
	}
	g.all = g.set.Proxy != nil || g.set.Own != nil
	if failed {
		return g, at, nil
	}
	for _, d := range c.entriesOfConsul {
		if wrong := g.set.Unenforceable(d.is); wrong != nil {
			d.Errorf(d.is.At+wrong.Field, "%s", wrong.Message)
		}
	}
	slices.Sort(names)
	slices.Sort(alone)
	return g, at, slices.Compact(append(names, alone...))
}

// govern records that entries are about a service or lead to it.
func (c *compiler) govern(t consul.Target, at map[identity]decoded[consul.Entry]) {
	g, host := c.plan.consul, c.plan.hostOf(t)
	has, known := g.services[host]
	switch {
	case !known:
		g.services[host] = t
		c.plan.name(host)
	case has != t:
		for _, d := range c.entriesOfConsul {
			if d.name == t.Service {
				d.Errorf(d.is.NameField(), "%s and %s differ only in case, and are the same host: rename one of them", has.Service, t.Service)
				return
			}
		}
	}
}

// chain returns the chain of a service. If the entries that it is made from are unchanged, it is the chain of the last plan.
func (c *compiler) chain(g *governed, service string, at map[identity]decoded[consul.Entry]) (*chain, *consul.Error) {
	ch := &chain{own: g.set.Own}
	for _, kind := range []string{consul.ServiceRouterKind, consul.ServiceSplitterKind, consul.ServiceResolverKind, consul.ServiceDefaultsKind} {
		if d, ok := at[identity{kind, defaultNamespace, service}]; ok {
			ch.name, ch.by = d.identity.String(), d.is
			c.plan.places[ch.by] = d.place()
			if r, ok := d.is.Is.(*consul.Router); ok {
				for i := range r.Routes {
					c.plan.places[&r.Routes[i]] = place{d.file, d.Line + int(d.is.Lines[i])}
				}
			}
			break
		}
	}
	if last := c.last.consul; last != nil {
		if has := last.chains[service]; has != nil && has.own == g.set.Own && has.by == ch.by && has.name == ch.name && has.Current(&g.set) {
			return has, nil
		}
	}
	var wrong *consul.Error
	ch.Chain, wrong = g.set.Chain(service)
	return ch, wrong
}

// hostOf returns the host of a target.
func (p *Plan) hostOf(t consul.Target) string {
	name := strings.ToLower(t.Service)
	if t.Datacenter != "" {
		return name + ".service." + strings.ToLower(t.Datacenter) + ".consul"
	}
	return name + "." + defaultNamespace + ".svc." + p.workload.ClusterDomain
}

// disputed reports an error for each service that documents of another dialect are also about, because one dialect would override the
// other.
func (c *compiler) disputed() {
	g := c.plan.consul
	if g == nil || c.failed() {
		return
	}
	for _, host := range slices.Sorted(maps.Keys(g.services)) {
		other := c.about(host)
		if other == nil {
			continue
		}
		service := g.services[host].Service
		for _, d := range c.entriesOfConsul {
			own := d.name == service && d.kind != consul.ProxyDefaultsKind && d.kind != consul.MeshKind && d.kind != consul.ServiceIntentionsKind
			if ch := g.chains[d.name]; own || ch != nil && ch.by == any(d.is) && slices.ContainsFunc(ch.Targets, func(t consul.Target) bool { return t.Service == service }) {
				about, first, at := d.document, other, d.is.NameField()
				if c.newer(other, d.document) {
					about, first, at = other, d.document, "metadata.name"
				}
				about.Errorf(at, "%s is a service that %s is about, too (%s:%d): leave it to one of them, since their defaults differ",
					service, first.identity, first.file, first.Line)
				break
			}
		}
	}
}

// about returns a document of another dialect about calls to a host, or nil if there is none.
func (c *compiler) about(host string) *document {
	p := c.plan
	if claim := p.claims.find(host); claim != nil && (claim.virtual != nil || claim.attached != nil) {
		return c.claimer(claim)
	}
	if r := p.rule(host); r != nil && r[0].closed == "" {
		return c.of(r[0])
	}
	if e := p.entry(host); e != nil {
		return c.of(e)
	}
	if profile := c.profiles[host]; profile != nil {
		return c.of(profile)
	}
	if split := c.splits[host]; split != nil {
		return c.of(split.by)
	}
	if p.accruals[host] != nil {
		return c.of(p.ports.plain(host))
	}
	return nil
}

// governs returns the service of a host, and reports whether config entries govern it.
func (p *Plan) governs(host string) (consul.Target, bool) {
	g := p.consul
	if g == nil {
		return consul.Target{}, false
	}
	if of, ok := g.services[host]; ok {
		return of, true
	}
	s := p.service(host)
	if !g.all || s.Namespace != defaultNamespace || p.claims.find(host) != nil || p.rule(host) != nil || p.entry(host) != nil {
		return consul.Target{}, false
	}
	if _, budgeted := p.budgets[host]; budgeted || p.accruals[host] != nil {
		return consul.Target{}, false
	}
	return consul.Target{Service: s.Name}, true
}

// chainOf returns the chain of a governed service.
func (p *Plan) chainOf(service string) *chain {
	if ch := p.consul.chains[service]; ch != nil {
		return ch
	}
	// No entry names it, so it has only the defaults, which are always valid.
	made, _ := p.consul.set.Chain(service)
	return &chain{Chain: made, own: p.consul.set.Own}
}

// built returns the routes of a chain.
func (ch *chain) built(p *Plan) *built {
	if b := ch.done.Load(); b != nil {
		return b
	}
	set := &p.consul.set
	routes := ch.Routes(set, func(t consul.Target) route.Target { return p.targetOf(ch.Service, t.Service, t) })
	steps := make([]step, len(routes))
	for i := range routes {
		leg := &ch.Legs[i]
		s := step{Route: routes[i], origin: origin{document: ch.name, by: ch.by, index: leg.Index}}
		if leg.Route != nil {
			s.by = leg.Route
		}
		s.matches = make([]int, len(s.Matches))
		steps[i] = s
	}
	b, err := compileSteps(ch.name, steps)
	if err != nil {
		panic("policy: routes that were compiled before are refused: " + err.Error())
	}
	if !ch.done.CompareAndSwap(nil, b) {
		return ch.done.Load() // the addresses of routes identify them
	}
	return b
}

// viaChain separates the name of a subset from the names of a chain and of the service that the target replaces. They are appended if calls
// to the target differ from those in the chain of its own service. No name of a subset contains the separator.
const viaChain = "~"

// targetOf returns the target of calls in the chain of a service. led is the service that the target replaces: its own service, unless calls
// fail over to it.
func (p *Plan) targetOf(service, led string, t consul.Target) route.Target {
	out := route.Target{Host: p.hostOf(t), Subset: t.Subset}
	set := &p.consul.set
	apart := service != t.Service && set.Apart(service, t.Service)
	ledApart := led != t.Service && set.LedApart(led, t.Service)
	switch {
	case !apart && !ledApart:
		return out
	case !apart:
		service = t.Service
	}
	if out.Subset += viaChain + service; ledApart {
		out.Subset += viaChain + led
	}
	return out
}

// governed returns the policy for a target of a service that config entries govern.
func (p *Plan) governed(of consul.Target, t route.Target) Cluster {
	set := &p.consul.set
	subset, via, _ := strings.Cut(t.Subset, viaChain)
	service, led, _ := strings.Cut(via, viaChain)
	service, led = cmp.Or(service, of.Service), cmp.Or(led, of.Service)
	of.Subset = subset
	settings := set.Settings(service, led, of)
	c := Cluster{
		Balancer: settings.Balancer, Pool: settings.Pool, RetryLimit: settings.RetryLimit,
		Eject: settings.Eject, Outlier: settings.Outlier,
		UpgradeHTTP2: settings.HTTP2 || p.http2(p.hostOf(of), t.Port),
	}
	if key := &c.Balancer.HashKey; key.Source == balancer.SourceIPKey {
		key.SourceIP = p.workload.Address
	}
	c.RetryBudget.Off = true
	ends := set.Ends(of)
	if c.Missing = ends == nil; c.Missing {
		return c
	}
	if !reflect.DeepEqual(ends, []consul.Target{of}) {
		for _, end := range ends {
			c.Failover = append(c.Failover, p.targetOf(service, ends[0].Service, end))
		}
	}
	if set.Has(of) {
		c.Filter.Text, c.Filter.Match = set.Subset(of)
	}
	return c
}
