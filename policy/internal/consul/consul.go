// Package consul reads the config entries of Consul: it declares them field by field, checks them as Consul's servers do, and
// compiles the discovery chains of services and what is known of their destinations into what the layers of this library
// understand.
//
// What this library does with a field stands in its mesh tag; see [github.com/nosidecar/mesh/internal/yamldoc]. Fields
// without the tag are enforced. Keys may be written in any of the ways that Consul takes: ServiceSubset, service_subset,
// serviceSubset.
//
// This is where it differs from Consul 1.22 with Envoy:
//
//   - Regular expressions, filters and weights below 0 are checked when an entry is read. Consul stores bad ones.
//   - What Envoy would refuse is refused: a ring without MaximumRingSize, a header value with an unknown command.
//   - A route with a value that is inverted needs the header to be there, as in Envoy, whatever the kind of value.
//   - A split among services that hash by different keys uses the key of each; Envoy uses the first one for all.
//   - A limit of 0, which forbids everything, is refused.
//   - Chains are bounded: by 100 splitters or redirects one after the other, and by the shares that calls are divided into.
package consul

import (
	"regexp"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
)

// Group is the API group of the entries as objects of Kubernetes.
const Group = "consul.hashicorp.com"

// The kinds of entries that are enforced.
const (
	ServiceRouterKind     = "service-router"
	ServiceSplitterKind   = "service-splitter"
	ServiceResolverKind   = "service-resolver"
	ServiceDefaultsKind   = "service-defaults"
	ProxyDefaultsKind     = "proxy-defaults"
	MeshKind              = "mesh"
	ServiceIntentionsKind = "service-intentions"
)

// Objects are the kinds that have the same as objects of Kubernetes, by the kinds of those.
var Objects = map[string]string{
	"ServiceRouter":     ServiceRouterKind,
	"ServiceSplitter":   ServiceSplitterKind,
	"ServiceResolver":   ServiceResolverKind,
	"ServiceDefaults":   ServiceDefaultsKind,
	"ProxyDefaults":     ProxyDefaultsKind,
	"Mesh":              MeshKind,
	"ServiceIntentions": ServiceIntentionsKind,
}

// Others are the kinds that are not enforced.
var Others = []string{
	"api-gateway", "bound-api-gateway", "control-plane-request-limit", "exported-services", "file-system-certificate", "http-route",
	"ingress-gateway", "inline-certificate", "jwt-provider", "sameness-group", "tcp-route", "terminating-gateway",
}

// OtherObjects are the kinds of Kubernetes that are not enforced.
var OtherObjects = []string{
	"ControlPlaneRequestLimit", "ExportedServices", "GatewayClassConfig", "GatewayPolicy", "IngressGateway", "JWTProvider",
	"MeshService", "PeeringAcceptor", "PeeringDialer", "Registration", "RouteAuthFilter", "RouteRetryFilter", "RouteTimeoutFilter",
	"SamenessGroup", "TerminatingGateway",
}

// KindOf returns the kind of a document that is a config entry in the form of Consul's API, and "" for any other document: one
// with an apiVersion, or with a kind that is written as in Kubernetes. The kind need not be one that there is.
func KindOf(doc *yamldoc.Document) string {
	if doc.Text("apiVersion") != "" {
		return ""
	}
	if kind := doc.Text("Kind"); kind != "" {
		return kind
	}
	if kind := doc.Text("kind"); kind == strings.ToLower(kind) {
		return kind
	}
	return ""
}

// Header is what all entries have in the form of Consul's API.
type Header struct {
	Kind string `yaml:"Kind,required"`
	Name string `yaml:"Name"`
	Scope

	Meta        map[string]string `yaml:"Meta" mesh:"unused: metadata of an entry has no meaning here"`
	CreateIndex yamldoc.Any       `yaml:"CreateIndex" mesh:"unused: bookkeeping of Consul"`
	ModifyIndex yamldoc.Any       `yaml:"ModifyIndex" mesh:"unused: bookkeeping of Consul"`
	Hash        yamldoc.Any       `yaml:"Hash" mesh:"unused: bookkeeping of Consul"`
}

// Scope is where something is, in Consul Enterprise.
type Scope struct {
	Namespace string `yaml:"Namespace"`
	Partition string `yaml:"Partition"`
}

// check reports what only Consul Enterprise has.
func (s *Scope) check(doc *yamldoc.Document, at string) {
	if !ordinary(s.Namespace) {
		doc.Errorf(at+"Namespace", "%q: only the namespace default is enforced, the others need Consul Enterprise: remove it", s.Namespace)
	}
	if !ordinary(s.Partition) {
		doc.Errorf(at+"Partition", "%q: only the partition default is enforced, the others need Consul Enterprise: remove it", s.Partition)
	}
}

func ordinary(name string) bool { return name == "" || strings.EqualFold(name, "default") }

// Entry is a config entry. It does not change.
type Entry struct {
	Kind, Name string

	// Is is a *Router, *Splitter, *Resolver, *ServiceDefaults, *ProxyDefaults, *Mesh or *ServiceIntentions.
	Is any

	At    string  // the path around its fields: "" or "spec."
	Lines []int32 // of the routes of a router, counted from that of the document
}

