package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/istio"
)

// state says what becomes of a kind of document.
type state uint8

const (
	unknown     state = iota
	enforced          // compiled
	refused           // it would change how traffic is handled, but is not enforced
	meaningless       // it does not concern traffic between processes that use this library
)

// api is what is known of an API group.
type api struct {
	versions []string
	kinds    map[string]state
}

// apis lists the groups of the documents that a mesh knows, by name.
func apis(group string) (api, bool) {
	kinds := func(s state, names ...string) map[string]state {
		m := make(map[string]state, len(names))
		for _, name := range names {
			m[name] = s
		}
		return m
	}
	switch group {
	case istio.Group:
		k := kinds(refused, "ServiceEntry", "Sidecar", "WorkloadEntry", "WorkloadGroup", "EnvoyFilter", "ProxyConfig")
		k["VirtualService"], k["DestinationRule"] = enforced, enforced
		k["Gateway"] = meaningless
		return api{[]string{"v1alpha3", "v1beta1", "v1"}, k}, true
	case "security.istio.io":
		return api{kinds: kinds(refused, "PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication")}, true
	case "telemetry.istio.io":
		return api{kinds: kinds(refused, "Telemetry")}, true
	case "extensions.istio.io":
		return api{kinds: kinds(refused, "WasmPlugin")}, true
	case "linkerd.io":
		return api{kinds: kinds(refused, "ServiceProfile")}, true
	case "policy.linkerd.io":
		return api{kinds: kinds(refused, "Server", "ServerAuthorization", "AuthorizationPolicy", "MeshTLSAuthentication",
			"NetworkAuthentication", "HTTPRoute", "HTTPLocalRateLimitPolicy", "EgressNetwork")}, true
	case "split.smi-spec.io":
		return api{kinds: kinds(refused, "TrafficSplit")}, true
	case "specs.smi-spec.io":
		return api{kinds: kinds(refused, "HTTPRouteGroup", "TCPRoute", "UDPRoute")}, true
	case "access.smi-spec.io":
		return api{kinds: kinds(refused, "TrafficTarget")}, true
	case "gateway.networking.k8s.io":
		k := kinds(refused, "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy", "ReferenceGrant")
		k["Gateway"], k["GatewayClass"] = meaningless, meaningless
		return api{kinds: k}, true
	}
	return api{}, false
}

// lookUp says what becomes of a kind and, if it is not compiled, why.
func lookUp(group, version, kind string) (state, string) {
	a, known := apis(group)
	switch {
	case !known && kubernetes(group):
		return meaningless, fmt.Sprintf("a %s has no meaning in-process: it is skipped", kind)
	case !known:
		return unknown, fmt.Sprintf("unknown API %q: check apiVersion and kind", group+"/"+version)
	case a.versions != nil && !slices.Contains(a.versions, version):
		return unknown, fmt.Sprintf("unknown version %q of %s: use one of %s", version, group, strings.Join(a.versions, ", "))
	}
	switch a.kinds[kind] {
	case enforced:
		return enforced, ""
	case refused:
		return refused, kind + " is not enforced yet"
	case meaningless:
		return meaningless, fmt.Sprintf("a %s has no meaning in-process: it is skipped", kind)
	}
	hint := ""
	if near := yamldoc.Closest(kind, slices.Sorted(maps.Keys(a.kinds))); near != "" {
		hint = ", did you mean " + near + "?"
	}
	return unknown, fmt.Sprintf("unknown kind %q of %s%s", kind, group, hint)
}

// kubernetes says that a group belongs to Kubernetes itself: its core and those without a domain of their own or with
// one of its project.
func kubernetes(group string) bool {
	return !strings.Contains(group, ".") || strings.HasSuffix(group, ".k8s.io")
}
