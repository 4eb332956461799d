package metrics

import (
	"cmp"
	"strings"

	"github.com/nosidecar/mesh/internal/peermeta"

	"github.com/nosidecar/mesh/internal/workload"
)

const unknown = workload.Unknown

// identity is everything that the labels say about who called whom. It is the same for all calls of one path, and so what series
// are kept by.
type identity struct {
	inbound       bool // the reporter is the destination
	from, to      workload.Workload
	fromID, toID  string // principals
	host          string // destination_service
	hostName      string // destination_service_name
	hostNamespace string // destination_service_namespace
}

// byMetadata returns the workload that a peer says it is.
func byMetadata(m *peermeta.Metadata, cluster string) workload.Workload {
	return workload.Describe(m.Workload, m.Namespace, cmp.Or(m.Cluster, cluster), m.Labels)
}

// service is a destination as the labels name it.
type service struct{ host, name, namespace string }

// named returns the service of a host. One without a dot is a name in the own namespace.
func (c *settings) named(host string) service {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" {
		return service{unknown, unknown, unknown}
	}
	if !strings.Contains(host, ".") && !strings.Contains(host, ":") {
		host += "." + c.namespace + c.suffix
	} else if strings.HasSuffix(host, ".svc") {
		host += "." + c.domain
	}
	host = workload.Bounded(host)
	if rest, ok := strings.CutSuffix(host, c.suffix); ok {
		if name, namespace, ok := strings.Cut(rest, "."); ok {
			return service{host, name, namespace}
		}
	}
	return service{host, host, c.namespace} // of a ServiceEntry, or what DNS knows
}

// The names for hosts outside the mesh, which have no others: callers choose them without bound.
const (
	passedThrough = "PassthroughCluster"
	blackHole     = "BlackHoleCluster"
)
