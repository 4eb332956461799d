package istio

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// Sidecar says which hosts workloads know, and what becomes of calls to others.
type Sidecar struct {
	yamldoc.Object
	Spec   SidecarSpec `yaml:"spec"`
	Status yamldoc.Any `yaml:"status" mesh:"unused: written by the control plane"`
}

// SidecarSpec is the spec of a [Sidecar].
type SidecarSpec struct {
	WorkloadSelector      *EntrySelector          `yaml:"workloadSelector"`
	Ingress               []IstioIngressListener  `yaml:"ingress"`
	Egress                []IstioEgressListener   `yaml:"egress"`
	InboundConnectionPool *ConnectionPoolSettings `yaml:"inboundConnectionPool" mesh:"refused: inboundConnectionPool is not enforced: set MaxRequests of mesh.WithServer, and timeouts of the http.Server"`
	OutboundTrafficPolicy *OutboundTrafficPolicy  `yaml:"outboundTrafficPolicy"`
}

// IstioIngressListener forwards what arrives at a port.
type IstioIngressListener struct {
	Port            *SidecarPort            `yaml:"port,required"`
	Bind            string                  `yaml:"bind" mesh:"meaningless: the program chooses the address that it listens on"`
	CaptureMode     string                  `yaml:"captureMode" enum:"DEFAULT,IPTABLES,NONE" mesh:"meaningless: no connections are captured: the program takes its own"`
	DefaultEndpoint string                  `yaml:"defaultEndpoint"`
	TLS             *ServerTLSSettings      `yaml:"tls" mesh:"refused: TLS of callers outside the mesh is not enforced: give the certificate to the http.Server"`
	ConnectionPool  *ConnectionPoolSettings `yaml:"connectionPool" mesh:"refused: connectionPool is not enforced: set MaxRequests of mesh.WithServer, and timeouts of the http.Server"`
}

// IstioEgressListener says which hosts are known.
type IstioEgressListener struct {
	Port        *SidecarPort `yaml:"port" mesh:"refused: hosts that are known at one port only are not enforced: list them in the element of egress without a port, for all ports"`
	Bind        string       `yaml:"bind" mesh:"meaningless: there is no listener: a call goes to the host that its URL names"`
	CaptureMode string       `yaml:"captureMode" enum:"DEFAULT,IPTABLES,NONE" mesh:"meaningless: there is no listener: a call goes to the host that its URL names"`
	Hosts       []string     `yaml:"hosts,required"`
}

// SidecarPort is the port of a listener.
type SidecarPort struct {
	Number     uint32  `yaml:"number"`
	Protocol   string  `yaml:"protocol"`
	Name       string  `yaml:"name" mesh:"unused: names of listeners have no effect"`
	TargetPort *uint32 `yaml:"targetPort" mesh:"refused: targetPort has no effect, and Istio rejects it: remove it"`
}

// ServerTLSSettings say how connections are decrypted.
type ServerTLSSettings struct {
	HTTPSRedirect         bool             `yaml:"httpsRedirect"`
	Mode                  string           `yaml:"mode" enum:"PASSTHROUGH,SIMPLE,MUTUAL,AUTO_PASSTHROUGH,ISTIO_MUTUAL,OPTIONAL_MUTUAL"`
	ServerCertificate     string           `yaml:"serverCertificate"`
	PrivateKey            string           `yaml:"privateKey"`
	CaCertificates        string           `yaml:"caCertificates"`
	CaCRL                 string           `yaml:"caCrl"`
	CredentialName        string           `yaml:"credentialName"`
	CredentialNames       []string         `yaml:"credentialNames"`
	CaCertCredentialName  string           `yaml:"caCertCredentialName"`
	TLSCertificates       []TLSCertificate `yaml:"tlsCertificates"`
	SubjectAltNames       []string         `yaml:"subjectAltNames"`
	VerifyCertificateSPKI []string         `yaml:"verifyCertificateSpki"`
	VerifyCertificateHash []string         `yaml:"verifyCertificateHash"`
	MinProtocolVersion    string           `yaml:"minProtocolVersion" enum:"TLS_AUTO,TLSV1_0,TLSV1_1,TLSV1_2,TLSV1_3"`
	MaxProtocolVersion    string           `yaml:"maxProtocolVersion" enum:"TLS_AUTO,TLSV1_0,TLSV1_1,TLSV1_2,TLSV1_3"`
	CipherSuites          []string         `yaml:"cipherSuites"`
	InsecureSkipVerify    *bool            `yaml:"insecureSkipVerify"`
}

// TLSCertificate names the files of a certificate.
type TLSCertificate struct {
	ServerCertificate string `yaml:"serverCertificate"`
	PrivateKey        string `yaml:"privateKey"`
	CaCertificates    string `yaml:"caCertificates"`
}

// OutboundTrafficPolicy says what becomes of calls to hosts that are not known.
type OutboundTrafficPolicy struct {
	Mode        string       `yaml:"mode" enum:"REGISTRY_ONLY,ALLOW_ANY"`
	EgressProxy *Destination `yaml:"egressProxy" mesh:"refused: egressProxy is not enforced: a call to a host that is not known is refused, or sent as it is"`
}

// RegistryOnly reports whether calls to hosts that are not known are refused. As in Istio, that is what an outboundTrafficPolicy without a mode means.
func (s *Sidecar) RegistryOnly() bool {
	p := s.Spec.OutboundTrafficPolicy
	return p != nil && p.Mode != "ALLOW_ANY"
}

