package consul

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
)

// ServiceIntentions is a service-intentions entry, which says who may call a service.
//
// It is stricter than in Consul 1.22 with Envoy, because paths and headers are evaluated under every reading; see [authz]. Values that no
// request can match are errors, since an intention that denies them would deny nothing.
type ServiceIntentions struct {
	Sources []IntentionSource `yaml:"Sources"`
	JWT     yamldoc.Any       `yaml:"JWT" mesh:"refused: the tokens of requests are not verified by intentions yet: remove it"`
}

// IntentionSource says what a service may do, or all services if its name is "*".
type IntentionSource struct {
	Name string `yaml:"Name"`
	Scope
	Peer          string `yaml:"Peer" mesh:"refused: services of other clusters are not told apart yet: remove the source"`
	SamenessGroup string `yaml:"SamenessGroup" mesh:"refused: needs Consul Enterprise: remove the source"`
	Type          string `yaml:"Type"`

	Action      string       `yaml:"Action"`
	Permissions []Permission `yaml:"Permissions"`

	Description      yamldoc.Any `yaml:"Description" mesh:"unused: it is for people"`
	Precedence       yamldoc.Any `yaml:"Precedence" mesh:"unused: it follows from the names, whatever is written"`
	LegacyID         yamldoc.Any `yaml:"LegacyID" mesh:"unused: bookkeeping of Consul"`
	LegacyMeta       yamldoc.Any `yaml:"LegacyMeta" mesh:"unused: bookkeeping of Consul"`
	LegacyCreateTime yamldoc.Any `yaml:"LegacyCreateTime" mesh:"unused: bookkeeping of Consul"`
	LegacyUpdateTime yamldoc.Any `yaml:"LegacyUpdateTime" mesh:"unused: bookkeeping of Consul"`
}

// Permission says whether some requests are allowed.
type Permission struct {
	Action string          `yaml:"Action"`
	HTTP   *PermissionHTTP `yaml:"HTTP"`
	JWT    yamldoc.Any     `yaml:"JWT" mesh:"refused: the tokens of requests are not verified by intentions yet: remove it"`
}

// PermissionHTTP is a condition on requests. All of its fields must match.
type PermissionHTTP struct {
	PathExact  string             `yaml:"PathExact"`
	PathPrefix string             `yaml:"PathPrefix"`
	PathRegex  string             `yaml:"PathRegex"`
	Methods    []string           `yaml:"Methods"`
	Header     []PermissionHeader `yaml:"Header"`
}

// PermissionHeader is a condition on a header.
type PermissionHeader struct {
	HeaderMatch
	Contains   string `yaml:"Contains"`
	IgnoreCase bool   `yaml:"IgnoreCase"`
}

// everyone is the name that means all services.
const everyone = "*"

// IsAbout reports whether intentions with this name are about a service.
func IsAbout(name, service string) bool { return name == everyone || name == service }

// intentionsObject is an entry that is a Kubernetes object. The name of its service is in its spec.
type intentionsObject struct {
	yamldoc.Object
	Spec struct {
		Destination struct {
			Name      string `yaml:"Name"`
			Namespace string `yaml:"Namespace"`
		} `yaml:"Destination"`
		ServiceIntentions
	} `yaml:"spec"`
	Status yamldoc.Any `yaml:"status" mesh:"unused: written by the controller"`
}

// parts returns the name of the destination. The object itself may have any name, because "*" is not a valid name in Kubernetes.
func (o *intentionsObject) parts(doc *yamldoc.Document) (string, checked) {
	o.Metadata.Check(doc)
	if to := o.Spec.Destination; !ordinary(to.Namespace) {
		doc.Errorf("spec.destination.namespace", "%q: only the namespace default is enforced, the others need Consul Enterprise: remove it", to.Namespace)
	}
	return o.Spec.Destination.Name, &o.Spec.ServiceIntentions
}

