package kubernetes

import (
	"slices"

	"github.com/nosidecar/mesh/policy/internal/catalog"
)

// kind is a kind that is followed.
type kind struct {
	catalog.Kind
	title string // its name, with its group where others have a kind of the same name
}

// kinds returns the kinds that are followed, by group.
func kinds() map[string][]kind {
	all := catalog.All()
	byGroup := make(map[string][]kind)
	for _, k := range all {
		title := k.Name
		switch k.Group {
		case "networking.istio.io", "security.istio.io", catalog.GatewayGroup:
		default:
			if slices.ContainsFunc(all, func(other catalog.Kind) bool { return other.Name == k.Name && other.Group != k.Group }) {
				title += "." + k.Group
			}
		}
		byGroup[k.Group] = append(byGroup[k.Group], kind{k, title})
	}
	return byGroup
}

// concerns reports whether documents of the kind matter to this process if they are in a namespace that is neither its own nor the root
// namespace. They do if they specify how services of that namespace are called. called says that calls go to such services, if it is the root namespace.
func (k *kind) concerns(own, root, called bool) bool {
	switch {
	case k.Group == "" && root && !own:
		return called // Services of the root namespace are like those of any other
	case own, root:
		return true
	}
	switch k.Group {
	case "", catalog.GatewayGroup, catalog.TrialGatewayGroup, "linkerd.io", "split.smi-spec.io", "specs.smi-spec.io", "consul.hashicorp.com":
		return true
	case "networking.istio.io":
		return k.Name == "VirtualService" || k.Name == "DestinationRule" || k.Name == "ServiceEntry" || k.Name == "WorkloadEntry"
	case "security.istio.io":
		return k.Name == "PeerAuthentication"
	}
	return false
}
