package smi

import (
	"maps"
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
)

// TrafficTarget says which requests of some service accounts to the workloads of another one are allowed.
type TrafficTarget struct {
	yamldoc.Object
	Spec *TrafficTargetSpec `yaml:"spec"` // since v1alpha2

	// In v1alpha1, these are in place of the spec.
	Destination *Destination `yaml:"destination"`
	Specs       []Rule       `yaml:"specs"`
	Sources     []Account    `yaml:"sources"`
}

// TrafficTargetSpec is the spec of a [TrafficTarget].
type TrafficTargetSpec struct {
	Destination Destination `yaml:"destination,required"`
	Rules       []Rule      `yaml:"rules,required"`
	Sources     []Account   `yaml:"sources,required"`
}

// Account is a service account.
type Account struct {
	Kind      string `yaml:"kind,required" enum:"ServiceAccount"`
	Name      string `yaml:"name,required"`
	Namespace string `yaml:"namespace"`
}

// Destination is the service account of workloads that are protected.
type Destination struct {
	Account
	Port *int `yaml:"port"` // before v1alpha3
}

// Rule names the document that describes what is allowed.
type Rule struct {
	Kind    string   `yaml:"kind,required" enum:"HTTPRouteGroup,TCPRoute,UDPRoute"`
	Name    string   `yaml:"name,required"`
	Matches []string `yaml:"matches"` // those of an HTTPRouteGroup; nil for all
}

// TCPRoute is a set of ports.
type TCPRoute struct {
	yamldoc.Object
	Spec *TCPRouteSpec `yaml:"spec"`
}

// TCPRouteSpec is the spec of a [TCPRoute].
type TCPRouteSpec struct {
	Matches *TCPMatches `yaml:"matches"` // since v1alpha4
}

// TCPMatches are the ports of a [TCPRoute]. If there are none, it stands for all ports.
type TCPMatches struct {
	Ports []int `yaml:"ports"`
}

// The kinds of [Rule].
const (
	HTTPRouteGroupKind = "HTTPRouteGroup"
	TCPRouteKind       = "TCPRoute"
	UDPRouteKind       = "UDPRoute"
)

// Content returns what the document says, wherever its version has it.
func (tt *TrafficTarget) Content() TrafficTargetSpec {
	switch {
	case tt.Spec != nil:
		return *tt.Spec
	case tt.Destination == nil:
		return TrafficTargetSpec{}
	}
	return TrafficTargetSpec{*tt.Destination, tt.Specs, tt.Sources}
}

// RulesField returns the path of the rules.
func (tt *TrafficTarget) RulesField() string {
	if tt.Spec == nil {
		return "specs"
	}
	return "spec.rules"
}

// Routes finds the documents that rules refer to, by name. The result is nil if there is none, or one that is not valid.
type Routes struct {
	HTTP func(name string) *HTTPRouteGroup
	TCP  func(name string) *TCPRoute
}

// Permission is a rule that allows requests.
type Permission struct {
	authz.Rule
	Of    int    // the rule of the document that it is from
	Match string // the match of the HTTPRouteGroup that it is from; "" for a TCPRoute
}

// Permissions translates the document, which must have passed Check. What a rule refers to is allowed as far as it is found. The spec says
// nothing of TCPRoutes beside HTTPRouteGroups: here, requests must then be at one of their ports, and raw connections are not allowed, since
// nobody could tell what they carry.
func (tt *TrafficTarget) Permissions(trustDomain string, routes Routes) (out []Permission) {
	content := tt.Content()
	from := principals(trustDomain, content.Sources)
	ports := content.ports(routes)
	if from == nil || ports.none() {
		return nil
	}
	http := slices.ContainsFunc(content.Rules, func(r Rule) bool { return r.Kind == HTTPRouteGroupKind })
	for i, rule := range content.Rules {
		switch {
		case rule.Kind == HTTPRouteGroupKind:
			group := routes.HTTP(rule.Name)
			if group == nil {
				continue
			}
			for _, m := range group.matches() {
				if rule.Matches == nil || slices.Contains(rule.Matches, m.Name) {
					out = append(out, Permission{m.rule(from, ports.list), i, m.Name})
				}
			}
		case rule.Kind == TCPRouteKind && !http:
			own := ports.and(routes.portsOf(rule))
			if own.none() {
				continue
			}
			allow := authz.Rule{From: from}
			if !own.all {
				allow.To = []authz.Operation{{Ports: own.list}}
			}
			out = append(out, Permission{Rule: allow, Of: i})
		}
	}
	return out
}

// principals returns the source of a rule for service accounts, or nil if there is none that a peer can have.
func principals(trustDomain string, accounts []Account) []authz.Source {
	var names []string
	for _, a := range accounts {
		if a.Namespace != "" {
			names = append(names, trustDomain+"/ns/"+a.Namespace+"/sa/"+a.Name)
		}
	}
	if names == nil {
		return nil
	}
	return []authz.Source{{Principals: names}}
}

// rule returns the rule for the requests that match. It never allows raw connections.
func (m *HTTPMatch) rule(from []authz.Source, ports []uint16) authz.Rule {
	operation := authz.Operation{Methods: []string{"*"}, Ports: ports}
	if !m.anyMethod() {
		operation.Methods = m.Methods
	}
	if path := m.path(); path != "" {
		operation.PathRegexes = []string{path}
	}
	rule := authz.Rule{From: from, To: []authz.Operation{operation}}
	for _, headers := range m.Headers {
		for _, name := range slices.Sorted(maps.Keys(headers)) {
			condition := authz.Condition{Key: "request.headers[" + name + "]"}
			if value := headers[name]; value != "" {
				condition.Regexes = []string{value}
			} else {
				condition.Regexes = []string{"^$"}
			}
			rule.When = append(rule.When, condition)
		}
	}
	return rule
}

// portSet is a set of ports. The zero value is empty.
type portSet struct {
	all  bool
	list []uint16
}

func (s portSet) none() bool { return !s.all && len(s.list) == 0 }

// and returns the ports in both sets.
func (s portSet) and(other portSet) (both portSet) {
	switch {
	case s.all:
		return other
	case other.all:
		return s
	}
	for _, port := range s.list {
		if slices.Contains(other.list, port) {
			both.list = append(both.list, port)
		}
	}
	return both
}

// or returns the ports in any of the two sets.
func (s portSet) or(other portSet) portSet {
	if s.all || other.all {
		return portSet{all: true}
	}
	return portSet{list: slices.Concat(s.list, other.list)}
}

// ports returns the ports to which the document is limited.
func (s *TrafficTargetSpec) ports(routes Routes) portSet {
	ports := portSet{all: true}
	if s.Destination.Port != nil {
		ports = portSet{list: []uint16{uint16(*s.Destination.Port)}}
	}
	var limit portSet
	limited := false
	for _, rule := range s.Rules {
		if rule.Kind == TCPRouteKind {
			limit, limited = limit.or(routes.portsOf(rule)), true
		}
	}
	if limited {
		ports = ports.and(limit)
	}
	return ports
}

// portsOf returns the ports of the TCPRoute that a rule refers to: none if there is none.
func (r Routes) portsOf(rule Rule) (ports portSet) {
	route := r.TCP(rule.Name)
	switch {
	case route == nil:
		return portSet{}
	case route.Spec == nil || route.Spec.Matches == nil || len(route.Spec.Matches.Ports) == 0:
		return portSet{all: true}
	}
	for _, port := range route.Spec.Matches.Ports {
		ports.list = append(ports.list, uint16(port))
	}
	return ports
}
