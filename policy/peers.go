package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/tlsid"
)

// PeerRules says which connections the workloads of a namespace accept, by PeerAuthentications. It is immutable and safe for concurrent use.
// A nil *PeerRules has no rules.
type PeerRules struct {
	general peerMode   // for all workloads
	chosen  []peerRule // for workloads with certain labels; the first that selects a workload counts
}

// peerRule is one PeerAuthentication.
type peerRule struct {
	labels map[string]string // the labels that it selects workloads by
	mode   peerMode
	ports  map[int]tlsid.Mode // the modes of single ports of the workload
}

// peerMode is a mode that may be unset.
type peerMode struct {
	mode tlsid.Mode
	set  bool
}

// Peers returns the rules for the workloads of a namespace, or nil if there are none.
func (p *Plan) Peers(namespace string) *PeerRules {
	if rules := p.peers[namespace]; rules != nil {
		return rules
	}
	return p.peers[p.workload.RootNamespace]
}

// Mode returns the mode in which a workload with the given labels accepts connections at one of its ports, and reports whether a document
// sets it. The default is [tlsid.Permissive].
func (r *PeerRules) Mode(labels map[string]string, port int) (mode tlsid.Mode, set bool) {
	own, ports := r.of(labels)
	if mode, set := ports[port]; set {
		return mode, true
	}
	return own.mode, own.set
}

// of returns the mode of a workload, and the modes of ports that differ from it.
func (r *PeerRules) of(labels map[string]string) (peerMode, map[int]tlsid.Mode) {
	if r == nil {
		return peerMode{}, nil
	}
	for i := range r.chosen {
		if rule := &r.chosen[i]; istio.Within(rule.labels, labels) {
			return rule.mode.or(r.general), rule.ports
		}
	}
	return r.general, nil
}

// Equal reports whether two sets of rules are equal, so that connections made under one can be kept under the other. Either may be nil.
func (r *PeerRules) Equal(other *PeerRules) bool {
	if r == nil || other == nil || r == other {
		return r == other
	}
	return r.general == other.general && slices.EqualFunc(r.chosen, other.chosen, func(a, b peerRule) bool {
		return a.mode == b.mode && maps.Equal(a.labels, b.labels) && maps.Equal(a.ports, b.ports)
	})
}

// peerAuthentications adds the rules of each namespace to the plan. The rule of a workload takes precedence over that of its namespace, which
// takes precedence over that of the mesh. Of several rules for the same workloads, the oldest counts.
func (c *compiler) peerAuthentications() {
	sorted := slices.Clone(c.peers)
	slices.SortStableFunc(sorted, func(a, b decoded[istio.PeerAuthentication]) int {
		if a.created.IsZero() || b.created.IsZero() {
			return a.created.Compare(b.created)
		}
		return byAge(a.document, b.document)
	})
	root := c.plan.workload.RootNamespace
	first := make(map[string]decoded[istio.PeerAuthentication]) // without a selector, by namespace
	chosen := make(map[string][]decoded[istio.PeerAuthentication])
	for _, pa := range sorted {
		switch {
		case pa.Failed():
		case pa.is.Spec.Selector.Labels() == nil:
			if before, twice := first[pa.namespace]; twice {
				pa.Warnf("spec", "has no effect: %s applies to the same workloads and is older or stands before it (%s:%d)",
					before.identity, before.file, before.Line)
				continue
			}
			first[pa.namespace] = pa
		case pa.namespace == root:
			pa.Warnf("spec.selector", "has no effect: in %s, the root namespace, only a policy without selector counts, "+
				"and it applies to all of the mesh", root)
		default:
			chosen[pa.namespace] = append(chosen[pa.namespace], pa)
		}
	}

	general := make(map[string]peerMode)
	var mesh peerMode
	if pa, ok := first[root]; ok {
		mesh = modeOf(pa.is.Spec.MTLS)
	}
	for namespace, pa := range first {
		general[namespace] = modeOf(pa.is.Spec.MTLS).or(mesh)
	}
	for namespace := range chosen {
		if _, ok := general[namespace]; !ok {
			general[namespace] = mesh
		}
	}
	for namespace, mode := range general {
		if mode.set || chosen[namespace] != nil {
			c.plan.peers[namespace] = &PeerRules{general: mode, chosen: c.peerRules(chosen[namespace])}
		}
	}
}

// peerRules translates the rules with selectors of a namespace, and warns about rules that an earlier one overrides.
func (c *compiler) peerRules(policies []decoded[istio.PeerAuthentication]) []peerRule {
	rules := make([]peerRule, 0, len(policies))
	same := make(map[string]*document) // by labels
	var own *document                  // the first one that selects the workload of the plan
	for _, pa := range policies {
		selector := pa.is.Spec.Selector
		rules = append(rules, translated(&pa.is.Spec))

		key := labelKey(selector.Labels())
		before := same[key]
		if before == nil {
			same[key] = pa.document
		}
		if w := &c.plan.workload; pa.namespace == w.Namespace && selector.Selects(w.Labels) {
			if before == nil {
				before = own
			}
			if own == nil {
				own = pa.document
			}
		}
		if before != nil {
			pa.Warnf("spec.selector", "has no effect: %s selects the same workload and is older or stands before it (%s:%d)",
				before.identity, before.file, before.Line)
		}
	}
	return rules
}

func translated(spec *istio.PeerAuthenticationSpec) peerRule {
	rule := peerRule{labels: spec.Selector.Labels(), mode: modeOf(spec.MTLS)}
	for port, mtls := range spec.PortLevelMTLS {
		n, err := strconv.Atoi(port)
		if mode := modeOf(&mtls); err == nil && mode.set {
			if rule.ports == nil {
				rule.ports = make(map[int]tlsid.Mode)
			}
			rule.ports[n] = mode.mode
		}
	}
	return rule
}

func modeOf(mtls *istio.MutualTLS) peerMode {
	if mtls == nil {
		return peerMode{}
	}
	switch mtls.Mode {
	case "PERMISSIVE":
		return peerMode{tlsid.Permissive, true}
	case "STRICT":
		return peerMode{tlsid.Strict, true}
	case "DISABLE":
		return peerMode{tlsid.Disable, true}
	}
	return peerMode{}
}

// or returns m, or inherited if m is unset.
func (m peerMode) or(inherited peerMode) peerMode {
	if m.set {
		return m
	}
	return inherited
}

// labelKey returns a string that is the same for equal labels. Labels in documents contain neither "=" nor ",".
func labelKey(labels map[string]string) string {
	var key strings.Builder
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		key.WriteString(name + "=" + labels[name] + ",")
	}
	return key.String()
}
