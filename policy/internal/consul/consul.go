// Package consul reads the config entries of Consul. It declares their fields, validates them as Consul's servers do, and compiles the
// discovery chains of services into the settings of the layers of this library.
//
// The mesh tag of a field says what this library does with it; see [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the
// tag are enforced. Keys may be written in any of the ways that Consul accepts: ServiceSubset, service_subset, serviceSubset.
//
// There are these differences from Consul 1.22 with Envoy:
//
//   - Regular expressions, filters and negative weights are validated when an entry is read. Consul stores invalid ones.
//   - Entries that Envoy would reject are errors, such as a ring without MaximumRingSize, or a header value with an unknown command.
//   - An inverted condition on a header needs the header to be present, as in Envoy, whatever the kind of the condition is.
//   - If a split divides calls among services with different hash keys, the key of each service is used. Envoy uses the first key for all.
//   - A limit of 0, which forbids everything, is an error. So are two overrides for the same upstream, of which Consul uses the last.
//   - Chains are bounded: by 100 successive splitters or redirects, and by the number of shares that calls are divided into.
package consul

import (
	"regexp"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
)

// Group is the API group of entries that are Kubernetes objects.
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

// Objects maps the kinds of Kubernetes objects that are enforced to the kinds of entries.
var Objects = map[string]string{
	"ServiceRouter":     ServiceRouterKind,
	"ServiceSplitter":   ServiceSplitterKind,
	"ServiceResolver":   ServiceResolverKind,
	"ServiceDefaults":   ServiceDefaultsKind,
	"ProxyDefaults":     ProxyDefaultsKind,
	"Mesh":              MeshKind,
	"ServiceIntentions": ServiceIntentionsKind,
}

// What to do about a kind that is not enforced.
const (
	ofGateways = "list the endpoints of the services behind the gateway in a ServiceEntry of networking.istio.io"
	ofClusters = "remove it: it is about partitions and peers, whose services are not called"
	ofTokens   = "write a RequestAuthentication of security.istio.io"
	ofSameness = "name the services to fail over to in Failover of a service-resolver"
)

// Skipped has the kinds of entries and of Kubernetes objects that say nothing about calls between services: what gateways do with requests from
// outside, and what protects Consul's servers.
var Skipped = []string{
	"api-gateway", "bound-api-gateway", "control-plane-request-limit", "file-system-certificate", "http-route", "ingress-gateway", "inline-certificate", "tcp-route",
	"ControlPlaneRequestLimit", "GatewayClassConfig", "GatewayPolicy", "IngressGateway", "RouteAuthFilter", "RouteRetryFilter", "RouteTimeoutFilter",
}

// Others has the kinds of entries that are not enforced, and what to do about them.
var Others = map[string]string{
	"exported-services": ofClusters, "jwt-provider": ofTokens, "sameness-group": ofSameness, "terminating-gateway": ofGateways,
}

// OtherObjects has the kinds of Kubernetes objects that are not enforced, and what to do about them.
var OtherObjects = map[string]string{
	"ExportedServices": ofClusters, "JWTProvider": ofTokens, "MeshService": ofClusters, "PeeringAcceptor": ofClusters, "PeeringDialer": ofClusters,
	"Registration": "remove it: it registers a service with Consul", "SamenessGroup": ofSameness, "TerminatingGateway": ofGateways,
}

// KindOf returns the kind of a document that is a config entry in the form of Consul's API. It returns "" for any other document, which
// has an apiVersion or a kind that is written as in Kubernetes. The kind need not be a known one.
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

// Header has the fields that all entries have in the form of Consul's API.
type Header struct {
	Kind string `yaml:"Kind,required"`
	Name string `yaml:"Name"`
	Scope

	Meta        map[string]string `yaml:"Meta" mesh:"unused: metadata of an entry has no meaning here"`
	CreateIndex yamldoc.Any       `yaml:"CreateIndex" mesh:"unused: bookkeeping of Consul"`
	ModifyIndex yamldoc.Any       `yaml:"ModifyIndex" mesh:"unused: bookkeeping of Consul"`
	Hash        yamldoc.Any       `yaml:"Hash" mesh:"unused: bookkeeping of Consul"`
}

