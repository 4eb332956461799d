package policy

import (
	"iter"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/internal/consul"
)

// hostMap is a map from hosts to values. Hosts may begin with a wildcard; the most specific one counts. Plans share what has not changed: see
// share.
type hostMap[T any] struct {
	table[string, T]
	wild map[string]*T // by what follows the star
	ends []int         // the lengths of the keys of wild, longest first
}

// newHostMap returns an empty map that is about to have the hosts of last. Its values are in the memory of a room.
func newHostMap[T any](last *hostMap[T], in *[]*T) hostMap[T] {
	return hostMap[T]{table: newTable(&last.table, in)}
}

// of returns the value of exactly this host or wildcard, or nil if it has none.
func (m *hostMap[T]) of(host string) *T {
	if end, wild := strings.CutPrefix(host, "*"); wild {
		return m.wild[end]
	}
	return m.plain(host)
}

// add adds a value unless the host already has one. It returns the value of the host.
func (m *hostMap[T]) add(host string, value *T) (has *T, added bool) {
	if has := m.of(host); has != nil {
		return has, false
	}
	m.set(host, value)
	return value, true
}

// set sets or replaces the value of a host.
func (m *hostMap[T]) set(host string, value *T) {
	if end, wild := strings.CutPrefix(host, "*"); wild {
		m.setWild(end, value)
		return
	}
	m.put(host, value)
}

func (m *hostMap[T]) setWild(end string, value *T) {
	if m.wild == nil {
		m.wild = make(map[string]*T)
	}
	m.wild[end] = value
	if at, found := slices.BinarySearchFunc(m.ends, len(end), func(a, b int) int { return b - a }); !found {
		m.ends = slices.Insert(m.ends, at, len(end))
	}
}

// share is [table.share] for hosts, with and without wildcards.
func (m *hostMap[T]) share(last *hostMap[T], keep func(last, now *T) *T) (unchanged bool) {
	for end, now := range m.wild {
		m.wild[end] = keep(last.wild[end], now)
	}
	unchanged = m.table.share(&last.table, keep)
	return unchanged && maps.Equal(m.wild, last.wild)
}

// find returns the value of the most specific host that covers name, or nil if there is none.
func (m *hostMap[T]) find(name string) *T {
	if m == nil {
		return nil
	}
	if value := m.plain(name); value != nil {
		return value
	}
	_, value := m.covering(name)
	return value
}

// covering returns the most specific wildcard that covers name, without its star, and its value, which is nil if there is none. It takes as many
// look-ups as wildcards have lengths.
func (m *hostMap[T]) covering(name string) (end string, value *T) {
	name = strings.TrimPrefix(name, "*")
	for _, n := range m.ends {
		if n > len(name) {
			continue
		}
		if value := m.wild[name[len(name)-n:]]; value != nil {
			return name[len(name)-n:], value
		}
	}
	return "", nil
}

// Host returns the plan for a host as it appears in requests: "name" or "name:port" in any case, where name is a DNS name, with or without a
// trailing dot, or an IP address. A service of the cluster has several names: its full name, name.namespace.svc, name.namespace if a document
// knows it (see [Plan.InCluster]) and, in its own namespace, the bare name. Wildcards cover full names. They cover a shortened name only if
// documents name the service, or if the wildcard names its namespace.
func (p *Plan) Host(authority string) HostPlan {
	asked, port := hostname(authority), portOf(authority)
	name := p.canonical(asked)
	known := p.knows(name)
	h := HostPlan{Service: p.service(name)}
	if _, ok := p.governs(name); name == asked || known || ok {
		h = p.host(name, port)
		h.Known = known || name == asked && p.named.find(name) != nil
	}
	return p.limited(h, name, port)
}

// host returns the plan for a host by its full name.
func (p *Plan) host(name string, port int) HostPlan {
	h := HostPlan{Service: p.service(name)}
	if of, ok := p.governs(name); ok && of.Datacenter == "" {
		b := p.chainOf(of.Service).built(p)
		h.Document, h.Routes, h.from, h.plan = b.name, b.routes, b, p
		return h
	}
	if c := p.claims.find(name).of(port); c != nil {
		b := p.built(c)
		h.Document, h.Routes, h.from, h.claim, h.plan = b.name, b.routes, b, c, p
	}
	if e := p.entry(name); e != nil {
		h.Entry = e.of(name)
	}
	return h
}

