package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// ServiceEntry has the endpoints of a host. It is immutable.
type ServiceEntry struct {
	// Document names the document, as in "ServiceEntry default/payments".
	Document string

	// Namespace is the namespace of the document. [Plan.Peers] of this namespace applies to the endpoints.
	Namespace string

	// LookUp says that the addresses of Endpoints are host names to look up in DNS (resolution DNS). Each IP address that is found
	// becomes an endpoint with the other fields of the entry. Otherwise each address, an IP address or a name, is dialled as it is.
	LookUp bool

	// Ports are the port numbers of the entry. Calls to other ports fail.
	Ports []int

	// Unplaced says that the document has no location, which means MESH_EXTERNAL.
	Unplaced bool

	// Endpoints have at least an Address and, if the document lists any, Ports.
	Endpoints []discovery.Endpoint
}

// Equal reports whether two entries have the same endpoints in the same namespace, so that the state of the endpoints can be kept. Either may
// be nil.
func (e *ServiceEntry) Equal(other *ServiceEntry) bool {
	if e == nil || other == nil || e == other {
		return e == other
	}
	return e.Namespace == other.Namespace && e.LookUp == other.LookUp && slices.EqualFunc(e.Endpoints, other.Endpoints, func(a, b discovery.Endpoint) bool {
		return a.Address == b.Address && a.Port == b.Port && slices.Equal(a.Ports, b.Ports) && maps.Equal(a.Labels, b.Labels) &&
			a.Locality == b.Locality && a.Weight == b.Weight && a.Draining == b.Draining && a.ServiceAccount == b.ServiceAccount
	})
}

// CheckPort returns an error that names the ports of the entry if port is not one of them. It returns nil for a nil entry, and for port 0,
// which means an unknown port.
func (e *ServiceEntry) CheckPort(port int) error {
	if e == nil || port == 0 || len(e.Ports) == 0 || slices.Contains(e.Ports, port) {
		return nil
	}
	ports := make([]string, len(e.Ports))
	for i, has := range e.Ports {
		ports[i] = strconv.Itoa(has)
	}
	return fmt.Errorf("%s has no port %d, it has %s", e.Document, port, strings.Join(ports, ", "))
}

// entry is a ServiceEntry.
type entry struct {
	*reading
	is      *istio.ServiceEntry
	visible bool
	from    distance
	hosts   []string // its names: first the hosts, then the addresses
	ports   []servicePort
	numbers []int    // the port numbers
	names   []string // the names in the certificates of the endpoints, for TLS.SubjectAltNames
	ids     []string // those of names that are SPIFFE IDs

	exact map[string]*ServiceEntry // by host, without wildcards
}

func (c *compiler) readEntry(doc *yamldoc.Document, r *reading, is *istio.ServiceEntry) *entry {
	c.placed(doc, is)
	e := &entry{reading: r, is: is, hosts: is.Names(), exact: make(map[string]*ServiceEntry)}
	own := c.plan.workload.Namespace
	if e.visible, e.from = visibleFrom(own, r.namespace, is.Spec.ExportTo); r.namespace == own {
		e.from = atHome
	}
	e.names, e.ids = sortNames(is.Spec.SubjectAltNames), sortNames(istio.SPIFFEIDs(is.Spec.SubjectAltNames))
	for _, port := range is.Spec.Ports {
		e.ports = append(e.ports, servicePort{number: int(port.Number), http2: is.HTTP2(int(port.Number))})
		e.numbers = append(e.numbers, int(port.Number))
	}
	for _, host := range e.hosts {
		if !strings.HasPrefix(host, "*") {
			e.exact[host] = e.of(host)
		}
	}
	return e
}

// of returns the ServiceEntry for a host of the document.
func (e *entry) of(host string) *ServiceEntry {
	if known := e.exact[host]; known != nil {
		return known
	}
	return &ServiceEntry{
		Document:  e.identity.String(),
		Namespace: e.namespace,
		LookUp:    e.is.Resolution() == istio.ResolutionDNS,
		Ports:     e.numbers,
		Unplaced:  e.is.Spec.Location == "",
		Endpoints: e.is.Endpoints(host),
	}
}

