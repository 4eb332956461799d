package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// closure is what is closed because a document that may protect it cannot be used. The zero value closes nothing.
type closure struct {
	denies  bool       // requests to the workload are denied
	hosts   []shutHost // calls to these fail
	outside reach      // calls to hosts outside the mesh are refused, as by a Sidecar with this reach
}

// and returns what either of two closures closes.
func (s closure) and(other closure) closure {
	s.denies, s.outside = s.denies || other.denies, max(s.outside, other.outside)
	for _, host := range other.hosts {
		s.hosts = addTo(s.hosts, host)
	}
	return s
}

// protects reports whether a document restricts who may call whom, or may be meant to: the kind of a config entry may be misspelt.
func (r *reading) protects() bool {
	if r.group == consul.Group {
		return yamldoc.Closest(r.kind, []string{"ServiceIntentions"}) != ""
	}
	return catalog.Protects(r.group, r.kind)
}

// closing returns what is closed in place of a document that is refused and has no last good version: nothing if it protects nothing, or nothing
// that concerns this process.
func (c *compiler) closing(p *piece) closure {
	return closure{c.denies(p), c.closingHosts(p), c.shutsOutside(p)}
}

// denies reports whether requests to the workload are denied because a document cannot be used.
func (c *compiler) denies(p *piece) bool {
	w := &c.plan.workload
	for _, protects := range c.wrapped(p.Document) {
		if protects {
			return true
		}
	}
	switch {
	case c.restricts(p):
		return true
	case c.elsewhere(p):
		return false
	case routesServer(p.Document, p.reading):
		return true
	case p.kind == "" || p.list() || !p.protects() && !c.misplaced(p):
		return (p.kind == "" || p.list() || c.unheardOf(p) || !p.clear("")) && mentionsProtection(c.text(p))
	case p.ofConsul():
		return w.Service == "" || slices.Contains([]string{"", "*", w.Service}, p.destination())
	case !p.clear("", "spec"):
		return true
	case p.harmless():
		return false
	}
	if p.group == smi.AccessGroup {
		return !p.ofOthers(w.ServiceAccount)
	}
	selectors := []string{"spec.selector"}
	if p.group == linkerd.PolicyGroup {
		selectors[0] = "spec.podSelector"
		if other := "spec.externalWorkloadSelector"; p.Has(other) { // beside the first it is an error, and either may be meant
			selectors = append(selectors, other)
		}
	}
	return slices.ContainsFunc(selectors, func(at string) bool {
		labels, readable := selected(p.Document, at, "matchLabels")
		return !readable || istio.Within(labels, w.Labels)
	})
}

// ofOthers reports whether a TrafficTarget of SMI is certainly about another service account than the one of the workload, if that is known.
func (p *piece) ofOthers(account string) bool {
	named := false
	for _, at := range []string{"destination", "spec.destination"} {
		switch name := p.Text(at + ".name"); {
		case !p.clear(strings.TrimSuffix(at, ".destination"), at):
			return false
		case !p.Has(at):
		case p.Text(at+".kind") != "ServiceAccount" || !p.IsText(at+".name") || !yamldoc.IsName(name) || name == account:
			return false
		default:
			named = true
		}
	}
	return named && account != "" && p.kind == "TrafficTarget"
}

// unheardOf reports whether no API has the kind of a document, so that another one is meant.
func (c *compiler) unheardOf(p *piece) bool {
	state, _ := lookUp(c.apis, p.group, "", p.kind)
	if p.Has("kind") && !p.Has("apiVersion") {
		state = catalog.Unknown // rather than one of Kubernetes itself
	}
	return state == catalog.Unknown && c.apis[p.group].Kinds[p.kind] == catalog.Unknown && catalog.OfEntry(p.kind) == catalog.Unknown
}

// text returns the text of a document. That of an item of a List has its scalars alone, and the kinds of the Lists. For what stands for several
// documents it is that of the whole source.
func (c *compiler) text(p *piece) []byte {
	text := p.Raw()
	switch {
	case p.List() != nil && text == nil:
		for list := p.List(); list != nil; list = list.List() { // it may be for documents of one kind
			text = fmt.Appendf(text, "kind: %s\n", list.Text("kind"))
		}
		for key, value := range p.Scalars() {
			text = fmt.Appendf(text, "%s: %s\n", key, value)
		}
	case text == nil:
		text = c.sources[p.source].Data
	}
	return bytes.ReplaceAll(text, []byte{0}, nil) // of UTF-16
}

// misplaced reports whether a document belongs to no API that has its kind, but has the name of a kind that protects: its apiVersion is wrong
// or missing.
func (c *compiler) misplaced(p *piece) bool {
	return c.apis[p.group].Kinds[p.kind] == catalog.Unknown && slices.ContainsFunc(catalog.All(), func(k catalog.Kind) bool {
		return k.Name == p.kind && k.Protects
	})
}

// elsewhere reports whether a document is certainly about a namespace that this process has nothing to do with.
func (c *compiler) elsewhere(p *piece) bool {
	if p.ofConsul() || p.list() || otherMesh(p.group) {
		return false // it may be about any namespace
	}
	keys, ok := p.Keys("")
	if !ok || keys == nil && p.nowhere || keys != nil && !(p.clear("metadata") && p.IsText("metadata.namespace") && p.Text("metadata.namespace") != "") {
		return false
	}
	if p.group == smi.AccessGroup && p.targets(c.plan.workload.Namespace) {
		return false
	}
	namespace, w := cmp.Or(p.namespace, p.Text("metadata.namespace")), &c.plan.workload
	return yamldoc.IsLabel(namespace) && namespace != w.Namespace && namespace != w.RootNamespace
}

