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

// state says how a kind of document is treated.
type state uint8

const (
	unknown     state = iota
	enforced          // compiled
	refused           // an error: it would change how traffic is handled, but is not enforced
	meaningless       // skipped: it does not concern traffic between processes that use this library
)

// api describes an API group. If versions is nil, every version has the kinds. Other kinds are errors, unless the group belongs to Kubernetes
// itself.
type api struct {
	versions []string
	kinds    map[string]state
}

// apis returns the API groups that are related to a mesh, by name.
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
	security := kinds(enforced, "PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication")
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

// lookUp returns the state of a kind and, unless it is enforced, the reason.
func lookUp(apis map[string]api, group, version, kind string) (state, string) {
	skipped := fmt.Sprintf("a %s has no meaning in-process: it is skipped", kind)
	a, known := apis[group]
	if !known || a.kinds[kind] == unknown && kubernetes(group) {
		// A document that should be enforced must not be skipped because of a mistake in its apiVersion. The names of Kubernetes' own
		// kinds are excepted, since others use them too.
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

// stateOf returns the state of a kind of Consul's config entries.
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

// kubernetes reports whether a group belongs to Kubernetes itself.
func kubernetes(group string) bool {
	switch group {
	case "", "apps", "autoscaling", "batch", "extensions", "policy":
		return true
	}
	return strings.HasSuffix(group, ".k8s.io")
}

// foreign reports whether a group belongs to an extension of Kubernetes, whose name has a dot, that is not related to a mesh. Folders often
// contain such documents: certificates, monitors, rollouts.
func foreign(group string) bool {
	for _, mesh := range []string{"istio.io", "linkerd.io", "smi-spec.io", consul.Group} {
		if group == mesh || strings.HasSuffix(group, "."+mesh) {
			return false
		}
	}
	return strings.Contains(group, ".")
}

// kustomization reports whether a file with this name is a Kustomization, which need not have an apiVersion or a kind.
func kustomization(file string) bool {
	name := filepath.Base(file)
	return name == "kustomization.yaml" || name == "kustomization.yml"
}