// Scope has the namespace and the partition of a service, which exist only in Consul Enterprise.
type Scope struct {
	Namespace string `yaml:"Namespace"`
	Partition string `yaml:"Partition"`
}

// check reports a namespace or partition that only Consul Enterprise has.
func (s *Scope) check(doc *yamldoc.Document, at string) {
	if !ordinary(s.Namespace) {
		doc.Errorf(at+"Namespace", "%q: only the namespace default is enforced, the others need Consul Enterprise: remove it", s.Namespace)
	}
	if !ordinary(s.Partition) {
		doc.Errorf(at+"Partition", "%q: only the partition default is enforced, the others need Consul Enterprise: remove it", s.Partition)
	}
}

func ordinary(name string) bool { return name == "" || strings.EqualFold(name, "default") }

// Entry is a config entry. It is immutable.
type Entry struct {
	Kind, Name string

	// Is is a *Router, *Splitter, *Resolver, *ServiceDefaults, *ProxyDefaults, *Mesh or *ServiceIntentions.
	Is any

	At    string  // the prefix of the paths of its fields: "" or "spec."
	Lines []int32 // the lines of the routes of a router, relative to that of the document
}

// checked is the content of an entry without its header.
type checked interface {
	check(doc *yamldoc.Document, e *Entry, env *Environment)
}

// Environment has what checking an entry depends on.
type Environment struct {
	Service string // the service that the process is an instance of; "" if it is not known
	Paths   authz.Normalization

	// Filter compiles the filter of a subset. Nil means that filters are not supported.
	Filter func(expression string, onlyPassing bool) (Predicate, error)
}

// form is an entry in one of its two forms.
type form interface {
	parts(doc *yamldoc.Document) (name string, is checked)
}

// native is an entry in the form of Consul's API.
type native[T any] struct {
	Header
	Is T `yaml:",inline"`
}

func (e *native[T]) parts(doc *yamldoc.Document) (string, checked) {
	e.check(doc, "")
	return e.Name, any(&e.Is).(checked)
}

// object is an entry that is a Kubernetes object.
type object[T any] struct {
	yamldoc.Object
	Spec   T           `yaml:"spec"`
	Status yamldoc.Any `yaml:"status" mesh:"unused: written by the controller"`
}

func (o *object[T]) parts(doc *yamldoc.Document) (string, checked) {
	o.Metadata.Check(doc)
	return o.Metadata.Name, any(&o.Spec).(checked)
}

// forms returns the values to decode an entry of a kind into, in the form of Consul's API and in that of Kubernetes.
func forms(kind string) (form, form) {
	switch kind {
	case ServiceRouterKind:
		return new(native[Router]), new(object[Router])
	case ServiceSplitterKind:
		return new(native[Splitter]), new(object[Splitter])
	case ServiceResolverKind:
		return new(native[Resolver]), new(object[Resolver])
	case ServiceDefaultsKind:
		return new(native[ServiceDefaults]), new(object[ServiceDefaults])
	case ProxyDefaultsKind:
		return new(native[ProxyDefaults]), new(object[ProxyDefaults])
	case ServiceIntentionsKind:
		return new(native[ServiceIntentions]), new(intentionsObject)
	}
	return new(native[Mesh]), new(object[Mesh])
}

// Read decodes and checks an entry of an enforced kind. It returns nil if the document does not have the shape of its kind.
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

// NameField returns the path of the field with the name of the entry.
func (e *Entry) NameField() string {
	switch {
	case e.At != "" && e.Kind == ServiceIntentionsKind:
		return "spec.destination.name"
	case e.At != "":
		return "metadata.name"
	}
	return "Name"
}

// isService reports whether a service with this name can be called by its name.
func isService(name string) bool { return serviceName.MatchString(name) }

var serviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)
