package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// target is a TrafficTarget.
type target struct {
	is       *smi.TrafficTarget
	selected bool // it is about the workload, or may be

	last atomic.Pointer[permitted] // the result of the last plan, for the next one
}

// permitted is what a TrafficTarget allows with the documents that it refers to.
type permitted struct {
	of    []any // the contents of these, one for each rule; nil where there is none
	rules []authz.Rule
	wrong []wrongMatch
}

// wrongMatch is a match of an HTTPRouteGroup that cannot be enforced.
type wrongMatch struct {
	rule       int
	match, why string
}

// readTarget reads a TrafficTarget. Access to a workload is controlled as soon as one is about its service account, and to all in its namespace
// whose service account is not known.
func (c *compiler) readTarget(r *reading, is *smi.TrafficTarget) *target {
	w := &c.plan.workload
	own := w.ServiceAccount == "" || is.Content().Destination.Name == w.ServiceAccount
	return &target{is: is, selected: own && r.namespace == w.Namespace}
}

// trafficTargets lets the TrafficTargets for the service account of the workload decide about requests to it. It reports references to
// documents that are not there.
func (c *compiler) trafficTargets() {
	w := &c.plan.workload
	for _, r := range c.tcpRoutes {
		if !r.used && !r.Failed() {
			r.Warnf("", "no TrafficTarget refers to it: it has no effect")
		}
	}
	config := authz.Config{Normalization: w.Paths}
	from := empty(&c.room.from, 0)
	var first *document
	for _, tt := range c.targets {
		if tt.Failed() {
			continue
		}
		c.missing(tt)
		if !tt.is.selected {
			continue
		}
		first = cmp.Or(first, tt.document)
		p := c.permitted(tt, config)
		for _, m := range p.wrong {
			tt.Warnf(yamldoc.Index(tt.is.is.RulesField(), m.rule), "the match %s allows nothing: %s", m.match, m.why)
		}
		from = append(from, p)
	}
	c.room.from = from
	if len(from) == 0 {
		return
	}
	in := c.plan.inbound
	if w.ServiceAccount == "" {
		in.closed, in.authorizes = append(in.closed, fmt.Sprintf("the service account of the process is not known, so %s may be about it", first.identity)), true
		return
	}
	if c.keepAllowlist(from) {
		return
	}
	var policies []authz.Policy
	var by []decoded[target]
	for _, tt := range c.targets {
		if !tt.Failed() && tt.is.selected {
			policies, by = append(policies, authz.Policy{Name: tt.identity.String(), Rules: c.permitted(tt, config).rules}), append(by, tt)
		}
	}
	l := allowlist{from: slices.Clone(from), denied: "no TrafficTarget for the service account of the workload allows it"}
	if err := in.require(l, policies, config); err != nil { // although each rule alone is valid
		culprit(c, by).Errorf("", "cannot be enforced: %v", err)
	}
}

// permitted returns what a TrafficTarget that is about the workload allows. It is that of the last plan if no document has changed that it depends on.
func (c *compiler) permitted(tt decoded[target], config authz.Config) *permitted {
	rules := tt.is.is.Content().Rules
	if last := tt.is.last.Load(); last != nil && len(last.of) == len(rules) {
		same := true
		for i := range rules {
			same = same && last.of[i] == c.refers(tt, &rules[i])
		}
		if same {
			return last
		}
	}
	p := &permitted{of: make([]any, len(rules))}
	for i := range rules {
		p.of[i] = c.refers(tt, &rules[i])
	}
	find := smi.Routes{
		HTTP: func(name string) *smi.HTTPRouteGroup {
			return found[smi.HTTPRouteGroup](c, smi.SpecsGroup, smi.HTTPRouteGroupKind, tt.namespace, name)
		},
		TCP: func(name string) *smi.TCPRoute {
			return found[smi.TCPRoute](c, smi.SpecsGroup, smi.TCPRouteKind, tt.namespace, name)
		},
	}
	for _, allowed := range tt.is.is.Permissions(c.plan.workload.TrustDomain, find) {
		if why := unverifiable(allowed.Rule, config); why != "" {
			p.wrong = append(p.wrong, wrongMatch{allowed.Of, allowed.Match, why})
		} else if c.plan.workload.ServiceAccount != "" {
			p.rules = append(p.rules, allowed.Rule)
		}
	}
	tt.is.last.Store(p)
	return p
}

