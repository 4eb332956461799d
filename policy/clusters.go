package policy

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// rules are the DestinationRules of one host in one namespace: at most one that selects the workload by its labels, and
// one for all workloads.
type rules struct {
	selected, general *rule
}

// rule is a DestinationRule, with those merged into it that have the same host, namespace and selector.
type rule struct {
	document *document
	selector map[string]string
	policy   *istio.TrafficPolicy
	subsets  map[string]*istio.Subset
}

// Cluster returns the policy of a target. A target without host has the mesh's defaults. Rules for ports apply if the
// target has a port.
func (p *Plan) Cluster(t route.Target) Cluster {
	host := p.canonical(hostname(t.Host))
	r := p.rule(host)
	c := Cluster{Missing: t.Subset != ""}
	if r != nil {
		if subset := r.subsets[t.Subset]; subset != nil || t.Subset == "" {
			c = p.cluster(r.policy, subset, t.Port)
		}
	}
	var budgeted bool
	if c.RetryBudget, budgeted = p.budgets[host]; !budgeted {
		c.RetryBudget.Off = true
	}
	c.UpgradeHTTP2 = c.UpgradeHTTP2 || p.http2(host, t.Port)
	p.entryTLS(&c.TLS, host)
	return c
}

// rule returns the DestinationRule of a host. The workload's own namespace is asked first, then that of the service, then
// the root's; the first that has a rule for the host counts.
func (p *Plan) rule(host string) *rule {
	for _, namespace := range []string{p.workload.Namespace, p.service(host).Namespace, rootNamespace} {
		if found := p.rules[namespace].find(host); found != nil {
			if found.selected != nil {
				return found.selected
			}
			return found.general
		}
	}
	return nil
}

func (p *Plan) cluster(policy *istio.TrafficPolicy, subset *istio.Subset, port int) Cluster {
	var c Cluster
	var own *istio.TrafficPolicy
	if subset != nil {
		own = subset.TrafficPolicy
		c.Subset = joinLabels(subset.Labels)
	}
	merged := istio.Merge(policy, own, port)
	s := merged.Settings(p.workload.Locality, p.workload.Labels)
	c.Balancer, c.Passthrough = s.Balancer, s.Passthrough
	if key := &c.Balancer.HashKey; key.Source == balancer.SourceIPKey {
		key.SourceIP = p.workload.Address
	}
	c.Eject, c.Outlier = s.Eject, s.Outlier
	c.Pool, c.RetryLimit, c.UpgradeHTTP2 = s.Pool, s.RetryLimit, s.UpgradeHTTP2
	c.TLS = tlsOf(merged.TLS)
	return c
}

// joinLabels makes labels comparable: "key=value,key=value", sorted by key.
func joinLabels(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, name+"="+labels[name])
	}
	return strings.Join(list, ",")
}

// check says what the layers cannot honour.
func (c *Cluster) check() error {
	var errs [4]error
	_, errs[0] = balancer.New(c.Balancer, balancer.Hooks{})
	if c.Eject {
		_, errs[1] = breaker.NewOutlier(c.Outlier, nil)
	}
	_, errs[2] = limit.NewPool(c.Pool)
	_, errs[3] = retry.NewLimiter(c.RetryLimit, nil)
	return errors.Join(errs[:]...)
}

// destinationRules puts the rules that the workload sees into the plan.
func (c *compiler) destinationRules() {
	p := c.plan
	for _, dr := range c.rules {
		if dr.Failed() {
			continue
		}
		c.enforceable(dr)
		visible, _ := istio.VisibleFrom(p.workload.Namespace, dr.namespace, dr.is.Spec.ExportTo)
		selector := dr.is.Spec.WorkloadSelector
		if !visible || selector != nil && (dr.namespace != p.workload.Namespace || !selector.Selects(p.workload.Labels)) {
			continue
		}
		host := istio.Resolve(dr.is.Spec.Host, dr.namespace, p.workload.ClusterDomain)
		p.name(host)
		c.selecting(dr, host)
		if p.rules[dr.namespace] == nil {
			p.rules[dr.namespace] = new(hostMap[rules])
		}
		found, _ := p.rules[dr.namespace].add(host, new(rules))
		slot, labels := &found.general, map[string]string(nil)
		if selector != nil {
			slot, labels = &found.selected, selector.MatchLabels
		}
		if *slot == nil {
			*slot = &rule{document: dr.document, selector: labels, subsets: make(map[string]*istio.Subset)}
		}
		if first := (*slot).document; !maps.Equal((*slot).selector, labels) {
			dr.Warnf("spec.workloadSelector", "has no effect: %s selects the same workload and host already (%s:%d)",
				first.identity, first.file, first.Line)
			continue
		}
		mergeInto(*slot, dr)
	}
}

// mergeInto adds a rule to those before it for the same host: its subsets, and its policy if there is none yet.
func mergeInto(r *rule, dr decoded[istio.DestinationRule]) {
	first := r.document
	switch spec := &dr.is.Spec; {
	case r.policy == nil:
		r.policy = spec.TrafficPolicy
	case spec.TrafficPolicy != nil:
		dr.Warnf("spec.trafficPolicy", "has no effect: %s is for the same host and has one already (%s:%d)",
			first.identity, first.file, first.Line)
	}
	for i := range dr.is.Spec.Subsets {
		s := &dr.is.Spec.Subsets[i]
		if r.subsets[s.Name] != nil {
			dr.Warnf(yamldoc.Index("spec.subsets", i), "has no effect: %s is for the same host and has a subset %s already "+
				"(%s:%d)", first.identity, s.Name, first.file, first.Line)
			continue
		}
		r.subsets[s.Name] = s
	}
}

// enforceable has the layers look at everything that a rule asks of them. What they refuse must not come up with the
// first request.
func (c *compiler) enforceable(dr decoded[istio.DestinationRule]) {
	try := func(at string, policy *istio.TrafficPolicy, subset *istio.Subset, port int) {
		cluster := c.plan.cluster(policy, subset, port)
		if err := cluster.check(); err != nil {
			dr.Errorf(at, "cannot be enforced: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	ports := func(at string, policy *istio.TrafficPolicy, subset *istio.Subset, own *istio.TrafficPolicy) {
		if own == nil {
			return
		}
		try(at, policy, subset, 0)
		for i, s := range own.PortLevelSettings {
			try(yamldoc.Index(at+".portLevelSettings", i), policy, subset, int(s.Port.Number))
		}
	}
	spec := &dr.is.Spec
	ports("spec.trafficPolicy", spec.TrafficPolicy, nil, spec.TrafficPolicy)
	for i := range spec.Subsets {
		s := &spec.Subsets[i]
		ports(yamldoc.Index("spec.subsets", i)+".trafficPolicy", spec.TrafficPolicy, s, s.TrafficPolicy)
	}
}
