package policy

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/gateway"
)

// service is a Kubernetes Service. Only its ports matter here.
type service struct {
	yamldoc.Object
	Spec   serviceSpec `yaml:"spec"`
	Status yamldoc.Any `yaml:"status" mesh:"unused: written by the control plane"`
}

type serviceSpec struct {
	Type  string       `yaml:"type" enum:"ClusterIP,NodePort,LoadBalancer,ExternalName" mesh:"unused: only the ports of a Service matter here"`
	Ports []servedPort `yaml:"ports"`

	AllocateLoadBalancerNodePorts yamldoc.Any `yaml:"allocateLoadBalancerNodePorts" mesh:"unused: only the ports of a Service matter here"`
	ClusterIP                     yamldoc.Any `yaml:"clusterIP" mesh:"unused: only the ports of a Service matter here"`
	ClusterIPs                    yamldoc.Any `yaml:"clusterIPs" mesh:"unused: only the ports of a Service matter here"`
	ExternalIPs                   yamldoc.Any `yaml:"externalIPs" mesh:"unused: only the ports of a Service matter here"`
	ExternalName                  yamldoc.Any `yaml:"externalName" mesh:"unused: only the ports of a Service matter here"`
	ExternalTrafficPolicy         yamldoc.Any `yaml:"externalTrafficPolicy" mesh:"unused: only the ports of a Service matter here"`
	HealthCheckNodePort           yamldoc.Any `yaml:"healthCheckNodePort" mesh:"unused: only the ports of a Service matter here"`
	InternalTrafficPolicy         yamldoc.Any `yaml:"internalTrafficPolicy" mesh:"unused: only the ports of a Service matter here"`
	IPFamilies                    yamldoc.Any `yaml:"ipFamilies" mesh:"unused: only the ports of a Service matter here"`
	IPFamilyPolicy                yamldoc.Any `yaml:"ipFamilyPolicy" mesh:"unused: only the ports of a Service matter here"`
	LoadBalancerClass             yamldoc.Any `yaml:"loadBalancerClass" mesh:"unused: only the ports of a Service matter here"`
	LoadBalancerIP                yamldoc.Any `yaml:"loadBalancerIP" mesh:"unused: only the ports of a Service matter here"`
	LoadBalancerSourceRanges      yamldoc.Any `yaml:"loadBalancerSourceRanges" mesh:"unused: only the ports of a Service matter here"`
	PublishNotReadyAddresses      yamldoc.Any `yaml:"publishNotReadyAddresses" mesh:"unused: only the ports of a Service matter here"`
	Selector                      yamldoc.Any `yaml:"selector" mesh:"unused: only the ports of a Service matter here"`
	SessionAffinity               yamldoc.Any `yaml:"sessionAffinity" mesh:"unused: only the ports of a Service matter here"`
	SessionAffinityConfig         yamldoc.Any `yaml:"sessionAffinityConfig" mesh:"unused: only the ports of a Service matter here"`
	TopologyKeys                  yamldoc.Any `yaml:"topologyKeys" mesh:"unused: only the ports of a Service matter here"`
	TrafficDistribution           yamldoc.Any `yaml:"trafficDistribution" mesh:"unused: only the ports of a Service matter here"`
}

type servedPort struct {
	Name        string      `yaml:"name"`
	Port        uint32      `yaml:"port,required"`
	TargetPort  yamldoc.Any `yaml:"targetPort"`
	NodePort    yamldoc.Any `yaml:"nodePort" mesh:"unused: it is for callers outside of the cluster"`
	Protocol    string      `yaml:"protocol" enum:"TCP,UDP,SCTP"`
	AppProtocol string      `yaml:"appProtocol"`
}

