// Package catalog lists the kinds of documents that are known, by API group.
package catalog

import (
	"cmp"
	"maps"
	"slices"

	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// State says how a kind of document is treated.
type State uint8

// The states of a kind.
const (
	Unknown     State = iota
	Enforced          // compiled
	Refused           // an error: it would change how traffic is handled, but is not enforced
	Meaningless       // skipped: it does not concern traffic between processes that use this library
)

// API describes an API group. If Versions is nil, every version has the kinds. Other kinds are errors, unless the group belongs to Kubernetes
// itself.
type API struct {
	Versions []string // the oldest first
	Kinds    map[string]State
}

// Groups returns the API groups that are related to a mesh, by name. The caller owns the map.
func Groups() map[string]API {
	of := func(s State, names ...string) map[string]State {
		m := make(map[string]State, len(names))
		for _, name := range names {
			m[name] = s
		}
		return m
	}
	traffic := of(Refused, "Sidecar", "WorkloadEntry", "WorkloadGroup", "EnvoyFilter", "ProxyConfig")
	traffic["VirtualService"], traffic["DestinationRule"], traffic["ServiceEntry"] = Enforced, Enforced, Enforced
	traffic["Gateway"] = Meaningless
	security := of(Enforced, "PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication")
	gateway := of(Refused, "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy", "ReferenceGrant")
	gateway["Gateway"], gateway["GatewayClass"] = Meaningless, Meaningless
	specs := of(Refused, "TCPRoute", "UDPRoute")
	specs["HTTPRouteGroup"] = Enforced
	consuls := of(Refused, consul.OtherObjects...)
	for object, kind := range consul.Objects {
		consuls[object] = OfEntry(kind)
	}
	alpha := []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"}
	return map[string]API{
		"":                    {[]string{"v1"}, of(Enforced, "Service")},
		istio.Group:           {[]string{"v1alpha3", "v1beta1", "v1"}, traffic},
		istio.SecurityGroup:   {[]string{"v1beta1", "v1"}, security},
		istio.TelemetryGroup:  {[]string{"v1alpha1", "v1"}, of(Enforced, "Telemetry")},
		"extensions.istio.io": {Kinds: of(Refused, "WasmPlugin", "TrafficExtension")},
		linkerd.Group:         {[]string{"v1alpha1", "v1alpha2"}, of(Enforced, "ServiceProfile")},
		"policy.linkerd.io": {Kinds: of(Refused, "Server", "ServerAuthorization", "AuthorizationPolicy",
			"MeshTLSAuthentication", "NetworkAuthentication", "HTTPRoute", "HTTPLocalRateLimitPolicy", "EgressNetwork")},
		smi.SplitGroup:              {alpha, of(Enforced, "TrafficSplit")},
		smi.SpecsGroup:              {alpha, specs},
		"access.smi-spec.io":        {Kinds: of(Refused, "TrafficTarget")},
		"gateway.networking.k8s.io": {Kinds: gateway},
		consul.Group:                {[]string{"v1alpha1"}, consuls},
	}
}

// OfEntry returns the state of a kind of Consul's config entries.
func OfEntry(kind string) State {
	switch {
	case slices.Contains(consul.Others, kind):
		return Refused
	case slices.Contains(slices.Collect(maps.Values(consul.Objects)), kind):
		return Enforced
	}
	return Unknown
}

// Kind is a kind that is not skipped.
type Kind struct {
	Group, Name string
	Versions    []string // the versions that are read, the oldest first; nil means all
	Protects    bool     // documents of this kind restrict who may call whom, so that one that cannot be read may forbid anything
}

// All returns the kinds that are compiled or refused, sorted by group and name.
func All() []Kind {
	var all []Kind
	for group, api := range Groups() {
		for name, state := range api.Kinds {
			if state == Enforced || state == Refused {
				all = append(all, Kind{group, name, api.Versions, Protects(group, name)})
			}
		}
	}
	slices.SortFunc(all, func(a, b Kind) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// Protects reports whether documents of a kind restrict who may call whom.
func Protects(group, kind string) bool {
	switch group {
	case istio.SecurityGroup, "access.smi-spec.io":
		return true
	case "policy.linkerd.io":
		return kind != "HTTPRoute" && kind != "HTTPLocalRateLimitPolicy" && kind != "EgressNetwork"
	case consul.Group:
		return kind == "ServiceIntentions"
	}
	return false
}