// placed warns about an entry that is outside the mesh only because its location is missing.
func (c *compiler) placed(doc *yamldoc.Document, is *istio.ServiceEntry) {
	if is.Spec.Location != "" {
		return
	}
	const message = "missing, which means MESH_EXTERNAL: calls are sent in plaintext, although %s: write MESH_INTERNAL if the endpoints take mutual TLS"
	for _, host := range is.Spec.Hosts {
		if host = strings.TrimSuffix(strings.ToLower(host), "."); strings.HasSuffix(host, ".svc."+c.plan.workload.ClusterDomain) {
			doc.Warnf("spec.location", message, host+" is a service of the cluster")
			return
		}
	}
	for i := range is.Spec.Endpoints {
		if account := is.Spec.Endpoints[i].ServiceAccount; account != "" {
			doc.Warnf("spec.location", message, "an endpoint has the service account "+account)
			return
		}
	}
}

// serviceEntries assigns each host to the first entry that claims it, the nearest first. An entry in the workload's namespace is near whoever
// else sees it. In a cluster, entries of other namespaces cannot take over a Service of Kubernetes, or what may be one.
func (c *compiler) serviceEntries() {
	var rest []*entry // with hosts that are not imported
	for _, from := range []distance{atHome, nearby, anywhere} {
		for _, se := range c.entries {
			if !se.Failed() && se.is.visible && se.is.from == from && !c.assign(se) {
				rest = append(rest, se.is)
			}
		}
	}
	c.imply(rest)
}

// assign assigns the hosts of an entry that are imported to it, unless others have them. It reports whether all are imported.
func (c *compiler) assign(se decoded[entry]) (all bool) {
	p, alone := c.plan, se.document.from.alone
	imported := p.importing(se.is)
	all = true
	for i, host := range se.is.hosts {
		if !imported(i) {
			all = false
			continue
		}
		if se.is.from != atHome && alone && !c.leaves(se, i, host) {
			continue
		}
		if alone && strings.HasPrefix(host, "*") {
			p.below[se.is] = struct{}{}
		}
		if p.imports != nil {
			p.shown.add(host, &isNamed)
		}
		if has, added := p.entries.add(host, se.is); !added && has != se.is {
			first := c.of(has)
			se.Warnf(se.is.is.At(i), "has no effect: %s claims %s already (%s:%d), and the first one counts",
				first.identity, host, first.file, first.Line)
		}
		p.name(host)
	}
	return all
}

// imply keeps entries with hosts that are not imported for the routes that lead to these. As in Istio, that in the workload's namespace counts, and
// otherwise that in the first namespace by its name.
func (c *compiler) imply(rest []*entry) {
	p, own := c.plan, c.plan.workload.Namespace
	slices.SortStableFunc(rest, func(a, b *entry) int {
		switch {
		case a.namespace == b.namespace:
			return 0
		case a.namespace == own:
			return -1
		case b.namespace == own:
			return 1
		}
		return cmp.Compare(a.namespace, b.namespace)
	})
	for _, e := range rest {
		alone := c.of(e).from.alone
		for _, host := range e.hosts {
			if e.from != atHome && alone && p.isOthers(e.namespace, host) {
				continue
			}
			if alone && strings.HasPrefix(host, "*") {
				p.below[e] = struct{}{}
			}
			p.implied.add(host, e)
		}
	}
}