// checked is what an entry says besides its header.
type checked interface {
	check(doc *yamldoc.Document, e *Entry, env *Environment)
}

// Environment is what an entry is checked for.
type Environment struct {
	Service string // that the process is an instance of; "" if it is not known
	Paths   authz.Normalization

	// Filter compiles the filter of a subset. nil: there is nothing that can.
	Filter func(expression string, onlyPassing bool) (Predicate, error)
}

// form is an entry in one of its two forms.
type form interface {
	parts(doc *yamldoc.Document) (name string, is checked)
}

// object is an entry as an object of Kubernetes.
type object[T any] struct {
	yamldoc.Object
	Spec   T           `yaml:"spec"`
	Status yamldoc.Any `yaml:"status" mesh:"unused: written by the controller"`
}

func (o *object[T]) parts(doc *yamldoc.Document) (string, checked) {
	o.Metadata.Check(doc)
	return o.Metadata.Name, any(&o.Spec).(checked)
}

func (h *Header) named(doc *yamldoc.Document, is checked) (string, checked) {
	h.check(doc, "")
	return h.Name, is
}

type (
	routerEntry struct {
		Header
		Router
	}
	splitterEntry struct {
		Header
		Splitter
	}
	resolverEntry struct {
		Header
		Resolver
	}
	serviceEntry struct {
		Header
		ServiceDefaults
	}
	proxyEntry struct {
		Header
		ProxyDefaults
	}
	meshEntry struct {
		Header
		Mesh
	}
)

func (e *routerEntry) parts(doc *yamldoc.Document) (string, checked) {
	return e.named(doc, &e.Router)
}
func (e *splitterEntry) parts(doc *yamldoc.Document) (string, checked) {
	return e.named(doc, &e.Splitter)
}
func (e *resolverEntry) parts(doc *yamldoc.Document) (string, checked) {
	return e.named(doc, &e.Resolver)
}
func (e *serviceEntry) parts(doc *yamldoc.Document) (string, checked) {
	return e.named(doc, &e.ServiceDefaults)
}
func (e *proxyEntry) parts(doc *yamldoc.Document) (string, checked) {
	return e.named(doc, &e.ProxyDefaults)
}
func (e *meshEntry) parts(doc *yamldoc.Document) (string, checked) {
	return e.named(doc, &e.Mesh)
}

// forms returns what a kind is decoded into, in the form of Consul's API and in that of Kubernetes.
func forms(kind string) (native, kubernetes form) {
	switch kind {
	case ServiceRouterKind:
		return new(routerEntry), new(object[Router])
	case ServiceSplitterKind:
		return new(splitterEntry), new(object[Splitter])
	case ServiceResolverKind:
		return new(resolverEntry), new(object[Resolver])
	case ServiceDefaultsKind:
		return new(serviceEntry), new(object[ServiceDefaults])
	case ProxyDefaultsKind:
		return new(proxyEntry), new(object[ProxyDefaults])
	case ServiceIntentionsKind:
		return new(intentionsEntry), new(intentionsObject)
	}
	return new(meshEntry), new(object[Mesh])
}

// Read decodes an entry of a kind that is enforced, and checks it. It returns nil if the document has not
// the shape of its kind.
func Read(dec *yamldoc.Decoder, doc *yamldoc.Document, kind string, env *Environment) *Entry {
	e := &Entry{Kind: kind}
	into, kubernetes := forms(kind)
	if doc.Text("apiVersion") != "" {
		into, e.At = kubernetes, "spec."
	}
	if !dec.DecodeLoosely(doc, into) {
		return nil
	}
	name, is := into.parts(doc)
	e.Name, e.Is = name, is
	switch at := e.NameField(); {
	case kind == ProxyDefaultsKind && (name == "" || name == "global"):
		e.Name = "global"
	case kind == MeshKind && (name == "" || name == "mesh"):
		e.Name = "mesh"
	case kind == ProxyDefaultsKind || kind == MeshKind:
		doc.Errorf(at, "%q: there is one entry of this kind, which is called %q", name, map[string]string{ProxyDefaultsKind: "global", MeshKind: "mesh"}[kind])
	case name == "":
		doc.Errorf(at, "missing: name the service")
	case kind == ServiceIntentionsKind:
		checkName(doc, at, name)
	case !isService(name):
		doc.Errorf(at, "%q cannot be the name of a service in a URL: use letters, digits, hyphens and underscores", name)
	}
	is.check(doc, e, env)
	return e
}

// NameField is the field that the name of the entry is in.
func (e *Entry) NameField() string {
	switch {
	case e.At != "" && e.Kind == ServiceIntentionsKind:
		return "spec.destination.name"
	case e.At != "":
		return "metadata.name"
	}
	return "Name"
}

// isService says that a service of this name can be called by it.
func isService(name string) bool { return serviceName.MatchString(name) }

var serviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)
