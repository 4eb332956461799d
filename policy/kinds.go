package policy

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// state says what becomes of a kind of document.
type state uint8

const (
	unknown     state = iota
	enforced          // compiled
	refused           // it would change how traffic is handled, but is not enforced
	meaningless       // it does not concern traffic between processes that use this library
)

// api is what is known about an API group. Without versions, every version has the kinds. Other kinds are mistakes, unless
// the group is one of Kubernetes.
type api struct {
	versions []string
	kinds    map[string]state
}

// apis returns the groups that have to do with a mesh, by name.
func apis() map[string]api {
	kinds := func(s state, names ...string) map[string]state {
		m := make(map[string]state, len(names))
		for _, name := range names {
			m[name] = s
		}
		return m
	}
	traffic := kinds(refused, "Sidecar", "WorkloadEntry", "WorkloadGroup", "EnvoyFilter", "ProxyConfig")
	traffic["VirtualService"], traffic["DestinationRule"], traffic["ServiceEntry"] = enforced, enforced, enforced
	traffic["Gateway"] = meaningless
	security := kinds(refused, "RequestAuthentication")
	security["PeerAuthentication"], security["AuthorizationPolicy"] = enforced, enforced
	gateway := kinds(refused, "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy", "ReferenceGrant")
	gateway["Gateway"], gateway["GatewayClass"] = meaningless, meaningless
	specs := kinds(refused, "TCPRoute", "UDPRoute")
	specs["HTTPRouteGroup"] = enforced
	consuls := kinds(refused, consul.OtherObjects...)
	for object, kind := range consul.Objects {
		consuls[object] = stateOf(kind)
	}
	alpha := []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"}
	return map[string]api{
		"":                    {[]string{"v1"}, kinds(enforced, "Service")},
		istio.Group:           {[]string{"v1alpha3", "v1beta1", "v1"}, traffic},
		istio.SecurityGroup:   {[]string{"v1beta1", "v1"}, security},
		istio.TelemetryGroup:  {[]string{"v1alpha1", "v1"}, kinds(enforced, "Telemetry")},
		"extensions.istio.io": {kinds: kinds(refused, "WasmPlugin")},
		linkerd.Group:         {[]string{"v1alpha1", "v1alpha2"}, kinds(enforced, "ServiceProfile")},
		"policy.linkerd.io": {kinds: kinds(refused, "Server", "ServerAuthorization", "AuthorizationPolicy",
			"MeshTLSAuthentication", "NetworkAuthentication", "HTTPRoute", "HTTPLocalRateLimitPolicy", "EgressNetwork")},
		smi.SplitGroup:              {alpha, kinds(enforced, "TrafficSplit")},
		smi.SpecsGroup:              {alpha, specs},
		"access.smi-spec.io":        {kinds: kinds(refused, "TrafficTarget")},
		"gateway.networking.k8s.io": {kinds: gateway},
		consul.Group:                {[]string{"v1alpha1"}, consuls},
	}
}

// lookUp says what becomes of a kind and, if it is not compiled, why.
func lookUp(apis map[string]api, group, version, kind string) (state, string) {
	skipped := fmt.Sprintf("a %s has no meaning in-process: it is skipped", kind)
	a, known := apis[group]
	if !known || a.kinds[kind] == unknown && kubernetes(group) {
		// A document that is to be enforced must not be skipped because of a mistake in its apiVersion. Kubernetes' own
		// kinds have names that others use too.
		for _, other := range slices.Sorted(maps.Keys(apis)) {
			if s := apis[other].kinds[kind]; other != "" && (s == enforced || s == refused) {
				return unknown, fmt.Sprintf("a %s belongs to %s: correct apiVersion", kind, other)
			}
		}
		if kubernetes(group) {
			return meaningless, skipped
		}
		if foreign(group) {
			return meaningless, fmt.Sprintf("a %s of %s is not about a mesh: it is skipped", kind, group)
		}
		return unknown, fmt.Sprintf("unknown API %q: check apiVersion and kind", group+"/"+version)
	}
	if a.versions != nil && !slices.Contains(a.versions, version) {
		return unknown, fmt.Sprintf("unknown version %q of %s: use one of %s", version, cmp.Or(group, kind), strings.Join(a.versions, ", "))
	}
	switch a.kinds[kind] {
	case enforced:
		return enforced, ""
	case refused:
		return refused, kind + " is not enforced yet"
	case meaningless:
		return meaningless, skipped
	}
	hint := ""
	if near := yamldoc.Closest(kind, slices.Sorted(maps.Keys(a.kinds))); near != "" {
		hint = ", did you mean " + near + "?"
	}
	return unknown, fmt.Sprintf("unknown kind %q of %s%s", kind, group, hint)
}

// stateOf says what becomes of a kind of Consul's config entries.
func stateOf(kind string) state {
	switch {
	case slices.Contains(consul.Others, kind):
		return refused
	case slices.Contains(slices.Collect(maps.Values(consul.Objects)), kind):
		return enforced
	}
	return unknown
}

// lookUpEntry is lookUp for the kind of a config entry of Consul.
func lookUpEntry(kind string) (state, string) {
	switch s := stateOf(kind); s {
	case unknown:
		hint := ""
		if near := yamldoc.Closest(kind, slices.Sorted(maps.Values(consul.Objects))); near != "" {
			hint = ", did you mean " + near + "?"
		}
		return unknown, fmt.Sprintf("unknown kind %q of Consul's config entries%s", kind, hint)
	case refused:
		return refused, kind + " is not enforced yet"
	}
	return enforced, ""
}

// kubernetes says that a group belongs to Kubernetes itself.
func kubernetes(group string) bool {
	switch group {
	case "", "apps", "autoscaling", "batch", "extensions", "policy":
		return true
	}
	return strings.HasSuffix(group, ".k8s.io")
}

// foreign reports whether a group belongs to an extension of Kubernetes, whose names have dots, that has nothing to do with a
// mesh. Folders often hold such documents too: certificates, monitors, rollouts.
func foreign(group string) bool {
	for _, mesh := range []string{"istio.io", "linkerd.io", "smi-spec.io", consul.Group} {
		if group == mesh || strings.HasSuffix(group, "."+mesh) {
			return false
		}
	}
	return strings.Contains(group, ".")
}

// kustomization says that a file of this name is a Kustomization, which needs to name neither API nor kind.
func kustomization(file string) bool {
	name := filepath.Base(file)
	return name == "kustomization.yaml" || name == "kustomization.yml"
}
