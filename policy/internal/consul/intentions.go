package consul

import (
	"fmt"
	"strings"

	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
)

// ServiceIntentions is a service-intentions entry: who may call a service.
//
// It is stricter than Consul 1.22 with Envoy where readings of paths and headers are concerned; see [authz]. What no request
// can match is refused, since an intention with it would deny nothing.
type ServiceIntentions struct {
	Sources []IntentionSource `yaml:"Sources"`
	JWT     yamldoc.Any       `yaml:"JWT" mesh:"refused: the tokens of requests are not verified by intentions yet: remove it"`
}

// IntentionSource says what a service, or "*" for all, may do.
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

// Permission says what becomes of some requests.
type Permission struct {
	Action string          `yaml:"Action"`
	HTTP   *PermissionHTTP `yaml:"HTTP"`
	JWT    yamldoc.Any     `yaml:"JWT" mesh:"refused: the tokens of requests are not verified by intentions yet: remove it"`
}

// PermissionHTTP is a condition on requests. All of its fields must hold.
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

// everyone is the name that stands for all services.
const everyone = "*"

// IsAbout reports whether the intentions of a name are about a service.
func IsAbout(name, service string) bool { return name == everyone || name == service }

type (
	intentionsEntry struct {
		Header
		ServiceIntentions
	}
	intentionsObject struct {
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
)

func (e *intentionsEntry) parts(doc *yamldoc.Document) (string, checked) {
	return e.named(doc, &e.ServiceIntentions)
}

// parts returns the name of the destination: the object itself may have any name, since none of Kubernetes may be "*".
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
	if !checkMethods(doc, at+".HTTP.Methods", p.HTTP.Methods) {
		return
	}
	config := authz.Config{Normalization: env.Paths}
	whole := p.translate()
	if err := whole.Check(config); err == nil {
		return
	}
	// Which part it is: each is checked by itself.
	found := false
	try := func(part authz.Permission, at string) {
		if err := part.Check(config); err != nil {
			doc.Errorf(at, "cannot be enforced: %s", unplaced(err))
			found = true
		}
	}
	for field, part := range map[string]authz.Permission{
		".PathExact": {PathExact: whole.PathExact}, ".PathPrefix": {PathPrefix: whole.PathPrefix}, ".PathRegex": {PathRegex: whole.PathRegex},
	} {
		if part.PathExact+part.PathPrefix+part.PathRegex != "" {
			try(part, at+".HTTP"+field)
		}
	}
	for i := range whole.Headers {
		try(authz.Permission{Headers: whole.Headers[i : i+1]}, yamldoc.Index(at+".HTTP.Header", i))
	}
	if !found {
		doc.Errorf(at+".HTTP", "cannot be enforced: %v", whole.Check(config))
	}
}

// unplaced returns an error of a part without the place in it, which the field tells.
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

// needsHTTP returns the index of the first source with permissions, and -1 if there is none.
func (in *ServiceIntentions) needsHTTP() int {
	for i := range in.Sources {
		if len(in.Sources[i].Permissions) > 0 {
			return i
		}
	}
	return -1
}

// Unenforceable reports intentions that Consul would not store: those that are about requests, for a service whose protocol has
// none.
func (s *Set) Unenforceable(e *Entry) *Error {
	in, ok := e.Is.(*ServiceIntentions)
	if !ok || e.Name == everyone || s.Services[e.Name] == nil && s.Proxy == nil {
		return nil // it is not known what the service speaks
	}
	if i := in.needsHTTP(); i >= 0 && s.Protocol(e.Name) == "tcp" {
		from := place{ServiceIntentionsKind, e.Name, yamldoc.Index("Sources", i) + ".Permissions"}
		return from.errorf("cannot be enforced: the protocol of %s is tcp, which has no requests; set Protocol in a service-defaults entry of it to http, http2 or grpc", e.Name)
	}
	return nil
}

// Intentions returns the intentions of entries that are about a service of a trust domain, the one that counts most first: what
// names the service counts more than what is for all, and then what names the caller.
//
// The rules that Consul 1.22 makes for sidecars differ from that order in one case: an intention of all callers for the service
// does not hide one of a caller for all services. Where such a one denies and the default allows, the caller is denied, and so
// it is here. Where it allows and the default denies, the caller is allowed there, but not here.
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