// leaves reports whether an entry of another namespace leaves Services alone with its name i. If it does not, it gets a warning.
func (c *compiler) leaves(se decoded[entry], i int, host string) bool {
	const message = "has no effect in other namespaces than %s: "
	p, at := c.plan, se.is.is.At(i)
	if service, known := p.serviceOf(host); known {
		se.Warnf(at, message+"%s is a Service of Kubernetes", se.namespace, service)
		return false
	}
	if p.mayPlace(se.namespace, host) {
		return true
	}
	what, of := "may be a Service of Kubernetes in another one", "of the service, of its callers"
	if isAddress(host) {
		what, of = "may be the address of a Service of Kubernetes or of a pod in another one", "of its callers"
	}
	se.Warnf(at, message+"%s %s: move the entry to the namespace %s, or to %s", se.namespace, host, what, of, p.workload.RootNamespace)
	return false
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// serviceOf returns the full name of the Service of Kubernetes that a host of a ServiceEntry would take over, if a document says that there is one.
func (p *Plan) serviceOf(host string) (service string, known bool) {
	service = host
	switch strings.Count(host, ".") {
	case 0:
		service = istio.Resolve(host, p.workload.Namespace, p.workload.ClusterDomain)
	case 1:
		service += ".svc." + p.workload.ClusterDomain
	}
	if p.ports.plain(host) != nil {
		return host, true
	}
	return service, p.ports.plain(service) != nil
}

// mayPlace reports whether ServiceEntries of a namespace may say where a host is that may be a Service of Kubernetes, or several, to callers in
// others. As in Istio, Services count rather than they do; but which Services there are is known only of some namespaces, and which addresses
// Services and pods have is not known at all.
func (p *Plan) mayPlace(namespace, host string) bool {
	services := ".svc." + p.workload.ClusterDomain
	end, wild := strings.CutPrefix(host, "*")
	switch {
	case namespace == p.workload.RootNamespace || wild && end == "":
		return true
	case isAddress(host):
		return false
	}
	if of, in := strings.CutSuffix(end, services); in {
		return of[strings.LastIndexByte(of, '.')+1:] == namespace
	}
	return !wild || !strings.HasSuffix(services, end)
}

// isOthers reports whether a ServiceEntry of another namespace than the process's has no effect on a host, whatever it says.
func (p *Plan) isOthers(namespace, host string) bool {
	_, known := p.serviceOf(host)
	return known || !p.mayPlace(namespace, host)
}

// entry returns the ServiceEntry for a host, or nil if there is none. A Service of Kubernetes is more specific than an entry with a wildcard. In
// files, entries say where Services are.
func (p *Plan) entry(host string) *entry {
	e := p.entries.find(host)
	if e == nil {
		e = p.implied.find(host)
	}
	if e == nil || e.exact[host] != nil || len(p.below) == 0 {
		return e
	}
	if _, below := p.below[e]; below && p.ports.plain(host) != nil {
		return nil
	}
	return e
}

// plainEntry returns the ServiceEntry of exactly this host, or nil if there is none.
func (p *Plan) plainEntry(host string) *entry {
	if e := p.entries.plain(host); e != nil {
		return e
	}
	return p.implied.plain(host)
}

// selecting warns about subsets without endpoints, if the endpoints of the host are known.
func (c *compiler) selecting(dr decoded[destination], host string) {
	e := c.plan.plainEntry(host)
	if e == nil {
		for i, s := range dr.is.subsets {
			if c.plan.workload.Unlabelled && s.labelled {
				dr.WarnLine(dr.Line+int(s.line), yamldoc.Index("spec.subsets", i), "the subset %s has no endpoints: those of %s are found in DNS, "+
					"which has no labels: give them in a ServiceEntry, or use a registry", s.name, host)
			}
		}
		return
	}
	if len(dr.is.subsets) == 0 {
		return
	}
	endpoints := e.exact[host].Endpoints
	labelled := slices.ContainsFunc(endpoints, func(e discovery.Endpoint) bool { return len(e.Labels) > 0 })
	for i, s := range dr.is.get().Spec.Subsets {
		at := yamldoc.Index("spec.subsets", i)
		switch of := c.of(e); {
		case len(balancer.Subset(endpoints, s.Labels)) > 0:
		case !labelled && e.is.Resolution() != istio.ResolutionStatic:
			dr.Warnf(at, "the subset %s has no endpoints: those of %s are found by name and have no labels (%s, %s:%d)",
				s.Name, host, of.identity, of.file, of.Line)
		default:
			dr.Warnf(at, "the subset %s selects none of the %d endpoints of %s (%s, %s:%d)",
				s.Name, len(endpoints), host, of.identity, of.file, of.Line)
		}
	}
}