func (in *ServiceIntentions) check(doc *yamldoc.Document, e *Entry, env *Environment) {
	at := e.At + "Sources"
	if in.Sources == nil {
		doc.Errorf(at, "missing: name the services that may call %s, or write [] if none is named", e.Name)
	}
	first := make(map[string]int)
	for i := range in.Sources {
		s := &in.Sources[i]
		at := yamldoc.Index(at, i)
		if other, twice := first[s.Name]; twice {
			doc.Errorf(at+".Name", "%q is there twice, first in %s: remove one", s.Name, yamldoc.Index(e.At+"Sources", other))
		}
		first[s.Name] = i
		checkName(doc, at+".Name", s.Name)
		s.check(doc, at, e.Name, env)
	}
}

// checkName reports the name of a service that no peer can have.
func checkName(doc *yamldoc.Document, at, name string) {
	switch err := connectid.Check(name); {
	case name == "":
		doc.Errorf(at, "missing: name a service, or write \"*\" for all")
	case name == everyone || err == nil:
	case strings.Contains(name, everyone):
		doc.Errorf(at, "%q: a star stands for all services, and does not go with other text", name)
	default:
		doc.Errorf(at, "no service has the name %q: %v", name, err)
	}
}

func (s *IntentionSource) check(doc *yamldoc.Document, at, destination string, env *Environment) {
	s.Scope.check(doc, at+".")
	if s.Type != "" && s.Type != "consul" {
		doc.Errorf(at+".Type", "%q: write consul", s.Type)
	}
	switch {
	case len(s.Permissions) == 0:
		checkAction(doc, at+".Action", s.Action)
	case s.Action != "":
		doc.Errorf(at+".Action", "does not go with Permissions: remove one of the two")
	case destination == everyone:
		doc.Errorf(at+".Permissions", "intentions for all services have none: write them for each service")
	}
	for i := range s.Permissions {
		s.Permissions[i].check(doc, yamldoc.Index(at+".Permissions", i), env)
	}
}

func checkAction(doc *yamldoc.Document, at, action string) {
	switch {
	case action == "":
		doc.Errorf(at, "missing: write allow or deny")
	case action != "allow" && action != "deny":
		doc.Errorf(at, "%q: write allow or deny", action)
	}
}

func (p *Permission) check(doc *yamldoc.Document, at string, env *Environment) {
	checkAction(doc, at+".Action", p.Action)
	if p.HTTP == nil {
		doc.Errorf(at+".HTTP", "missing: say which requests it is about")
		return
	}
	for i, h := range p.HTTP.Header {
		if asserted.Identity(h.Name) {
			doc.Errorf(yamldoc.Index(at+".HTTP.Header", i)+".Name", "%s is not enforced: it is what the peer wrote; who it is, sources say", h.Name)
		}
	}
	if !checkMethods(doc, at+".HTTP.Methods", p.HTTP.Methods) {
		return
	}
	config := authz.Config{Normalization: env.Paths}
	whole := p.translate()
	if err := whole.Check(config); err == nil {
		return
	}
	// Check each part separately, to find the invalid ones.
	found := false
	try := func(part authz.Permission, at string) {
		if err := part.Check(config); err != nil {
			doc.Errorf(at, "cannot be enforced: %s", unplaced(err))
			found = true
		}
	}
	if whole.PathExact != "" {
		try(authz.Permission{PathExact: whole.PathExact}, at+".HTTP.PathExact")
	}
	if whole.PathPrefix != "" {
		try(authz.Permission{PathPrefix: whole.PathPrefix}, at+".HTTP.PathPrefix")
	}
	if whole.PathRegex != "" {
		try(authz.Permission{PathRegex: whole.PathRegex}, at+".HTTP.PathRegex")
	}
	for i := range whole.Headers {
		try(authz.Permission{Headers: whole.Headers[i : i+1]}, yamldoc.Index(at+".HTTP.Header", i))
	}
	if !found {
		doc.Errorf(at+".HTTP", "cannot be enforced: %v", whole.Check(config))
	}
}