// targets reports whether a TrafficTarget of SMI may be about workloads of a namespace other than its own. It names that with the service account
// of its destination, which was not below spec in v1alpha1.
func (p *piece) targets(namespace string) bool {
	for _, at := range []string{"destination", "spec.destination"} {
		switch to := p.Text(at + ".namespace"); {
		case to == namespace, !p.clear(strings.TrimSuffix(at, ".destination"), at), p.Has(at+".namespace") && !p.IsText(at+".namespace"):
			return true
		}
	}
	return false
}

// routesServer reports whether a document is a route that is attached, or may be, to a Server of Linkerd. Then a request to the Server that no
// route matches is refused.
func routesServer(d *yamldoc.Document, r *reading) bool {
	if r.kind != "HTTPRoute" && r.kind != "GRPCRoute" || r.group != linkerd.PolicyGroup && r.group != catalog.GatewayGroup {
		return false
	}
	clear := func(at string) bool {
		_, ok := d.Keys(at)
		return ok
	}
	if !clear("") || !clear("spec") || d.Has("spec.parentRefs") && !d.HasItems("spec.parentRefs") {
		return true
	}
	for i := range d.Len("spec.parentRefs") {
		at := yamldoc.Index("spec.parentRefs", i)
		group, kind := d.Text(at+".group"), d.Text(at+".kind")
		if !d.Has(at + ".group") {
			group = r.group
		}
		if !clear(at) || strings.EqualFold(kind, "Server") || strings.EqualFold(group, linkerd.PolicyGroup) && kind != "Service" {
			return true
		}
	}
	return false
}

// ofConsul reports whether a document is a config entry of Consul. Its namespace has no meaning.
func (p *piece) ofConsul() bool { return p.group == consul.Group || consul.Objects[p.kind] != "" }

// destination returns the service that service-intentions protect, or "" if that cannot be read.
func (p *piece) destination() string {
	switch {
	case !p.clear("", "spec", "spec.destination"):
		return ""
	case p.Text("apiVersion") != "" || consul.Objects[p.kind] != "": // the name of an object is arbitrary
		return p.Text("spec.destination.name")
	}
	return p.name
}

// clear reports whether each of these paths is absent, or an object without duplicate fields.
func (p *piece) clear(paths ...string) bool {
	return !slices.ContainsFunc(paths, func(path string) bool {
		_, ok := p.Keys(path)
		return !ok
	})
}

// harmless reports whether a document that restricts who may call whom would deny no request to this process.
func (p *piece) harmless() bool {
	if p.group == linkerd.PolicyGroup {
		switch p.kind {
		case "MeshTLSAuthentication", "NetworkAuthentication", "ServerAuthorization": // they only allow
			return true
		}
		return p.kind == "AuthorizationPolicy" && p.HasItems("spec.requiredAuthenticationRefs") // so it is not meant to be one of Istio
	}
	if p.kind == "AuthorizationPolicy" {
		dry, _ := strconv.ParseBool(p.Text(yamldoc.Key("metadata.annotations", "istio.io/dry-run")))
		if dry && p.clear("metadata", "metadata.annotations") || p.IsText("spec.action") && p.Text("spec.action") == "AUDIT" {
			return true
		}
	}
	if p.Has("spec.selector") || p.kind != "AuthorizationPolicy" && p.kind != "RequestAuthentication" {
		return false
	}
	// It may be for gateways alone, which do not exist in-process.
	refs := []string{}
	if p.Has("spec.targetRef") {
		refs = append(refs, "spec.targetRef")
	}
	if p.Has("spec.targetRefs") && !p.HasItems("spec.targetRefs") {
		return false
	}
	for i := range p.Len("spec.targetRefs") {
		refs = append(refs, yamldoc.Index("spec.targetRefs", i))
	}
	return len(refs) > 0 && !slices.ContainsFunc(refs, func(at string) bool { return !p.clear(at) || !targetGateway(p.Document, at) })
}

// selected returns the labels that a selector has in a field. The selector is readable if it has nothing else, and these map strings to strings.
func selected(d *yamldoc.Document, at, field string) (labels map[string]string, readable bool) {
	keys, ok := d.Keys(at)
	if !ok || slices.ContainsFunc(keys, func(key string) bool { return key != field }) {
		return nil, false
	}
	at += "." + field
	if keys, ok = d.Keys(at); !ok {
		return nil, false
	}
	labels = make(map[string]string, len(keys))
	for _, key := range keys {
		path := yamldoc.Key(at, key)
		if key == "" || !d.IsText(path) || labels[key] != "" {
			return nil, false
		}
		labels[key] = d.Text(path)
	}
	return labels, true
}

// mentionsProtection reports whether a text that cannot be parsed contains the name of a kind that restricts who may call whom, or of
// its API.
func mentionsProtection(text []byte) bool {
	return bytes.Contains(text, []byte(consul.ServiceIntentionsKind)) || slices.ContainsFunc(catalog.All(), func(k catalog.Kind) bool {
		name := k.Name
		if k.Group == consul.Group {
			name = strings.TrimSuffix(name, "s")
		}
		return k.Protects && (bytes.Contains(text, []byte(name)) || k.Group != consul.Group && bytes.Contains(text, []byte(k.Group)))
	})
}
