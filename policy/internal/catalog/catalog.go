// Package catalog lists the kinds of documents that are known, by API group.
package catalog

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/gateway"
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
	Instead  map[string]string   // what to do about the kinds that are refused
	Of       map[string][]string // the versions of kinds that have others than the group
}

// VersionsOf returns the versions of a kind, the oldest first; nil means all.
func (a *API) VersionsOf(kind string) []string {
	if versions := a.Of[kind]; versions != nil {
		return versions
	}
	return a.Versions
}

// The groups of the Gateway API. The second one has what is on trial.
const (
	GatewayGroup      = gateway.Group
	TrialGatewayGroup = gateway.TrialGroup
)

// ExtensionsGroup is the group of what extends the proxies of Istio.
const ExtensionsGroup = "extensions.istio.io"

// What to do about kinds that are refused.
const (
	traffic     = "set trafficPolicy of a DestinationRule of " + istio.Group
	permissions = "write an AuthorizationPolicy of " + istio.SecurityGroup
	outside     = "write a ServiceEntry of " + istio.Group
	noUDP       = "remove it: UDP is not carried"
	noTCPRoutes = "remove it: connections are not routed, only requests"
	extensions  = "there is no proxy to extend: do it in the program, around its client or handler"
)

// Groups returns the API groups that are related to a mesh, by name. The caller owns the map.
func Groups() map[string]API {
	enforced := func(names ...string) map[string]State {
		m := make(map[string]State, len(names))
		for _, name := range names {
			m[name] = Enforced
		}
		return m
	}
	networking := enforced("VirtualService", "DestinationRule", "ServiceEntry", "Sidecar")
	networking["Gateway"] = Meaningless
	security := enforced("PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication")
	consuls := make(map[string]State)
	for object, kind := range consul.Objects {
		consuls[object] = OfEntry(kind)
	}
	for _, kind := range consul.Skipped {
		if kind != strings.ToLower(kind) { // the others are kinds of entries
			consuls[kind] = Meaningless
		}
	}
	alpha := []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"}
	groups := map[string]API{
		"": {Versions: []string{"v1"}, Kinds: enforced("Service")},
		istio.Group: {Versions: []string{"v1alpha3", "v1beta1", "v1"}, Kinds: networking, Instead: map[string]string{
			"WorkloadEntry": "list it in the endpoints of a ServiceEntry", "WorkloadGroup": "list its members in the endpoints of a ServiceEntry",
			"EnvoyFilter": extensions, "ProxyConfig": "remove it: there is no proxy to configure",
		}},
		istio.SecurityGroup:  {Versions: []string{"v1beta1", "v1"}, Kinds: security},
		istio.TelemetryGroup: {Versions: []string{"v1alpha1", "v1"}, Kinds: enforced("Telemetry")},
		ExtensionsGroup:      {Instead: map[string]string{"WasmPlugin": extensions, "TrafficExtension": extensions}},
		linkerd.Group:        {Versions: []string{"v1alpha1", "v1alpha2"}, Kinds: enforced("ServiceProfile")},
		linkerd.PolicyGroup: {
			Kinds: enforced("HTTPRoute", "Server", "ServerAuthorization", "AuthorizationPolicy", "MeshTLSAuthentication", "NetworkAuthentication"),
			Of: map[string][]string{
				"HTTPRoute": {"v1alpha1", "v1beta1", "v1beta2", "v1beta3"},
				"Server":    {"v1alpha1", "v1beta1", "v1beta2", "v1beta3"}, "ServerAuthorization": {"v1alpha1", "v1beta1"},
				"AuthorizationPolicy": {"v1alpha1"}, "MeshTLSAuthentication": {"v1alpha1"}, "NetworkAuthentication": {"v1alpha1"},
			},
			Instead: map[string]string{"HTTPLocalRateLimitPolicy": "set RateLimit of mesh.ServerConfig", "EgressNetwork": outside},
		},
		smi.SplitGroup:  {Versions: alpha, Kinds: enforced("TrafficSplit")},
		smi.SpecsGroup:  {Versions: alpha, Kinds: enforced("HTTPRouteGroup", "TCPRoute"), Instead: map[string]string{"UDPRoute": noUDP}},
		smi.AccessGroup: {Versions: alpha[:3], Kinds: enforced("TrafficTarget")},
		GatewayGroup: {Kinds: map[string]State{"Gateway": Meaningless, "GatewayClass": Meaningless, "ListenerSet": Meaningless, "ReferenceGrant": Meaningless, "HTTPRoute": Enforced, "GRPCRoute": Enforced},
			Of: map[string][]string{"HTTPRoute": {"v1alpha2", "v1beta1", "v1"}, "GRPCRoute": {"v1alpha2", "v1"}}, Instead: map[string]string{
				"BackendLBPolicy": traffic, "TLSRoute": noTCPRoutes, "TCPRoute": noTCPRoutes, "UDPRoute": noUDP,
				"BackendTLSPolicy": "set trafficPolicy.tls of a DestinationRule of " + istio.Group,
			}},
		TrialGatewayGroup: {Kinds: map[string]State{"XListenerSet": Meaningless, "XMesh": Meaningless}, Instead: map[string]string{"XBackendTrafficPolicy": traffic}},
		consul.Group:      {Versions: []string{"v1alpha1"}, Kinds: consuls, Instead: maps.Clone(consul.OtherObjects)},
	}
	for name, group := range groups {
		if group.Kinds == nil {
			group.Kinds = make(map[string]State)
		}
		for kind := range group.Instead {
			group.Kinds[kind] = Refused
		}
		groups[name] = group
	}
	return groups
}

// OfEntry returns the state of a kind of Consul's config entries.
func OfEntry(kind string) State {
	switch {
	case consul.Others[kind] != "":
		return Refused
	case kind == strings.ToLower(kind) && slices.Contains(consul.Skipped, kind):
		return Meaningless
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
				all = append(all, Kind{group, name, api.VersionsOf(name), Protects(group, name)})
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
	case istio.SecurityGroup, smi.AccessGroup:
		return true
	case linkerd.PolicyGroup:
		return kind != "HTTPRoute" && kind != "HTTPLocalRateLimitPolicy" && kind != "EgressNetwork"
	case consul.Group:
		return kind == "ServiceIntentions"
	case "kuma.io", "policy.openservicemesh.io": // of meshes whose documents are not read
		return slices.Contains([]string{"Mesh", "MeshTLS", "MeshTrafficPermission", "TrafficPermission", "IngressBackend"}, kind)
	}
	return false
}