// Check reports what Kubernetes would reject.
func (s *service) Check(doc *yamldoc.Document) {
	s.Metadata.Check(doc)
	if name := s.Metadata.Name; yamldoc.IsName(name) && (strings.Contains(name, ".") || name[0] <= '9') {
		doc.Errorf("metadata.name", "%q is not the name of a Service: it starts with a letter and has no dots", name)
	}
	names := make(map[string]int)
	numbers := make(map[string]int)
	for i, p := range s.Spec.Ports {
		at := yamldoc.Index("spec.ports", i)
		if p.Port < 1 || p.Port > 65535 {
			doc.Errorf(at+".port", "%d is not a port: it must be from 1 to 65535", p.Port)
		}
		switch first, twice := names[p.Name]; {
		case p.Name == "" && len(s.Spec.Ports) > 1:
			doc.Errorf(at+".name", "missing: a Service with several ports names them")
		case p.Name != "" && !yamldoc.IsLabel(p.Name):
			doc.Errorf(at+".name", "%q is not the name of a port: use lower-case letters, digits and hyphens", p.Name)
		case twice:
			doc.Errorf(at+".name", "%q is the name of spec.ports[%d] too", p.Name, first)
		}
		names[p.Name] = i
		key := strconv.Itoa(int(p.Port)) + "/" + p.protocol()
		if first, twice := numbers[key]; twice {
			doc.Errorf(at+".port", "%s is spec.ports[%d] too", key, first)
		}
		numbers[key] = i
		if target := doc.Text(at + ".targetPort"); target != "" {
			if n, err := strconv.Atoi(target); err == nil && (n < 1 || n > 65535) {
				doc.Errorf(at+".targetPort", "%d is not a port: it must be from 1 to 65535", n)
			} else if err != nil && (len(target) > 15 || !yamldoc.IsLabel(target)) {
				doc.Errorf(at+".targetPort", "%q is neither a port nor the name of one", target)
			}
		}
	}
}

func (p *servedPort) protocol() string {
	if p.Protocol == "" {
		return "TCP"
	}
	return p.Protocol
}

// servicePort is a port that documents give to a service.
type servicePort struct {
	name   string // unless it is that of a ServiceEntry
	number int
	http2  bool // it speaks HTTP/2, even without TLS
}

// served is what a Service says of the calls to it.
type served struct {
	host  string
	ports []servicePort     // never nil: nil would mean that the ports are unknown
	said  *gateway.Settings // by annotations of Linkerd; nil if they say nothing
	like  *profile          // said, in the form in which they apply where nothing is attached to the Service; nil if they say nothing of that kind
	bare  *served           // the Service without annotations, if these are all that is wrong with it; nil otherwise
}

func (c *compiler) readService(doc *yamldoc.Document, r *reading, is *service) *served {
	s := &served{
		host:  r.name + "." + r.namespace + ".svc." + c.plan.workload.ClusterDomain,
		ports: make([]servicePort, 0, len(is.Spec.Ports)),
	}
	for _, p := range is.Spec.Ports {
		if p.protocol() == "TCP" {
			s.ports = append(s.ports, servicePort{c.word(p.Name), int(p.Port), http2(p.Name, p.AppProtocol)})
		}
	}
	readable := !doc.Failed()
	if c.readSettings(doc, r, is, s); readable && doc.Failed() {
		s.bare = &served{host: s.host, ports: s.ports}
	}
	return s
}

// services adds the ports of the cluster's services to the plan.
func (c *compiler) services() {
	for _, s := range c.serviceDocs {
		if !s.Failed() {
			c.plan.ports.set(s.is.host, s.is)
		}
	}
	for _, p := range c.alone {
		if s := p.bare(); s != nil && c.plan.ports.plain(s.host) == nil {
			c.plan.ports.set(s.host, s)
		}
	}
}

// bare returns what is in force in place of a Service that is refused because of its annotations and has no last good version: its ports, which say
// how it can be reached at all. It is nil for other documents.
func (p *piece) bare() *served {
	if s, ok := p.is.(*served); ok && p.verdict == leftOut && !p.twin {
		return s.bare
	}
	return nil
}

// http2 reports whether the protocol of a port is HTTP/2. Like Istio, it uses the part before the first dash of appProtocol or, if that is
// not set, of the name. Of the protocol names that Kubernetes defines, only "kubernetes.io/h2c" is HTTP/2.
func http2(name, appProtocol string) bool {
	if appProtocol == "kubernetes.io/h2c" {
		return true
	}
	protocol, _, _ := strings.Cut(strings.ToLower(cmp.Or(appProtocol, name)), "-")
	return protocol == "http2" || protocol == "grpc"
}

// servicePorts returns the ports of a host, or nil if no document has them.
func (p *Plan) servicePorts(host string) []servicePort {
	if s := p.ports.plain(host); s != nil {
		return s.ports
	}
	if e := p.plainEntry(host); e != nil {
		return e.ports
	}
	return nil
}

// onlyPort returns the port of a host that has exactly one, and 0 otherwise.
func (p *Plan) onlyPort(host string) int {
	if ports := p.servicePorts(host); len(ports) == 1 {
		return ports[0].number
	}
	return 0
}

// http2 reports whether a port of a host speaks HTTP/2.
func (p *Plan) http2(host string, port int) bool {
	ports := p.servicePorts(host)
	if e := p.entry(host); ports == nil && e != nil {
		ports = e.ports
	}
	for _, s := range ports {
		if s.number == port {
			return s.http2
		}
	}
	return false
}
