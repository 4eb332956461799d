package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// lookUp returns the state of a kind and, unless it is enforced, the reason.
func lookUp(apis map[string]catalog.API, group, version, kind string) (catalog.State, string) {
	if strings.TrimSuffix(strings.ToLower(kind), "s") == "list" {
		return catalog.Unknown, fmt.Sprintf("%s of %s is unknown: a list of documents is a List of v1", one(kind), group+"/"+version)
	}
	if answer(group, kind) {
		return catalog.Unknown, fmt.Sprintf("%s is an answer of an API server, not a document: put the documents there", one(kind))
	}
	skipped := fmt.Sprintf("%s has no meaning in-process: it is skipped", one(kind))
	a, known := apis[group]
	if !known && otherMesh(group) {
		return catalog.Unknown, fmt.Sprintf("%s of %s belongs to a mesh whose documents are not read: write those of %s, or remove it", one(kind), group, istio.Group)
	}
	if !known || a.Kinds[kind] == catalog.Unknown && kubernetes(group) {
		// A document that should be enforced must not be skipped because of a mistake in its apiVersion. The names of Kubernetes' own
		// kinds are excepted, since others use them too.
		var others []string
		for _, other := range slices.Sorted(maps.Keys(apis)) {
			if s := apis[other].Kinds[kind]; other != "" && (s == catalog.Enforced || s == catalog.Refused) {
				others = append(others, other)
			}
		}
		if others != nil {
			return catalog.Unknown, fmt.Sprintf("%s belongs to %s: correct apiVersion", one(kind), strings.Join(others, " or "))
		}
		if kubernetes(group) {
			return catalog.Meaningless, skipped
		}
		if remedy := retired(group); remedy != "" {
			return catalog.Unknown, fmt.Sprintf("%s of %s is not read: %s", one(kind), group, remedy)
		}
		if foreign(group) {
			return catalog.Meaningless, fmt.Sprintf("%s of %s is not about a mesh: it is skipped", one(kind), group)
		}
		return catalog.Unknown, fmt.Sprintf("unknown API %q: check apiVersion and kind", group+"/"+version)
	}
	if versions := a.VersionsOf(kind); versions != nil && !slices.Contains(versions, version) {
		of := cmp.Or(group, kind)
		if a.Of[kind] != nil {
			of = kind
		}
		return catalog.Unknown, fmt.Sprintf("unknown version %q of %s: use one of %s", version, of, strings.Join(versions, ", "))
	}
	switch a.Kinds[kind] {
	case catalog.Enforced:
		return catalog.Enforced, ""
	case catalog.Refused:
		return catalog.Refused, kind + " is not enforced yet: " + a.Instead[kind]
	case catalog.Meaningless:
		return catalog.Meaningless, skipped
	}
	return catalog.Unknown, fmt.Sprintf("unknown kind %q of %s%s", kind, group, yamldoc.Hint(kind, slices.Sorted(maps.Keys(a.Kinds))))
}

// lookUpEntry is lookUp for the kind of a config entry of Consul.
func lookUpEntry(kind string) (catalog.State, string) {
	switch s := catalog.OfEntry(kind); s {
	case catalog.Unknown:
		return catalog.Unknown, fmt.Sprintf("unknown kind %q of Consul's config entries%s", kind, yamldoc.Hint(kind, slices.Sorted(maps.Values(consul.Objects))))
	case catalog.Refused:
		return catalog.Refused, kind + " is not enforced yet: " + consul.Others[kind]
	case catalog.Meaningless:
		return s, fmt.Sprintf("%s has no meaning in-process: it is skipped", one(kind))
	}
	return catalog.Enforced, ""
}

// answer reports whether a document is an answer of an API server that is no document, such as an error. Whoever stored it wanted others.
func answer(group, kind string) bool {
	switch kind {
	case "Status", "Table", "WatchEvent", "PartialObjectMetadata":
		return group == "" || group == "meta.k8s.io"
	}
	return false
}

// one returns a kind with its article.
func one(kind string) string {
	if kind != "" && strings.IndexByte("AEIOUaeiou", kind[0]) >= 0 {
		return "an " + kind
	}
	return "a " + kind
}

// kubernetes reports whether a group belongs to Kubernetes itself.
func kubernetes(group string) bool {
	switch group {
	case "", "apps", "autoscaling", "batch", "extensions", "policy":
		return true
	case catalog.GatewayGroup, catalog.TrialGatewayGroup: // whose kinds are about meshes, too
		return false
	}
	return strings.HasSuffix(group, ".k8s.io")
}

// otherMesh reports whether a group belongs to a mesh whose documents are not read. They say what would not be in force.
func otherMesh(group string) bool {
	for _, mesh := range []string{"kuma.io", "appmesh.k8s.aws", "openservicemesh.io"} {
		if group == mesh || strings.HasSuffix(group, "."+mesh) {
			return true
		}
	}
	return false
}

// retired returns what to do about the documents of a group that Istio no longer reads, or that install a mesh; "" for other groups.
func retired(group string) string {
	switch group {
	case "authentication.istio.io":
		return "Istio has removed its API: write a PeerAuthentication or a RequestAuthentication of " + istio.SecurityGroup
	case "rbac.istio.io":
		return "Istio has removed its API: write an AuthorizationPolicy of " + istio.SecurityGroup
	case "config.istio.io":
		return "Istio has removed its API, that of Mixer: remove it"
	case "install.istio.io":
		return "it installs Istio: remove it; settings of a whole mesh are options of the program, such as mesh.WithRegistryOnly"
	case "multicluster.linkerd.io":
		return "it links clusters of Linkerd through gateways: remove it, and list the endpoints in a ServiceEntry of " + istio.Group
	}
	return ""
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
