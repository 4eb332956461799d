package policy

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// closure is what a document that cannot be used may protect, and what is closed for that reason.
type closure struct {
	host string // calls to it fail; empty: requests to the workload are denied
}

// protects reports whether a document restricts who may call whom, or may be meant to: the kind of a config entry may be misspelt.
func (r *reading) protects() bool {
	if r.group == consul.Group {
		return yamldoc.Closest(r.kind, []string{"ServiceIntentions"}) != ""
	}
	return catalog.Protects(r.group, r.kind)
}

// closing returns what is closed in place of a document that is refused and has no last good version. It returns nil if the document protects
// nothing, or nothing that concerns this process.
func (c *compiler) closing(p *piece) *closure {
	w := &c.plan.workload
	switch {
	case p.kind == "DestinationRule" && (p.group == istio.Group || c.misplaced(p)):
		return c.closingHost(p)
	case c.elsewhere(p):
		return nil
	case p.kind == "" || p.list():
		text := p.Raw()
		if text == nil {
			text = c.sources[p.source].Data
		}
		if mentionsProtection(text) {
			return new(closure)
		}
		return nil
	case !p.protects() && !c.misplaced(p):
		return nil
	case p.ofConsul():
		if w.Service == "" || slices.Contains([]string{"", "*", w.Service}, p.destination()) {
			return new(closure)
		}
		return nil
	}
	if !p.clear("", "spec") {
		return new(closure)
	}
	if p.harmless() {
		return nil
	}
	at := "spec.selector"
	if p.group == linkerdPolicy {
		at = "spec.podSelector"
	}
	if labels, readable := selected(p.Document, at); readable && p.group != smiAccess && !istio.Within(labels, w.Labels) {
		return nil
	}
	return new(closure)
}

// misplaced reports whether a document belongs to no API that has its kind, but has the name of a kind that closes something: its apiVersion is
// wrong or missing.
func (c *compiler) misplaced(p *piece) bool {
	return c.apis[p.group].Kinds[p.kind] == catalog.Unknown && slices.ContainsFunc(catalog.All(), func(k catalog.Kind) bool {
		return k.Name == p.kind && (k.Protects || k.Name == "DestinationRule")
	})
}

// elsewhere reports whether a document is certainly about a namespace that this process has nothing to do with.
func (c *compiler) elsewhere(p *piece) bool {
	if p.ofConsul() || p.list() {
		return false // it may be about any namespace
	}
	keys, ok := p.Keys("")
	if !ok || keys == nil && p.nowhere || keys != nil && !(p.clear("metadata") && p.IsText("metadata.namespace")) {
		return false
	}
	namespace, w := cmp.Or(p.namespace, p.Text("metadata.namespace")), &c.plan.workload
	return namespace != "" && namespace != w.Namespace && namespace != w.RootNamespace
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

const (
	linkerdPolicy = "policy.linkerd.io"
	smiAccess     = "access.smi-spec.io"
)

// harmless reports whether a document that restricts who may call whom would deny no request to this process.
func (p *piece) harmless() bool {
	if p.group == linkerdPolicy {
		switch p.kind {
		case "MeshTLSAuthentication", "NetworkAuthentication": // they have an effect only in other documents
			return true
		}
		return false
	}
	if p.kind == "AuthorizationPolicy" {
		dry, _ := strconv.ParseBool(p.Text(yamldoc.Key("metadata.annotations", "istio.io/dry-run")))
		if dry && p.clear("metadata", "metadata.annotations") || p.IsText("spec.action") && p.Text("spec.action") == "AUDIT" {
			return true
		}
	}
	if p.Has("spec.selector") {
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
	return len(refs) > 0 && !slices.ContainsFunc(refs, func(at string) bool {
		kind := p.Text(at + ".kind")
		return !p.clear(at) || p.Text(at+".group") != "gateway.networking.k8s.io" || kind != "Gateway" && kind != "GatewayClass"
	})
}

// closingHost is closing for a DestinationRule. Without its tls settings, calls would be sent in plaintext or to unverified endpoints.
func (c *compiler) closingHost(p *piece) *closure {
	w := &c.plan.workload
	secures, below := false, "spec"
	twice := p.Twice()
	if twice {
		below = "" // either of the two fields may be meant
	}
	for at := range p.Paths(below, "tls") {
		secures = secures || twice || p.Text(at+".mode") != "DISABLE"
	}
	host := p.Text("spec.host")
	if !secures || host == "" {
		return nil
	}
	shut := &closure{host: istio.Resolve(host, p.namespace, w.ClusterDomain)}
	if !p.clear("", "spec") {
		return shut
	}
	if to := p.Texts("spec.exportTo"); len(to) > 0 && !slices.Contains(to, "") {
		if visible, _ := istio.VisibleFrom(w.Namespace, p.namespace, to); !visible {
			return nil
		}
	}
	if p.Has("spec.workloadSelector") {
		if labels, readable := selected(p.Document, "spec.workloadSelector"); readable && (p.namespace != w.Namespace || !istio.Within(labels, w.Labels)) {
			return nil
		}
	}
	return shut
}

// selected returns the labels of a selector. The selector is readable if it has only matchLabels, and these map strings to strings.
func selected(d *yamldoc.Document, at string) (labels map[string]string, readable bool) {
	keys, ok := d.Keys(at)
	if !ok || slices.ContainsFunc(keys, func(key string) bool { return key != "matchLabels" }) {
		return nil, false
	}
	at += ".matchLabels"
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
	text = bytes.ReplaceAll(text, []byte{0}, nil) // of UTF-16
	return bytes.Contains(text, []byte(consul.ServiceIntentionsKind)) || slices.ContainsFunc(catalog.All(), func(k catalog.Kind) bool {
		name := k.Name
		if k.Group == consul.Group {
			name = strings.TrimSuffix(name, "s")
		}
		return k.Protects && (bytes.Contains(text, []byte(name)) || k.Group != consul.Group && bytes.Contains(text, []byte(k.Group)))
	})
}
