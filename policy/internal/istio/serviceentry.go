package istio

import (
	"maps"
	"net/netip"
	"strings"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

// ServiceEntry adds hosts to the mesh and says where their endpoints are.
type ServiceEntry struct {
	yamldoc.Object
	Spec   ServiceEntrySpec `yaml:"spec,required"`
	Status yamldoc.Any      `yaml:"status" mesh:"unused: written by the control plane"`
}

// ServiceEntrySpec is the spec of a [ServiceEntry].
type ServiceEntrySpec struct {
	Hosts            []string        `yaml:"hosts,required"`
	Addresses        []string        `yaml:"addresses"`
	Ports            []ServicePort   `yaml:"ports"`
	Location         string          `yaml:"location" enum:"MESH_EXTERNAL,MESH_INTERNAL"`
	Resolution       string          `yaml:"resolution" enum:"NONE,STATIC,DNS,DNS_ROUND_ROBIN,DYNAMIC_DNS"`
	Endpoints        []WorkloadEntry `yaml:"endpoints"`
	WorkloadSelector *EntrySelector  `yaml:"workloadSelector" mesh:"refused: selecting pods and WorkloadEntries needs an API server and is not enforced: list the endpoints"`
	ExportTo         []string        `yaml:"exportTo"`
	SubjectAltNames  []string        `yaml:"subjectAltNames"`
}

// ServicePort is a port of a service.
type ServicePort struct {
	Number     uint32  `yaml:"number,required"`
	Protocol   string  `yaml:"protocol"`
	Name       string  `yaml:"name,required"`
	TargetPort *uint32 `yaml:"targetPort"`
}

// WorkloadEntry is an endpoint.
type WorkloadEntry struct {
	Address        string            `yaml:"address"`
	Ports          map[string]uint32 `yaml:"ports"`
	Labels         map[string]string `yaml:"labels"`
	Network        string            `yaml:"network" mesh:"meaningless: there are no gateways between networks here: the address is dialled as it is"`
	Locality       string            `yaml:"locality"`
	Weight         uint32            `yaml:"weight"`
	ServiceAccount string            `yaml:"serviceAccount"`
}

// EntrySelector selects workloads by their labels.
type EntrySelector struct {
	Labels map[string]string `yaml:"labels"`
}

// External reports whether the hosts are outside of the mesh, where workloads have no identities.
func (se *ServiceEntry) External() bool { return se.Spec.Location != "MESH_INTERNAL" }

// Names returns the hosts of the entry in lower case, which may begin with a wildcard, followed by the IP addresses to which requests
// can be made. Unlike in other documents, a host is never a short name of a service of the cluster.
func (se *ServiceEntry) Names() []string {
	names := make([]string, 0, len(se.Spec.Hosts))
	for _, host := range se.Spec.Hosts {
		names = append(names, strings.TrimSuffix(strings.ToLower(host), "."))
	}
	for _, address := range se.Spec.Addresses {
		if ip, ok := singleIP(address); ok {
			names = append(names, ip.Unmap().String())
		}
	}
	return names
}

// At returns the path of the field with a name, by its index among [ServiceEntry.Names].
func (se *ServiceEntry) At(name int) string {
	if name -= len(se.Spec.Hosts); name < 0 {
		return yamldoc.Index("spec.hosts", name+len(se.Spec.Hosts))
	}
	for i, address := range se.Spec.Addresses {
		if _, ok := singleIP(address); !ok {
			continue
		}
		if name == 0 {
			return yamldoc.Index("spec.addresses", i)
		}
		name--
	}
	return "spec.addresses"
}

// singleIP parses an address, or a network with a single address.
func singleIP(s string) (netip.Addr, bool) {
	if prefix, err := netip.ParsePrefix(s); err == nil {
		return prefix.Addr(), prefix.IsSingleIP()
	}
	ip, err := netip.ParseAddr(s)
	return ip, err == nil
}

// The ways to resolve the endpoints of a [ServiceEntry].
const (
	// ResolutionNone dials the host of the request. The host itself is the only endpoint.
	ResolutionNone = "NONE"

	// ResolutionStatic uses the addresses, all of which are IP addresses, as they are.
	ResolutionStatic = "STATIC"

	// ResolutionDNS looks up the addresses, which may be host names. Each IP address that is found is an endpoint.
	ResolutionDNS = "DNS"

	// ResolutionDNSRoundRobin looks up the host name for each new connection. The host name is a single endpoint.
	ResolutionDNSRoundRobin = "DNS_ROUND_ROBIN"
)

// Resolution returns how the addresses of Endpoints are resolved.
func (se *ServiceEntry) Resolution() string {
	if se.Spec.Resolution == "" {
		return ResolutionNone
	}
	return se.Spec.Resolution
}

// Endpoints returns the endpoints of one of the names of the entry. For a wildcard, host is the host of the request. An entry without
// resolution has one endpoint, the host itself. So does an entry with resolution by DNS that lists no endpoints.
func (se *ServiceEntry) Endpoints(host string) []discovery.Endpoint {
	spec := &se.Spec
	if _, err := netip.ParseAddr(host); err == nil && se.Resolution() != ResolutionNone {
		host = se.Names()[0] // an address of the service is not one of its endpoints
	}
	switch se.Resolution() {
	case ResolutionNone:
		return []discovery.Endpoint{{Address: host, Ports: spec.ports(nil)}}
	case ResolutionDNS, ResolutionDNSRoundRobin:
		if len(spec.Endpoints) == 0 {
			return []discovery.Endpoint{{Address: host, Ports: spec.ports(nil)}}
		}
	}
	endpoints := make([]discovery.Endpoint, len(spec.Endpoints))
	for i := range spec.Endpoints {
		e := &spec.Endpoints[i]
		place := e.locality()
		endpoints[i] = discovery.Endpoint{
			Address:        e.Address,
			Ports:          spec.ports(e.Ports),
			Labels:         e.labels(place),
			Locality:       place,
			Weight:         e.Weight,
			ServiceAccount: e.serviceAccount(se.Namespace()),
		}
	}
	return endpoints
}

// ports returns the ports of the service, with the port that the endpoint sets or, otherwise, the target port.
func (spec *ServiceEntrySpec) ports(own map[string]uint32) []discovery.Port {
	ports := make([]discovery.Port, len(spec.Ports))
	for i, p := range spec.Ports {
		ports[i] = discovery.Port{Name: p.Name, Number: int(p.Number)}
		if p.TargetPort != nil {
			ports[i].Target = int(*p.TargetPort)
		}
		if n := own[p.Name]; n != 0 {
			ports[i].Target = int(n)
		}
	}
	return ports
}

// LocalityLabel is the label with the locality of an endpoint or process that has no other. It has dots in place of slashes.
const LocalityLabel = "istio-locality"

func (e *WorkloadEntry) locality() discovery.Locality {
	if e.Locality != "" {
		return place(e.Locality)
	}
	return LabelledLocality(e.Labels[LocalityLabel])
}

// LabelledLocality parses the value of a [LocalityLabel].
func LabelledLocality(value string) discovery.Locality {
	if !strings.Contains(value, "/") {
		value = strings.ReplaceAll(value, ".", "/")
	}
	return place(value)
}

// place parses a locality: region/zone/subzone.
func place(text string) (l discovery.Locality) {
	l.Region, text, _ = strings.Cut(text, "/")
	l.Zone, l.SubZone, _ = strings.Cut(text, "/")
	return l
}

// tlsModeLabel says whether an endpoint takes mutual TLS.
const tlsModeLabel = "security.istio.io/tlsMode"

// labels returns the labels of the endpoint. Those of its locality are added, which subsets may select, and, as in Istio, an endpoint
// with a service account takes mutual TLS unless its own labels say otherwise.
func (e *WorkloadEntry) labels(place discovery.Locality) map[string]string {
	added := make(map[string]string)
	for name, value := range map[string]string{
		regionLabel: place.Region, zoneLabel: place.Zone, subZoneLabel: place.SubZone,
	} {
		if value != "" {
			added[name] = value
		}
	}
	if e.ServiceAccount != "" {
		added[tlsModeLabel] = "istio"
	}
	if len(added) == 0 {
		return e.Labels
	}
	maps.Copy(added, e.Labels)
	return added
}

func (e *WorkloadEntry) serviceAccount(namespace string) string {
	if e.ServiceAccount == "" {
		return ""
	}
	return namespace + "/" + e.ServiceAccount
}

// HTTP2 reports whether the endpoints speak HTTP/2 at a port, even without TLS. Otherwise they speak HTTP/1.1.
func (se *ServiceEntry) HTTP2(port int) bool {
	for _, p := range se.Spec.Ports {
		if int(p.Number) == port {
			switch strings.ToUpper(p.Protocol) {
			case "HTTP2", "GRPC", "GRPC-WEB":
				return true
			}
		}
	}
	return false
}
