package policy

import (
	"bytes"
	"cmp"
	"regexp"
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// shutHost is a host to which calls fail as if a DestinationRule in a namespace said so.
type shutHost struct {
	namespace, host string
	by              string // the document that cannot be used
	unclaimed       bool   // unless a ServiceEntry is about the host
	foreign         string // the namespace of the document, if it is a ServiceEntry of another one than the process: see isOthers
}

// closingHosts returns the hosts that a DestinationRule, or what may be meant to be one, may secure. Without its tls
// settings, calls would be sent in plaintext or to unverified endpoints.
func (c *compiler) closingHosts(p *piece) []shutHost {
	switch keys, ok := p.Keys(""); {
	case c.wraps(p.Document):
		return c.mentionedHosts(p)
	case p.kind == "ServiceEntry" && p.group == istio.Group:
		return c.closingEntry(p)
	case p.kind != "DestinationRule" && p.kind != "" && !p.list() && !c.unheardOf(p) && ok:
		return nil
	case p.list() || keys == nil && ok:
		return c.mentionedHosts(p)
	}
	secures, below := false, "spec"
	twice := p.Twice()
	if twice {
		below = "" // either of the two fields may be meant
	}
	for at := range p.Paths(below, "tls") {
		secures = secures || twice || p.Text(at+".mode") != "DISABLE"
	}
	namespace := cmp.Or(p.namespace, p.Text("metadata.namespace"), defaultNamespace)
	placed := p.clear("", "metadata") && yamldoc.IsLabel(namespace) && (!p.Has("metadata.namespace") || p.IsText("metadata.namespace"))
	if !secures || placed && p.clear("", "spec") && c.forOthers(p, namespace) {
		return nil
	}
	hosts := []string{p.Text("spec.host")}
	if twice || hosts[0] == "" {
		hosts = p.values("host")
	}
	if placed {
		return c.shutHosts(p, hosts, namespace)
	}
	return c.shutHosts(p, hosts, c.plan.workload.Namespace, p.values("namespace")...)
}

// closingEntry is closingHosts for a ServiceEntry. Without it, hosts of the mesh would be outside of it, and certificates would not need the names
// that it asks for. What another ServiceEntry is about is not closed: whoever cannot claim a host cannot close it.
func (c *compiler) closingEntry(p *piece) []shutHost {
	outside := !p.Has("spec.location") || p.IsText("spec.location") && p.Text("spec.location") == "MESH_EXTERNAL"
	readable := p.clear("", "metadata", "spec")
	if readable && (outside && !p.Has("spec.subjectAltNames") || c.forOthers(p, p.namespace)) {
		return nil
	}
	shut := c.shutHosts(p, p.values("hosts"), c.plan.workload.Namespace)
	foreign := ""
	if readable && p.IsText("metadata.namespace") && p.namespace != c.plan.workload.Namespace {
		foreign = p.namespace
	}
	for i := range shut {
		shut[i].unclaimed, shut[i].foreign = true, foreign
	}
	return shut
}

// forOthers reports whether a document is certainly about the calls of other workloads.
func (c *compiler) forOthers(p *piece, namespace string) bool {
	w := &c.plan.workload
	to := p.Texts("spec.exportTo")
	if readable := !slices.ContainsFunc(to, func(to string) bool { return to != "." && !yamldoc.IsLabel(to) }); readable {
		if visible, _ := istio.VisibleFrom(w.Namespace, namespace, to); !visible {
			return true
		}
	}
	if !p.Has("spec.workloadSelector") {
		return false
	}
	labels, readable := selected(p.Document, "spec.workloadSelector", "matchLabels")
	return readable && (namespace != w.Namespace || !istio.Within(labels, w.Labels))
}

// mentionedHosts is closingHosts for a text that cannot be read: all hosts that it names, unless their rules are still in force.
func (c *compiler) mentionedHosts(p *piece) []shutHost {
	text := c.text(p)
	if p.kind != "DestinationRule" && !bytes.Contains(text, []byte("DestinationRule")) || !bytes.Contains(text, []byte("tls")) {
		return nil
	}
	var hosts, namespaces []string
	for _, field := range hostOrNamespace.FindAllSubmatch(text, -1) {
		if value := string(field[2]); string(field[1]) == "host" {
			hosts = append(hosts, value)
		} else {
			namespaces = append(namespaces, value)
		}
	}
	var shut []shutHost
	if yamldoc.IsLabel(p.namespace) && !p.nowhere && !p.list() && !c.wraps(p.Document) {
		shut = c.shutHosts(p, hosts, p.namespace)
	} else {
		shut = c.shutHosts(p, hosts, c.plan.workload.Namespace, namespaces...)
	}
	return slices.DeleteFunc(shut, func(s shutHost) bool { return p.unknown() && c.keepsRule(p.file, s.host) })
}

// fileHost is a host in a file.
type fileHost struct{ file, host string }

// keepsRule reports whether the last good version of a rule for a host, from a file, is kept.
func (c *compiler) keepsRule(file, host string) bool {
	if c.ruled == nil {
		c.ruled = make(map[fileHost]bool)
		for d := range c.last.good() {
			if rule, ok := d.is.(*destination); ok {
				c.ruled[fileHost{d.file, rule.host}] = true
			}
		}
	}
	return c.ruled[fileHost{file, host}]
}

var hostOrNamespace = regexp.MustCompile(`\b(host|namespace)["']?\s*:\s*["']?([^\s"',{}\[\]#]+)`)

// shutHosts returns hosts, as a document in any of these namespaces names them, as hosts to which calls fail by the rules of the first namespace.
func (c *compiler) shutHosts(p *piece, hosts []string, in string, or ...string) (shut []shutHost) {
	seen := make(map[string]bool)
	for _, host := range hosts {
		if host == "" {
			continue
		}
		for _, namespace := range append([]string{in}, or...) {
			full := istio.Resolve(host, namespace, c.plan.workload.ClusterDomain)
			if !seen[full] {
				seen[full] = true
				shut = append(shut, shutHost{namespace: in, host: full, by: p.called()})
			}
		}
	}
	return shut
}

// values returns the values of all fields with a key.
func (p *piece) values(key string) (values []string) {
	for at, value := range p.Scalars() {
		if at == key && value != "" {
			values = append(values, value)
		}
	}
	return values
}
