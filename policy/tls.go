package policy

import (
	"slices"
	"strings"

	"github.com/nosidecar/mesh/policy/internal/istio"
)

// TLS says how the connections to a target are secured. The zero value is [TLSAuto].
type TLS struct {
	Mode TLSMode

	// ClientCertificate and PrivateKey are the paths of the PEM files with the certificate that TLSMutual presents, and its key. The
	// files are not opened here, since documents are also checked on other machines.
	ClientCertificate string
	PrivateKey        string

	// CACertificates is the path of the PEM file with the roots that TLSSimple and TLSMutual trust. Empty means the roots of the
	// system.
	CACertificates string

	// SubjectAltNames are names, one of which the endpoint's certificate must have. They are sorted and unique. For TLSIstioMutual and
	// TLSAuto they are SPIFFE IDs. Empty means the IDs that are expected of the endpoint or, for TLSSimple and TLSMutual, the host of
	// the request.
	SubjectAltNames []string

	// ServerName is sent as SNI. Empty means the host of the request.
	ServerName string

	// External says that a ServiceEntry names the host, and is not MESH_INTERNAL. The host is outside the mesh then, so TLSAuto means
	// plaintext.
	External bool
}

// Equal reports whether two configurations are equal.
func (t TLS) Equal(other TLS) bool {
	return t.Mode == other.Mode && t.ClientCertificate == other.ClientCertificate && t.PrivateKey == other.PrivateKey &&
		t.CACertificates == other.CACertificates && slices.Equal(t.SubjectAltNames, other.SubjectAltNames) &&
		t.ServerName == other.ServerName && t.External == other.External
}

// TLSMode is the TLS mode of a DestinationRule.
type TLSMode uint8

// The modes.
const (
	// TLSAuto is the mode of targets without TLS settings: mutual TLS with the workload's identity if the endpoint accepts it, and
	// plaintext otherwise. See [Plan.Peers].
	TLSAuto TLSMode = iota

	// TLSDisable sends plaintext.
	TLSDisable

	// TLSSimple verifies the endpoint and presents no certificate.
	TLSSimple

	// TLSMutual also presents a certificate from a file.
	TLSMutual

	// TLSIstioMutual is mutual TLS with the workload's identity.
	TLSIstioMutual
)

// String returns the mode as documents spell it, and "AUTO" for TLSAuto.
func (m TLSMode) String() string {
	switch m {
	case TLSDisable:
		return "DISABLE"
	case TLSSimple:
		return "SIMPLE"
	case TLSMutual:
		return "MUTUAL"
	case TLSIstioMutual:
		return "ISTIO_MUTUAL"
	}
	return "AUTO"
}

// tlsOf translates the settings of a DestinationRule, which Check has validated.
func tlsOf(s *istio.ClientTLSSettings) TLS {
	if s == nil {
		return TLS{}
	}
	t := TLS{SubjectAltNames: sortNames(s.SubjectAltNames), ServerName: s.SNI}
	switch s.Mode {
	case "SIMPLE":
		t.Mode = TLSSimple
	case "MUTUAL":
		t.Mode, t.ClientCertificate, t.PrivateKey = TLSMutual, s.ClientCertificate, s.PrivateKey
	case "ISTIO_MUTUAL":
		t.Mode = TLSIstioMutual
		return t
	default:
		return TLS{Mode: TLSDisable}
	}
	if s.CaCertificates != istio.SystemRoots {
		t.CACertificates = s.CaCertificates
	}
	return t
}

// sortNames returns the names sorted and without duplicates, so that equal sets become equal lists.
func sortNames(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}

// entryTLS adds the settings in the ServiceEntry of a host. The names of a DestinationRule take precedence.
func (p *Plan) entryTLS(t *TLS, host string) {
	e := p.entry(host)
	if e == nil {
		return
	}
	t.External = e.is.External()
	switch {
	case len(t.SubjectAltNames) > 0 || t.Mode == TLSDisable:
	case t.Mode == TLSSimple || t.Mode == TLSMutual:
		t.SubjectAltNames = e.names
	case len(e.ids) > 0:
		t.SubjectAltNames = e.ids
	default:
		t.SubjectAltNames = e.names // these match no SPIFFE ID; an empty list would match all
	}
}

// certificateNames warns about names of a ServiceEntry that are never compared, or that no endpoint can have. It considers the rules of all
// namespaces, because documents are also checked without a workload.
func (c *compiler) certificateNames() {
	var of func(host string) tlsModes
	for _, se := range c.entries {
		if se.Failed() || len(se.is.names) == 0 {
			continue
		}
		if of == nil {
			of = c.modes()
		}
		for _, host := range se.is.hosts[:len(se.is.is.Spec.Hosts)] {
			modes := of(host)
			secured := modes.has(TLSSimple) || modes.has(TLSMutual) || modes.has(TLSIstioMutual)
			if se.is.is.External() && !secured {
				se.Warnf("spec.subjectAltNames", "has no effect on %s: no DestinationRule secures the connections to it", host)
				break
			}
			if (modes.has(TLSIstioMutual) || !secured) && len(se.is.ids) == 0 {
				se.Warnf("spec.subjectAltNames", "connections to %s by mutual TLS between workloads are refused: those have SPIFFE IDs, "+
					"and none of these is one", host)
				break
			}
		}
	}
}

// tlsModes is a set of modes.
type tlsModes uint8

func (m tlsModes) has(mode TLSMode) bool { return m&(1<<mode) != 0 }

// modes returns a function that returns the modes that DestinationRules name for a host, for any subset and port.
func (c *compiler) modes() func(host string) tlsModes {
	exact, ends := make(map[string]tlsModes, len(c.rules)), make(map[string]tlsModes)
	for _, dr := range c.rules {
		if end, wild := strings.CutPrefix(dr.is.host, "*"); wild {
			ends[end] |= dr.is.modes
		} else {
			exact[dr.is.host] |= dr.is.modes
		}
	}
	return func(host string) tlsModes {
		modes := exact[host]
		host = strings.TrimPrefix(host, "*")
		for i := range len(host) + 1 {
			modes |= ends[host[i:]]
		}
		return modes
	}
}

// modesOf returns the modes that a DestinationRule names.
func modesOf(spec *istio.DestinationRuleSpec) tlsModes {
	var modes tlsModes
	for _, p := range spec.Policies() {
		modes |= 1 << tlsOf(p.TLS).Mode
		for i := range p.PortLevelSettings {
			modes |= 1 << tlsOf(p.PortLevelSettings[i].TLS).Mode
		}
	}
	return modes
}