// hostname returns the host of an authority without its port, in the normal form of hosts in the plan.
func hostname(authority string) string {
	host := authority
	if h, _, err := net.SplitHostPort(authority); err == nil {
		host = h
	} else if inner, ok := strings.CutPrefix(authority, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String() // ::ffff:10.0.0.7 leads to 10.0.0.7
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// portOf returns the port of an authority, or 80 if it has none.
func portOf(authority string) int {
	if _, port, err := net.SplitHostPort(authority); err == nil {
		if n, err := strconv.Atoi(port); err == nil {
			return n
		}
	}
	return 80
}

// canonical returns the full name of a host. A name with one dot may be a service and its namespace, or a host outside the cluster. It is the
// one that a document names, or otherwise a host outside the cluster.
func (p *Plan) canonical(name string) string {
	cluster := "." + p.workload.ClusterDomain
	_, rest, dotted := strings.Cut(name, ".")
	full := ""
	switch {
	case name == "":
		return ""
	case !dotted && !strings.Contains(name, ":"):
		full = name + "." + p.workload.Namespace + ".svc" + cluster
		if name == "localhost" && !p.knows(full) {
			return name
		}
		return full
	case !dotted:
		return name // an IPv6 address
	case strings.Count(rest, ".") == 1 && strings.HasSuffix(rest, ".svc"):
		full = name + cluster
		if p.named.plain(name) != nil && p.named.plain(full) == nil {
			return name
		}
		return full
	case strings.Contains(rest, "."):
		return p.ofConsul(name)
	}
	full = name + ".svc" + cluster
	switch {
	case p.named.plain(name) != nil:
		return name
	case p.knows(full):
		return full
	}
	return name
}

// ofConsul returns the full name of a service with a name of Consul's DNS, if config entries govern it. It returns any other name unchanged.
func (p *Plan) ofConsul(name string) string {
	short, ok := strings.CutSuffix(name, ".service.consul")
	if !ok {
		short, ok = strings.CutSuffix(name, ".virtual.consul")
	}
	if !ok || strings.Contains(short, ".") {
		return name
	}
	host := p.hostOf(consul.Target{Service: short})
	if _, ok := p.governs(host); !ok {
		return name
	}
	return host
}

// knows reports whether a document names exactly this host, or all services of its namespace. A wildcard that covers more does not make a
// shortened name a service: *.local would cover every name.
func (p *Plan) knows(name string) bool {
	if p.named.plain(name) != nil || p.ports.plain(name) != nil {
		return true
	}
	of := p.service(name)
	if of.Namespace == "" {
		return false
	}
	namespace := "." + of.Namespace + ".svc." + p.workload.ClusterDomain
	end, _ := p.named.covering(name)
	return strings.HasSuffix(end, namespace)
}

// InCluster returns the plan for the service that an authority of the form name, name.namespace or name.namespace.svc means if discovery
// knows it. It reports false for any other authority, for hosts that documents name, and for those that are Hidden. The Routes are those of a wildcard. The host is not
// Known: the plan applies only once discovery knows the service.
func (p *Plan) InCluster(authority string) (HostPlan, bool) {
	asked := hostname(authority)
	name := p.canonical(asked)
	switch {
	case name != asked:
		if p.knows(name) {
			return HostPlan{}, false
		}
	case strings.Count(asked, ".") == 1 && p.named.find(asked) == nil:
		name += ".svc." + p.workload.ClusterDomain
	default:
		return HostPlan{}, false
	}
	port := portOf(authority)
	h := p.limited(p.host(name, port), name, port)
	return h, !h.Hidden
}

// service returns the service to look up in discovery for the full name of a host.
func (p *Plan) service(host string) discovery.Service {
	s := discovery.Service{Host: host}
	if short, ok := strings.CutSuffix(host, ".svc."+p.workload.ClusterDomain); ok {
		if name, namespace, ok := strings.Cut(short, "."); ok && name != "" && namespace != "" && !strings.Contains(namespace, ".") {
			s.Name, s.Namespace = name, namespace
			s.Local = namespace == p.workload.Namespace
		}
	}
	return s
}

// Hosts yields the hosts that documents name, without wildcards, in no particular order.
func (p *Plan) Hosts() iter.Seq[string] {
	return func(yield func(string) bool) {
		for host := range p.named.all() {
			if !yield(host) {
				return
			}
		}
	}
}

var isNamed struct{}

// name adds a host that a document names. The wildcard for everything is ignored.
func (p *Plan) name(host string) {
	if host != "*" {
		p.named.add(host, &isNamed)
	}
}