// refers returns the content of the document that a rule refers to, or nil if there is none or it has an error.
func (c *compiler) refers(tt decoded[target], rule *smi.Rule) any {
	switch rule.Kind {
	case smi.HTTPRouteGroupKind:
		if is := found[smi.HTTPRouteGroup](c, smi.SpecsGroup, rule.Kind, tt.namespace, rule.Name); is != nil {
			return is
		}
	case smi.TCPRouteKind:
		if is := found[smi.TCPRoute](c, smi.SpecsGroup, rule.Kind, tt.namespace, rule.Name); is != nil {
			return is
		}
	}
	return nil
}

// unverifiable returns why a rule cannot be enforced, or "" if it can.
func unverifiable(rule authz.Rule, config authz.Config) string {
	for _, condition := range rule.When {
		if name, ok := strings.CutPrefix(condition.Key, "request.headers["); ok && asserted.Identity(strings.TrimSuffix(name, "]")) {
			return strings.ToLower(strings.TrimSuffix(name, "]")) + " is what the peer wrote: who it is, sources say"
		}
	}
	if _, err := authz.Compile([]authz.Policy{{Name: "a", Rules: []authz.Rule{rule}}}, config); err != nil {
		return strings.TrimPrefix(err.Error(), "authz: policy a: rule 0: ")
	}
	return ""
}

// missing reports what a TrafficTarget refers to that is not there.
func (c *compiler) missing(tt decoded[target]) {
	rules := tt.is.is.Content().Rules
	for i := range rules {
		rule := &rules[i]
		if rule.Kind != smi.HTTPRouteGroupKind && rule.Kind != smi.TCPRouteKind {
			continue
		}
		is := c.refers(tt, rule)
		if is == nil && !c.unread(tt.namespace, rule.Name) {
			tt.Warnf(yamldoc.Index(tt.is.is.RulesField(), i)+".name", "%s: the rule allows nothing", c.absent(rule.Kind, tt.namespace, rule.Name))
		}
		group, ok := is.(*smi.HTTPRouteGroup)
		for j, match := range rule.Matches {
			if ok && !group.Has(match) {
				tt.Warnf(yamldoc.Index(yamldoc.Index(tt.is.is.RulesField(), i)+".matches", j), "HTTPRouteGroup %s/%s has no match %q: it allows nothing",
					tt.namespace, rule.Name, match)
			}
		}
	}
}

// refer marks the documents that TrafficTargets refer to.
func (c *compiler) refer() {
	if len(c.routeGroups)+len(c.tcpRoutes) == 0 {
		return
	}
	for _, tt := range c.targets {
		for _, rule := range tt.is.is.Content().Rules {
			if d := c.first.find(groupIdentity{smi.SpecsGroup, identity{rule.Kind, tt.namespace, rule.Name}}); d != nil {
				d.used = true
			}
		}
	}
}

// anonymous warns about TrafficTargets if the service account of the workload is unknown, because then all requests to it are denied.
func (c *compiler) anonymous() {
	i := slices.IndexFunc(c.targets, func(tt decoded[target]) bool { return tt.is.selected })
	if i >= 0 && c.plan.workload.ServiceAccount == "" {
		c.targets[i].Warnf("", "it is not known which service account this process has, so this document may be about it, and all requests to it are denied: "+
			"set ServiceAccount in mesh.WithWorkload, or the variable SERVICE_ACCOUNT, or give the process an identity with a service account")
	}
}