// unplaced returns the text of an error without the place in it, because the finding has the field.
func unplaced(err error) string {
	text := err.Error()
	if before, after, ok := strings.Cut(text, ": "); ok && (strings.HasPrefix(before, "header 0") || strings.HasPrefix(before, "path")) {
		return after
	}
	return text
}

func (p *Permission) translate() authz.Permission {
	out := authz.Permission{Allow: p.Action == "allow"}
	if p.HTTP == nil {
		return out
	}
	out.PathExact, out.PathPrefix, out.PathRegex = p.HTTP.PathExact, p.HTTP.PathPrefix, p.HTTP.PathRegex
	for _, method := range p.HTTP.Methods {
		out.Methods = append(out.Methods, strings.ToUpper(method)) // as Consul stores it
	}
	for _, h := range p.HTTP.Header {
		out.Headers = append(out.Headers, authz.HeaderMatch{
			Name: h.Name, Present: h.Present, Exact: h.Exact, Prefix: h.Prefix, Suffix: h.Suffix, Contains: h.Contains, Regex: h.Regex,
			Invert: h.Invert, IgnoreCase: h.IgnoreCase,
		})
	}
	return out
}

// Unenforceable returns an error for intentions that Consul would not store: those with conditions on requests for a service whose protocol
// is tcp.
func (s *Set) Unenforceable(e *Entry) *Error {
	in, ok := e.Is.(*ServiceIntentions)
	if !ok || e.Name == everyone || s.Services[e.Name] == nil && s.Proxy == nil {
		return nil // the protocol of the service is unknown
	}
	needsHTTP := func(source IntentionSource) bool { return len(source.Permissions) > 0 }
	if i := slices.IndexFunc(in.Sources, needsHTTP); i >= 0 && s.Protocol(e.Name) == "tcp" {
		return place{ServiceIntentionsKind, e.Name, yamldoc.Index("Sources", i) + ".Permissions"}.withoutRequests()
	}
	return nil
}

// Intentions returns the intentions that apply to a service of a trust domain, in order of precedence. Those that name the service take
// precedence over those for all services. Among these, those that name the caller take precedence over those for all callers.
//
// The rules that Consul 1.22 generates for sidecars differ from that order in one case: an intention for the service and all callers does
// not hide one for all services and the caller. If the latter denies and the default allows, the caller is denied, also here. If it
// allows and the default denies, sidecars allow the caller. Here, the intention for the service decides.
func Intentions(domain, service string, allowByDefault bool, entries []*Entry) *authz.Intentions {
	form := func(name string) string {
		if name == everyone {
			name = connectid.Any
		}
		return domain + connectid.Path(connectid.Namespace, connectid.Any, name)
	}
	out := &authz.Intentions{Peers: form(everyone), AllowByDefault: allowByDefault}
	add := func(destination string, chosen func(*IntentionSource) bool) {
		for _, e := range entries {
			in, ok := e.Is.(*ServiceIntentions)
			if !ok || e.Name != destination {
				continue
			}
			for i := range in.Sources {
				if s := &in.Sources[i]; chosen(s) {
					out.List = append(out.List, s.translate(authz.Match{Policy: fmt.Sprint(e.Kind, "/", e.Name), Rule: i}, form(s.Name)))
				}
			}
		}
	}
	one := func(s *IntentionSource) bool { return s.Name != everyone }
	all := func(s *IntentionSource) bool { return s.Name == everyone }
	add(service, one)
	if allowByDefault {
		add(everyone, func(s *IntentionSource) bool { return one(s) && s.Action == "deny" })
	}
	add(service, all)
	add(everyone, one)
	add(everyone, all)
	return out
}

func (s *IntentionSource) translate(name authz.Match, principal string) authz.Intention {
	out := authz.Intention{Match: name, Principal: principal, Allow: s.Action == "allow"}
	for i := range s.Permissions {
		out.Permissions = append(out.Permissions, s.Permissions[i].translate())
	}
	return out
}
