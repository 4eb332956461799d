package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// target is a TrafficTarget.
type target struct {
	is       *smi.TrafficTarget
	selected bool // it is about the workload, or may be
}

// readTarget reads a TrafficTarget. Access to a workload is controlled as soon as one is about its service account, and to all in its namespace
// whose service account is not known.
func (c *compiler) readTarget(r *reading, is *smi.TrafficTarget) *target {
	w := &c.plan.workload
	own := w.ServiceAccount == "" || is.Content().Destination.Name == w.ServiceAccount
	return &target{is, own && r.namespace == w.Namespace}
}

// trafficTargets lets the TrafficTargets for the service account of the workload decide about requests to it. It reports references to
// documents that are not there.
func (c *compiler) trafficTargets() {
	w, used := &c.plan.workload, c.referred()
	for _, r := range c.tcpRoutes {
		if !used[r.identity] && !r.Failed() {
			r.Warnf("", "no TrafficTarget refers to it: it has no effect")
		}
	}
	groups, routes, config := byName(c.routeGroups), byName(c.tcpRoutes), authz.Config{Normalization: w.Paths}
	var policies []authz.Policy
	var from []decoded[target]
	for _, tt := range c.targets {
		if tt.Failed() {
			continue
		}
		find := smi.Routes{
			HTTP: func(name string) *smi.HTTPRouteGroup { return found(groups, tt.namespace, name) },
			TCP:  func(name string) *smi.TCPRoute { return found(routes, tt.namespace, name) },
		}
		c.missing(tt, find)
		if !tt.is.selected {
			continue
		}
		policy := authz.Policy{Name: tt.identity.String()}
		for _, p := range tt.is.is.Permissions(w.TrustDomain, find) {
			if why := unverifiable(p.Rule, config); why != "" {
				tt.Warnf(yamldoc.Index(tt.is.is.RulesField(), p.Of), "the match %s allows nothing: %s", p.Match, why)
				continue
			}
			policy.Rules = append(policy.Rules, p.Rule)
		}
		policies, from = append(policies, policy), append(from, tt)
	}
	if len(policies) == 0 {
		return
	}
	in := c.plan.inbound
	if w.ServiceAccount == "" {
		in.closed, in.authorizes = append(in.closed, fmt.Sprintf("the service account of the process is not known, so %s may be about it", from[0].identity)), true
		return
	}
	const denied = "no TrafficTarget for the service account of the workload allows it"
	if err := in.require(allowlist{denied: denied}, policies, config); err != nil { // although each rule alone is valid
		culprit(c, from).Errorf("", "cannot be enforced: %v", err)
	}
}

// unverifiable returns why a rule cannot be enforced, or "" if it can.
func unverifiable(rule authz.Rule, config authz.Config) string {
	for _, condition := range rule.When {
		if strings.EqualFold(condition.Key, "request.headers[x-forwarded-client-cert]") {
			return "x-forwarded-client-cert is what the peer wrote: who it is, sources say"
		}
	}
	if _, err := authz.Compile([]authz.Policy{{Name: "a", Rules: []authz.Rule{rule}}}, config); err != nil {
		return strings.TrimPrefix(err.Error(), "authz: policy a: rule 0: ")
	}
	return ""
}

// missing reports what a TrafficTarget refers to that is not there.
func (c *compiler) missing(tt decoded[target], find smi.Routes) {
	for i, rule := range tt.is.is.Content().Rules {
		at := yamldoc.Index(tt.is.is.RulesField(), i)
		var there bool
		switch rule.Kind {
		case smi.HTTPRouteGroupKind:
			group := find.HTTP(rule.Name)
			there = group != nil
			for j, match := range rule.Matches {
				if there && !group.Has(match) {
					tt.Warnf(yamldoc.Index(at+".matches", j), "HTTPRouteGroup %s/%s has no match %q: it allows nothing", tt.namespace, rule.Name, match)
				}
			}
		case smi.TCPRouteKind:
			there = find.TCP(rule.Name) != nil
		default:
			continue
		}
		if !there && !c.unread(tt.namespace, rule.Name) {
			tt.Warnf(at+".name", "%s: the rule allows nothing", c.absent(rule.Kind, tt.namespace, rule.Name))
		}
	}
}

// referred returns the documents that TrafficTargets refer to.
func (c *compiler) referred() map[identity]bool {
	used := make(map[identity]bool)
	for _, tt := range c.targets {
		for _, rule := range tt.is.is.Content().Rules {
			used[identity{rule.Kind, tt.namespace, rule.Name}] = true
		}
	}
	return used
}

// anonymous warns about TrafficTargets if the service account of the workload is unknown, because then all requests to it are denied.
func (c *compiler) anonymous() {
	i := slices.IndexFunc(c.targets, func(tt decoded[target]) bool { return tt.is.selected })
	if i >= 0 && c.plan.workload.ServiceAccount == "" {
		c.targets[i].Warnf("", "it is not known which service account this process has, so this document may be about it, and all requests to it are denied: "+
			"set ServiceAccount in mesh.WithWorkload, or the variable SERVICE_ACCOUNT, or give the process an identity with a service account")
	}
}