// Labels returns the labels that select workloads, and reports false if there is no selector.
func (s *Sidecar) Labels() (labels map[string]string, selects bool) {
	if s.Spec.WorkloadSelector == nil {
		return nil, false
	}
	return s.Spec.WorkloadSelector.Labels, true
}

// Imported yields the hosts that are known, each with the namespace whose documents and services may be about it: "*" means all of them, and "." that
// of the workload. It yields everything if the document says nothing of that.
func (s *Sidecar) Imported() func(yield func(namespace, host string) bool) {
	return func(yield func(namespace, host string) bool) {
		if len(s.Spec.Egress) == 0 {
			yield("*", "*")
			return
		}
		for i := range s.Spec.Egress {
			for _, entry := range s.Spec.Egress[i].Hosts {
				if namespace, host, _ := strings.Cut(entry, "/"); !yield(namespace, host) {
					return
				}
			}
		}
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (s *Sidecar) Check(doc *yamldoc.Document) {
	c := check{Document: doc}
	c.metadata(&s.Metadata)
	c.created()
	spec := &s.Spec
	if spec.Ingress == nil && spec.Egress == nil && spec.OutboundTrafficPolicy == nil && spec.InboundConnectionPool == nil {
		c.Errorf("spec", "empty: set egress or outboundTrafficPolicy, or remove the document")
	}
	if labels, selects := s.Labels(); selects {
		if len(labels) == 0 {
			c.Warnf("spec.workloadSelector", "selects every workload of the namespace: it has no labels")
		}
		c.selectorLabels(labels, "spec.workloadSelector.labels")
	}
	seen := make(map[uint32]bool)
	for i := range spec.Ingress {
		c.ingress(&spec.Ingress[i], seen, yamldoc.Index("spec.ingress", i))
	}
	for i := range spec.Egress {
		e, at := &spec.Egress[i], yamldoc.Index("spec.egress", i)
		if e.Port == nil && i < len(spec.Egress)-1 {
			c.Errorf(at, "has no port, which only the last element may lack: list the hosts there")
		}
		c.imports(e.Hosts, s.Namespace(), at+".hosts")
	}
	if p := spec.OutboundTrafficPolicy; p != nil && p.Mode == "" && p.EgressProxy == nil {
		c.Warnf("spec.outboundTrafficPolicy", "has no mode, which means REGISTRY_ONLY: say so")
	}
}

// ingress checks what is forwarded. Only what stays at its port, as the program has it anyway, is accepted.
func (c check) ingress(in *IstioIngressListener, seen map[uint32]bool, at string) {
	if in.Port == nil {
		return // it is missing
	}
	port := in.Port.Number
	switch {
	case !c.that(wrongPort(port), at, ".port.number"):
		return
	case seen[port]:
		c.Errorf(at+".port.number", "there is an element for port %d already", port)
	}
	seen[port] = true
	if in.DefaultEndpoint != "" {
		host, own, err := net.SplitHostPort(in.DefaultEndpoint)
		ip, _ := netip.ParseAddr(host)
		switch number, wrong := strconv.ParseUint(own, 10, 16); {
		case strings.HasPrefix(in.DefaultEndpoint, "unix://"):
			c.Errorf(at+".defaultEndpoint", "requests are not forwarded, and so not to a Unix socket: have the program listen on port %d, and remove it", port)
			return
		case err != nil || wrong != nil || number == 0:
			c.Errorf(at+".defaultEndpoint", "%q is not an address and a port such as 127.0.0.1:%d", in.DefaultEndpoint, port)
			return
		case host != "" && !ip.IsLoopback() && !ip.IsUnspecified():
			c.Errorf(at+".defaultEndpoint", "%q is not this workload: use 127.0.0.1 or 0.0.0.0", host)
			return
		case uint32(number) != port:
			c.Errorf(at+".defaultEndpoint", "requests are not forwarded from port %d to port %d: have the program listen on port %d, and remove it", port, number, port)
			return
		}
	}
	c.Warnf(at, "has no effect: the program takes requests to port %d itself", port)
}

// imports checks the hosts that are known.
func (c check) imports(hosts []string, own, at string) {
	if len(hosts) == 0 {
		c.Errorf(at, `empty: name at least one host; "~/*" stands for none`)
	}
	seen := make(map[string]bool)
	for i, entry := range hosts {
		at := yamldoc.Index(at, i)
		namespace, host, both := strings.Cut(entry, "/")
		switch {
		case !both || strings.Contains(host, "/") || namespace == "" || host == "":
			c.Errorf(at, `%q is not a namespace and a host such as "./*" or "prod/api.example.com"`, entry)
			continue
		case namespace != "*" && namespace != "." && namespace != "~" && !isLabel(namespace):
			c.Errorf(at, `%q is neither a namespace nor "*", "." or "~"`, namespace)
			continue
		case host != "*" && !c.that(wrongHost(host), at, ""):
			continue
		case namespace == "~":
			continue
		}
		if namespace == "." {
			namespace = own
		}
		switch key := namespace + "/" + host; {
		case seen[key] || seen[namespace+"/*"] || seen["*/*"]:
			c.Warnf(at, "has no effect: an entry before it covers it")
		case host != strings.ToLower(host):
			c.Warnf(at, "covers no host: their names have lower-case letters")
		case host != "*" && strings.HasSuffix(host, "."):
			c.Warnf(at, "covers no host: their names have no dot at the end")
		case !strings.HasPrefix(host, "*") && !strings.Contains(host, "."):
			c.Warnf(at, "covers no service of the cluster: short names are not completed here: write %s/%s.NAMESPACE.svc.cluster.local", namespace, host)
		default:
			seen[key] = true
		}
	}
}
