package istio

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (se *ServiceEntry) Check(doc *yamldoc.Document) {
	c := check{Document: doc}
	c.metadata(&se.Metadata)
	spec := &se.Spec
	if len(spec.Hosts) == 0 {
		c.Errorf("spec.hosts", "empty: name at least one host")
	}
	c.atMost(len(spec.Hosts), 256, "spec.hosts")
	for i, host := range spec.Hosts {
		at := yamldoc.Index("spec.hosts", i)
		switch {
		case host == "*":
			c.Errorf(at, `"*" is every host: name hosts, or the end that they share as "*.example.com"`)
		case !c.that(wrongHost(host), at, ""):
		case strings.HasPrefix(host, "*") && !strings.HasPrefix(host, "*."):
			c.Warnf(at, `"*" stands for whole labels elsewhere: write "*.example.com"`)
		case !strings.Contains(host, "."):
			c.Warnf(at, "%q has no dot: callers mean the service of that name in their own namespace: write the full name, such as %s.%s.svc.cluster.local", host,
				host, se.Namespace())
		}
	}
	c.addresses(spec)
	ports := c.servicePorts(spec)

	c.resolution(se)
	c.atMost(len(spec.Endpoints), 4096, "spec.endpoints")
	for i := range spec.Endpoints {
		c.endpoint(&spec.Endpoints[i], se.Resolution(), ports, yamldoc.Index("spec.endpoints", i))
	}
	if s := spec.WorkloadSelector; s != nil {
		if spec.Endpoints != nil {
			c.Errorf("spec.workloadSelector", "endpoints and workloadSelector exclude each other: set only one of them")
		}
		c.atMost(len(s.Labels), 256, "spec.workloadSelector.labels")
		c.selectorLabels(s.Labels, "spec.workloadSelector.labels")
	}
	c.exportTo(spec.ExportTo, exporter{namespace: se.Namespace(), services: true})
	c.certificateNames(spec.SubjectAltNames, "spec.subjectAltNames")
}

// resolution checks that the hosts and endpoints are valid for the resolution.
func (c check) resolution(se *ServiceEntry) {
	spec := &se.Spec
	none := len(spec.Endpoints) == 0
	switch se.Resolution() {
	case ResolutionNone:
		if spec.Endpoints != nil {
			c.Errorf("spec.endpoints", "does not go with resolution NONE, which dials what requests name: use STATIC or DNS")
		}
	case ResolutionStatic:
		if none && spec.WorkloadSelector == nil {
			c.Warnf("spec.endpoints", "missing: requests to the hosts fail")
		}
	case ResolutionDNSRoundRobin:
		if len(spec.Endpoints) > 1 {
			c.Errorf("spec.endpoints", "DNS_ROUND_ROBIN takes one endpoint at most: use DNS")
		}
		fallthrough
	case ResolutionDNS:
		for i, host := range spec.Hosts {
			if none && strings.HasPrefix(host, "*") {
				c.Errorf(yamldoc.Index("spec.hosts", i), "without endpoints the hosts are looked up, so that they cannot have wildcards")
			}
		}
	default:
		c.Errorf("spec.resolution", "%s is not enforced: name the hosts and use DNS", spec.Resolution)
	}
}

// addresses checks the virtual addresses of the hosts.
func (c check) addresses(spec *ServiceEntrySpec) {
	c.atMost(len(spec.Addresses), 256, "spec.addresses")
	var networks []string
	for i, address := range spec.Addresses {
		at := yamldoc.Index("spec.addresses", i)
		network := strings.Contains(address, "/")
		if !c.that(wrongIPBlock(address), at, "") {
			continue
		}
		if network && spec.Resolution != "" && spec.Resolution != ResolutionNone && spec.Resolution != ResolutionStatic {
			c.Errorf(at, "%s is a network, which goes with resolution NONE and STATIC only", address)
		}
		if _, single := singleIP(address); !single {
			networks = append(networks, at)
		}
	}
	if len(networks) == 0 {
		return
	}
	others := ""
	if n := len(networks) - 1; n > 0 {
		others = fmt.Sprintf(", like %d more,", n)
	}
	c.Warnf(networks[0], "%s%s has no meaning in-process: connections to a network are not seen here, only requests to hosts and single addresses",
		c.Text(networks[0]), others)
}

