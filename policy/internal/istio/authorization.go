package istio

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/policy/authz"
)

// LocalTrustDomain is the name by which principals in documents refer to the trust domain of the workload.
const LocalTrustDomain = "cluster.local"

// Policy translates the document, which must have passed Check, for workloads of a trust domain.
func (ap *AuthorizationPolicy) Policy(trustDomain string) authz.Policy {
	p := authz.Policy{
		Name:   ap.Namespace() + "/" + ap.Metadata.Name,
		Action: actions[ap.Spec.Action],
		Rules:  make([]authz.Rule, len(ap.Spec.Rules)),
	}
	p.DryRun, _ = strconv.ParseBool(ap.Metadata.Annotations[dryRun])
	t := translation{namespace: ap.Namespace(), trustDomain: trustDomain}
	for i := range ap.Spec.Rules {
		p.Rules[i] = t.rule(&ap.Spec.Rules[i])
	}
	return p
}

var actions = map[string]authz.Action{"": authz.Allow, "ALLOW": authz.Allow, "DENY": authz.Deny, "AUDIT": authz.Audit}

// Selects reports whether the policy applies to a workload with the given namespace and labels. A policy in the root namespace applies
// to workloads of all namespaces. A policy that is attached to a gateway or waypoint applies to none.
func (ap *AuthorizationPolicy) Selects(namespace string, labels map[string]string, rootNamespace string) bool {
	if attached(ap.Spec.TargetRef, ap.Spec.TargetRefs) {
		return false
	}
	return (ap.Namespace() == namespace || ap.Namespace() == rootNamespace) && ap.Spec.Selector.Selects(labels)
}

// translation has what the meaning of names in a policy depends on.
type translation struct {
	namespace, trustDomain string
}

func (t translation) rule(r *AuthorizationRule) authz.Rule {
	var out authz.Rule
	for _, from := range r.From {
		s := from.Source
		out.From = append(out.From, authz.Source{
			Principals:        t.principals(s.Principals),
			NotPrincipals:     t.principals(s.NotPrincipals),
			RequestPrincipals: s.RequestPrincipals, NotRequestPrincipals: s.NotRequestPrincipals,
			Namespaces:         s.Namespaces,
			NotNamespaces:      s.NotNamespaces,
			ServiceAccounts:    t.serviceAccounts(s.ServiceAccounts),
			NotServiceAccounts: t.serviceAccounts(s.NotServiceAccounts),
			TrustDomains:       s.TrustDomains,
			NotTrustDomains:    s.NotTrustDomains,
			IPBlocks:           networks(s.IPBlocks),
			NotIPBlocks:        networks(s.NotIPBlocks),
			RemoteIPBlocks:     networks(s.RemoteIPBlocks),
			NotRemoteIPBlocks:  networks(s.NotRemoteIPBlocks),
		})
	}
	for _, to := range r.To {
		o := to.Operation
		out.To = append(out.To, authz.Operation{
			Hosts:      o.Hosts,
			NotHosts:   o.NotHosts,
			Methods:    o.Methods,
			NotMethods: o.NotMethods,
			Paths:      o.Paths,
			NotPaths:   o.NotPaths,
			Ports:      ports(o.Ports),
			NotPorts:   ports(o.NotPorts),
		})
	}
	for _, w := range r.When {
		values, notValues := w.Values, w.NotValues
		switch w.Key {
		case "source.principal":
			values, notValues = t.principals(values), t.principals(notValues)
		case "source.serviceAccount":
			values, notValues = t.serviceAccounts(values), t.serviceAccounts(notValues)
		}
		out.When = append(out.When, authz.Condition{Key: w.Key, Values: values, NotValues: notValues})
	}
	return out
}

// principals replaces LocalTrustDomain by the workload's trust domain. Like Istio, it does so only in complete identities. A principal
// with a wildcard in its trust domain or its first segments is unchanged.
func (t translation) principals(values []string) []string {
	return each(values, func(value string) string {
		if rest, ok := strings.CutPrefix(value, LocalTrustDomain+"/"); ok && strings.Count(rest, "/") == 3 {
			return t.trustDomain + "/" + rest
		}
		return value
	})
}

// serviceAccounts adds the namespace of the policy to names without a namespace.
func (t translation) serviceAccounts(values []string) []string {
	return each(values, func(value string) string {
		if strings.Contains(value, "/") {
			return value
		}
		return t.namespace + "/" + value
	})
}

func networks(values []string) []netip.Prefix {
	return each(values, func(value string) netip.Prefix {
		prefix, _ := authz.ParsePrefix(value) // Check has reported errors
		return prefix
	})
}

func ports(values []string) []uint16 {
	return each(values, func(value string) uint16 {
		n, _ := strconv.ParseUint(value, 10, 16) // Check has reported errors
		return uint16(n)
	})
}

// each returns the results of f for the elements of a list.
func each[T any](list []string, f func(string) T) []T {
	var out []T
	for _, value := range list {
		out = append(out, f(value))
	}
	return out
}