// servicePorts checks the ports and returns their names.
func (c check) servicePorts(spec *ServiceEntrySpec) map[string]bool {
	c.atMost(len(spec.Ports), 256, "spec.ports")
	names, numbers := make(map[string]bool), make(map[uint32]bool)
	for i, p := range spec.Ports {
		at := yamldoc.Index("spec.ports", i)
		switch {
		case !isLabel(p.Name):
			c.Errorf(at+".name", "%q is not the name of a port: use letters, digits and hyphens", p.Name)
		case names[p.Name]:
			c.Errorf(at+".name", "there is a port %q already", p.Name)
		}
		names[p.Name] = true
		switch {
		case !c.that(wrongPort(p.Number), at, ".number"):
		case numbers[p.Number]:
			c.Errorf(at+".number", "there is a port %d already", p.Number)
		}
		numbers[p.Number] = true
		if p.TargetPort != nil {
			c.that(wrongPort(*p.TargetPort), at, ".targetPort")
		}
		c.protocol(p.Protocol, spec, at+".protocol")
	}
	return names
}

func (c check) protocol(protocol string, spec *ServiceEntrySpec, at string) {
	several := len(spec.Hosts) > 1 && spec.Resolution != "" && spec.Resolution != ResolutionNone
	switch strings.ToUpper(protocol) {
	case "HTTP", "HTTP2", "HTTPS", "HTTP_PROXY", "GRPC", "GRPC-WEB", "TLS":
		return
	case "UDP", "MONGO", "REDIS", "MYSQL":
		c.Warnf(at, "%s has no meaning in-process: all that is sent is HTTP", protocol)
	case "", "TCP":
	default:
		c.Errorf(at, "%q is not a protocol: use HTTP, HTTP2, HTTPS, GRPC, TLS or TCP", protocol)
		return
	}
	if several {
		c.Errorf(at, "several hosts can share a port only if the protocol tells them apart: set it to HTTP, HTTPS, HTTP2, "+
			"GRPC or TLS")
	}
}

func (c check) endpoint(e *WorkloadEntry, resolution string, ports map[string]bool, at string) {
	_, err := netip.ParseAddr(e.Address)
	switch {
	case strings.HasPrefix(e.Address, "unix://"):
		c.Errorf(at+".address", "connections to Unix sockets are not enforced: use an IP address")
	case e.Address == "" && e.Network != "":
		c.Errorf(at+".address", "missing, which sends requests to the gateway of the network; that is not enforced: "+
			"give an address")
	case e.Address == "":
		c.Errorf(at+".address", "missing: it is required")
	case err == nil:
	case resolution == ResolutionStatic:
		c.Errorf(at+".address", "%q is not an IP address, as STATIC wants: use resolution DNS for host names", e.Address)
	case wrongHost(e.Address) != "" || strings.HasPrefix(e.Address, "*"):
		c.Errorf(at+".address", "%q is neither an IP address nor a host name", e.Address)
	}
	c.atMost(len(e.Locality), 2048, at+".locality")
	c.atMost(len(e.ServiceAccount), 253, at+".serviceAccount")
	c.atMost(len(e.Ports), 128, at+".ports")
	for _, name := range slices.Sorted(maps.Keys(e.Ports)) {
		at := yamldoc.Key(at+".ports", name)
		if !ports[name] {
			c.Errorf(at, "there is no port %q in spec.ports", name)
		}
		c.that(wrongPort(e.Ports[name]), at, "")
	}
	c.atMost(len(e.Labels), 256, at+".labels")
	c.labels(e.Labels, at, ".labels")
}
